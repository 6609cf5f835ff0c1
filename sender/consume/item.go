package consume

import (
	"bytes"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
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
