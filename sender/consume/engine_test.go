package consume

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

// feed delivers n times a second to webhook w, up to a moment.
func (s *sim) feed(n int, until time.Time) func() {
	began, fed := s.now, 0
	return func() {
		if s.now.After(until) {
			return
		}
		for ; fed < int(s.now.Sub(began).Seconds()*float64(n)); fed++ {
			s.deliver("w", 1)
		}
	}
}

func TestBreakerSparesADeadTargetAndComesBackGently(t *testing.T) {
	const rate = 100
	s := startSim(t, 1)
	s.webhook(t, "w", nil)
	dead, again := s.now.Add(10*time.Second), s.now.Add(70*time.Second)
	s.target = func(*item) (time.Duration, deliver.Verdict) {
		if s.now.Before(dead) || !s.now.Before(again) {
			return 2 * time.Millisecond, well
		}
		return time.Millisecond, failing
	}
	s.run(t, again.Add(time.Minute), s.feed(rate, again.Add(50*time.Second)))

	var asked int // once it has been dead for long enough to be known for it
	var back time.Time
	for _, at := range s.requests["w"] {
		switch {
		case at.After(dead.Add(breakerAfter+time.Second)) && at.Before(again):
			asked++
		case !at.Before(again) && back.IsZero():
			back = at
		}
	}
	if asked == 0 || asked > 5 {
		t.Errorf("%d requests of the dead target in its last 49 s, want from 1 to 5 probes", asked)
	}
	if late := back.Sub(again); late > breakerMost {
		t.Errorf("asked again %v after it was well, want at most %v", late, breakerMost)
	}
	counts := s.perSecond("w", back.Add(5*time.Millisecond), 8)
	for i, n := range counts {
		if most := rate/rampFrom<<i + 1; n > most || n < min(rate, most/2) {
			t.Errorf("second %d after: %d requests, want at most %d, and half of that or its rate (%v)", i, n, most, counts)
		}
	}
	reasons := make(map[string]int)
	for _, list := range s.outcomes {
		for _, o := range list {
			reasons[o.Reason]++
		}
	}
	if reasons["breaker_open"] < rate*30 {
		t.Errorf("outcomes by reason: %v, want most of the outage's refused by the breaker", reasons)
	}
}

func TestBreakerLetsTheLastOfAScheduleGo(t *testing.T) {
	s := startSim(t, 1)
	s.webhook(t, "w", func(w *schemas.Webhook) { w.RetrySchedule = []string{"20s"} })
	s.target = func(*item) (time.Duration, deliver.Verdict) { return time.Millisecond, failing }
	from := s.now
	s.run(t, s.now.Add(2*time.Minute), s.feed(10, s.now.Add(30*time.Second)))
	var last int
	for _, at := range s.requests["w"] {
		if at.Sub(from) > breakerAfter+time.Second {
			last++
		}
	}
	for id, list := range s.outcomes {
		if end := list[len(list)-1]; end.Result != schemas.ResultDead || end.Attempt != 2 || end.Reason != string(deliver.ReasonConnectRefused) {
			t.Errorf("delivery %s ended %+v, want dead of a second attempt that was made", id, end)
		}
	}
	if want := len(s.outcomes); want < 290 || last < want {
		t.Errorf("%d requests while the breaker was open, want the last of each of %d deliveries", last, want)
	}
}

func TestOverloadedTargetIsAskedLess(t *testing.T) {
	s := startSim(t, 1)
	s.webhook(t, "w", nil)
	var most int
	quiet := s.now.Add(2 * time.Second)
	s.target = func(*item) (time.Duration, deliver.Verdict) {
		v := deliver.Verdict{Action: deliver.Retry, Reason: deliver.ReasonStatus, Health: deliver.Overloaded}
		if s.now.Before(quiet) {
			return 100 * time.Millisecond, well
		}
		if s.now.Sub(quiet) > time.Second {
			most = max(most, len(s.flights)+1)
		}
		return 100 * time.Millisecond, v
	}
	s.run(t, quiet.Add(5*time.Second), s.feed(1000, quiet.Add(5*time.Second)))
	if most > 2 {
		t.Errorf("%d requests at once of a target that says 429, want at most 2", most)
	}

	s = startSim(t, 1)
	s.webhook(t, "w", nil)
	s.target = func(*item) (time.Duration, deliver.Verdict) {
		return time.Millisecond, deliver.Verdict{Action: deliver.Retry, Reason: deliver.ReasonStatus, Health: deliver.Overloaded, Wait: 20 * time.Second}
	}
	from := s.now
	s.run(t, from.Add(19*time.Second), s.feed(100, from.Add(19*time.Second)))
	if n := len(s.requests["w"]); n > firstPlaces {
		t.Errorf("%d requests within the 20 s of its Retry-After, want those that ran", n)
	}
}

// records are how many records were written to retry tiers for each attempt, or decision to make none, of a webhook.
func (s *sim) records(id string) float64 {
	attempts := 0
	for _, list := range s.outcomes {
		if list[0].WebhookID == id {
			attempts += len(list)
		}
	}
	return float64(s.waiting[id]) / float64(max(1, attempts))
}

func TestRetryRecordsOfAnAttemptAreBounded(t *testing.T) {
	tests := []struct {
		name    string
		backlog int
		change  func(*schemas.Webhook)
		target  func() (time.Duration, deliver.Verdict)
		during  time.Duration
		most    float64
	}{
		{"hangs", 10_000, nil, func() (time.Duration, deliver.Verdict) { return 15 * time.Second, overloaded }, 12 * time.Hour, 5},
		{"refuses", 10_000, nil, func() (time.Duration, deliver.Verdict) { return time.Millisecond, failing }, 12 * time.Hour, 5},
		{"is slow", 10_000, nil, func() (time.Duration, deliver.Verdict) { return time.Second, well }, time.Hour, 5},
		// A wait that is known has its hops: more of them the more exactly it is to end.
		{"may have one a minute", 1000, func(w *schemas.Webhook) {
			w.RateLimit = &schemas.RateLimit{Count: 1, Per: "minute"}
		}, func() (time.Duration, deliver.Verdict) { return time.Millisecond, well }, 20 * time.Hour, 8},
		{"may have one at a time", 5000, func(w *schemas.Webhook) {
			w.MaxConcurrency = new(1)
		}, func() (time.Duration, deliver.Verdict) { return 2 * time.Second, well }, 4 * time.Hour, 8},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startSim(t, 1)
			s.webhook(t, "w", test.change)
			s.webhook(t, "other", nil)
			s.target = func(it *item) (time.Duration, deliver.Verdict) {
				if it.delivery.WebhookID == "other" {
					return time.Millisecond, well
				}
				return test.target()
			}
			for range test.backlog / 10 {
				s.deliver("w", 10)
				s.deliver("other", 1)
			}
			s.run(t, s.now.Add(test.during), nil)
			n := s.records("w")
			t.Logf("%.2f retry records an attempt, %d requests", n, len(s.requests["w"]))
			if n > test.most {
				t.Errorf("%.2f retry records an attempt, want at most %v", n, test.most)
			}
			if v := verdictOf(test.target); v.Action == deliver.Delivered && len(s.requests["w"]) != test.backlog {
				t.Errorf("%d requests, want all %d served", len(s.requests["w"]), test.backlog)
			}
		})
	}
}

// TestBacklogOfQuickTargetsHasNoTail has one CPU for ten targets and a backlog of each: most is parked now and then.
func TestBacklogOfQuickTargetsHasNoTail(t *testing.T) {
	const targets, backlog, cost = 10, 3000, 200 * time.Microsecond
	s := startSim(t, 4)
	var free time.Time
	n := 0
	s.target = func(*item) (time.Duration, deliver.Verdict) {
		if n++; n%2000 == 0 {
			free = laterOf(free, s.now).Add(300 * time.Millisecond) // the machine is somebody else's for a moment
		}
		free = laterOf(free, s.now).Add(cost)
		return free.Sub(s.now) + time.Millisecond, well
	}
	for i := range targets {
		s.webhook(t, fmt.Sprint(i), nil)
	}
	for range backlog / 10 {
		for i := range targets {
			s.deliver(fmt.Sprint(i), 10)
		}
	}
	began := s.now
	s.run(t, s.now.Add(3*time.Minute), nil)
	var last time.Time
	made := 0
	for i := range targets {
		made += len(s.requests[fmt.Sprint(i)])
		last = laterOf(last, slices.MaxFunc(s.requests[fmt.Sprint(i)], time.Time.Compare))
	}
	best := targets*backlog*cost + targets*backlog/2000*300*time.Millisecond
	t.Logf("%d deliveries took %v, at best %v; %d were parked", made, last.Sub(began), best, s.waiting["0"]*targets)
	if took := last.Sub(began); made != targets*backlog || took > 2*best {
		t.Errorf("%d deliveries took %v, want %d in at most twice %v", made, took, targets*backlog, best)
	}
}

func verdictOf(target func() (time.Duration, deliver.Verdict)) deliver.Verdict {
	_, v := target()
	return v
}

// TestFairService has one CPU for a hundred equal webhooks and one with a hundred
// times their backlog.
func TestFairService(t *testing.T) {
	const webhooks, backlog = 100, 100
	for _, greedy := range []bool{false, true} {
		s := startSim(t, 4)
		var free time.Time
		s.target = func(*item) (time.Duration, deliver.Verdict) {
			free = laterOf(free, s.now).Add(200 * time.Microsecond)
			return free.Sub(s.now) + time.Millisecond, well
		}
		for i := range webhooks {
			s.webhook(t, fmt.Sprint(i), nil)
		}
		s.webhook(t, "greedy", nil)
		for range backlog {
			if greedy {
				s.deliver("greedy", 100)
			}
			for i := range webhooks {
				s.deliver(fmt.Sprint(i), 1)
			}
		}
		// Until most of them would be served if each had its share.
		s.run(t, s.now.Add(webhooks*backlog*200*time.Microsecond*3/4), nil)
		var sum, squares float64
		for i := range webhooks {
			n := float64(len(s.requests[fmt.Sprint(i)]))
			sum += n
			squares += n * n
		}
		jain := sum * sum / (webhooks * squares)
		share := float64(len(s.requests["greedy"])) / (sum / webhooks)
		t.Logf("greedy %t: Jain's index %.3f, greedy's share %.2f of the others' mean %.0f", greedy, jain, share, sum/webhooks)
		if jain < 0.95 {
			t.Errorf("Jain's index %.3f, want at least 0.95", jain)
		}
		if share > 2 {
			t.Errorf("the greedy webhook has %.1f times the share of the others, want at most 2", share)
		}
	}
}
