package consume

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/deliver"
)

const (
	// leastAttempts must have failed since the first failure before a webhook is
	// disabled for it, however long that is ago (design: states).
	leastAttempts = 20
	// keepAfter is how long a webhook must have been failing before that is kept in
	// webhook-states: of a target that fails now and then, each failure would be. A
	// crash before then makes it fail from later on.
	keepAfter = time.Minute
)

// Reasons for which the sender disables a webhook.
const reasonFailing = "failing"

// condition is what is known of a webhook's target, as webhook-states is to say it.
// The board's mutex guards it.
type condition struct {
	schemas.WebhookState

	known bool // as of the present assignment
	kept  bool // the topic says something of it
	dirty bool // the topic is to say something else
}

// disabled reports whether the sender has disabled the webhook's generation.
func (c *condition) disabled(generation int64) bool {
	return !c.DisabledAt.IsZero() && c.Generation == generation
}

// observe takes what an attempt says, made for a generation of the webhook, and
// reports whether the webhook is to be disabled. after is how long it may be failing; 0: for ever.
func (c *condition) observe(w *schemas.Webhook, v deliver.Verdict, after time.Duration, now time.Time) (disabled bool) {
	switch {
	case w.Generation < c.Generation:
		return false // its owner has enabled it since
	case w.Generation > c.Generation:
		c.WebhookState = schemas.WebhookState{WebhookID: w.ID, Generation: w.Generation}
		c.dirty = c.kept
	}
	switch v.Health {
	case deliver.Unasked:
	case deliver.Well:
		if !c.FailingSince.IsZero() {
			c.FailingSince, c.Attempts = time.Time{}, 0
			c.dirty = c.kept
		}
	case deliver.Answering, deliver.Failing, deliver.Overloaded:
		if c.FailingSince.IsZero() {
			c.FailingSince = now.UTC()
		}
		more := c.Attempts < leastAttempts // beyond, a count makes no difference
		if more {
			c.Attempts++
		}
		c.dirty = c.dirty || (more || !c.kept) && now.Sub(c.FailingSince) >= keepAfter
	}
	reason := string(v.Reason)
	failing := after > 0 && c.Attempts >= leastAttempts && now.Sub(c.FailingSince) >= after
	switch {
	case !c.DisabledAt.IsZero():
		return false
	case v.Disable && v.Action == deliver.Delivered:
		reason = string(deliver.ReasonUnwanted)
	case v.Disable:
	case failing:
		reason = reasonFailing
	default:
		return false
	}
	c.DisabledAt, c.Reason, c.dirty = now.UTC(), reason, true
	return true
}

// record is what the topic is to say.
func (c *condition) record(topic string) (*kgo.Record, error) {
	if c.FailingSince.IsZero() && c.DisabledAt.IsZero() {
		return schemas.Tombstone(topic, c.WebhookID), nil
	}
	return c.Record(topic)
}

// forgetStatesLocked has all that is known of targets' states looked up anew: others may have written to them.
func (b *board) forgetStatesLocked() {
	for _, l := range b.lanes {
		l.condition = condition{}
	}
	clear(b.dirty)
}

// observeLocked notes what an attempt says of its target, and returns its records
// with what follows from that, and why the webhook was disabled if it was.
func (b *board) observeLocked(it *item, e end, now time.Time) (records []*kgo.Record, reason string) {
	l := it.lane
	b.conditionLocked(l, it.delivery.WebhookID)
	disabled := l.condition.observe(&e.webhook.Webhook, e.verdict, b.effects.disableAfter, now)
	if l.condition.dirty {
		b.dirty[l] = struct{}{}
	}
	if !disabled {
		return e.records, ""
	}
	return append(e.records, b.effects.disabled(&e.webhook.Webhook, &l.condition.WebhookState)...), l.condition.Reason
}

// conditionLocked has a lane know what webhook-states says.
func (b *board) conditionLocked(l *lane, webhookID string) {
	if c := &l.condition; !c.known {
		c.WebhookState, c.kept = b.table.state(webhookID)
		c.WebhookID, c.known = webhookID, true
	}
}

// learnStates has partitions worked once what their owners before wrote to
// webhook-states is known, after each assignment.
func (s *session) learnStates(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.restate:
		}
		assignment := s.board.assignment()
		if err := s.webhooks.wait(ctx); err != nil {
			s.log.Debug("states of webhooks are not known yet", "error", err)
			process.Pause(ctx, 100*time.Millisecond)
			wake(s.restate)
			continue
		}
		s.board.stated(assignment, s.webhooks.resumed(s.partitions), s.clock())
		wake(s.kick)
	}
}
