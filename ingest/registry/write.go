package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// Actor is who asks for a change.
type Actor struct {
	// ID is the API key's id, or "admin".
	ID string
	// Organization is the key's, empty if it is for all.
	Organization string
	// RequestID finds the request in the log.
	RequestID string
}

// change decides what becomes of a row, given what it is now (nil: there is
// none). It returns the new row, nil to delete it, the old row itself if nothing is
// to change, or why it refuses. It must not alter the old row, and may be called
// several times, from another goroutine.
type change[T any] func(old *T) (*T, error)

// kind is what the compacted topics differ in.
type kind[T any] struct {
	*table[T]
	object string // in changes: "webhook", "key", "job"
	topic  string
	record func(*T) (*kgo.Record, error)
	view   func(*T) any
	// besides returns why a row cannot be shown or changed although it can be read itself; nil: there is nothing of the kind.
	besides func(id string) error
	// tell returns the events about a change; nil: there are none.
	tell func(before, after *T) ([]*kgo.Record, error)
}

// get returns the row under id as its table does, if all that belongs to it can be read.
func (k *kind[T]) get(id string) (*T, error) {
	if k.besides != nil {
		if err := k.besides(id); err != nil {
			return nil, err
		}
	}
	return k.table.get(id)
}

// proposal is a change with all that goes with it.
type proposal[T any] struct {
	actor  Actor
	action string // as changes tell it; empty: they do not, as with the steps of a job
	id     string
	change change[T]
	// allowed says whether it may be made after those before it in its transaction; nil: it may.
	allowed func(batch overlay) error
	// further returns what is written with the row, if that is; nil: nothing is. It may be called several times.
	further func() []*kgo.Record
}

// write is a change on its way through the writer, which alone uses it once it is queued.
type write struct {
	decide   func(batch overlay) decision
	finish   func(err error) // called once
	enqueued time.Time

	decided decision
}

// decision is what a write comes to, given what stands.
type decision struct {
	row     *kgo.Record   // what to write; nil if refused, or if nothing changes
	further []*kgo.Record // what to write with it
	audit   *kgo.Record   // what to tell in changes; nil: nothing
	refused error
}

// overlay is what earlier writes of the same transaction made of rows: a *T, nil where they deleted it.
type overlay map[string]any

// newWrite returns the write of a proposal, and where its result stands once
// finish has been called without error.
func newWrite[T any](k *kind[T], changes string, p proposal[T], finish func(error)) (w *write, result func() T) {
	var after *T
	w = &write{finish: finish, enqueued: time.Now()}
	w.decide = func(batch overlay) (d decision) {
		d, after = k.decide(batch, changes, p)
		return d
	}
	return w, func() T {
		if after == nil {
			var none T
			return none
		}
		return *after
	}
}

// decide says what a proposal comes to, and what its row is then.
func (k *kind[T]) decide(batch overlay, changes string, p proposal[T]) (d decision, after *T) {
	before, err := k.get(p.id)
	if row, ok := batch[k.object+"/"+p.id].(*T); ok {
		before = row
	}
	if err == nil && p.allowed != nil {
		err = p.allowed(batch)
	}
	if d.refused = err; err == nil {
		after, d.refused = p.change(before)
	}
	if d.refused == nil && after != nil && after == before {
		return decision{}, after
	}
	if d.refused == nil {
		d.row, d.refused = k.recordOf(p.id, after)
	}
	if d.audit, err = k.audit(changes, p, before, after, d.refused); err != nil {
		return decision{refused: err}, nil
	}
	if d.refused != nil {
		return d, after
	}
	if p.further != nil {
		d.further = p.further()
	}
	if k.tell != nil {
		told, err := k.tell(before, after)
		if err != nil {
			return decision{refused: err}, nil
		}
		d.further = append(d.further, told...)
	}
	batch[k.object+"/"+p.id] = after
	return d, after
}

func (k *kind[T]) recordOf(id string, row *T) (*kgo.Record, error) {
	if row == nil {
		return schemas.Tombstone(k.topic, id), nil
	}
	return k.record(row)
}

// audit returns the record of changes that tells of the write, refused or not; nil if it is not to be told.
func (k *kind[T]) audit(topic string, p proposal[T], before, after *T, refused error) (*kgo.Record, error) {
	if p.action == "" {
		return nil, nil //nolint:nilnil // no record, and no fault
	}
	c := schemas.Change{
		At:           time.Now().UTC().Truncate(time.Millisecond),
		Actor:        p.actor.ID,
		Action:       p.action,
		Object:       k.object,
		ObjectID:     p.id,
		Organization: p.actor.Organization,
		RequestID:    p.actor.RequestID,
	}
	for _, row := range []*T{before, after} {
		// An organization's key sees its own only: what it was refused may be another's.
		if row != nil && c.Organization == "" {
			c.Organization = k.organization(row)
		}
	}
	if refused != nil {
		c.Error = refused.Error()
		return c.Record(topic)
	}
	var err error
	if c.Before, err = k.show(before); err != nil {
		return nil, err
	}
	if c.After, err = k.show(after); err != nil {
		return nil, err
	}
	return c.Record(topic)
}

func (k *kind[T]) show(row *T) (json.RawMessage, error) {
	if row == nil {
		return nil, nil
	}
	b, err := json.Marshal(k.view(row))
	if err != nil {
		return nil, fmt.Errorf("encoding a %s for changes: %w", k.object, err)
	}
	return b, nil
}

// submit queues the write and waits for its end.
func submit[T any](ctx context.Context, r *Registry, k *kind[T], p proposal[T]) (T, error) {
	var none T
	done := make(chan error, 1) // finish finds room even when nobody waits any more
	w, result := newWrite(k, r.topics.Changes, p, func(err error) { done <- err })
	ctx, cancel := context.WithTimeout(ctx, maxWrite)
	defer cancel()
	select {
	case r.writes <- w:
	case <-ctx.Done():
		return none, ErrUnavailable
	}
	select {
	case err := <-done:
		if err != nil {
			return none, err
		}
		return result(), nil
	case <-ctx.Done():
		return none, ErrUnknownEnd
	}
}
