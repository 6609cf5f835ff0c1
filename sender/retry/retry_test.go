package retry_test

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/retry"
)

func TestPlan(t *testing.T) {
	tests := []struct {
		want, wait time.Duration
		tiers      []time.Duration
	}{
		{0, time.Second, []time.Duration{time.Second}},
		{200 * time.Millisecond, time.Second, []time.Duration{time.Second}},
		{time.Second, time.Second, []time.Duration{time.Second}},
		{1500 * time.Millisecond, 1500 * time.Millisecond, []time.Duration{time.Second}},
		{5 * time.Second, 5 * time.Second, []time.Duration{4 * time.Second, time.Second}},
		{29 * time.Second, 30 * time.Second, []time.Duration{30 * time.Second}},
		{5 * time.Minute, 5 * time.Minute, []time.Duration{4 * time.Minute, time.Minute}},
		{30 * time.Minute, 30 * time.Minute, []time.Duration{30 * time.Minute}},
		{14 * time.Hour, 14 * time.Hour, []time.Duration{8 * time.Hour, 4 * time.Hour, 2 * time.Hour}},
		{24 * time.Hour, 24 * time.Hour, []time.Duration{16 * time.Hour, 8 * time.Hour}},
	}
	delays := schemas.RetryDelays()
	for _, test := range tests {
		t.Run(test.want.String(), func(t *testing.T) {
			wait, tiers := retry.Plan(test.want)
			if wait != test.wait {
				t.Errorf("wait %v, want %v", wait, test.wait)
			}
			if len(tiers) != len(test.tiers) {
				t.Fatalf("%d tiers %v, want %v", len(tiers), tiers, test.tiers)
			}
			for i, tier := range tiers {
				if delays[tier] != test.tiers[i] {
					t.Errorf("tier %d is %v, want %v", i, delays[tier], test.tiers[i])
				}
			}
		})
	}
}

func TestPlanOfEverySecondOfADay(t *testing.T) {
	for want := time.Second; want <= 24*time.Hour; want += time.Second {
		if _, tiers := retry.Plan(want); len(tiers) > 5 {
			t.Fatalf("%v needs %d tiers, want at most 5", want, len(tiers))
		}
	}
}

func TestPlanIsNeverEarlyAndAtMost5PercentLate(t *testing.T) {
	delays := schemas.RetryDelays()
	rapid.Check(t, func(t *rapid.T) {
		want := time.Duration(rapid.Int64Range(int64(time.Second), int64(retry.MaxDelay)).Draw(t, "want"))
		wait, tiers := retry.Plan(want)
		if wait < want || wait > want+want/20 {
			t.Fatalf("wait %v for %v", wait, want)
		}
		var sum time.Duration
		for i, tier := range tiers {
			sum += delays[tier]
			if i > 0 && tier > tiers[i-1] {
				t.Fatalf("tiers %v, want the longest first", tiers)
			}
		}
		if sum > wait || wait-sum >= retry.Grain {
			t.Fatalf("tiers wait %v of %v: the rest must be under a second", sum, wait)
		}
	})
}

// A record walks through the tiers that Next names, a little late each time.
func TestHopsEndAtTheDueTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := time.Duration(rapid.Int64Range(int64(time.Second), int64(24*time.Hour)).Draw(t, "want"))
		start := time.Unix(1_700_000_000, 0)
		wait, tiers := retry.Plan(want)
		due, now, hops := start.Add(wait), start, 0
		for tier, ok := tiers[0], true; ok; tier, ok = retry.Next(due.Sub(now)) {
			late := time.Duration(rapid.Int64Range(0, int64(20*time.Millisecond)).Draw(t, "late"))
			now = retry.LeavesAt(tier, now).Add(late)
			hops++
		}
		if hops > 7 {
			t.Errorf("%d hops for %v", hops, want)
		}
		if now.Before(due) {
			now = due // the rest under a second is waited for in memory
		}
		if late := now.Sub(due); late > want/20+200*time.Millisecond {
			t.Errorf("%v late for %v", late, want)
		}
	})
}

func TestScheduleAfter(t *testing.T) {
	schedule := retry.Schedule{5 * time.Second, 2 * time.Hour}
	now := time.Unix(1_700_000_000, 0)
	tests := []struct {
		name       string
		attempt    int
		retryAfter time.Duration
		chance     float64
		due        time.Duration
		again      bool
	}{
		{"first", 1, 0, 0, 5 * time.Second, true},
		{"second", 2, 0, 0, 2 * time.Hour, true},
		{"jitter lengthens", 1, 0, 0.5, 5050 * time.Millisecond, true},
		{"the target asks for longer", 1, 30 * time.Second, 0, 30 * time.Second, true},
		{"the target asks for less", 2, 30 * time.Second, 0, 2 * time.Hour, true},
		{"the target asks for ever", 1, 1000 * time.Hour, 0, 176 * time.Hour, true},
		{"after the last", 3, 0, 0, 0, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			step, again := schedule.After(test.attempt, now, test.retryAfter, test.chance)
			if again != test.again {
				t.Fatalf("again %v, want %v", again, test.again)
			}
			if again && step.DueAt.Sub(now) != test.due {
				t.Errorf("due after %v, want %v", step.DueAt.Sub(now), test.due)
			}
		})
	}
}

func TestPark(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	tests := []struct {
		parks    int
		expected time.Duration
		want     time.Duration
	}{
		{0, 0, time.Second},
		{1, 0, 2 * time.Second},
		{4, 0, 30 * time.Second}, // 16 s, the next tier
		{0, 10 * time.Second, 15 * time.Second},
		{0, 10 * time.Hour, 30 * time.Minute},
		{40, 0, 30 * time.Minute},
	}
	for _, test := range tests {
		if got := retry.Park(test.parks, now, test.expected).DueAt.Sub(now); got != test.want {
			t.Errorf("parked %d times, expecting %v: %v, want %v", test.parks, test.expected, got, test.want)
		}
	}
}

func TestParkForComesBackInOrder(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for wait, want := range map[time.Duration]time.Duration{0: time.Second, 10 * time.Hour: 10 * time.Hour, 1000 * time.Hour: retry.MaxDelay} {
		if got := retry.ParkFor(now, wait).DueAt.Sub(now); got != want {
			t.Errorf("a wait of %v: %v, want %v", wait, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		wait := time.Duration(rapid.Int64Range(int64(time.Second), int64(retry.MaxDelay)).Draw(t, "wait"))
		step := retry.ParkFor(now, wait)
		at := now
		for tier, far := step.Tier, true; far; tier, far = retry.Within(step.DueAt.Sub(at)) {
			at = retry.LeavesAt(tier, at)
		}
		if early := step.DueAt.Sub(at); early < 0 || early >= retry.Grain {
			t.Errorf("a wait of %v: out of its tiers %v before its turn, want less than %v", wait, early, retry.Grain)
		}
	})
}

func TestRest(t *testing.T) {
	entered := time.Unix(1_700_000_000, 0)
	const tier = 2 // 4 s
	for _, test := range []struct{ now, want time.Duration }{
		{0, 4 * time.Second},
		{3 * time.Second, time.Second},
		{5 * time.Second, -time.Second},
		{-10 * time.Minute, 4 * time.Second}, // the clock was set back
	} {
		if got := retry.Rest(tier, entered, entered.Add(test.now)); got != test.want {
			t.Errorf("%v after entry: rest %v, want %v", test.now, got, test.want)
		}
	}
}

func TestScheduleCheck(t *testing.T) {
	if err := retry.DefaultSchedule().Check(); err != nil {
		t.Errorf("default schedule: %v", err)
	}
	for _, bad := range []retry.Schedule{{0}, {-time.Second}, {200 * time.Hour}, make(retry.Schedule, 51)} {
		if err := bad.Check(); !errors.Is(err, retry.ErrSchedule) {
			t.Errorf("schedule %v: error %v, want ErrSchedule", bad, err)
		}
	}
}
