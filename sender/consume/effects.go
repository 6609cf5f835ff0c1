package consume

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
	"github.com/postrider/postrider/sender/retry"
)

// Reasons of outcomes for which no attempt was made.
const (
	reasonDeleted  = "webhook_deleted"
	reasonDisabled = "webhook_disabled"
	reasonPaused   = "webhook_paused"
	reasonHeldLong = "held_too_long"
)

// headerDeliveryID is where a delivery that has left deliveries is named
// (schemas: Delivery). It is written here only for records of versions that this
// binary cannot read, whose place would else be lost.
const headerDeliveryID = "delivery_id"

// unreadDelay is how long a record of an unknown version waits before it is looked at again.
const unreadDelay = 30 * time.Second

// effects makes the records that say what became of a delivery. It holds no
// state; which records go into one transaction is the board's.
type effects struct {
	topics   schemas.Topics
	topicID  [16]byte // of deliveries
	schedule retry.Schedule
	instance string
	// disableAfter is how long a webhook may be failing until it is disabled; 0: for ever.
	disableAfter time.Duration
}

// tierOf returns the index of a retry topic, noTier for the others.
func (e *effects) tierOf(topic string) int {
	for tier, name := range e.topics.Retry {
		if name == topic {
			return tier
		}
	}
	return noTier
}

// idOf returns the topic's id where a delivery is named by its place, and
// nothing where its record names it.
func (e *effects) idOf(topic string) [16]byte {
	if topic == e.topics.Deliveries {
		return e.topicID
	}
	return [16]byte{}
}

// waiting returns a delivery's record for a tier, on the partition it came from.
// It enters at now, not when the transaction gets to it: no hop adds to its lateness.
func (e *effects) waiting(d *schemas.Delivery, from *kgo.Record, step retry.Step, now time.Time) *kgo.Record {
	d.DueAt = step.DueAt
	r := d.Record(e.topics.Retry[step.Tier])
	r.Partition, r.Timestamp = from.Partition, now
	return r
}

// hop returns a waiting delivery's record for its next tier.
func (e *effects) hop(r *kgo.Record, tier int, now time.Time) *kgo.Record {
	return &kgo.Record{
		Topic: e.topics.Retry[tier], Partition: r.Partition, Timestamp: now,
		Key: r.Key, Value: r.Value, Headers: r.Headers,
	}
}

// unread returns the record of a version that is not known for the tier in which
// it waits, unchanged, until a binary knows it.
func (e *effects) unread(r *kgo.Record, now time.Time) *kgo.Record {
	next := e.hop(r, retry.TierFor(unreadDelay), now)
	for _, h := range r.Headers {
		if h.Key == headerDeliveryID {
			return next
		}
	}
	id := schemas.DeliveryID{Topic: e.topicID, Partition: r.Partition, Offset: r.Offset}
	next.Headers = append(slices.Clip(r.Headers),
		kgo.RecordHeader{Key: headerDeliveryID, Value: []byte(id.String())})
	return next
}

// unreadable returns the record of a delivery whose webhook's record is of a
// version that is not known: it waits likewise, which is no attempt.
func (e *effects) unreadable(it *item, now time.Time) *kgo.Record {
	d := it.delivery
	return e.waiting(&d, it.record, retry.Step{Tier: retry.TierFor(unreadDelay), DueAt: now.Add(unreadDelay)}, now)
}

// rejected returns the record that sets a bad one aside.
func (e *effects) rejected(r *kgo.Record, err error) *kgo.Record {
	return schemas.RejectedRecord(e.topics.Rejected, r, err)
}

// park returns the record of a delivery that is put off without an attempt, for as
// long as it takes until there is room for it.
func (e *effects) park(it *item, now time.Time, wait parking) *kgo.Record {
	d := it.delivery
	step := retry.Park(d.Parks, now, wait.expected)
	if wait.known {
		step = retry.ParkFor(now, wait.expected)
	}
	d.Parks++
	d.HeldAt = time.Time{}
	return e.waiting(&d, it.record, step, now)
}

// hold returns the records of a delivery whose webhook is paused: it goes to
// held, where it may be already, and its outcome says so once.
func (e *effects) hold(it *item, w *inForce, now time.Time) ([]*kgo.Record, error) {
	d := it.delivery
	again := !d.HeldAt.IsZero()
	if !again {
		d.HeldAt = now
	}
	d.DueAt = time.Time{}
	r := d.Record(e.topics.Held)
	r.Partition, r.Timestamp = it.record.Partition, laterOf(now, it.passAt)
	if again {
		return []*kgo.Record{r}, nil
	}
	o := e.outcome(&d, w)
	o.Result, o.Reason, o.StartedAt = schemas.ResultHeld, reasonPaused, now
	return e.records(&o, r)
}

// heldTooLong reports whether a delivery may not be held any longer.
func heldTooLong(d *schemas.Delivery, now time.Time) bool {
	return !d.HeldAt.IsZero() && now.Sub(d.HeldAt) >= heldMost
}

// discarded returns the outcome of a delivery whose webhook is gone or disabled.
func (e *effects) discarded(d *schemas.Delivery, w *inForce, reason string, now time.Time) ([]*kgo.Record, error) {
	o := e.outcome(d, w)
	o.Result, o.Reason, o.StartedAt = schemas.ResultDiscarded, reason, now
	return e.records(&o)
}

// attempted returns what an attempt came to: its outcome, and the retry or the
// dead letter where it failed. chance in [0, 1) lengthens the wait.
func (e *effects) attempted(it *item, w *inForce, a *deliver.Attempt, v deliver.Verdict, now time.Time, chance float64) (schemas.Result, []*kgo.Record, error) {
	d := it.delivery
	d.Attempt++
	d.Parks, d.HeldAt = 0, time.Time{}
	d.WebhookRevision = max(d.WebhookRevision, w.Revision) // the next owner decides on no less than we did
	if d.FirstAttemptAt.IsZero() {
		d.FirstAttemptAt = a.StartedAt
	}
	o := e.outcome(&d, w)
	o.Reason = string(v.Reason)
	describe(&o, a)

	if v.Action == deliver.Delivered {
		o.Result = schemas.ResultDelivered
		records, err := e.records(&o)
		if d.Attempt > schemas.FailingAfter {
			records = append(records, e.report(schemas.DeliveryRecovered, &d, &o, now)...)
		}
		return o.Result, records, err
	}
	schedule := e.schedule
	if own, has := w.Schedule(); has {
		schedule = own
	}
	step, again := schedule.After(d.Attempt, now, v.Wait, chance)
	if again && v.Action != deliver.Final {
		o.Result, o.NextAttemptAt = schemas.ResultRetry, step.DueAt
		records, err := e.records(&o, e.waiting(&d, it.record, step, now))
		if d.Attempt == schemas.FailingAfter {
			records = append(records, e.report(schemas.DeliveryFailing, &d, &o, now)...)
		}
		return o.Result, records, err
	}
	o.Result = schemas.ResultDead
	d.DueAt, d.Reason = time.Time{}, string(v.Reason)
	records, err := e.records(&o, d.Record(e.topics.DeadLetters))
	return o.Result, append(records, e.report(schemas.DeliveryDead, &d, &o, now)...), err
}

// report returns the operational event about a delivery. There is none about a delivery of such an event.
func (e *effects) report(name string, d *schemas.Delivery, o *schemas.Outcome, now time.Time) []*kgo.Record {
	if schemas.OperationalName(d.Event) {
		return nil
	}
	return e.operational(name, d.ID.String(), d.Organization, d.Account, now, schemas.DeliveryReport{
		WebhookID: d.WebhookID, DeliveryID: d.ID, MessageID: o.MessageID, EventID: d.EventID, Event: d.Event,
		Attempt: o.Attempt, Reason: o.Reason, StatusCode: o.StatusCode, NextAttemptAt: o.NextAttemptAt,
	})
}

// disabled returns what says that the sender has disabled a webhook: the operational event and the change.
func (e *effects) disabled(w *schemas.Webhook, s *schemas.WebhookState) []*kgo.Record {
	about := fmt.Sprintf("%s.%d", w.ID, s.Generation)
	records := e.operational(schemas.WebhookDisabled, about, w.Organization, w.Account, s.DisabledAt, schemas.WebhookReport{
		ID: w.ID, Generation: s.Generation, Reason: s.Reason, FailingSince: s.FailingSince, DisabledAt: s.DisabledAt,
	})
	change := schemas.Change{
		At: s.DisabledAt.Truncate(time.Millisecond), Actor: e.instance, Action: "disabled", Object: "webhook", ObjectID: w.ID,
		Organization: w.Organization, After: json.RawMessage(`{"state":"disabled","reason":"` + s.Reason + `"}`),
	}
	if r, err := change.Record(e.topics.Changes); err == nil { // plain texts
		records = append(records, r)
	}
	return records
}

func (e *effects) operational(name, about, organization, account string, at time.Time, payload any) []*kgo.Record {
	event, err := schemas.Operational(name, about, organization, account, at, payload)
	if err != nil {
		return nil // a time beyond the year 9999: nobody is told
	}
	return []*kgo.Record{event.Record(e.topics.Events)}
}

func (e *effects) outcome(d *schemas.Delivery, w *inForce) schemas.Outcome {
	o := schemas.Outcome{
		Organization: d.Organization, Account: d.Account,
		WebhookID: d.WebhookID, WebhookRevision: d.WebhookRevision,
		DeliveryID: d.ID, MessageID: d.MessageID(), EventID: d.EventID, Event: d.Event, Cause: d.Cause,
		Attempt:   d.Attempt,
		EventTime: d.EventTime, AcceptedAt: d.AcceptedAt, RoutedAt: d.RoutedAt,
		Sender: e.instance,
	}
	if w != nil {
		o.WebhookRevision, o.URL = w.Revision, w.URL
	}
	return o
}

// describe copies what is known of an attempt.
func describe(o *schemas.Outcome, a *deliver.Attempt) {
	o.StatusCode, o.StartedAt = a.StatusCode, a.StartedAt.UTC()
	o.DurationMS, o.DNSMS, o.ConnectMS, o.TLSMS = ms(a.Duration), ms(a.DNS), ms(a.Connect), ms(a.TLS)
	o.FirstByteMS = ms(a.FirstByte)
	o.ResponseHead = strings.ToValidUTF8(string(a.ResponseHead), "\uFFFD")
	o.ResponseBody, o.ResponseBytes = a.ResponseBody, a.ResponseBytes
}

// ms keeps microseconds: more digits would only be bytes.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (e *effects) records(o *schemas.Outcome, more ...*kgo.Record) ([]*kgo.Record, error) {
	r, err := o.Record(e.topics.Outcomes)
	if err != nil {
		return nil, fmt.Errorf("making outcome of %s: %w", o.DeliveryID, err)
	}
	return append([]*kgo.Record{r}, more...), nil
}
