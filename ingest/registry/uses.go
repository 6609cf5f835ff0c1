package registry

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// noteUsesEvery is how often uses are looked through.
	noteUsesEvery = time.Minute
	// maxUseAge is how far a key's record may be behind its last use: a key that is
	// always in use is written every five minutes, by one replica.
	maxUseAge = 5 * time.Minute
	// usesAtOnce are queued together, and go into one transaction.
	usesAtOnce = 100
)

// uses are the times, in milliseconds since 1970, at which keys were last used here.
type uses struct{ at sync.Map } // key id → *atomic.Int64

// Used notes that a request has come with a key.
func (r *Registry) Used(id string) {
	at, known := r.uses.at.Load(id)
	if !known {
		at, _ = r.uses.at.LoadOrStore(id, new(atomic.Int64))
	}
	at.(*atomic.Int64).Store(time.Now().UnixMilli()) //nolint:forcetypeassert // nothing else is stored
}

// NoteUses writes into the records of keys when they were last used, until ctx
// ends. It is no change that anyone is told of; what cannot be written is tried
// again with the next use.
func (r *Registry) NoteUses(ctx context.Context) error {
	for process.Pause(ctx, noteUsesEvery) {
		r.noteUses(ctx)
	}
	return nil
}

func (r *Registry) noteUses(ctx context.Context) {
	var writes errgroup.Group
	writes.SetLimit(usesAtOnce)
	r.uses.at.Range(func(id, at any) bool {
		used := time.UnixMilli(at.(*atomic.Int64).Load()).UTC() //nolint:forcetypeassert // nothing else is stored
		r.uses.at.Delete(id)
		writes.Go(func() error { return r.noteUse(ctx, id.(string), used) }) //nolint:forcetypeassert // nothing else is stored
		return ctx.Err() == nil
	})
	if err := writes.Wait(); err != nil && ctx.Err() == nil {
		r.log.Debug("noting uses of keys", "error", err)
	}
}

func (r *Registry) noteUse(ctx context.Context, id string, used time.Time) error {
	if k, err := r.keys.get(id); err != nil || k == nil || used.Sub(k.LastUsedAt) < maxUseAge {
		return err
	}
	_, err := submit(ctx, r, &r.keys, proposal[schemas.Key]{id: id, change: func(old *schemas.Key) (*schemas.Key, error) {
		if old == nil {
			return nil, ErrNotFound
		}
		if used.Sub(old.LastUsedAt) < maxUseAge { // another replica was first
			return old, nil
		}
		k := *old
		k.LastUsedAt = used
		return &k, nil
	}})
	return err
}
