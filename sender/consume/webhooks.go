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
	"github.com/postrider/postrider/schemas/process"
)

const (
	// barrierTimeout bounds one asking for what is in force; it is asked again.
	barrierTimeout = 10 * time.Second
	// maxStale is how soon after the answer a change of a webhook is in force.
	maxStale = time.Second
)

// barrier blocks until everything acknowledged before the call is applied: a *kafka.Follower's.
type barrier func(ctx context.Context) error

// webhooks is the table of webhooks, and of what senders found out about them, by
// id. A follower's goroutine applies records, everyone looks up.
type webhooks struct {
	topics   schemas.Topics
	log      *slog.Logger
	bad      func()          // counts records that cannot be read
	health   kafka.Reporter  // told whether all of them can be
	onResume func(id string) // a webhook is paused no longer

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

// rows are what the topics say by webhook. Where the last record of one is of a
// version that is not known, its error is in newer instead: what was in force
// before is not any more.
type rows struct {
	byID   map[string]*inForce
	states map[string]schemas.WebhookState
	newer  map[string]error
}

func newRows() *rows {
	return &rows{byID: make(map[string]*inForce), states: make(map[string]schemas.WebhookState), newer: make(map[string]error)}
}

func newWebhooks(topics schemas.Topics, log *slog.Logger, bad func(), health kafka.Reporter) *webhooks {
	return &webhooks{topics: topics, log: log, bad: bad, health: health, onResume: func(string) {}, now: newRows()}
}

// apply takes a record of one of the topics. What cannot be read leaves the key's
// last good value in force; a newer version makes the sender unready rather than wrong.
func (t *webhooks) apply(r *kgo.Record) {
	if t.applyTo(r) {
		t.onResume(string(r.Key))
	}
}

func (t *webhooks) applyTo(r *kgo.Record) (resumed bool) {
	var w schemas.Webhook
	var state schemas.WebhookState
	var err error
	if r.Topic == t.topics.WebhookStates {
		state, err = schemas.DecodeWebhookState(r)
	} else {
		w, err = schemas.DecodeWebhook(r)
	}
	var version *schemas.UnknownVersionError
	newer := errors.As(err, &version)
	if err != nil && !newer && !errors.Is(err, schemas.ErrTombstone) {
		t.bad()
		t.log.Warn("record is bad: the last good one of its webhook stays in force",
			"topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
		return false
	}
	if w.Invalid != "" {
		t.bad()
		t.log.Warn("settings make no sense: their webhook is disabled",
			"topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "webhook", w.ID, "error", w.Invalid)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.reportLocked()
	to := t.now
	if t.next != nil {
		to = t.next
	}
	id := string(r.Key)
	if newer {
		err = fmt.Errorf("reading webhook %q at %s/%d@%d: %w", id, r.Topic, r.Partition, r.Offset, err)
	}
	if r.Topic == t.topics.WebhookStates {
		put(to.states, to.newer, id, stateKey+id, state, err, newer)
		return false
	}
	before := to.byID[id]
	put(to.byID, to.newer, id, id, &inForce{Webhook: w}, err, newer)
	return before != nil && before.Paused && !w.Paused
}

// put replaces what one of the topics says under id, or removes it if err is one.
// Where newer is true, err is kept under its own key.
func put[T any](rows map[string]T, unread map[string]error, id, key string, row T, err error, newer bool) {
	delete(rows, id)
	delete(unread, key)
	switch {
	case newer:
		unread[key] = err
	case err == nil:
		rows[id] = row
	}
}

// stateKey stands before the id of a webhook whose state cannot be read.
const stateKey = "state of "

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

// state returns what webhook-states says of a webhook, and whether it says anything.
func (t *webhooks) state(id string) (schemas.WebhookState, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s, found := t.now.states[id]
	return s, found
}

// resumed returns when a webhook of each of so many partitions was resumed last.
func (t *webhooks) resumed(partitions int) map[int32]time.Time {
	t.mu.RLock()
	defer t.mu.RUnlock()
	last := make(map[int32]time.Time)
	for id, w := range t.now.byID {
		if w.Paused || w.ResumedAt.IsZero() {
			continue
		}
		if p := kafka.PartitionOf(id, partitions); w.ResumedAt.After(last[p]) {
			last[p] = w.ResumedAt
		}
	}
	return last
}

// bounds are those of a webhook's lane, as far as is known here: most attempts at
// once and retries are the sender's defaults.
func (t *webhooks) bounds(id string, most, retries int) laneBounds {
	w, _ := t.get(id)
	if w == nil {
		return laneBounds{most: most, retries: retries}
	}
	if w.Invalid != "" { // its settings may be anything
		return laneBounds{most: most, retries: retries, generation: w.Generation, idle: true}
	}
	b := laneBounds{most: w.Concurrency(most), retries: w.Retries(retries), generation: w.Generation, idle: w.Paused || !w.Active}
	if !b.idle {
		b.interval = interval(w.RateLimit)
	}
	return b
}

// lookup returns the webhook that is in force for a delivery, nil if it was
// deleted. Where the table is behind what the delivery says, or has not been up
// to date for maxStale, it first waits for everything acknowledged until now. It
// blocks until that is known or ctx ends. A *schemas.UnknownVersionError says that a newer binary is to deal with it.
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
		process.Pause(ctx, 100*time.Millisecond)
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
