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
// none). It returns the new row, nil to delete it, or why it refuses. It must
// not alter the old row, and may be called several times, from another goroutine.
type change[T any] func(old *T) (*T, error)

// kind is what the two compacted topics differ in.
type kind[T any] struct {
	*table[T]
	object string // in changes: "webhook", "key"
	topic  string
	record func(*T) (*kgo.Record, error)
	view   func(*T) any
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
	row     *kgo.Record // what to write; nil if refused
	audit   *kgo.Record // what to tell in changes
	refused error
}

// overlay is what earlier writes of the same transaction made of rows: a *T, nil where they deleted it.
type overlay map[string]any

// newWrite returns the write that applies c to the row under id, and where its
// result stands once finish has been called without error.
func newWrite[T any](
	k *kind[T], changes string, actor Actor, action, id string, c change[T], finish func(error),
) (w *write, result func() T) {
	var after *T
	w = &write{finish: finish, enqueued: time.Now()}
	w.decide = func(batch overlay) decision {
		var d decision
		before, err := k.get(id)
		if row, ok := batch[k.object+"/"+id].(*T); ok {
			before = row
		}
		if after, d.refused = nil, err; err == nil {
			after, d.refused = c(before)
		}
		if d.refused == nil {
			d.row, d.refused = k.recordOf(id, after)
		}
		audit, err := k.audit(changes, actor, action, id, before, after, d.refused)
		if err != nil {
			return decision{refused: err}
		}
		d.audit = audit
		if d.refused == nil {
			batch[k.object+"/"+id] = after
		}
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

func (k *kind[T]) recordOf(id string, row *T) (*kgo.Record, error) {
	if row == nil {
		return schemas.Tombstone(k.topic, id), nil
	}
	return k.record(row)
}

// audit returns the record of changes that tells of the write, refused or not.
func (k *kind[T]) audit(topic string, actor Actor, action, id string, before, after *T, refused error) (*kgo.Record, error) {
	c := schemas.Change{
		At:           time.Now().UTC().Truncate(time.Millisecond),
		Actor:        actor.ID,
		Action:       action,
		Object:       k.object,
		ObjectID:     id,
		Organization: actor.Organization,
		RequestID:    actor.RequestID,
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
func submit[T any](ctx context.Context, r *Registry, k *kind[T], actor Actor, action, id string, c change[T]) (T, error) {
	var none T
	done := make(chan error, 1) // finish finds room even when nobody waits any more
	w, result := newWrite(k, r.topics.Changes, actor, action, id, c, func(err error) { done <- err })
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
