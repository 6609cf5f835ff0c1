package consume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

const (
	// barrierTimeout bounds one asking for what is in force; it is asked again.
	barrierTimeout = 10 * time.Second
	// maxStale is how soon after the answer a change of a webhook is in force.
	maxStale = time.Second
)

// barrier blocks until everything acknowledged before the call is applied: a *kafka.Follower's.
type barrier func(ctx context.Context) error

// webhooks is the table of webhooks by id. A follower's goroutine applies
// records, everyone looks up.
type webhooks struct {
	log    *slog.Logger
	bad    func()         // counts records that cannot be read
	health kafka.Reporter // told whether all of them can be

	mu   sync.RWMutex // guards now and next
	now  *rows
	next *rows // being read anew; nil if it is not

	barrier barrier
	stale   func() time.Duration // how old the table is: a *kafka.Follower's
	asking  sync.Mutex           // guards asked
	asked   *question
}

// question is one barrier that several wait for.
type question struct {
	begun bool
	done  chan struct{}
	err   error
}

// rows are the webhooks by id. One whose last record is of a version that is not
// known has its error in newer instead: what was in force before is not any more.
type rows struct {
	byID  map[string]*inForce
	newer map[string]error
}

func newRows() *rows {
	return &rows{byID: make(map[string]*inForce), newer: make(map[string]error)}
}

func newWebhooks(log *slog.Logger, bad func(), health kafka.Reporter) *webhooks {
	return &webhooks{log: log, bad: bad, health: health, now: newRows()}
}

// apply takes a record of the topic. What cannot be read leaves the key's last
// good value in force; a newer version makes the sender unready rather than wrong.
func (t *webhooks) apply(r *kgo.Record) {
	w, err := schemas.DecodeWebhook(r)
	var version *schemas.UnknownVersionError
	newer := errors.As(err, &version)
	if err != nil && !newer && !errors.Is(err, schemas.ErrTombstone) {
		t.bad()
		t.log.Warn("webhook record is bad: the last good one stays in force",
			"topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	to := t.now
	if t.next != nil {
		to = t.next
	}
	id := string(r.Key)
	delete(to.byID, id)
	delete(to.newer, id)
	switch {
	case newer:
		to.newer[id] = fmt.Errorf("reading webhook %q at %s/%d@%d: %w", id, r.Topic, r.Partition, r.Offset, err)
	case err == nil:
		to.byID[id] = &inForce{Webhook: w}
	}
	t.reportLocked()
}

// reportLocked says whether all webhooks that are in force can be read.
func (t *webhooks) reportLocked() {
	for _, err := range t.now.newer {
		t.health.Down(err)
		return
	}
	t.health.Up()
}

// beginRebuild and endRebuild are the follower's when the topic is read anew.
func (t *webhooks) beginRebuild() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = newRows()
}

func (t *webhooks) endRebuild() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now, t.next = t.next, nil
	t.reportLocked()
}

// get returns the webhook under id as it stands, nil if there is none; or why it cannot be read.
func (t *webhooks) get(id string) (*inForce, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.now.byID[id], t.now.newer[id]
}

// bounds are those of a webhook's lane, as far as is known here.
func (t *webhooks) bounds(id string, most int) laneBounds {
	if w, _ := t.get(id); w != nil {
		return laneBounds{most: w.Concurrency(most), interval: interval(w.RateLimit)}
	}
	return laneBounds{most: most}
}

// lookup returns the webhook that is in force for a delivery, nil if it was
// deleted. Where the table is behind what the delivery says, or has not been up
// to date for maxStale, it first waits for everything acknowledged until now. It blocks until that is known or ctx ends.
// A *schemas.UnknownVersionError says that a newer binary is to deal with it.
func (t *webhooks) lookup(ctx context.Context, d *schemas.Delivery) (*inForce, error) {
	w, err := t.get(d.WebhookID)
	if err != nil || w != nil && w.Revision >= d.WebhookRevision && t.stale() <= maxStale {
		return w, err
	}
	for {
		err := t.wait(ctx)
		if err == nil {
			return t.get(d.WebhookID)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("looking up webhook %q: %w", d.WebhookID, err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// wait is a barrier that all who ask before it has begun share: a deleted
// webhook's backlog would else ask once for each delivery.
func (t *webhooks) wait(ctx context.Context) error {
	t.asking.Lock()
	before := t.asked
	q := before
	if q == nil || q.begun {
		q = &question{done: make(chan struct{})}
		t.asked = q
		go t.ask(context.WithoutCancel(ctx), q, before)
	}
	t.asking.Unlock()
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *webhooks) ask(ctx context.Context, q, before *question) {
	defer close(q.done)
	if before != nil {
		<-before.done // one at a time: the rest gather in q meanwhile
	}
	t.asking.Lock()
	q.begun = true
	t.asking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	q.err = t.barrier(ctx)
}
