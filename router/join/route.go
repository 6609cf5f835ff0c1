package join

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas/process"
)

// route writes a batch in as many transactions as it takes. Polling goes on when the last of them has ended: End takes everything polled for done.
func (s *session) route(ctx context.Context, b *batch) error {
	for !b.done() {
		if !s.rest(ctx) {
			b.rollback()
			return nil
		}
		committed, err := s.transact(ctx, b)
		s.ended = time.Now()
		if err == nil && committed {
			continue
		}
		b.rollback()
		if err != nil {
			return err
		}
		s.rewind(b)
		return nil
	}
	if b.skipping {
		// The client has stopped at the batch; a new one begins at the commit behind it.
		return errSkipped
	}
	return nil
}

// rest pauses between two transactions: back to back the broker makes the second wait 20 ms for the markers of the first, which are more to write
// the more partitions the session has. It says whether ctx is still alive.
func (s *session) rest(ctx context.Context) bool {
	pause := min(max(time.Duration(len(s.partitions))*time.Millisecond/4, time.Millisecond), 4*time.Millisecond)
	return process.Pause(ctx, pause-time.Since(s.ended))
}

// transact writes one transaction. It is not broken off when ctx ends, as that would leave its outcome unknown, but given a grace.
// A transaction that is not committed without an error was aborted: the partitions have gone elsewhere, or the broker said so.
func (s *session) transact(ctx context.Context, b *batch) (committed bool, err error) {
	ctx, cancel := withGrace(ctx)
	defer cancel()
	if err := s.group.Begin(); err != nil {
		return false, fmt.Errorf("beginning transaction: %w", err)
	}
	started := time.Now()
	s.unwritten.Store(nil)
	t := &transaction{
		topics: s.joiner.topics, eventsID: s.eventsID,
		limits:   limits{records: s.joiner.cfg.MaxRecords, bytes: s.joiner.cfg.MaxBytes},
		routedAt: started,
		match:    s.match,
		emit:     func(r *kgo.Record) { s.group.Produce(ctx, r, s.written) },
	}
	t.fill(b)
	committed, err = s.end(ctx, b, t)
	m := s.joiner.metrics
	m.transactionSeconds.Observe(time.Since(started).Seconds())
	switch {
	case err != nil:
		m.transactions.WithLabelValues(resultFailed).Inc()
	case !committed:
		m.transactions.WithLabelValues(resultAborted).Inc()
	default:
		m.transactions.WithLabelValues(resultCommitted).Inc()
		m.count(t.tally)
		t.commit(s.joiner.windowLimit())
	}
	return committed, err
}

// end commits the transaction if every record of it was written, or aborts it.
func (s *session) end(ctx context.Context, b *batch, t *transaction) (committed bool, err error) {
	if err := s.group.Client().Flush(ctx); err != nil {
		return false, fmt.Errorf("writing transaction: %w", err)
	}
	if unwritten := s.unwritten.Load(); unwritten != nil {
		// The transaction is the broker's to abort if this does not reach it.
		_, err := s.group.End(ctx, kgo.TryAbort)
		return false, fmt.Errorf("writing transaction: %w", errors.Join(*unwritten, err))
	}
	positions := t.positions()
	ctx = kgo.PreTxnCommitFnContext(ctx, func(req *kmsg.TxnOffsetCommitRequest) error {
		// The request already names the member's generation. Were it a later one than the batch was polled in, the broker would take
		// offsets of partitions that are another's now. End looks for revocations too, but forgets those that come while a transaction
		// ends, which may have been the one before of this same batch.
		if !s.owns(b.ownership) {
			return errLostOwned
		}
		commitOnly(req, s.joiner.topics.Events, s.eventsID, positions)
		return nil
	})
	committed, err = s.group.End(ctx, kgo.TryCommit)
	if errors.Is(err, errLostOwned) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ending transaction: %w", err)
	}
	return committed, nil
}

// written is called for every record of a transaction, and must not block.
func (s *session) written(r *kgo.Record, err error) {
	if err != nil && s.unwritten.Load() == nil {
		err = fmt.Errorf("writing to %s/%d: %w", r.Topic, r.Partition, err)
		s.unwritten.Store(&err)
	}
}

// rewind sets the client back to where the batch has been committed, as the client itself takes all that was polled for committed once one transaction of
// the batch was. If ownership has changed there is nothing to set back: the client begins at what the group has, or is about to, since a new assignment waits for mu.
func (s *session) rewind(b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ownership != b.ownership {
		return
	}
	offsets := make(map[int32]kgo.EpochOffset)
	for _, p := range b.parts {
		offsets[p.number] = kgo.EpochOffset{Epoch: -1, Offset: p.position(p.at).offset}
	}
	s.group.Client().SetOffsets(map[string]map[int32]kgo.EpochOffset{s.joiner.topics.Events: offsets})
}

// grace is how long a transaction under way may take to end when the process stops.
const grace = 10 * time.Second

// withGrace returns a context that ends some time after its parent.
func withGrace(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() {
		timer := time.AfterFunc(grace, cancel)
		context.AfterFunc(ctx, func() { timer.Stop() })
	})
	return ctx, func() {
		stop()
		cancel()
	}
}
