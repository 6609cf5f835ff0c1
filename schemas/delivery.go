package schemas

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Cause is why a delivery was made.
type Cause string

// The causes.
const (
	CauseEvent  Cause = "event"  // an event matched the webhook
	CausePing   Cause = "ping"   // its owner asked for a test event
	CauseRetry  Cause = "retry"  // an operator sent a finished delivery again
	CauseReplay Cause = "replay" // an operator sent events again
)

// Headers of deliveries, of retry tiers, of held and of dead letters.
const (
	headerWebhookID       = "webhook_id"
	headerWebhookRevision = "webhook_revision"
	headerEventID         = "event_id"
	headerEvent           = "event"
	headerOrganization    = "organization"
	headerAccount         = "account"
	headerEventTime       = "event_time"
	headerAcceptedAt      = "accepted_at"
	headerRoutedAt        = "routed_at"
	headerCause           = "cause"
	headerFormat          = "format"

	headerAttempt        = "attempt"
	headerParks          = "parks"
	headerDueAt          = "due_at"
	headerFirstAttemptAt = "first_attempt_at"
	headerDeliveryID     = "delivery_id"
	headerHeldAt         = "held_at"
	headerReason         = "reason"
)

// Delivery is one event bound for one webhook. Its value in Kafka is the request
// body, byte for byte as it will be signed and sent; all else is headers. The
// webhook's URL, secrets and limits are not in it: what is in force when it is
// sent counts.
type Delivery struct {
	// ID is its place in deliveries. In that topic it is the record's own and not written.
	ID              DeliveryID
	WebhookID       string
	WebhookRevision int64 // the lowest revision the sender must know to decide
	EventID, Event  string
	Organization    string
	Account         string
	// EventTime is the producer's, zero if it gave none; AcceptedAt is when the
	// events topic took it; RoutedAt when the router decided.
	EventTime, AcceptedAt, RoutedAt time.Time
	Cause                           Cause
	// Format is what Body was made in: that of the webhook when it was routed.
	Format Format
	Body   []byte

	// The rest is set in retry tiers, held and dead-letters only.

	// Attempt is the number of attempts made so far.
	Attempt int
	// Parks is how often in a row it was put off for want of room, without an attempt.
	Parks int
	// DueAt is when it is to be attempted: never earlier.
	DueAt          time.Time
	FirstAttemptAt time.Time
	// HeldAt is since when it has been in held; zero elsewhere.
	HeldAt time.Time
	// Reason is why a dead letter is dead.
	Reason string
}

// MessageID is what the receiver sees as webhook-id.
func (d *Delivery) MessageID() string { return MessageID(d.Organization, d.EventID, d.WebhookID) }

// Record returns the delivery's record for a topic of deliveries: keyed by its
// webhook, with its ID written where it has one. The record's value is Body itself.
func (d *Delivery) Record(topic string) *kgo.Record {
	headers := make([]kgo.RecordHeader, 0, 16)
	headers = append(headers, versionHeader())
	headers = appendText(headers, headerWebhookID, d.WebhookID)
	headers = appendInt(headers, headerWebhookRevision, d.WebhookRevision)
	headers = appendText(headers, headerEventID, d.EventID)
	headers = appendText(headers, headerEvent, d.Event)
	headers = appendText(headers, headerOrganization, d.Organization)
	headers = appendText(headers, headerAccount, d.Account)
	headers = appendTime(headers, headerEventTime, d.EventTime)
	headers = appendTime(headers, headerAcceptedAt, d.AcceptedAt)
	headers = appendTime(headers, headerRoutedAt, d.RoutedAt)
	headers = appendText(headers, headerCause, string(d.Cause))
	if d.Format != FormatPlain {
		headers = appendText(headers, headerFormat, string(d.Format))
	}
	if d.ID != (DeliveryID{}) {
		headers = appendText(headers, headerDeliveryID, d.ID.String())
		headers = appendInt(headers, headerAttempt, int64(d.Attempt))
		headers = appendInt(headers, headerParks, int64(d.Parks))
		headers = appendTime(headers, headerDueAt, d.DueAt)
		headers = appendTime(headers, headerFirstAttemptAt, d.FirstAttemptAt)
		headers = appendTime(headers, headerHeldAt, d.HeldAt)
		headers = appendText(headers, headerReason, d.Reason)
	}
	return &kgo.Record{Topic: topic, Key: []byte(d.WebhookID), Value: d.Body, Headers: headers}
}

// DecodeDelivery reads a record of deliveries, whose topic id is topicID, or, with
// the zero topic id, one of a retry tier, held or dead-letters, where the
// delivery's ID is a header. Body aliases the record's value. The error is a
// *UnknownVersionError or a *ValidationError.
func DecodeDelivery(r *kgo.Record, topicID [16]byte) (Delivery, error) {
	if err := checkVersion(r); err != nil {
		return Delivery{}, err
	}
	d := Delivery{Body: r.Value}
	var read headerReader
	for _, h := range r.Headers {
		d.set(&read, h.Key, h.Value)
	}
	if topicID != ([16]byte{}) {
		d.ID = DeliveryID{Topic: topicID, Partition: r.Partition, Offset: r.Offset}
	}
	if read.err != nil {
		return d, read.err
	}
	return d, d.check(r)
}

func (d *Delivery) set(read *headerReader, key string, value []byte) {
	switch key {
	case headerWebhookID:
		d.WebhookID = string(value)
	case headerWebhookRevision:
		d.WebhookRevision = read.integer(key, value)
	case headerEventID:
		d.EventID = string(value)
	case headerEvent:
		d.Event = string(value)
	case headerOrganization:
		d.Organization = string(value)
	case headerAccount:
		d.Account = string(value)
	case headerEventTime:
		d.EventTime = read.time(key, value)
	case headerAcceptedAt:
		d.AcceptedAt = read.time(key, value)
	case headerRoutedAt:
		d.RoutedAt = read.time(key, value)
	case headerCause:
		d.Cause = Cause(value)
	case headerFormat:
		d.Format = Format(value)
	default:
		d.setWaiting(read, key, value)
	}
}

// setWaiting reads the headers of a delivery that has left deliveries.
func (d *Delivery) setWaiting(read *headerReader, key string, value []byte) {
	switch key {
	case headerDeliveryID:
		id, err := ParseDeliveryID(string(value))
		if err != nil && read.err == nil {
			read.err = Invalid(CodeInvalidRecord, "#/"+key, err.Error())
		}
		d.ID = id
	case headerAttempt:
		d.Attempt = read.count(key, value)
	case headerParks:
		d.Parks = read.count(key, value)
	case headerDueAt:
		d.DueAt = read.time(key, value)
	case headerFirstAttemptAt:
		d.FirstAttemptAt = read.time(key, value)
	case headerHeldAt:
		d.HeldAt = read.time(key, value)
	case headerReason:
		d.Reason = string(value)
	}
}

func (d *Delivery) check(r *kgo.Record) error {
	for _, required := range []struct{ header, value string }{
		{headerWebhookID, d.WebhookID},
		{headerEventID, d.EventID},
		{headerEvent, d.Event},
		{headerOrganization, d.Organization},
	} {
		if required.value == "" {
			return Invalid(CodeInvalidRecord, "#/"+required.header, "header missing")
		}
	}
	switch d.Cause {
	case CauseEvent, CausePing, CauseRetry, CauseReplay:
	default:
		return Invalid(CodeInvalidRecord, "#/"+headerCause, fmt.Sprintf("cause %.20q is not known", string(d.Cause)))
	}
	if !validFormat(string(d.Format)) {
		return Invalid(CodeInvalidRecord, "#/"+headerFormat, fmt.Sprintf("format %.20q is not known", string(d.Format)))
	}
	if d.ID == (DeliveryID{}) {
		return Invalid(CodeInvalidRecord, "#/"+headerDeliveryID, "header missing")
	}
	if string(r.Key) != d.WebhookID {
		return Invalid(CodeInvalidRecord, "#/"+headerWebhookID, "differs from the record's key")
	}
	if len(d.Body) == 0 {
		return Invalid(CodeInvalidRecord, "#", "no body")
	}
	return nil
}
