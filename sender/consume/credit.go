package consume

import "time"

// A partition's head may wait for its lane, and with it everything behind, this
// long at once and a tenth of the time in the long run.
const (
	holdBurst   = 250 * time.Millisecond
	holdPercent = 10
)

// credit is how long a partition's head may still wait for its lane.
type credit struct {
	left  time.Duration
	at    time.Time // when left was right
	since time.Time // when the head began to wait; zero: it does not
}

// wait notes that the head waits for its lane and returns until when it may.
func (c *credit) wait(now time.Time) time.Time {
	if c.since.IsZero() {
		if c.at.IsZero() {
			c.left = holdBurst
		} else {
			c.left = min(holdBurst, c.left+now.Sub(c.at)*holdPercent/100)
		}
		c.since, c.at = now, now
	}
	return c.since.Add(c.left)
}

// move notes that the head moves.
func (c *credit) move(now time.Time) {
	if !c.since.IsZero() {
		c.left = max(0, c.left-now.Sub(c.since))
		c.since, c.at = time.Time{}, now
	}
}
