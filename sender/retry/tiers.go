// Package retry decides when a delivery is attempted again and through which
// delay topics ("tiers") it waits until then. It holds pure functions only:
// reading and writing the tiers is consume's.
package retry

import (
	"time"

	"github.com/postrider/postrider/schemas"
)

// Grain is what the shortest tier waits. A rest under it is waited for in memory.
const Grain = time.Second

// tolerance is how much a wait may exceed what was wanted, as 1/tolerance: 5 %.
const tolerance = 20

// Plan returns the wait that stands in for want and the tiers it is spent in,
// longest first, as indices into schemas.RetryDelays. It is the fewest tiers
// whose sum either is want or exceeds it by at most 5 %, or falls short of it by
// less than Grain, which is then waited for in memory. The wait is never shorter
// than want; a want under Grain becomes Grain, since only a tier keeps a wait safe.
func Plan(want time.Duration) (wait time.Duration, tiers []int) {
	delays := schemas.RetryDelays()
	longest := len(delays) - 1
	want = max(want, Grain)

	rest := want
	// Beyond three of the longest the search below would only try them first anyway.
	for rest > 3*delays[longest] {
		tiers = append(tiers, longest)
		rest -= delays[longest]
	}
	s := search{delays: delays, low: rest - Grain + 1, high: rest + want/tolerance}
	for n := 1; !s.find(longest, n, 0); n++ {
		s.found = s.found[:0]
	}
	tiers = append(tiers, s.found...)
	var sum time.Duration
	for _, tier := range tiers {
		sum += delays[tier]
	}
	return max(want, sum), tiers
}

// search finds n tiers, none longer than the one before, whose sum is in [low, high].
type search struct {
	delays    []time.Duration
	low, high time.Duration
	found     []int
}

func (s *search) find(longest, n int, sum time.Duration) bool {
	if n == 0 {
		return sum >= s.low
	}
	for tier := longest; tier >= 0; tier-- {
		delay := s.delays[tier]
		if sum+time.Duration(n)*delay < s.low {
			return false // shorter ones fall shorter still
		}
		if sum+delay > s.high {
			continue
		}
		s.found = append(s.found, tier)
		if s.find(tier, n-1, sum+delay) {
			return true
		}
		s.found = s.found[:len(s.found)-1]
	}
	return false
}

// Next returns the tier in which a delivery due in rest is to wait next. It is
// false if rest is under Grain: no tier is that short.
func Next(rest time.Duration) (tier int, ok bool) {
	if rest < Grain {
		return 0, false
	}
	_, tiers := Plan(rest)
	return tiers[0], true
}

// TierFor returns the shortest tier that waits at least want, or the longest there is.
func TierFor(want time.Duration) int {
	delays := schemas.RetryDelays()
	for tier, delay := range delays {
		if delay >= want {
			return tier
		}
	}
	return len(delays) - 1
}

// Within returns the longest tier that does not wait beyond rest. It is false if
// rest is under Grain.
func Within(rest time.Duration) (tier int, ok bool) {
	for t, delay := range schemas.RetryDelays() {
		if delay > rest {
			break
		}
		tier, ok = t, true
	}
	return tier, ok
}

// LeavesAt returns when a record that entered a tier at entered leaves it,
// whatever its due time: so each tier is first in, first out.
func LeavesAt(tier int, entered time.Time) time.Time {
	return entered.Add(schemas.RetryDelays()[tier])
}

// Rest returns how long a record of a tier still has to wait at now: no longer
// than the tier's delay, should the clock have been set back since it entered.
func Rest(tier int, entered, now time.Time) time.Duration {
	return min(LeavesAt(tier, entered).Sub(now), schemas.RetryDelays()[tier])
}
