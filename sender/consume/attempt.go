package consume

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

// attempt makes one attempt of a delivery, or decides to make none, and returns
// the records that say so. None means that it was broken off, and has no effect.
func (s *session) attempt(ctx context.Context, it *item) []*kgo.Record {
	d := &it.delivery
	w, err := s.webhooks.lookup(ctx, d)
	var version *schemas.UnknownVersionError
	switch {
	case errors.As(err, &version):
		s.metrics.parked.Inc()
		return []*kgo.Record{s.board.effects.unreadable(it, time.Now())}
	case err != nil:
		return nil
	case w == nil:
		return s.discard(it, w, reasonDeleted)
	case !w.Active && d.Cause != schemas.CausePing:
		return s.discard(it, w, reasonDisabled)
	}
	secrets, keys := w.open(s.cfg.KeyRing, s.log, time.Now())
	a := s.client.Do(ctx, deliver.Request{
		URL:         w.URL,
		MessageID:   d.MessageID(),
		Sequence:    d.ID.Offset,
		Secrets:     secrets,
		Keys:        keys,
		Headers:     w.headers, // open has made them
		Body:        d.Body,
		ContentType: d.Format.ContentType(),
		Timeout:     w.Timeout(),
	})
	v := deliver.Judge(&a, w.answers())
	now := time.Now()
	switch v.Action {
	case deliver.Forget:
		return nil
	case deliver.Park:
		s.metrics.parked.Inc()
		return []*kgo.Record{s.board.effects.park(it, now, parking{})}
	case deliver.Delivered, deliver.Retry, deliver.Final:
	}
	result, records, err := s.board.effects.attempted(it, w, &a, v, now, rand.Float64()) //nolint:gosec // spreads retries
	return s.count(it, result, string(v.Reason), records, err)
}

func (s *session) discard(it *item, w *inForce, reason string) []*kgo.Record {
	records, err := s.board.effects.discarded(&it.delivery, w, reason, time.Now())
	return s.count(it, schemas.ResultDiscarded, reason, records, err)
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
