package receive

import "sync"

// state is what is known of a message.
type state int

const (
	unclaimed state = iota // it is the caller's now, who has to release it
	running                // another request's
	handled                // remembered
)

// messages remembers the ids of messages that were handled, and which are under way.
type messages struct {
	mu      sync.Mutex // guards the below
	running map[string]chan struct{}
	handled map[string]struct{}
	// ring has the ids of handled in the order in which they came; next is where the
	// oldest stands once it is full.
	ring []string
	next int
	size int
}

func newMessages(size int) *messages {
	return &messages{running: map[string]chan struct{}{}, handled: map[string]struct{}{}, size: size}
}

// claim makes a message the caller's unless it was handled or is another's; of
// those, done is closed when it is released.
func (m *messages) claim(id string) (done <-chan struct{}, known state) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.handled[id]; ok {
		return nil, handled
	}
	if done, ok := m.running[id]; ok {
		return done, running
	}
	m.running[id] = make(chan struct{})
	return nil, unclaimed
}

// release says what came of a message that was claimed. One that did not go well is nobody's again.
func (m *messages) release(id string, well bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.running[id])
	delete(m.running, id)
	if !well {
		return
	}
	m.handled[id] = struct{}{}
	if len(m.ring) < m.size {
		m.ring = append(m.ring, id)
		return
	}
	delete(m.handled, m.ring[m.next])
	m.ring[m.next] = id
	m.next = (m.next + 1) % m.size
}
