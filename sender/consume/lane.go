package consume

import (
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

const (
	// patience is the longest a delivery waits in memory for its lane: the
	// shortest a retry tier could put it off.
	patience = time.Second
	// turnsQueued is how many may wait there of a lane whose target is well: how long
	// it takes is known, and what is parked need not come back at its very moment.
	turnsQueued = 64
	// A lane may hold a quarter of what its partition, and the process, has
	// free, so that n stuck lanes leave 1/(1+n/4) of it to the others: never
	// nothing (dynamic thresholds; Choudhury and Hahne, 1998).
	laneShare = 4
	// quickStep is the time between two places falling free up to which a lane
	// counts as quick: waiting for it costs those behind less than parking does.
	quickStep = 2 * time.Millisecond
	// A lane begins with firstPlaces, and has leastPlaces of a slow target, fewer of
	// one that says that it is overloaded.
	firstPlaces = 8
	leastPlaces = 4
	// slack is what an attempt may take beyond twice the target's best before its
	// lane has too many at once. It is above the noise of a busy machine; and a
	// machine that is the bottleneck itself settles at slack × its rate attempts.
	slack = 50 * time.Millisecond
	// lateness is what timers and a busy machine may cost of a rate: 1 % of one per second.
	lateness = 10 * time.Millisecond
	// mostQuiet caps how long a lane is quiet because an overloaded target asked for it.
	mostQuiet = time.Minute
	// laneIdle is how long a lane that has nothing to do keeps what it knows of its target.
	laneIdle = 10 * time.Minute
)

// laneBounds are what a webhook's owner, or the sender, allows its lane.
type laneBounds struct {
	most     int           // attempts at once
	interval time.Duration // between the beginnings of two; 0: at once
	retries  int           // that its schedule allows
	// generation is the webhook's; 0 if it is not known.
	generation int64
	idle       bool // its owner has paused or disabled it
}

// interval is the time between the beginnings of two attempts under a rate limit.
// One that begins late, as timers do, lets the next come sooner, by lateness at
// most: so n of them may take that much less than n-1 intervals, and the interval
// is longer by its share.
func interval(r *schemas.RateLimit) time.Duration {
	if r == nil {
		return 0
	}
	return (r.Period() + lateness) / time.Duration(r.Count)
}

// lane is where the deliveries of one webhook wait for their attempts. The board's mutex guards it.
type lane struct {
	laneBounds

	places  float64 // attempts that may run at once; see learn
	running int
	queue   []*item
	bytes   int64 // of running and queue

	// pace is the moving average of how long an attempt takes, usual a slower one, and best about the shortest.
	pace, usual, best time.Duration
	// progress is when an attempt ended last, or began while none was running, or the lane was made.
	progress time.Time
	// nextAt is when the next attempt may begin, under an interval, a ramp, or because the target said so.
	nextAt time.Time
	// slowedAt is when there were fewer places because the target is overloaded.
	slowedAt  time.Time
	meter     meter
	ramp      ramp
	breaker   breaker
	condition condition
	// backlog is when the last of those parked will have had its turn.
	backlog time.Time
}

// verdict says what becomes of the delivery at a partition's head.
type verdict int

const (
	begin verdict = iota // attempt it now
	queue                // it waits in its lane
	hold                 // it stays at the head: its lane moves quickly enough
	park                 // there is no room: it waits in a retry tier
	aside                // no request is to be expected: it is dealt with beside the lane
)

func newLane(most int, now time.Time) *lane {
	return &lane{laneBounds: laneBounds{most: most}, places: float64(min(firstPlaces, most)), progress: now}
}

// bound sets what the lane is allowed. Attempts that run beyond a lower bound end;
// none begins until there are fewer.
func (l *lane) bound(b laneBounds) {
	if b.most != l.most {
		l.places = min(l.places, float64(b.most))
	}
	if b.interval != l.interval {
		// The last attempt began an interval before nextAt: the new one counts from there.
		l.nextAt = l.nextAt.Add(b.interval - l.interval)
	}
	l.laneBounds = b
}

// waits reports whether the first in queue waits for its time, and for nothing else.
func (l *lane) waits(now time.Time) bool {
	return len(l.queue) > 0 && l.running < l.limit() && now.Before(l.nextAt)
}

// limit is how many attempts may run at once.
func (l *lane) limit() int { return int(l.places) }

// learn adapts places to how long an attempt took (as TCP Vegas does by round
// trips): while it takes about as long as the target's best, more at once get
// more done; if it takes longer, they only wait there, or here for the CPU. One
// that is overloaded is asked half as much at once, and one that fails no more.
func (l *lane) learn(it *item, v deliver.Verdict, now time.Time) {
	if v.Health == deliver.Unasked {
		return
	}
	took := now.Sub(it.started)
	if v.Health == deliver.Overloaded && !it.started.Before(l.slowedAt) {
		l.places, l.slowedAt = max(1, l.places/2), now
	}
	if l.best == 0 || took < l.best {
		l.best = took
	}
	l.best += (took - l.best) / 1024 // a target that became slower for good is found out
	least := min(l.places, float64(min(leastPlaces, l.most)))
	switch {
	case took > 2*l.best+slack:
		l.places = max(least, l.places-l.places/16)
	case len(l.queue) > 0 && v.Health <= deliver.Answering:
		l.places = min(float64(l.most), l.places+0.5)
	}
	if l.pace == 0 {
		l.pace, l.usual = took, took
	}
	l.pace += (took - l.pace) / 8
	l.usual += (took - l.usual) / 64
}

// step is the time between the beginnings of two attempts.
func (l *lane) step(now time.Time) time.Duration { return max(l.interval, l.ramp.gap(now)) }

// refuses reports whether the breaker lets a delivery not go: the last attempt of its schedule goes in any case.
func (l *lane) refuses(it *item, now time.Time) bool {
	return l.breaker.refuses(now) && it.delivery.Attempt < l.retries
}

// isAside reports whether no request is to be expected of a delivery. A ping goes whatever the breaker says.
func (l *lane) isAside(it *item, now time.Time) bool {
	it.refused = l.refuses(it, now)
	it.aside = it.delivery.Cause != schemas.CausePing && (it.refused || l.idle || l.condition.disabled(l.generation))
	return it.aside
}

func (l *lane) depth() int { return l.running + len(l.queue) }

// full reports whether one more of the given size exceeds the lane's share of
// what the partition (in deliveries) and the process (in bytes) have free.
func (l *lane) full(size int64, free int, freeBytes int64) bool {
	if l.depth() == 0 {
		return false
	}
	return l.depth() >= max(1, free/laneShare) || l.bytes+size > freeBytes/laneShare
}

// expected is how long one more would wait for its attempt to begin.
func (l *lane) expected(now time.Time) time.Duration {
	paced := max(0, l.nextAt.Sub(now)) + time.Duration(len(l.queue))*l.step(now)
	if l.running < l.limit() {
		return paced
	}
	turn := time.Duration(len(l.queue)+1) * l.pace / time.Duration(l.limit())
	// A target that has begun to hang shows first in that nothing ends.
	return max(turn, paced, now.Sub(l.progress))
}

// quick reports whether places are known to fall free faster than quickStep.
func (l *lane) quick() bool {
	return l.pace > 0 && l.pace <= quickStep*time.Duration(l.limit()) && l.interval <= quickStep
}

// spacing is the time between the beginnings of two attempts as long as there is
// always one that waits; 0: it is not known.
func (l *lane) spacing(now time.Time) time.Duration {
	return max(l.step(now), l.pace/time.Duration(l.limit()))
}

// steady reports whether spacing is to be relied on: attempts end, and are answered.
func (l *lane) steady(now time.Time) bool {
	return l.breaker.failures == 0 && !l.breaker.open() && (l.running == 0 || now.Sub(l.progress) <= max(patience, 2*l.pace))
}

// patience is the longest a delivery may wait in the lane.
func (l *lane) patience(now time.Time) time.Duration {
	if l.steady(now) {
		return max(patience, turnsQueued*l.spacing(now))
	}
	return patience
}

// turn is the time between two of those that are parked: by how long an attempt
// usually takes, or by how many are taken in a second, whichever is less. What
// slows the lane or the machine for a moment, such as the ramp after an outage, is
// over by then.
func (l *lane) turn() time.Duration {
	between := l.usual / time.Duration(l.limit())
	if l.meter.rate > 0 {
		between = min(between, time.Duration(float64(time.Second)/l.meter.rate))
	}
	return max(l.interval, between)
}

// early is how long before its turn a delivery may come back.
func (l *lane) early(now time.Time) time.Duration {
	if l.steady(now) {
		return turnsQueued / 2 * l.turn()
	}
	return 0
}

// ready reports whether an attempt could begin now and none waits.
func (l *lane) ready(now time.Time) bool {
	return l.running < l.limit() && len(l.queue) == 0 && !now.Before(l.nextAt)
}

// take decides on one more delivery, except that hold may have to become park.
func (l *lane) take(it *item, now time.Time, free int, freeBytes int64) verdict {
	switch {
	case l.isAside(it, now):
		return aside
	case l.full(it.size, free, freeBytes):
		if l.expected(now) > l.patience(now) {
			return park
		}
		return hold
	case l.ready(now):
		return begin
	case l.expected(now) > l.patience(now):
		return park
	default:
		return queue
	}
}

// parking is how long a delivery has to wait for its turn.
type parking struct {
	expected time.Duration
	known    bool // it has a turn; else it is a guess
}

// parked returns how long one more parked delivery has to wait until those
// parked before it have had their turn. Of a target that fails or hangs nobody
// knows; who comes too early is parked for twice as long.
func (l *lane) parked(now time.Time) parking {
	steady, between := l.steady(now), l.turn()
	first := laterOf(now, l.nextAt)
	if steady {
		first = first.Add(time.Duration(len(l.queue)) * between) // behind those in queue
	} else {
		between = l.best / time.Duration(l.limit())
	}
	l.backlog = laterOf(l.backlog, first).Add(between)
	return parking{l.backlog.Sub(now), steady && between > 0}
}

func (l *lane) begin(it *item, now time.Time) {
	if l.running == 0 {
		l.progress = now
	}
	it.started = now
	l.running++
	l.prepare(it)
	if l.breaker.open() && !l.breaker.refuses(now) {
		it.probe, l.breaker.probing = true, true
	}
	if step := l.step(now); step > 0 {
		from := l.nextAt
		if late := now.Add(-lateness); from.Before(late) {
			from = late
		}
		l.nextAt = from.Add(step)
	}
}

// prepare gives a delivery that is to be dealt with what the lane knows of its webhook.
func (l *lane) prepare(it *item) {
	it.disabled = -1
	if !l.condition.DisabledAt.IsZero() {
		it.disabled = l.condition.Generation
	}
}

// end notes that it's attempt has ended and returns what begins now: one in its
// place, none where there are fewer places, two where there is one more; all that
// are aside from now on, where the target is not asked any more.
func (l *lane) end(it *item, v deliver.Verdict, now time.Time) (begin []*item) {
	l.running--
	l.bytes -= it.size
	l.progress = now
	l.learn(it, v, now)
	opened, closed := l.breaker.note(it, v.Health, now)
	if closed {
		l.ramp = ramp{now, l.meter.rate}
		l.meter = meter{rate: l.meter.rate}
	} else if v.Health == deliver.Well {
		l.meter.note(now)
	}
	if v.Health == deliver.Overloaded && v.Wait > 0 {
		l.nextAt = laterOf(l.nextAt, now.Add(min(v.Wait, mostQuiet)))
	}
	if opened || l.idle || l.condition.disabled(l.generation) {
		begin = l.drop(func(it *item) bool { return l.isAside(it, now) })
		for _, it := range begin {
			l.prepare(it)
		}
	}
	for range 2 {
		if next := l.beginNext(now); next != nil {
			begin = append(begin, next)
		}
	}
	return begin
}

func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// beginNext begins the first that waits, if there is a place.
func (l *lane) beginNext(now time.Time) *item {
	if len(l.queue) == 0 || l.running >= l.limit() || now.Before(l.nextAt) || l.refuses(l.queue[0], now) {
		return nil
	}
	it := l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	l.begin(it, now)
	return it
}

// drop removes some of what waits.
func (l *lane) drop(some func(*item) bool) (dropped []*item) {
	kept := l.queue[:0]
	for _, it := range l.queue {
		if some(it) {
			l.bytes -= it.size
			dropped = append(dropped, it)
			continue
		}
		kept = append(kept, it)
	}
	clear(l.queue[len(kept):])
	l.queue = kept
	return dropped
}
