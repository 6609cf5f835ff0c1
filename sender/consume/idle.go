package consume

import (
	"context"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas/kafka"
)

const (
	// unknownEnd is the end of a log that was not asked for yet: there may be something in it.
	unknownEnd = math.MaxInt64
	// endsEvery is how often the ends are asked for, beside each assignment. It is
	// for records that this member did not write, of which there should be none.
	endsEvery = 5 * time.Second
)

// idleLocked reports whether there is nothing to fetch from a partition.
//
// Each time a log of a waiting fetch grows, the broker looks at all partitions of
// that fetch: with 19 topics of 24 partitions at 456, nearly all of them tiers
// with nothing in them (at 100 events/s that took more of a broker than the events).
// Deliveries are written by others; but what is in a tier and in held comes from
// the member that reads it, so it knows their ends and fetches what is below
// them. Positions pass the markers of transactions, as the ends do.
func (b *board) idleLocked(src *source) bool {
	return src.topic != b.effects.topics.Deliveries && src.next >= src.end
}

// assignment is how many assignments there have been.
func (b *board) assignment() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.assignments
}

// logEnds takes where the logs start and end, as asked for under an assignment.
// Known ends only grow: an answer may be older than what was written since.
func (b *board) logEnds(assignment int, starts, ends map[kafka.Place]int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if assignment != b.assignments {
		return
	}
	for _, src := range b.sources {
		at := kafka.Place{Topic: src.topic, Partition: src.partition}
		end, asked := ends[at]
		if !asked {
			continue
		}
		src.next = max(src.next, starts[at]) // retention has removed what was before
		src.stalls = src.restored && !src.paused && len(src.queue) == 0 && src.next < end && src.next == src.asked
		src.asked = src.next
		if !src.unread.known {
			src.unread = unread{known: true, begun: end, next: src.next}
		}
		switch {
		case end < src.next:
			// The log was cut, or has grown since it was asked: fetching finds out which.
			src.end = unknownEnd
			b.listLocked(src)
		case src.end == unknownEnd || end > src.end:
			src.end = end
			b.listLocked(src)
		}
	}
}

// stalled returns from where partitions are to be fetched anew: two questions for the
// ends, seconds apart, have found records in them of which none came. kgo tells of a
// batch that inflates beyond all bounds once, and fetches nothing more of the partition
// until it is set past it; what it has buffered of a partition that is paused, or when
// another's offset is set, it drops, and that with it.
// The caller is the one who polls, so that nothing it has polled is fetched again.
func (b *board) stalled() map[string]map[int32]kgo.EpochOffset {
	b.mu.Lock()
	defer b.mu.Unlock()
	var offsets map[string]map[int32]kgo.EpochOffset
	for _, src := range b.sources {
		if !src.stalls {
			continue
		}
		src.stalls = false
		if src.next != src.asked || len(src.queue) > 0 {
			continue
		}
		if offsets == nil {
			offsets = make(map[string]map[int32]kgo.EpochOffset)
		}
		if offsets[src.topic] == nil {
			offsets[src.topic] = make(map[int32]kgo.EpochOffset)
		}
		offsets[src.topic][src.partition] = kgo.EpochOffset{Epoch: -1, Offset: src.next}
	}
	return offsets
}

// wrote notes the ends of the tiers that a committed transaction wrote to. What was
// held by an attempt that did not know yet that its webhook is paused no longer is looked at again.
func (b *board) wrote(t batch, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range t.results {
		for _, record := range r.records {
			src := b.sources[place{record.Topic, record.Partition}]
			if src != nil && src.held && !b.table.bounds(string(record.Key)).idle {
				src.pass(now)
			}
			if src == nil {
				continue
			}
			src.unread.wrote(record.Offset)
			if record.Offset >= 0 && record.Offset < src.end {
				continue
			}
			if src.end = record.Offset + 1; record.Offset < 0 { // acknowledged as a repetition: it is there, nobody says where
				src.end = unknownEnd
			}
			b.listLocked(src)
		}
	}
}

// endsLoop asks for the ends of tiers and held after each assignment, and now and then.
func (s *session) endsLoop(ctx context.Context) {
	tick := time.NewTicker(endsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.reassigned:
		case <-tick.C:
		}
		assignment := s.board.assignment()
		asking, cancel := context.WithTimeout(ctx, endsEvery)
		starts, ends, err := kafka.Bounds(asking, s.producer, s.topics.Sources()...)
		cancel()
		if err != nil {
			s.log.Debug("ends of retry tiers are not known: what is not known to be empty is fetched", "error", err)
			continue
		}
		s.board.logEnds(assignment, starts, ends)
		wake(s.kick)
	}
}
