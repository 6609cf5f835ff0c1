package consume

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas/kafka"
)

// A held partition is like a retry tier of heldRest: what its webhook's owner has
// paused enters it again and again. A webhook that is resumed has its partition
// passed through at once, so each record is written again once a day and once for
// each webhook of its partition that is resumed.
const (
	heldRest = 24 * time.Hour
	// heldMost is how long a delivery is held: a day short of what the topic keeps.
	heldMost = 29 * 24 * time.Hour
	// heldSkew is how far clocks of senders and ingest may differ, and how late a
	// sender may have held a delivery whose webhook was resumed.
	heldSkew = 10 * time.Minute
)

// pass lets everything that was written before at be looked at again, and of the same millisecond.
func (src *source) pass(at time.Time) {
	if at.Before(src.passAt) {
		at = src.passAt
	}
	// Records carry milliseconds: what is written in the pass is of the next one.
	src.passAt = at.Truncate(time.Millisecond).Add(time.Millisecond)
	src.wake, src.head = time.Time{}, nil
}

// rests returns until when a held record rests, zero if it does not.
func (src *source) rests(r *kgo.Record, now time.Time) (until time.Time) {
	until = r.Timestamp.Add(heldRest)
	ahead := r.Timestamp.After(now.Add(time.Millisecond)) // by the clock of another sender
	if r.Timestamp.Before(src.passAt) || !now.Before(until) || ahead {
		return time.Time{}
	}
	return until
}

// stated says that what is in webhook-states is known as of an assignment, and
// when a webhook of each partition was resumed last.
func (b *board) stated(assignment int, resumed map[int32]time.Time, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if assignment != b.assignments {
		return
	}
	b.known = assignment
	for _, src := range b.sources {
		if at, was := resumed[src.partition]; was && src.held {
			if at = at.Add(heldSkew); at.After(now) {
				at = now
			}
			src.pass(at)
		}
		b.listLocked(src)
	}
}

// releaseHeld looks at what a partition holds again, as of now: a webhook there is paused no longer.
func (b *board) releaseHeld(partition int32, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if src := b.sources[place{b.effects.topics.Held, partition}]; src != nil {
		src.pass(now)
		b.listLocked(src)
	}
}

// resumed says of a webhook that it is paused no longer. What attempts that knew
// nothing of it yet have held is seen by wrote.
func (s *session) resumed(id string) {
	s.board.releaseHeld(kafka.PartitionOf(id, s.partitions), s.clock())
	wake(s.kick)
}
