package ledger

import (
	"math"
	"slices"
	"time"
)

// Waits are the times from accepted to the first request, of what is owed to some
// webhooks of the events accepted from one moment to before another. What has not
// come yet has waited until now. They are in no order.
func (l *Ledger) Waits(from, to time.Time, of func(path string) bool) (waits []time.Duration) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, e := range l.events {
		if e.acceptedAt.IsZero() || e.acceptedAt.Before(from) || !e.acceptedAt.Before(to) {
			continue
		}
		for _, w := range e.webhooks {
			if !of(w.Path) {
				continue
			}
			first := now
			if d := l.seen[pair{id, w.Path}]; d != nil {
				first = d.at[0]
			}
			waits = append(waits, max(0, first.Sub(e.acceptedAt)))
		}
	}
	return waits
}

// Quantile is that of sorted times; zero of none.
func Quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// Times are when the requests of an event came at a path, in their order.
func (l *Ledger) Times(id, path string) []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.seen[pair{id, path}]
	if d == nil {
		return nil
	}
	return slices.Clone(d.at)
}

// Seen is how many webhooks have been called for an event.
func (l *Ledger) Seen(id string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.events[id]
	if e == nil {
		return 0
	}
	for _, w := range e.webhooks {
		if l.seen[pair{id, w.Path}] != nil {
			n++
		}
	}
	return n
}

// Unseen is how much is owed to some webhooks of the events accepted from one moment
// to before another that has not come yet.
func (l *Ledger) Unseen(from, to time.Time, of func(path string) bool) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, e := range l.events {
		if e.acceptedAt.Before(from) || !e.acceptedAt.Before(to) {
			continue
		}
		for _, w := range e.webhooks {
			if of(w.Path) && l.seen[pair{id, w.Path}] == nil {
				n++
			}
		}
	}
	return n
}
