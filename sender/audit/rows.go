package audit

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// rows are what a block adds to each table.
type rows struct {
	outcomes []outcomeRow
	states   []stateRow
	events   []eventRow
	copies   []copyRow
	changes  []changeRow
	webhooks []webhookRow

	// bytes is about what they take in memory.
	bytes int
}

type outcomeRow struct {
	place
	schemas.Outcome
}

// stateRow is a state of a delivery: delivery_states.
type stateRow struct {
	place
	organization, account, webhookID, deliveryID, messageID, eventID, event string
	cause, state, reason                                                    string
	attempts, statusCode                                                    int
	eventTime, acceptedAt, routedAt, updatedAt, nextAttemptAt               time.Time
	version                                                                 uint64
}

// eventRow is an original event: event_log.
type eventRow struct {
	place
	organization, account, eventID, event, cause, source, subject string
	eventTime, acceptedAt, routedAt                               time.Time
	body                                                          []byte
	matches                                                       *uint32
}

// copyRow is an event that came again, or under an id that another has: event_copies.
type copyRow struct {
	place
	organization, account, eventID, event, result string
	eventTime, acceptedAt, routedAt               time.Time
}

type changeRow struct {
	place
	schemas.Change
}

// webhookRow is a revision of a webhook: webhooks.
type webhookRow struct {
	place
	schemas.Webhook
	actor     string
	deleted   bool
	changedAt time.Time
}

// rowBytes is what a row takes besides its texts: its fields, and what
// allocation rounds up.
const rowBytes = 512

// merge appends other's rows.
func (r *rows) merge(other *rows) {
	r.outcomes = append(r.outcomes, other.outcomes...)
	r.states = append(r.states, other.states...)
	r.events = append(r.events, other.events...)
	r.copies = append(r.copies, other.copies...)
	r.changes = append(r.changes, other.changes...)
	r.webhooks = append(r.webhooks, other.webhooks...)
	r.bytes += other.bytes
}

// count is the number of all rows.
func (r *rows) count() int {
	return len(r.outcomes) + len(r.states) + len(r.events) + len(r.copies) + len(r.changes) + len(r.webhooks)
}

// addOutcome adds a record of outcomes: a row, and the delivery's state after it.
func (r *rows) addOutcome(topic [16]byte, rec *kgo.Record) error {
	o, err := schemas.DecodeOutcome(rec)
	if err != nil {
		return fmt.Errorf("decoding outcome: %w", err)
	}
	at := place{topic, rec.Partition, rec.Offset}
	r.outcomes = append(r.outcomes, outcomeRow{at, o})
	r.states = append(r.states, stateRow{
		place:        at,
		organization: o.Organization, account: o.Account, webhookID: o.WebhookID,
		deliveryID: o.DeliveryID.String(), messageID: o.MessageID, eventID: o.EventID, event: o.Event,
		cause: string(o.Cause), state: string(o.Result), reason: o.Reason,
		attempts: o.Attempt, statusCode: o.StatusCode,
		eventTime: o.EventTime, acceptedAt: o.AcceptedAt, routedAt: o.RoutedAt,
		updatedAt:     o.StartedAt.Add(time.Duration(o.DurationMS * float64(time.Millisecond))),
		nextAttemptAt: o.NextAttemptAt,
		version:       uint64(rec.Offset) + 1, //nolint:gosec // offsets are not negative
	})
	r.bytes += 2*rowBytes + len(rec.Value)
	return nil
}

// statePending is the state of a delivery that has no outcome yet.
const statePending = "pending"

// addDelivery adds a record of deliveries: its first state, and its event where
// events has none.
func (r *rows) addDelivery(topic [16]byte, rec *kgo.Record) error {
	d, err := schemas.DecodeDelivery(rec, topic)
	if err != nil {
		return fmt.Errorf("decoding delivery: %w", err)
	}
	at := place{topic, rec.Partition, rec.Offset}
	r.states = append(r.states, stateRow{
		place:        at,
		organization: d.Organization, account: d.Account, webhookID: d.WebhookID,
		deliveryID: d.ID.String(), messageID: d.MessageID(), eventID: d.EventID, event: d.Event,
		cause: string(d.Cause), state: statePending,
		eventTime: d.EventTime, acceptedAt: d.AcceptedAt, routedAt: d.RoutedAt, updatedAt: d.RoutedAt,
	})
	r.bytes += rowBytes + 128
	if d.Cause != schemas.CausePing {
		return nil
	}
	one := uint32(1)
	accepted := d.AcceptedAt
	if accepted.IsZero() {
		accepted = rec.Timestamp
	}
	r.events = append(r.events, eventRow{
		place:        at,
		organization: d.Organization, account: d.Account, eventID: d.EventID, event: d.Event, cause: string(d.Cause),
		source: schemas.DefaultSource, eventTime: d.EventTime, acceptedAt: accepted, routedAt: d.RoutedAt,
		body: contractBody(&d), matches: &one,
	})
	r.bytes += rowBytes + len(d.Body)
	return nil
}

// contractBody is a delivery's body as the webhook contract has it, whatever
// format its webhook gets: so who asks with SQL finds every event's payload in
// one place. A body that is not of its format stays what was sent.
func contractBody(d *schemas.Delivery) []byte {
	if d.Format != schemas.FormatCloudEvents {
		return d.Body
	}
	e, err := schemas.DecodeCloudEvent(d.Body)
	if err != nil {
		return d.Body
	}
	return schemas.AppendBody(nil, &e)
}

// addEvent adds a record of events with what the router made of it, nil where
// that is not known any more. A record that is no event makes no row: the router
// has put it into rejected.
func (r *rows) addEvent(at place, rec *kgo.Record, entry *schemas.RoutedEntry, routedAt time.Time) {
	e, err := schemas.DecodeEvent(rec)
	if err != nil {
		return
	}
	if e.ID == "" {
		e.ID = schemas.EventIDAt(at.topic, at.partition, at.offset)
	}
	r.bytes += rowBytes
	if entry != nil && entry.Result != schemas.RoutedMatched {
		r.copies = append(r.copies, copyRow{
			place: at, organization: e.Organization, account: e.Account, eventID: e.ID, event: e.Name,
			result:    resultName(entry.Result),
			eventTime: e.Time, acceptedAt: rec.Timestamp, routedAt: routedAt,
		})
		return
	}
	row := eventRow{
		place: at, organization: e.Organization, account: e.Account, eventID: e.ID, event: e.Name, cause: string(schemas.CauseEvent),
		source: e.Source, subject: e.Subject,
		eventTime: e.Time, acceptedAt: rec.Timestamp, routedAt: routedAt,
		body: schemas.AppendBody(nil, &e),
	}
	if entry != nil {
		matches := uint32(entry.Webhooks) //nolint:gosec // a count
		row.matches = &matches
	}
	r.events = append(r.events, row)
	r.bytes += len(row.body)
}

func resultName(result schemas.RoutedResult) string {
	if result == schemas.RoutedDuplicate {
		return "duplicate"
	}
	return "rejected"
}

// addChange adds a record of changes: a row, and one for the webhook's revision
// where a webhook was changed.
func (r *rows) addChange(topic [16]byte, rec *kgo.Record) error {
	c, err := schemas.DecodeChange(rec)
	if err != nil {
		return fmt.Errorf("decoding change: %w", err)
	}
	at := place{topic, rec.Partition, rec.Offset}
	r.changes = append(r.changes, changeRow{at, c})
	r.bytes += rowBytes + len(rec.Value)
	if c.Object != objectWebhook || c.Error != "" {
		return nil
	}
	row := webhookRow{place: at, actor: c.Actor, deleted: len(c.After) == 0, changedAt: c.At}
	shown := c.After
	if row.deleted {
		shown = c.Before
	}
	// What the API shows is what the record holds, less the secrets. A change that
	// does not show its webhook has told all it has in its own row.
	if err := json.Unmarshal(shown, &row.Webhook); err == nil && row.ID != "" {
		r.webhooks = append(r.webhooks, row)
		r.bytes += rowBytes + len(shown)
	}
	return nil
}

// objectWebhook is what changes call a webhook.
const objectWebhook = "webhook"
