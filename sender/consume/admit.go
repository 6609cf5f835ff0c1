package consume

import (
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/retry"
)

const (
	// A partition's fetching is paused while more than fetchAhead records or
	// fetchBytes of it were polled and not started, until fetchAgain are left.
	fetchAhead = 1000
	fetchBytes = 256 << 10
	fetchAgain = 100
	// recheck is how soon a head that waits for its lane is looked at again where nothing ends meanwhile.
	recheck = 50 * time.Millisecond
	// maxSteps bounds what one partition may start while the others and all that
	// finishes wait for the mutex: 64 at about 3 µs.
	maxSteps = 64
	// lookAhead is how many records behind a waiting head are looked at for lanes that could go on.
	lookAhead = 256
)

// overhead is what a delivery takes in memory besides its body: headers,
// item, the connection's buffers while it is attempted.
const overhead = 2 << 10

// addedBytes is what a delivery may grow by on its way: its name, times, reason.
const addedBytes = 4 << 10

// round is what came of looking at all heads.
type round struct {
	begin         []*item // to be attempted, each in a goroutine
	pause, resume []place // of fetching
	pending       int     // results to be committed
	wake          time.Time

	parked, rejected int // deliveries
	removed          int // unfinished offsets that retention removed
}

// admit starts what can be started at now.
func (b *board) admit(now time.Time) round {
	b.mu.Lock()
	defer b.mu.Unlock()
	var r round
	b.blocked = false
	b.paceLocked(now, &r)
	kept := b.active[:0]
	for _, src := range b.active {
		steps := 0
		for steps < maxSteps && b.stepLocked(src, now, &r) {
			steps++
		}
		if steps == maxSteps {
			r.wakeAt(now)
		}
		if len(src.queue) > 0 {
			kept = append(kept, src)
			if src.wake.After(now) {
				r.wakeAt(src.wake)
			}
		} else {
			src.listed = false
		}
		b.fetchLocked(src, now, &r)
	}
	clear(b.active[len(kept):])
	b.active = kept
	if len(kept) > 1 { // the first in turn goes last next time
		first := kept[0]
		copy(kept, kept[1:])
		kept[len(kept)-1] = first
	}
	r.pending = len(b.results)
	return r
}

// paceLocked begins what waited in lanes for its time, and wakes for the next.
func (b *board) paceLocked(now time.Time, r *round) {
	for l := range b.paced {
		for it := l.beginNext(now); it != nil; it = l.beginNext(now) {
			b.waiting--
			b.begunLocked(it)
			r.begin = append(r.begin, it)
		}
		if l.waits(now) {
			r.wakeAt(l.nextAt)
		} else {
			delete(b.paced, l)
		}
	}
}

func (r *round) wakeAt(at time.Time) {
	if !at.IsZero() && (r.wake.IsZero() || at.Before(r.wake)) {
		r.wake = at
	}
}

// fetchLocked pauses a partition with too much polled, or whose head is not due,
// or with nothing left to fetch, and resumes it when that has gone.
func (b *board) fetchLocked(src *source, now time.Time, r *round) {
	due := len(src.queue) == 0 || !now.Before(src.wake)
	idle := b.idleLocked(src)
	switch {
	case !src.paused && (len(src.queue) > fetchAhead || src.bytes > fetchBytes || (src.tier != noTier || src.held) && !due || idle):
		src.paused = true
		r.pause = append(r.pause, src.place)
	case src.paused && due && len(src.queue) <= fetchAgain && !idle:
		src.paused = false
		r.resume = append(r.resume, src.place)
	}
}

// stepLocked deals with a partition's head and reports whether it is gone.
func (b *board) stepLocked(src *source, now time.Time, r *round) bool {
	if len(src.queue) == 0 || src.stopping || now.Before(src.wake) || b.known != b.assignments {
		return false
	}
	record := src.queue[0]
	if src.tracker.finished(record.Offset) {
		return src.pop()
	}
	if b.inFlight >= b.budget || !src.tracker.room(record.Offset) {
		b.blocked = true
		return false
	}
	if src.tier != noTier && src.wake.IsZero() {
		if rest := retry.Rest(src.tier, record.Timestamp, now); rest > 0 {
			src.wake = now.Add(rest)
			return false
		}
	}
	if src.held && src.head == nil {
		if src.wake = src.rests(record, now); !src.wake.IsZero() {
			return false
		}
	}
	if src.head == nil {
		if done := b.lookLocked(src, now, r); done {
			return src.pop()
		}
	}
	return b.headLocked(src, now, r)
}

// lookLocked decodes the head. It is true if that settled it: a record that
// nobody can read, or that a newer binary wrote.
func (b *board) lookLocked(src *source, now time.Time, r *round) bool {
	record := src.queue[0]
	d, err := schemas.DecodeDelivery(record, b.effects.idOf(record.Topic))
	// Kafka would not take it back with what retries and dead letters add.
	if tooLarge := schemas.CheckRecordSize(record, schemas.MaxRecordBytes-addedBytes); tooLarge != nil {
		err = tooLarge
	}
	it := &item{source: src, record: record, delivery: d, size: int64(len(record.Value)) + overhead}
	if why, broken := src.broken[record.Offset]; broken {
		delete(src.broken, record.Offset)
		err = why
	}
	var version *schemas.UnknownVersionError
	switch {
	case errors.As(err, &version):
		b.settleLocked(it, r, b.effects.unread(record, now))
	case err != nil:
		r.rejected++
		b.settleLocked(it, r, b.effects.rejected(record, err))
	default:
		it.lane = b.laneLocked(d.WebhookID, now)
		src.head = it
		return false
	}
	return true
}

// headLocked lets the head hop, begin, wait or be parked, and reports whether it is gone.
func (b *board) headLocked(src *source, now time.Time, r *round) bool {
	it := src.head
	if src.tier != noTier {
		rest, tier, far := it.rest(now)
		if far {
			b.settleLocked(it, r, b.effects.hop(it.record, tier, now))
			return src.pop()
		}
		if rest > 0 {
			src.wake = now.Add(rest)
			return false
		}
	}
	b.conditionLocked(it.lane, it.delivery.WebhookID)
	v := it.lane.take(it, now, src.tracker.free(), b.budget-b.inFlight)
	if v == hold || v == park && src.held {
		v = b.holdLocked(src, now)
		r.wakeAt(now.Add(recheck))
	}
	if v == hold {
		return false
	}
	src.credit.move(now)
	if v == park {
		r.parked++
		b.settleLocked(it, r, b.effects.park(it, now, it.lane.parked(now)))
		return src.pop()
	}
	b.startLocked(it, r)
	it.detach()
	switch v {
	case aside:
		it.passAt = src.passAt
		it.lane.prepare(it)
		b.begunLocked(it)
		r.begin = append(r.begin, it)
	case begin:
		it.lane.bytes += it.size
		it.lane.begin(it, now)
		b.begunLocked(it)
		r.begin = append(r.begin, it)
	default:
		it.lane.bytes += it.size
		b.waiting++
		it.lane.queue = append(it.lane.queue, it)
		if it.lane.waits(now) {
			b.paced[it.lane] = struct{}{}
			r.wakeAt(it.lane.nextAt)
		}
	}
	return src.pop()
}

// holdLocked decides whether the head may go on waiting for its lane. Those
// behind it may be made to wait a little; for longer only if they could not go
// either, or if nobody else is seen and the lane is quick. In held, those that are
// paused themselves do not count, and with nobody else it may wait for ever.
func (b *board) holdLocked(src *source, now time.Time) verdict {
	b.blocked = true
	if now.Before(src.credit.wait(now)) {
		return hold
	}
	others, free := false, false
	for _, record := range src.queue[1:min(len(src.queue), lookAhead)] {
		l := b.lanes[string(record.Key)]
		if l == src.head.lane || src.held && b.table.bounds(string(record.Key)).idle {
			continue
		}
		others = true
		if l == nil || l.running < l.limit() {
			free = true
			break
		}
	}
	if free || !others && !src.held && !src.head.lane.quick() {
		return park
	}
	return hold
}

func (b *board) laneLocked(webhookID string, now time.Time) *lane {
	bounds := b.table.bounds(webhookID)
	l := b.lanes[webhookID]
	if l == nil {
		l = newLane(bounds.most, now)
		b.lanes[webhookID] = l
	}
	l.bound(bounds)
	return l
}

// startLocked makes the head's offset unfinished.
func (b *board) startLocked(it *item, r *round) {
	_, gone := it.source.tracker.start(it.record.Offset, it.record.Timestamp)
	r.removed += gone
	b.inFlight += it.size
}

// settleLocked starts and finishes the head at once, without an attempt.
func (b *board) settleLocked(it *item, r *round, records ...*kgo.Record) {
	b.startLocked(it, r)
	b.results = append(b.results, result{it, records})
}

func (s *source) pop() bool {
	s.bytes -= len(s.queue[0].Value)
	s.queue[0] = nil
	s.queue = s.queue[1:]
	s.head, s.wake = nil, time.Time{}
	if len(s.queue) == 0 {
		s.queue = nil
	}
	return true
}
