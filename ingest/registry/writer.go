package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// maxBatch is how many changes go into one transaction.
	maxBatch = 500
	// maxRetake is how long a change may wait for its replica to become the writer again.
	maxRetake = 2 * time.Second
	// maxAttempt bounds one try at a transaction.
	maxAttempt = 2 * time.Second
	// txnTimeout frees the readers of a writer that was killed in the middle,
	// should nobody take its place before (reliability.md, section 4).
	txnTimeout = 5 * time.Second
)

// writer holds the shared transactional id while it can. One goroutine runs it.
//
// The order of its steps is the guarantee. InitProducerID comes first: it fences
// the writer before and ends its transaction, so nothing is added behind our
// back. Then the topics are read to their end: what stands now is what the next
// change must start from. (Read first, and a change that another replica commits
// in between is lost: 10 of 400, measured.) Only then is anything decided.
type writer struct {
	*Registry
	cl *kgo.Client // nil while another replica may be the writer
}

// Write serves changes until ctx ends.
func (r *Registry) Write(ctx context.Context) error {
	w := &writer{Registry: r}
	defer w.release()
	for {
		select {
		case <-ctx.Done():
			w.refuse()
			return nil
		case first := <-r.writes:
			w.serve(ctx, w.gather(first))
		}
	}
}

// gather takes what is queued behind the first write, so that it goes with it.
func (w *writer) gather(first *write) []*write {
	batch := []*write{first}
	for len(batch) < maxBatch {
		select {
		case next := <-w.writes:
			batch = append(batch, next)
		default:
			return batch
		}
	}
	return batch
}

// refuse ends what is still queued when the process stops.
func (w *writer) refuse() {
	for {
		select {
		case next := <-w.writes:
			w.end(next, ErrUnavailable)
		default:
			return
		}
	}
}

// serve tries until each write of the batch has its answer, which takes
// maxRetake and one more attempt at most.
func (w *writer) serve(ctx context.Context, batch []*write) {
	w.watched.Store(nil) // what a batch before could not find out is no longer asked
	for {
		sent, err := w.attempt(ctx, batch)
		if err == nil {
			return
		}
		level := slog.LevelWarn
		if fenced(err) {
			level = slog.LevelDebug // how replicas take turns
		}
		w.log.Log(ctx, level, "writing webhooks and keys", "changes", len(batch), "error", err)

		giveUp := ErrUnavailable
		if sent {
			giveUp = ErrUnknownEnd
		}
		waiting := batch[:0]
		for _, x := range batch {
			if time.Since(x.enqueued) > maxRetake || ctx.Err() != nil {
				w.end(x, giveUp)
				continue
			}
			waiting = append(waiting, x)
		}
		if batch = waiting; len(batch) == 0 {
			return
		}
		// Two replicas with changes to make take the id from each other. A pause of
		// another length each time lets either finish hundreds of transactions (0.8 ms each) in between.
		process.Pause(ctx, 10*time.Millisecond+rand.N(90*time.Millisecond)) //nolint:gosec // no secret
	}
}

// attempt brings the batch into force and answers it, in one transaction.
// sent says, with an error, that a transaction of it may have been committed.
func (w *writer) attempt(ctx context.Context, batch []*write) (sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, maxAttempt)
	defer cancel()
	before := w.watched.Load()
	if err := w.take(ctx); err != nil {
		return before != nil, err
	}
	// Also while the id is held: another replica may have taken it, and then what
	// this one knows is old. A refusal (412, 404) is no write that would notice.
	if err := w.follower.Barrier(ctx); err != nil {
		return before != nil, fmt.Errorf("reading webhooks and keys to their end: %w", err)
	}
	if before != nil {
		// The end of the last transaction was not known. It is now: taking the id
		// ended it, the barrier passed it, and the follower saw its rows or did not.
		w.watched.Store(nil)
		if before.complete() {
			w.answer(batch)
			return false, nil
		}
	}
	rows, rest := decide(batch)
	if err := w.commit(ctx, rows, rest); err != nil {
		w.release()
		return w.watched.Load() != nil, err
	}
	if err := w.follower.WaitFor(ctx, kafka.Through(rows...)); err != nil {
		// In force, but not where a reader can be sure to see it: saying so now could break P4.
		w.log.Warn("waiting for changes of webhooks and keys to be seen", "changes", len(batch), "error", err)
		for _, x := range batch {
			w.end(x, ErrUnknownEnd)
		}
		return false, nil
	}
	w.answer(batch)
	return false, nil
}

// take makes this replica the writer, unless it is.
func (w *writer) take(ctx context.Context) error {
	if w.cl != nil {
		return nil
	}
	cl, err := w.cfg.NewClient(
		w.clientID+"-writer",
		kgo.TransactionalID(w.topics.WebhooksWriter),
		kgo.TransactionTimeout(txnTimeout),
		kgo.ProducerLinger(0),
	)
	if err != nil {
		return fmt.Errorf("making the writer's client: %w", err)
	}
	if _, _, err := cl.ProducerID(ctx); err != nil {
		cl.Close()
		return fmt.Errorf("taking transactional id %q: %w", w.topics.WebhooksWriter, err)
	}
	w.cl = cl
	w.takeovers.Inc()
	return nil
}

// release gives up the client: after any error it may be fenced, and then it is dead for good.
func (w *writer) release() {
	if w.cl != nil {
		w.cl.Close()
		w.cl = nil
	}
}

// decide asks each write in order, each seeing what those before it decided. rows
// are those of the topics that are followed, rest what is written with them.
func decide(batch []*write) (rows, rest []*kgo.Record) {
	made := overlay{}
	for _, x := range batch {
		x.decided = x.decide(made)
		if x.decided.row != nil && x.decided.refused == nil {
			rows = append(rows, x.decided.row)
			rest = append(rest, x.decided.further...)
		}
		if x.decided.audit != nil {
			rest = append(rest, x.decided.audit)
		}
	}
	return rows, rest
}

// commit writes the records in one transaction. From the moment that it may be
// committed its rows are watched for, and stay so if its end is not known.
func (w *writer) commit(ctx context.Context, rows, rest []*kgo.Record) error {
	if len(rows)+len(rest) == 0 {
		return nil
	}
	if err := w.cl.BeginTransaction(); err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	if err := w.produce(ctx, slices.Concat(rows, rest)); err != nil {
		w.abort(ctx)
		return fmt.Errorf("producing changes: %w", err)
	}
	w.watched.Store(newSighting(rows))
	if err := w.cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("committing changes: %w", err)
	}
	return nil
}

// produce waits for all records or for ctx: ProduceSync would wait for a lost
// broker for as long as it is lost.
func (w *writer) produce(ctx context.Context, records []*kgo.Record) error {
	done := make(chan error, len(records))
	for _, record := range records {
		w.cl.Produce(ctx, record, func(_ *kgo.Record, err error) { done <- err })
	}
	for range records {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// abort frees the readers of a transaction that will not be committed, if that
// is quickly done. If not, taking the id again does it, or txnTimeout.
func (w *writer) abort(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
	defer cancel()
	err := w.cl.AbortBufferedRecords(ctx)
	if err == nil {
		err = w.cl.EndTransaction(ctx, kgo.TryAbort)
	}
	if err != nil && !fenced(err) {
		w.log.Warn("aborting a transaction of webhooks and keys", "error", err)
	}
}

// fenced reports whether another replica has become the writer: no fault.
func fenced(err error) bool {
	return errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) ||
		errors.Is(err, kerr.TransactionalIDNotFound) || errors.Is(err, kerr.InvalidTxnState)
}

func (w *writer) answer(batch []*write) {
	for _, x := range batch {
		w.end(x, x.decided.refused)
	}
}

func (w *writer) end(x *write, err error) {
	result := "refused"
	switch {
	case err == nil:
		result = "written"
	case errors.Is(err, ErrUnavailable):
		result = "unavailable"
	case errors.Is(err, ErrUnknownEnd):
		result = "unknown"
	}
	w.written.WithLabelValues(result).Inc()
	w.duration.Observe(time.Since(x.enqueued).Seconds())
	x.finish(err)
}
