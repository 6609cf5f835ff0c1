package schemas

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Handling is how a webhook's owner wants its target to be served. What is left
// out has the sender's default; nothing here is zero and yet meant.
type Handling struct {
	// TimeoutMS bounds a whole attempt, in milliseconds; 15 s by default.
	TimeoutMS *int `json:"timeout_ms,omitempty" validate:"omitnil,min=1000,max=30000"`
	// RetrySchedule holds the delays between attempts (ParseDelay), each after the
	// attempt before, at most 7 days in all. An empty one allows the first attempt only.
	RetrySchedule []string `json:"retry_schedule,omitzero" validate:"omitnil,max=50,schedule,dive,delay"`
	// MaxConcurrency bounds the attempts that run at once.
	MaxConcurrency *int `json:"max_concurrency,omitempty" validate:"omitnil,min=1,max=512"`
	// RateLimit bounds the attempts that begin in a time.
	RateLimit *RateLimit `json:"rate_limit,omitempty"`
	// Success says which statuses mean delivered: Success200, the default, or Success2xx.
	Success string `json:"success,omitempty" validate:"omitempty,oneof=200 2xx"`
	// FinalStatuses are those after which no further attempt is made.
	FinalStatuses []int `json:"final_statuses,omitempty" validate:"max=100,unique,dive,min=300,max=599"`
}

// RateLimit is a number of attempts of a webhook per second or minute, which begin
// evenly spaced so that no second, or minute, has more than Count; or of requests of
// an API key.
type RateLimit struct {
	Count int    `json:"count" validate:"min=1,max=10000"`
	Per   string `json:"per" validate:"oneof=second minute"`
}

// Period is the second or minute.
func (r *RateLimit) Period() time.Duration {
	if r.Per == "minute" {
		return time.Minute
	}
	return time.Second
}

// ParseRateLimit reads a rate as settings have it: 100/second, 600/minute. Empty, there is none: nil.
func ParseRateLimit(text string) (*RateLimit, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // no limit, and no fault
	}
	count, per, _ := strings.Cut(text, "/")
	n, err := strconv.Atoi(count)
	limit := RateLimit{Count: n, Per: per}
	if err != nil || Validate(&limit) != nil {
		return nil, fmt.Errorf("parsing rate %.64q: %w", text, ErrInvalidRate)
	}
	return &limit, nil
}

// ErrInvalidRate is returned for text that is no rate.
var ErrInvalidRate = errors.New("must be <count>/second or <count>/minute, with a count from 1 to 10,000")

// Values of Handling.Success.
const (
	Success200 = "200"
	Success2xx = "2xx"
)

// Bounds of the delays of a retry schedule. All of them together stay within what
// a retry tier keeps (DeliveriesRetention), by half.
const (
	minDelay       = time.Second
	maxScheduleSum = 7 * day
)

// ParseDelay reads a delay of a retry schedule, as Go writes durations: 30s, 5m, 1h30m.
func ParseDelay(text string) (time.Duration, bool) {
	d, err := time.ParseDuration(text)
	return d, err == nil && d >= minDelay && d <= maxScheduleSum
}

// Timeout is what bounds a whole attempt; 0 is the sender's default.
func (h *Handling) Timeout() time.Duration {
	if h.TimeoutMS == nil {
		return 0
	}
	return time.Duration(*h.TimeoutMS) * time.Millisecond
}

// Schedule returns the delays between attempts. Without own, the sender's default is meant.
func (h *Handling) Schedule() (delays []time.Duration, own bool) {
	if h.RetrySchedule == nil {
		return nil, false
	}
	delays = make([]time.Duration, 0, len(h.RetrySchedule))
	for _, text := range h.RetrySchedule {
		d, _ := ParseDelay(text) // validated with its record
		delays = append(delays, d)
	}
	return delays, true
}

// Concurrency is how many attempts may run at once, given the sender's default.
func (h *Handling) Concurrency(otherwise int) int {
	if h.MaxConcurrency == nil {
		return otherwise
	}
	return *h.MaxConcurrency
}

// Retries is how many attempts may follow the first, given the sender's default.
func (h *Handling) Retries(otherwise int) int {
	if h.RetrySchedule == nil {
		return otherwise
	}
	return len(h.RetrySchedule)
}

func validDelay(text string) bool {
	_, ok := ParseDelay(text)
	return ok
}

// validSchedule holds the rule over all delays of a schedule; those that are none are told by their own.
func validSchedule(delays []string) bool {
	var sum time.Duration
	for _, text := range delays {
		d, _ := ParseDelay(text)
		sum += d
	}
	return sum <= maxScheduleSum
}
