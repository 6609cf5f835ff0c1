package retry

import (
	"errors"
	"time"
)

// MaxDelay is the longest delay of a schedule, and that a target may ask for:
// half of what a retry tier keeps, so that no wait comes near the retention.
const MaxDelay = 7 * 24 * time.Hour

// jitter is the most by which chance lengthens a delay, as 1/jitter: 2 %. It
// parts deliveries that failed together; with Plan's 5 % a retry stays near its schedule.
const jitter = 50

// parkMax is the longest a delivery without room is put off (design: lanes).
const parkMax = 30 * time.Minute

// ErrSchedule is returned for a schedule that cannot be kept.
var ErrSchedule = errors.New("each delay must be from 1ms to 168h, at most 50 of them")

// Schedule holds the delays between attempts, each after the attempt before. The
// first attempt is at once and has no entry.
type Schedule []time.Duration

// DefaultSchedule returns the schedule that Standard Webhooks recommends.
func DefaultSchedule() Schedule {
	return Schedule{
		5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
		10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
	}
}

// Check returns ErrSchedule if the schedule cannot be kept.
func (s Schedule) Check() error {
	if len(s) > 50 {
		return ErrSchedule
	}
	for _, delay := range s {
		if delay < time.Millisecond || delay > MaxDelay {
			return ErrSchedule
		}
	}
	return nil
}

// Step is where a delivery waits and until when.
type Step struct {
	DueAt time.Time
	Tier  int
}

// After returns the step after the attempt with the given number (1 is the
// first) failed at now. retryAfter is what the target asked for, zero if
// nothing; it only lengthens. chance is in [0, 1). It is false after the last attempt.
func (s Schedule) After(attempt int, now time.Time, retryAfter time.Duration, chance float64) (Step, bool) {
	if attempt < 1 || attempt > len(s) {
		return Step{}, false
	}
	delay := max(s[attempt-1], min(retryAfter, MaxDelay))
	delay += time.Duration(float64(delay) / jitter * chance)
	wait, tiers := Plan(delay)
	return Step{DueAt: now.Add(wait), Tier: tiers[0]}, true
}

// ParkFor returns the step of a delivery whose turn comes after wait, at least a
// second and at most MaxDelay from now. It is due at its turn and not before; the
// tiers take it there by what is left each time (Within).
func ParkFor(now time.Time, wait time.Duration) Step {
	wait = min(max(wait, Grain), MaxDelay)
	tier, _ := Within(wait)
	return Step{DueAt: now.Add(wait), Tier: tier}
}

// Park returns the step of a delivery for which there is no room at now: as
// long as it is expected to need until there is, at least a second, twice as
// long each time (parks is how often it was put off before), at most 30
// minutes. It is one tier, so one record.
func Park(parks int, now time.Time, expected time.Duration) Step {
	want := parkMax
	if parks < 11 { // 2^11 s is over 30 minutes
		want = min(max(Grain<<parks, expected), parkMax)
	}
	tier := TierFor(want)
	return Step{DueAt: LeavesAt(tier, now), Tier: tier}
}
