package registry

import (
	"context"
	"sync"
	"time"
)

// maxAsk bounds one round of questions to Kafka.
const maxAsk = 2 * time.Second

// barrier lets all who want to read what was acknowledged before now share the
// questions to Kafka: one round is under way at most, and who comes meanwhile
// joins the one after it. Without that, a flood of requests with unknown keys
// would be a flood of requests to the brokers.
type barrier struct {
	ask  func(ctx context.Context) error
	turn chan struct{} // capacity 1: held by the round under way

	mu   sync.Mutex
	next *round // that has not begun to ask, guarded by mu
}

type round struct {
	done chan struct{} // closed by its leader when err stands
	err  error
}

func newBarrier(ask func(ctx context.Context) error) *barrier {
	return &barrier{ask: ask, turn: make(chan struct{}, 1)}
}

// wait returns when everything that was acknowledged before the call is in the tables.
func (b *barrier) wait(ctx context.Context) error {
	b.mu.Lock()
	if r := b.next; r != nil {
		b.mu.Unlock()
		select {
		case <-r.done:
			return r.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r := &round{done: make(chan struct{})}
	b.next = r
	b.mu.Unlock()

	// The first of a round asks for all of it, so its own caller's giving up does not count.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxAsk)
	defer cancel()
	defer close(r.done)
	select {
	case b.turn <- struct{}{}:
		b.begin()
		r.err = b.ask(ctx)
		<-b.turn
	case <-ctx.Done():
		b.begin()
		r.err = ctx.Err()
	}
	return r.err
}

// begin closes the round to newcomers: what was acknowledged before their call may be too late for its question.
func (b *barrier) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = nil
}
