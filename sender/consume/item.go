package consume

import (
	"bytes"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/retry"
)

// item is a delivery that was started: its offset is unfinished until its effects are committed.
type item struct {
	source   *source
	lane     *lane
	record   *kgo.Record
	delivery schemas.Delivery
	size     int64
	started  time.Time

	// aside says that it takes no place of its lane, as no request is expected of it.
	aside   bool
	refused bool // by the breaker
	probe   bool // of the breaker
	// disabled is the generation of its webhook that the sender has disabled; -1: none.
	disabled int64
	// passAt is its source's: see pass.
	passAt time.Time
}

// rest is how long a delivery of a tier still waits at now, and in which tier it
// goes on to wait if that is far. One that was parked waits for its turn, which its
// lane keeps itself when it is near; where nothing else is to be done, it need not.
func (it *item) rest(now time.Time) (rest time.Duration, tier int, far bool) {
	rest = it.delivery.DueAt.Sub(now)
	if it.delivery.Parks == 0 {
		tier, far = retry.Next(rest)
		return rest, tier, far
	}
	if rest -= it.lane.early(now); it.lane.steady(now) && it.lane.ready(now) {
		rest = 0
	}
	tier, far = retry.Within(rest)
	return rest, tier, far
}

// maxDetached is the largest body that is copied rather than keeps its batch.
const maxDetached = 32 << 10

// detach lets the fetched batch go of which the record is a part: a slow
// target's few deliveries would each keep the whole of theirs.
func (it *item) detach() {
	if len(it.record.Value) > maxDetached {
		return
	}
	it.delivery.Body = bytes.Clone(it.record.Value)
	it.record = &kgo.Record{
		Topic: it.record.Topic, Partition: it.record.Partition, Offset: it.record.Offset, Timestamp: it.record.Timestamp,
		Key: []byte(it.delivery.WebhookID), Value: it.delivery.Body,
	}
}
