package consume

import (
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
	"github.com/postrider/postrider/sender/retry"
)

// setBy is what time.Now returns after the machine's clock was set by so many whole
// seconds: another time of day, and a monotonic reading that goes on. No function of
// package time makes one: the seconds are the bits from 30 on of its first word.
func setBy(t *testing.T, now time.Time, by time.Duration) time.Time {
	t.Helper()
	set := now
	*(*uint64)(unsafe.Pointer(&set)) += uint64(by/time.Second) << 30 //nolint:gosec // wraps as it should
	if set.Sub(now) != 0 || set.Round(0).Sub(now.Round(0)) != by {
		t.Fatalf("package time has changed: set by %v, %v is %v", by, now, set)
	}
	return set
}

// TestClockMovesWhileRetriesWait sets the clock ten minutes ahead and back while
// retries wait, in a sender that goes on and in one that starts anew. None is made
// before its due time by the clock, and none waits longer than that and what the clock
// was set back by, with what chance and the tiers add to such a wait.
func TestClockMovesWhileRetriesWait(t *testing.T) {
	const shift = 10 * time.Minute
	for _, by := range []time.Duration{shift, -shift} {
		for _, delay := range []time.Duration{3 * time.Second, time.Minute, 7 * time.Minute} {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprintf("by %v, delay %v, restart %t", by, delay, restart), func(t *testing.T) {
					moveClock(t, by, delay, restart)
				})
			}
		}
	}
}

func moveClock(t *testing.T, by, delay time.Duration, restart bool) {
	t.Helper()
	const webhooks = 40
	s := startSim(t, 2)
	s.now = time.Now() // with a monotonic reading
	s.cfg.Schedule = retry.Schedule{delay}
	s.join()
	first := make(map[string]time.Time) // first requests, by webhook
	second := make(map[string]time.Time)
	s.target = func(it *item) (time.Duration, deliver.Verdict) {
		id := it.delivery.WebhookID
		if _, asked := first[id]; !asked {
			first[id] = s.now
			return time.Millisecond, failing
		}
		second[id] = s.now
		return time.Millisecond, well
	}
	began := s.now
	next := 0
	more := func() { // deliveries all the while, before and after
		for ; next < webhooks && s.now.Sub(began) >= time.Duration(next)*delay/webhooks; next++ {
			s.webhook(t, fmt.Sprint(next), nil)
			s.deliver(fmt.Sprint(next), 1)
		}
	}
	s.run(t, s.now.Add(delay/2), more)
	waiting := len(first) - len(second)
	s.now = setBy(t, s.now, by)
	if restart {
		s.commit()
		s.flights = nil
		s.join()
	}
	s.run(t, s.now.Add(2*delay+2*by.Abs()), more)
	if waiting == 0 || len(second) != webhooks {
		t.Fatalf("%d retries waited when the clock was set, and %d of %d were made", waiting, len(second), webhooks)
	}
	for id, list := range s.outcomes {
		webhook := list[0].WebhookID
		due, at := list[0].NextAttemptAt, second[webhook].Round(0)
		if at.Before(due.Truncate(time.Microsecond)) {
			t.Errorf("delivery %s: made at %v, %v before it was due", id, at, due.Sub(at))
		}
		waited := second[webhook].Sub(first[webhook]) // by the monotonic reading
		if most := (delay+max(0, -by))*108/100 + time.Second; waited > most {
			t.Errorf("delivery %s: waited %v, want at most %v", id, waited, most)
		}
		if least := delay - max(0, by); waited < least {
			t.Errorf("delivery %s: waited %v, want at least %v", id, waited, least)
		}
		if end := list[len(list)-1]; len(list) != 2 || end.Result != schemas.ResultDelivered {
			t.Errorf("delivery %s: %d outcomes, the last %s", id, len(list), end.Result)
		}
	}
}
