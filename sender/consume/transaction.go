package consume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas/process"
)

const (
	// transactionEvery is how often results are committed: requests cost, not
	// bytes, and 20 transactions a second are 2 % of a broker.
	transactionEvery = 50 * time.Millisecond
	// transactionFull is how many results are committed at once, whatever the time.
	transactionFull = 5000
	// transactionTimeout is when the broker aborts on its own. Until then the next
	// owner of a sender that died waits.
	transactionTimeout = 10 * time.Second
	// writeTimeout bounds writing and ending each, so that we give up before the broker does.
	writeTimeout = 8 * time.Second
	// stableTimeout bounds the wait for a commit's markers in a revoke.
	stableTimeout = 300 * time.Millisecond
)

var (
	errNoMembership = errors.New("no membership of the group")
	// errUnknownEnd says that a transaction's end is not known, or that it may not be written again under this membership.
	errUnknownEnd = errors.New("leaving the group to read what was committed")
)

// writer writes the effects of batches in transactions. Its caller lets one
// transaction be at a time.
type writer struct {
	client *kgo.Client // producer with the sender's transactional id
	id     string
	group  string
	topics map[string][16]byte // ids of the sources
}

// write commits a batch. committed false with a nil error means that the
// transaction was aborted for certain and may be written again; the cause says
// why. errUnknownEnd means that the session is to end.
func (w *writer) write(ctx context.Context, t batch) (committed bool, cause, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if err := w.client.BeginTransaction(); err != nil {
		return false, nil, fmt.Errorf("beginning transaction: %w: %w", errUnknownEnd, err)
	}
	// Records first, each acknowledged, then offsets: an offset in a transaction
	// without a record is not known to kgo, which would end nothing and let the
	// next transaction commit it. And offsets as the first request after an end
	// meet that end's markers.
	cause = w.produce(ctx, t)
	if cause == nil {
		cause = w.sendOffsets(ctx, t)
	}

	end, cancelEnd := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancelEnd()
	if cause == nil {
		if err := w.client.EndTransaction(end, kgo.TryCommit); err != nil {
			return false, nil, fmt.Errorf("committing transaction: %w: %w", errUnknownEnd, err)
		}
		return true, nil, nil
	}
	if err := w.client.AbortBufferedRecords(end); err != nil {
		return false, cause, fmt.Errorf("dropping records of transaction: %w: %w", errUnknownEnd, errors.Join(cause, err))
	}
	if err := w.client.EndTransaction(end, kgo.TryAbort); err != nil {
		return false, cause, fmt.Errorf("aborting transaction: %w: %w", errUnknownEnd, errors.Join(cause, err))
	}
	if final(cause) {
		return false, cause, fmt.Errorf("writing transaction: %w: %w", errUnknownEnd, cause)
	}
	return false, cause, nil
}

// produce writes the batch's records and returns the first error when all are answered.
func (w *writer) produce(ctx context.Context, t batch) error {
	var (
		mu    sync.Mutex // guards first
		first error
	)
	write := func(record *kgo.Record) {
		// kgo keeps the context of the first try, which is over when a record is written again.
		record.Context = nil
		w.client.Produce(ctx, record, func(r *kgo.Record, err error) {
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = fmt.Errorf("writing to %s: %w", r.Topic, err)
			}
		})
	}
	for _, r := range t.results {
		for _, record := range r.records {
			write(record)
		}
	}
	for _, record := range t.records {
		write(record)
	}
	if err := w.client.Flush(ctx); err != nil {
		return fmt.Errorf("flushing transaction: %w", err)
	}
	mu.Lock()
	defer mu.Unlock()
	return first
}

// sendOffsets adds the batch's marks to the transaction, under the membership
// the batch was gathered in. The broker takes ("", -1) in a living group, so we must not send it.
func (w *writer) sendOffsets(ctx context.Context, t batch) error {
	if t.member == "" || t.generation < 0 {
		return errNoMembership
	}
	for {
		id, epoch, err := w.client.ProducerID(ctx)
		if err != nil {
			return fmt.Errorf("asking for producer id: %w", err)
		}
		req := kmsg.NewPtrTxnOffsetCommitRequest()
		req.TransactionalID, req.Group, req.ProducerID, req.ProducerEpoch = w.id, w.group, id, epoch
		req.MemberID, req.Generation = t.member, t.generation
		req.Topics = w.commitTopics(t.marks)
		resp, err := req.RequestWith(ctx, w.client)
		if err == nil {
			// kgo retries as the first partition answers only: look at all.
			err = offsetsError(resp)
		}
		if err == nil || !kerr.IsRetriable(err) && !errors.Is(err, kerr.ConcurrentTransactions) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (w *writer) commitTopics(marks []mark) (topics []kmsg.TxnOffsetCommitRequestTopic) {
	at := make(map[string]int)
	for _, m := range marks {
		i, known := at[m.topic]
		if !known {
			i = len(topics)
			at[m.topic] = i
			topic := kmsg.NewTxnOffsetCommitRequestTopic()
			topic.Topic, topic.TopicID = m.topic, w.topics[m.topic]
			topics = append(topics, topic)
		}
		partition := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		partition.Partition, partition.Offset, partition.LeaderEpoch = m.partition, m.offset, -1
		if m.text != "" {
			partition.Metadata = &m.text
		}
		topics[i].Partitions = append(topics[i].Partitions, partition)
	}
	return topics
}

// offsetsError returns the worst of all partitions' errors: one that passes only if no other is there.
func offsetsError(resp *kmsg.TxnOffsetCommitResponse) (worst error) {
	for _, topic := range resp.Topics {
		for _, partition := range topic.Partitions {
			err := kerr.ErrorForCode(partition.ErrorCode)
			if err != nil && (worst == nil || kerr.IsRetriable(worst)) {
				worst = fmt.Errorf("committing %s/%d: %w", topic.Topic, partition.Partition, err)
			}
		}
	}
	return worst
}

// final reports whether a transaction that failed with err cannot be written
// again by this producer under this membership.
func final(err error) bool {
	return fenced(err) || errors.Is(err, errNoMembership) || slices.ContainsFunc([]error{
		kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.FencedInstanceID, kerr.StaleMemberEpoch, kerr.RebalanceInProgress,
		kerr.InvalidTxnState, kerr.InvalidProducerIDMapping, kerr.OffsetMetadataTooLarge, kerr.GroupAuthorizationFailed,
	}, func(target error) bool { return errors.Is(err, target) })
}

// fenced reports whether another producer took the transactional id, or the
// broker gave ours up because it took longer than transactionTimeout.
func fenced(err error) bool {
	return errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.ProducerFenced)
}

// awaitStable blocks until the commit of places has its markers, at most
// stableTimeout: the broker answers the end of a transaction before they are
// written, and a new owner that asks too early sleeps for a second.
func (w *writer) awaitStable(ctx context.Context, places []place) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stableTimeout)
	defer cancel()
	group := kmsg.NewOffsetFetchRequestGroup()
	group.Group = w.group
	at := make(map[string]int)
	for _, p := range places {
		i, known := at[p.topic]
		if !known {
			i = len(group.Topics)
			at[p.topic] = i
			topic := kmsg.NewOffsetFetchRequestGroupTopic()
			topic.Topic, topic.TopicID = p.topic, w.topics[p.topic]
			group.Topics = append(group.Topics, topic)
		}
		group.Topics[i].Partitions = append(group.Topics[i].Partitions, p.partition)
	}
	for {
		req := kmsg.NewPtrOffsetFetchRequest()
		req.RequireStable = true
		req.Groups = append(req.Groups, group)
		resp, err := req.RequestWith(ctx, w.client)
		if err != nil || !unstable(resp) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func unstable(resp *kmsg.OffsetFetchResponse) bool {
	for _, group := range resp.Groups {
		for _, topic := range group.Topics {
			for _, partition := range topic.Partitions {
				if errors.Is(kerr.ErrorForCode(partition.ErrorCode), kerr.UnstableOffsetCommit) {
					return true
				}
			}
		}
	}
	return false
}

// fence remembers when the sender was fenced. Once may be chance; twice within a
// minute is another process with its name.
type fence struct{ last time.Time }

const fencedTwice = time.Minute

// errSlow says that a transaction took longer than the broker lets it stay open:
// then the broker fences its producer, with the same error as another process.
var errSlow = errors.New("the transaction took longer than " + transactionTimeout.String())

func (f *fence) check(err error, now time.Time) error {
	if !fenced(err) || errors.Is(err, errSlow) {
		return nil
	}
	twice := !f.last.IsZero() && now.Sub(f.last) < fencedTwice
	f.last = now
	if twice {
		return fmt.Errorf("writing as sender, twice within %s: %w: %w", fencedTwice, process.ErrFenced, err)
	}
	return nil
}
