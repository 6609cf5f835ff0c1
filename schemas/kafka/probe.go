package kafka

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// probeBytes is enough to pass many emptied batches at once.
const probeBytes = 64 << 10

// probe fetches once at an offset, and returns the offset before which there is
// nothing to read from there on; the same offset if there is something.
//
// kgo shows no fetch without records. So its position stands still where what is
// left of the log up to the read-committed end holds none: batches of aborted
// transactions (whose marker is behind the last stable offset), batches that
// compaction emptied, or nothing at all, which is seen when the tail of the
// closed segments was compacted away and the active one begins with an open
// transaction. A broker returns at least one batch for the first partition of a
// request, whatever the limits, if there is one before the last stable offset; it
// takes that offset before it reads (Kafka: Partition.readRecords,
// LocalLog.read). So a partition asked alone, answered without an error and
// without a byte, has nothing before the last stable offset of the same answer.
func probe(ctx context.Context, cl *kgo.Client, place Place, offset int64) (int64, error) {
	described, err := describe(ctx, cl, []string{place.Topic})
	if err != nil {
		return offset, err
	}
	topic := described[place.Topic]
	leader, err := topic.leader(place)
	if err != nil {
		return offset, fmt.Errorf("looking for the leader of %w", err)
	}
	resp, err := probeRequest(place, topic.id, offset).RequestWith(ctx, cl.Broker(int(leader)))
	if err != nil {
		return offset, fmt.Errorf("looking at %s/%d@%d: %w", place.Topic, place.Partition, offset, err)
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return offset, nil // so answers a broker that throttles
	}
	p := &resp.Topics[0].Partitions[0]
	switch {
	case p.ErrorCode != 0:
		return offset, nil // the consumer meets the error too, and knows what to do
	case len(p.RecordBatches) == 0:
		return max(offset, p.LastStableOffset), nil
	default:
		return afterHidden(p, offset), nil
	}
}

// probeRequest asks for one partition, without a session and without waiting.
func probeRequest(place Place, id [16]byte, offset int64) *kmsg.FetchRequest {
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = place.Partition, offset, probeBytes
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = place.Topic, id
	t.Partitions = append(t.Partitions, p)
	req := kmsg.NewPtrFetchRequest()
	req.IsolationLevel, req.MaxBytes = readCommitted, probeBytes
	req.Topics = append(req.Topics, t)
	return req
}

// Parts of a batch's header (Kafka protocol, record batch version 2).
const (
	batchPrefix    = 12 // first offset and length, which counts what follows it
	batchMagicAt   = 16
	batchIsControl = 1 << 5
)

// afterHidden returns the offset after the batches, from offset on, that kgo
// shows nothing of. It looks at headers only: nothing is inflated here.
func afterHidden(p *kmsg.FetchResponseTopicPartition, offset int64) int64 {
	for in := p.RecordBatches; len(in) > batchMagicAt && in[batchMagicAt] == 2; {
		size := batchPrefix + int(binary.BigEndian.Uint32(in[8:]))
		var batch kmsg.RecordBatch
		if size > len(in) || batch.ReadFrom(in[:size]) != nil {
			break
		}
		in = in[size:]
		last := batch.FirstOffset + int64(batch.LastOffsetDelta)
		if last < offset {
			continue
		}
		if batch.NumRecords > 0 && (batch.Attributes&batchIsControl != 0 || !aborted(p, &batch)) {
			break
		}
		offset = last + 1
	}
	return offset
}

// aborted says whether a batch is of an aborted transaction. The answer lists
// those that end at or after the offset asked for; as no marker was passed since,
// each that began by this batch is open at it.
func aborted(p *kmsg.FetchResponseTopicPartition, batch *kmsg.RecordBatch) bool {
	const isTransactional = 1 << 4
	return batch.Attributes&isTransactional != 0 &&
		slices.ContainsFunc(p.AbortedTransactions, func(t kmsg.FetchResponseTopicPartitionAbortedTransaction) bool {
			return t.ProducerID == batch.ProducerID && t.FirstOffset <= batch.FirstOffset
		})
}
