package consume

import (
	"context"
	"errors"
	"math/rand/v2"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

// attempt makes one attempt of a delivery, or decides to make none, and returns
// what became of it.
func (s *session) attempt(ctx context.Context, it *item) end {
	d := &it.delivery
	w, err := s.webhooks.lookup(ctx, d)
	var version *schemas.UnknownVersionError
	switch {
	case errors.As(err, &version):
		s.metrics.parked.Inc()
		return end{records: []*kgo.Record{s.board.effects.unreadable(it, s.clock())}}
	case err != nil:
		return end{}
	case w == nil:
		return s.discard(it, w, reasonDeleted)
	case w.Invalid != "": // nothing may be sent with such settings, no ping either
		return s.discard(it, w, reasonDisabled)
	case d.Cause == schemas.CausePing: // goes whatever its webhook's state is
	case !w.Active, w.Generation == it.disabled:
		return s.discard(it, w, reasonDisabled)
	case w.Paused && heldTooLong(d, s.clock()):
		return s.discard(it, w, reasonHeldLong)
	case w.Paused:
		records, err := s.board.effects.hold(it, w, s.clock())
		return end{records: s.count(it, schemas.ResultHeld, reasonPaused, records, err)}
	case it.aside:
		return s.refuse(it, w)
	}
	a := s.client.Do(ctx, s.request(it, w))
	return s.judged(it, w, &a, deliver.Judge(&a, w.answers()))
}

func (s *session) request(it *item, w *inForce) deliver.Request {
	d := &it.delivery
	secrets, keys := w.open(s.cfg.KeyRing, s.log, s.clock())
	return deliver.Request{
		URL:         w.URL,
		MessageID:   d.MessageID(),
		Sequence:    d.ID.Offset,
		Secrets:     secrets,
		Keys:        keys,
		Headers:     w.headers, // open has made them
		Body:        d.Body,
		ContentType: d.Format.ContentType(),
		Timeout:     w.Timeout(),
	}
}

func (s *session) judged(it *item, w *inForce, a *deliver.Attempt, v deliver.Verdict) end {
	now := s.clock()
	switch v.Action {
	case deliver.Forget:
		return end{}
	case deliver.Park:
		return s.park(it)
	case deliver.Delivered, deliver.Retry, deliver.Final:
	}
	result, records, err := s.board.effects.attempted(it, w, a, v, now, rand.Float64()) //nolint:gosec // spreads retries
	return end{records: s.count(it, result, string(v.Reason), records, err), verdict: v, webhook: w}
}

// refuse deals with a delivery that the breaker lets not go: it takes its next
// step. Where that is not so any more, it comes back for an attempt.
func (s *session) refuse(it *item, w *inForce) end {
	if !it.refused || it.delivery.Attempt >= w.Retries(len(s.cfg.Schedule)) {
		return s.park(it)
	}
	return s.judged(it, w, &deliver.Attempt{StartedAt: s.clock()}, deliver.Verdict{Action: deliver.Retry, Reason: deliver.ReasonBreakerOpen})
}

func (s *session) park(it *item) end {
	s.metrics.parked.Inc()
	return end{records: []*kgo.Record{s.board.effects.park(it, s.clock(), parking{})}}
}

func (s *session) discard(it *item, w *inForce, reason string) end {
	records, err := s.board.effects.discarded(&it.delivery, w, reason, s.clock())
	return end{records: s.count(it, schemas.ResultDiscarded, reason, records, err)}
}

// count counts a result. A delivery whose outcome cannot be written (a time
// beyond the year 9999 is no JSON) is set aside: its partition goes on.
func (s *session) count(it *item, result schemas.Result, reason string, records []*kgo.Record, err error) []*kgo.Record {
	if err != nil {
		s.metrics.rejected.Inc()
		whole := it.delivery.Record(it.record.Topic) // the record itself has no headers any more: see detach
		whole.Partition, whole.Offset = it.record.Partition, it.record.Offset
		return []*kgo.Record{s.board.effects.rejected(whole, err)}
	}
	s.metrics.attempts.WithLabelValues(string(result), reason).Inc()
	return records
}
