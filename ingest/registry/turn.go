package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas/process"
)

const (
	// turnEvery is how often the coordinator is asked how the id stands, half a millisecond each time.
	turnEvery = 2 * time.Millisecond
	// maxTurn is how long another replica's transaction is waited for. It takes
	// about 10 ms: one that takes so much longer hangs, and is fenced.
	maxTurn = 100 * time.Millisecond
	// maxBegin is how long another replica that has taken the id is given to begin.
	maxBegin = 30 * time.Millisecond
	// markersBackoff is how long taking the id waits before it asks again while the
	// broker ends the transaction that it interrupts.
	markersBackoff = 3 * time.Millisecond
)

// stand makes this replica the writer, if it is not, with the topics read to their end.
//
// To take the id while another replica is at it is safe, but throws away what that
// one has done, and it does the same in return: at 50 changes a second each, two
// replicas had a p99 of 370 ms and more that way. So they take turns, by what the
// id's coordinator says of it: who has been fenced lets the other end its
// transaction, and then takes the id with a client that is connected already.
func (w *writer) stand(ctx context.Context) error {
	if w.held && !w.waitTurn(ctx) {
		w.release()
	}
	if !w.held {
		if err := w.take(ctx); err != nil {
			return err
		}
	}
	// Also while the id is held: another replica may take it at any moment, and then
	// what this one knows is old. A refusal (412, 404) is no write that would notice.
	if err := w.follower.Barrier(ctx); err != nil {
		return fmt.Errorf("reading webhooks and keys to their end: %w", err)
	}
	return nil
}

// waitTurn waits until nobody's transaction goes on, nor is about to, and says
// whether this replica holds the id. That the coordinator cannot be asked is no
// reason not to try.
func (w *writer) waitTurn(ctx context.Context) (ours bool) {
	ctx, cancel := context.WithTimeout(ctx, w.patience)
	defer cancel()
	for began := time.Now(); ; {
		now, err := w.standing(ctx)
		if err != nil {
			return w.held
		}
		ours = w.owns(ctx, now)
		switch now.State {
		case "Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence":
		case "Empty": // taken, and nothing written since
			if ours || time.Since(began) > maxBegin {
				return ours
			}
		default:
			return ours
		}
		if !process.Pause(ctx, turnEvery) {
			return ours
		}
	}
}

// standing asks the coordinator how the id stands (KIP-664).
func (w *writer) standing(ctx context.Context) (now kmsg.DescribeTransactionsResponseTransactionState, err error) {
	req := kmsg.NewPtrDescribeTransactionsRequest()
	req.TransactionalIDs = []string{w.topics.Prefix + TransactionalID}
	resp, err := req.RequestWith(ctx, w.cl)
	if err != nil || len(resp.TransactionStates) == 0 {
		return now, fmt.Errorf("asking how transactional id %q stands: %w", req.TransactionalIDs[0], err)
	}
	return resp.TransactionStates[0], nil
}

// owns says whether the id is this replica's. Whoever takes it gets another epoch.
func (w *writer) owns(ctx context.Context, now kmsg.DescribeTransactionsResponseTransactionState) bool {
	if !w.held {
		return false
	}
	id, epoch, err := w.cl.ProducerID(ctx)
	return err == nil && id == now.ProducerID && epoch == now.ProducerEpoch
}

// take makes this replica the writer.
func (w *writer) take(ctx context.Context) error {
	if w.cl == nil {
		cl, err := w.cfg.NewClient(
			w.clientID+"-writer",
			kgo.TransactionalID(w.topics.Prefix+TransactionalID),
			kgo.TransactionTimeout(txnTimeout),
			kgo.ProducerLinger(0),
			kgo.ConcurrentTransactionsBackoff(markersBackoff),
		)
		if err != nil {
			return fmt.Errorf("making the writer's client: %w", err)
		}
		w.cl = cl
	}
	w.waitTurn(ctx)
	if _, _, err := w.cl.ProducerID(ctx); err != nil {
		w.release()
		return fmt.Errorf("taking transactional id %q: %w", w.topics.Prefix+TransactionalID, err)
	}
	w.held = true
	w.takeovers.Inc()
	return nil
}

// release gives up the client: after any error it may be fenced, and then it is dead for good.
func (w *writer) release() {
	if w.cl != nil {
		w.cl.Close()
	}
	w.cl, w.held = nil, false
}
