package consume

import (
	"time"

	"github.com/postrider/postrider/schemas"
)

// snapshot is what metrics show.
type snapshot struct {
	running, waiting, partitions int
	inFlight                     int64
	oldest                       time.Time // when the oldest record that is not finished was written; zero if there is none
}

func (b *board) snapshot() snapshot {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := snapshot{running: b.running, waiting: b.waiting, partitions: len(b.sources), inFlight: b.inFlight}
	for _, src := range b.sources {
		at := src.tracker.oldest()
		if at.IsZero() && len(src.queue) > 0 {
			at = src.queue[0].Timestamp
		}
		if !at.IsZero() && (s.oldest.IsZero() || at.Before(s.oldest)) {
			s.oldest = at
		}
	}
	return s
}

// Partitions returns the partitions of deliveries that are worked.
func (c *Consumer) Partitions() []int32 {
	s := c.session()
	if s == nil {
		return nil
	}
	s.board.mu.Lock()
	defer s.board.mu.Unlock()
	var partitions []int32
	for at := range s.board.sources {
		if at.topic == c.topics.Deliveries {
			partitions = append(partitions, at.partition)
		}
	}
	return partitions
}

// breakers is how many are open.
func (b *board) breakers() (open int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lanes {
		if l.breaker.open() {
			open++
		}
	}
	return open
}

// waits returns what waits in each tier, held last.
func (b *board) waits() []waits {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := make([]waits, len(b.effects.topics.Retry)+1)
	for _, src := range b.sources {
		if src.tier != noTier {
			found[src.tier].add(src)
		} else if src.held {
			found[len(found)-1].add(src)
		}
	}
	return found
}

// unread counts the records of a log that were not polled yet. Of those that were
// there at the assignment only offsets are known, among which are the markers of
// transactions; those that this member writes are counted.
type unread struct {
	known   bool
	begun   int64 // the log's end at the assignment
	next    int64 // the offset behind the last one polled that is before it
	written int   // at or behind it, and not polled
}

func (u *unread) wrote(offset int64) {
	if u.known && (offset < 0 || offset >= u.begun) {
		u.written++
	}
}

func (u *unread) read(offset int64) {
	switch {
	case !u.known:
	case offset < u.begun:
		u.next = offset + 1
	case u.written > 0:
		u.written--
	}
}

func (u *unread) count() int { return int(max(0, u.begun-u.next)) + u.written }

// waits is how many deliveries wait in a tier, or held, and when the first of them
// is due, as far as their partitions' first records say; held has no due time.
type waits struct {
	count int
	due   time.Time // zero: none waits, or it is not known
}

func (w *waits) add(src *source) {
	w.count += src.unread.count() + len(src.queue)
	if len(src.queue) == 0 {
		return
	}
	d, err := schemas.DecodeDelivery(src.queue[0], [16]byte{})
	if err == nil && !d.DueAt.IsZero() && (w.due.IsZero() || d.DueAt.Before(w.due)) {
		w.due = d.DueAt
	}
}
