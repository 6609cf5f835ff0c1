package consume

import (
	"math"
	"time"

	"github.com/postrider/postrider/sender/deliver"
)

const (
	// breakerFailures in a row, over breakerAfter at least, open a breaker: a target
	// that is started anew fails many times in a moment.
	breakerFailures = 10
	breakerAfter    = 10 * time.Second
	// A breaker is open for breakerPause at first, twice as long each time a probe
	// fails, at most breakerMost.
	breakerPause = 5 * time.Second
	breakerMost  = 30 * time.Second
	// A target that is well again is asked for a rampFrom-th of its rate for a
	// second, then for rampGrowth times as much each second, until that is no bound
	// any more. It is below two so that no second has more than twice the one before.
	rampFrom    = 10
	rampGrowth  = 1.9
	rampSeconds = 10
	// meterEvery is how long deliveries are counted for one sample of a rate.
	meterEvery = 500 * time.Millisecond
	// leastRate is that of a lane which had a lower one, in a second.
	leastRate = 10
)

// breaker stops asking a target that fails each time. While it is open a single
// attempt at a time probes, after a pause.
type breaker struct {
	failures int           // in a row
	since    time.Time     // when the first of them began
	until    time.Time     // when the next probe may be made; zero: closed
	pause    time.Duration // of the last opening
	probing  bool
}

func (b *breaker) open() bool { return !b.until.IsZero() }

// refuses reports whether no attempt may begin.
func (b *breaker) refuses(now time.Time) bool {
	return b.open() && (b.probing || now.Before(b.until))
}

// note takes what an attempt says of the target.
func (b *breaker) note(it *item, h deliver.Health, now time.Time) (opened, closed bool) {
	if it.probe {
		b.probing = false
	}
	switch h {
	case deliver.Unasked:
	case deliver.Well, deliver.Answering:
		closed = b.open()
		*b = breaker{}
	case deliver.Failing, deliver.Overloaded:
		if b.failures++; b.failures == 1 {
			b.since = it.started
		}
		switch {
		case it.probe:
			b.pause = min(2*b.pause, breakerMost)
			b.until = now.Add(b.pause)
		case !b.open() && b.failures >= breakerFailures && now.Sub(b.since) >= breakerAfter:
			b.pause = breakerPause
			b.until = now.Add(b.pause)
			opened = true
		}
	}
	return opened, closed
}

// meter is the moving average of how many deliveries a target takes in a second.
type meter struct {
	since time.Time // what is counted
	count int
	rate  float64
}

func (m *meter) note(now time.Time) {
	if took := now.Sub(m.since); took >= meterEvery {
		rate := float64(m.count) / took.Seconds()
		switch {
		case m.since.IsZero():
		case m.rate == 0:
			m.rate = rate
		default:
			m.rate += (rate - m.rate) / 4
		}
		m.since, m.count = now, 0
	}
	m.count++
}

// ramp is how a lane comes back to its rate after its breaker was open: what had
// gathered would else fall upon the target all at once.
type ramp struct {
	since time.Time // zero: it has its rate
	rate  float64   // before
}

// gap is the least time between the beginnings of two attempts; 0: any.
func (r *ramp) gap(now time.Time) time.Duration {
	if r.since.IsZero() {
		return 0
	}
	second := int(max(0, now.Sub(r.since)) / time.Second)
	if second >= rampSeconds {
		r.since = time.Time{}
		return 0
	}
	count := max(r.rate, leastRate) / rampFrom * math.Pow(rampGrowth, float64(second))
	return time.Duration(float64(time.Second+lateness) / count)
}
