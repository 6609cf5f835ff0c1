package consume

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
	"github.com/postrider/postrider/sender/retry"
)

// TestEveryDeliveryEndsOnce does what may happen to a sender in any order: targets
// of every kind, webhooks paused and resumed, transactions that abort, partitions
// that go and come back with attempts running, crashes.
func TestEveryDeliveryEndsOnce(t *testing.T) {
	const webhooks = 4
	rapid.Check(t, func(rt *rapid.T) {
		s := startSim(t, 2)
		s.cfg.Schedule = retry.Schedule{time.Second, 5 * time.Second, 40 * time.Second}
		s.join()
		s.target = moody(rapid.Uint64().Draw(rt, "targets"))
		id := func() string { return fmt.Sprint(rapid.IntRange(0, webhooks-1).Draw(rt, "webhook")) }
		pause := func(id string, paused bool) {
			s.webhook(t, id, func(w *schemas.Webhook) {
				if w.Paused && !paused {
					w.ResumedAt = s.now
				}
				w.Paused = paused
			})
		}
		for i := range webhooks {
			s.webhook(t, fmt.Sprint(i), nil)
		}
		made := 0
		rt.Repeat(map[string]func(*rapid.T){
			"deliver": func(rt *rapid.T) {
				n := rapid.IntRange(1, 100).Draw(rt, "deliveries")
				s.deliver(id(), n)
				made += n
			},
			"time": func(rt *rapid.T) {
				s.run(t, s.now.Add(time.Duration(rapid.IntRange(1, 20_000).Draw(rt, "ms"))*time.Millisecond), nil)
			},
			"pause":  func(*rapid.T) { pause(id(), true) },
			"resume": func(*rapid.T) { pause(id(), false) },
			"abort": func(*rapid.T) {
				b := s.board.take()
				s.board.putBack(b)
			},
			"rebalance": func(*rapid.T) { s.rebalance() },
			"lost": func(*rapid.T) {
				s.board.giveUp(nil)
				s.assign()
			},
			"crash": func(*rapid.T) {
				s.flights = nil
				s.join()
			},
		})
		s.target = func(*item) (time.Duration, deliver.Verdict) { return time.Millisecond, well }
		for i := range webhooks {
			pause(fmt.Sprint(i), false)
		}
		s.run(t, s.now.Add(3*time.Hour), nil)
		s.check(rt, made)
	})
}

// moody is a target that answers as it likes, the same for the same seed.
func moody(seed uint64) func(*item) (time.Duration, deliver.Verdict) {
	return func(*item) (time.Duration, deliver.Verdict) {
		seed = seed*6364136223846793005 + 1442695040888963407
		took := time.Duration(seed>>33%1000) * time.Millisecond
		switch kind := seed >> 60; {
		case kind < 6:
			return took, well
		case kind < 10:
			return took, failing
		case kind < 13:
			return 15 * time.Second, overloaded
		case kind < 15:
			return took, deliver.Verdict{Action: deliver.Retry, Reason: deliver.ReasonStatus, Health: deliver.Overloaded, Wait: 3 * time.Second}
		default:
			return took, deliver.Verdict{Action: deliver.Final, Reason: deliver.ReasonFinalStatus, Health: deliver.Answering}
		}
	}
}

// check holds every delivery made to one end, after attempts that are counted without a gap.
func (s *sim) check(rt *rapid.T, made int) {
	if len(s.outcomes) != made {
		rt.Errorf("%d deliveries have outcomes, want all %d", len(s.outcomes), made)
	}
	for id, list := range s.outcomes {
		ends, attempt := 0, 0
		for _, o := range list {
			if o.Ends() {
				ends++
			}
			if o.Result != schemas.ResultHeld {
				attempt++
			}
			if o.Attempt != attempt {
				rt.Errorf("delivery %s: outcome of attempt %d where %d is next", id, o.Attempt, attempt)
			}
		}
		if ends != 1 || !list[len(list)-1].Ends() {
			rt.Errorf("delivery %s: %d ends in %+v", id, ends, list)
		}
	}
	for p, records := range s.logs {
		if src := s.board.sources[p]; src != nil && int(s.committed[p].offset) != len(records) {
			rt.Errorf("%s is committed to %d of %d", p.topic, s.committed[p].offset, len(records))
		}
	}
}
