package consume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// maxPoll bounds the records of one poll, and so how long a rebalance waits for it.
	maxPoll = 5000
	// errorPasses is how long after an error of reading no other means that it has passed.
	errorPasses = 2 * time.Second
)

// pollLoop reads records and ties them to their partitions' ownership before a
// rebalance can change it. What becomes of them is startLoop's.
func (s *session) pollLoop(ctx context.Context) {
	s.reading.Up()
	well := true
	for ctx.Err() == nil {
		fetches := s.poll(ctx, well)
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			s.board.push(place{p.Topic, p.Partition}, p.Records)
		})
		err := s.pollErrors(ctx, fetches)
		if offsets := s.board.stalled(); offsets != nil {
			s.log.Warn("nothing comes of partitions with records: they are fetched anew", "partitions", len(offsets))
			s.consumer.SetOffsets(offsets)
		}
		s.consumer.AllowRebalance()
		wake(s.kick)
		if well = err == nil; well {
			s.reading.Up()
			continue
		}
		s.reading.Down(err)
		s.log.Warn("reading deliveries", "error", err)
		process.Pause(ctx, time.Second) // an error that stays is returned by every poll at once
	}
}

// poll waits for records, but comes back now and then for what stalls; and after an error in a moment: if it has not come again by then it has passed.
func (s *session) poll(ctx context.Context, well bool) kgo.Fetches {
	limit := endsEvery
	if !well {
		limit = errorPasses
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return s.consumer.PollRecords(ctx, maxPoll)
}

// pollErrors returns the first error that is to be told of. A batch that would
// not fit into memory is passed; the caller still blocks rebalances.
func (s *session) pollErrors(ctx context.Context, fetches kgo.Fetches) (first error) {
	fetches.EachError(func(topic string, partition int32, err error) {
		bomb, isBomb := errors.AsType[*kgo.ErrDecompressTooLarge](err)
		switch {
		case isBomb:
			s.board.pushUnreadable(place{topic, partition}, bomb.Offset, bomb.NextOffset, kafka.Inflated(bomb))
			s.consumer.SetOffsets(map[string]map[int32]kgo.EpochOffset{
				topic: {partition: {Epoch: bomb.Epoch, Offset: bomb.NextOffset}},
			})
		case first != nil || ctx.Err() != nil || errors.Is(err, kgo.ErrClientClosed) || errors.Is(err, context.DeadlineExceeded):
		case topic == "":
			first = fmt.Errorf("reading deliveries: %w", err) // of the group
		default:
			first = fmt.Errorf("reading %s/%d: %w", topic, partition, err)
		}
	})
	return first
}
