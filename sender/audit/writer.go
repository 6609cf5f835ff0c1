package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas"
)

const (
	// tickRows and tickEvery say when an insert is due. Over four tables 20,000 rows
	// are some 5,000 each, which cost ClickHouse half of what 1,000 do; a second
	// keeps a quiet system's rows fresh and its parts few. A quarter of the buffer is
	// due too.
	tickRows  = 20_000
	tickEvery = time.Second
	// pollRecords bounds what one poll adds to the buffer.
	pollRecords = 5000
	// fetchBytes is what a broker's answer may hold, compressed, ahead of what was
	// polled: records that repeat themselves grow tenfold and more.
	fetchBytes = 1 << 20
	// fetchEnough is what an answer waits for.
	fetchEnough = fetchBytes / 2
	// stopTimeout bounds the last insert when the process ends.
	stopTimeout = 5 * time.Second
	// contactEvery is how often an idle writer looks whether ClickHouse is there, for /readyz.
	contactEvery = 5 * time.Second
	// maxBackoff bounds the wait between tries while ClickHouse is away.
	maxBackoff = 5 * time.Second
)

type partitionKey struct {
	source    source
	partition int32
}

type topicPartition struct {
	topic     string
	partition int32
}

// writer is one membership of the group, from its client to the client's end.
// Everything but commits belongs to the goroutine of run. Kafka's callbacks
// touch it too, but only while that goroutine is inside a poll
// (BlockRebalanceOnPoll): a partition never leaves in the middle of a tick.
type writer struct {
	*service
	client  *kgo.Client
	topics  schemas.Topics
	sources map[string]source
	ids     map[string][16]byte
	tables  []table

	streams  map[partitionKey]*stream
	paused   map[topicPartition]struct{} // partitions held back, or stopped
	unpaired error                       // events and routed are not assigned alike
	rejected []*kgo.Record               // to be produced before the next commit
	lastTick time.Time
	contact  time.Time // when ClickHouse last answered
	failures int       // ticks in a row that ClickHouse did not take
	retryAt  time.Time // no tick before

	// mu guards commits, what the group had committed at the assignment: the
	// callback that brings them is not held back by a poll.
	mu      sync.Mutex
	commits map[topicPartition]commitEntry
}

// newWriter joins the group. The caller closes the client.
func (s *service) newWriter(ids map[string][16]byte) (*writer, error) {
	w := &writer{
		service: s,
		topics:  s.cfg.Kafka.Topics(),
		ids:     ids,
		tables:  tables(),
		streams: make(map[partitionKey]*stream),
		paused:  make(map[topicPartition]struct{}),
		commits: make(map[topicPartition]commitEntry),
	}
	w.sources = sourcesOf(w.topics)
	// The client begins to join while it is made: its callbacks wait until w has it.
	joined := make(chan struct{})
	var err error
	w.client, err = s.cfg.Kafka.NewClient(s.clientID(),
		kgo.ConsumerGroup(w.topics.AuditGroup),
		kgo.ConsumeTopics(w.topics.Audited()...),
		// Range keeps partition p of events and of routed with one member.
		kgo.Balancers(kgo.RangeBalancer()),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		// A killed writer's partitions are free after the least session brokers allow;
		// a rebalance may wait for an insert, so that is what the group waits for.
		kgo.SessionTimeout(6*time.Second),
		kgo.HeartbeatInterval(500*time.Millisecond),
		kgo.RebalanceTimeout(max(30*time.Second, 2*s.cfg.InsertTimeout)),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.FetchMaxPartitionBytes(fetchBytes/4),
		kgo.MaxConcurrentFetches(2),
		// Rows go in once a second, so nothing is in a hurry: each fetch costs the
		// broker a look at every partition. A partition that is resumed waits for the
		// fetch that is out: not for long.
		kgo.FetchMinBytes(fetchEnough),
		kgo.FetchMaxWait(250*time.Millisecond),
		// For rejected records only. A tick, and with it the process's stop, must not
		// wait for Kafka to be back: rather is a record rejected twice.
		kgo.AllowIdempotentProduceCancellation(),
		kgo.OnOffsetsFetched(w.onOffsets),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, assigned map[string][]int32) {
			<-joined
			w.resumeAll()
			w.unpaired = checkPairs(assigned[w.topics.Events], assigned[w.topics.Routed])
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, revoked map[string][]int32) {
			<-joined
			w.revoke(ctx, revoked)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
			<-joined
			w.forget(lost)
		}),
	)
	if err != nil {
		return nil, err
	}
	close(joined)
	return w, nil
}

// checkPairs says where a member has a partition of events and not the same of
// routed, or the other way round: their rows would wait for each other for ever.
// Range assigns alike where the topics have equally many partitions.
func checkPairs(events, routed []int32) error {
	events, routed = slices.Sorted(slices.Values(events)), slices.Sorted(slices.Values(routed))
	if slices.Equal(events, routed) {
		return nil
	}
	return fmt.Errorf("partitions %v of events and %v of routed are assigned here: the topics must have equally many", events, routed)
}

// onOffsets keeps what the group had committed, metadata included.
func (w *writer) onOffsets(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	names := make(map[[16]byte]string, len(w.ids))
	for name, id := range w.ids {
		names[id] = name
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range resp.Groups {
		for _, t := range g.Topics {
			topic := t.Topic
			if topic == "" {
				topic = names[t.TopicID]
			}
			for _, p := range t.Partitions {
				entry := commitEntry{offset: p.Offset}
				if p.Metadata != nil {
					entry.metadata = *p.Metadata
				}
				w.commits[topicPartition{topic, p.Partition}] = entry
			}
		}
	}
	return nil
}

// revoke commits what is in ClickHouse, so that the next owner has nothing to
// look up, and forgets the partitions.
func (w *writer) revoke(ctx context.Context, revoked map[string][]int32) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := w.commitDone(ctx); err != nil {
		w.log.Info("last commit before a rebalance was refused: the next owner looks its blocks up", "error", err)
	}
	w.forget(revoked)
}

func (w *writer) forget(gone map[string][]int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for topic, partitions := range gone {
		for _, p := range partitions {
			delete(w.commits, topicPartition{topic, p})
			w.holdPartition(topicPartition{topic, p}, false) // kgo would keep it paused for its next time here
			source, _ := w.streamOf(topic)
			delete(w.streams, partitionKey{source, p})
		}
	}
}

// run polls and ticks until ctx ends; then it inserts what it has, once.
func (w *writer) run(ctx context.Context) error {
	for ctx.Err() == nil {
		polling, cancel := context.WithDeadline(ctx, w.nextTick())
		fetches := w.client.PollRecords(polling, pollRecords)
		cancel()
		if len(fetches) == 0 {
			continue // and no rebalance is held back
		}
		err := w.take(fetches)
		if err == nil && ctx.Err() == nil {
			if w.due() {
				w.tick(context.WithoutCancel(ctx)) // what has begun is brought to its end
			}
			w.holdBack()
			w.report()
		}
		w.client.AllowRebalance()
		if err != nil {
			return err
		}
	}
	w.stop(ctx)
	return nil
}

// nextTick is when to stop waiting for records: never at once, or an empty loop
// would take a processor while ClickHouse is away.
func (w *writer) nextTick() time.Time {
	next := w.lastTick.Add(tickEvery)
	if next.Before(w.retryAt) {
		next = w.retryAt
	}
	if least := time.Now().Add(10 * time.Millisecond); next.Before(least) {
		next = least
	}
	return next
}

// stop writes and commits what is here, in a moment of its own, before the group is left.
func (w *writer) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	ended, end := context.WithCancel(ctx)
	end()
	// Polling with a context that has ended brings nothing, and holds rebalances back.
	if len(w.client.PollRecords(ended, 1)) > 0 {
		w.tick(ctx)
		if err := w.commitDone(ctx); err != nil {
			w.log.Info("last commit was refused: the next owner looks its blocks up", "error", err)
		}
	}
	w.client.AllowRebalance()
}

// take takes what was polled. An error ends the writer: a new client may do better.
func (w *writer) take(fetches kgo.Fetches) error {
	var broken error
	for _, f := range fetches.Errors() {
		var bomb *kgo.ErrDecompressTooLarge
		switch {
		case errors.Is(f.Err, context.Canceled), errors.Is(f.Err, context.DeadlineExceeded):
		case errors.As(f.Err, &bomb):
			w.skip(bomb)
		case f.Topic == "": // not of one partition: the group's
			broken = fmt.Errorf("consuming in group %s: %w", w.topics.AuditGroup, f.Err)
		default:
			broken = fmt.Errorf("reading %s/%d: %w", f.Topic, f.Partition, f.Err)
		}
	}
	if broken != nil {
		return broken
	}
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) == 0 {
			return
		}
		s := w.stream(p.Topic, p.Partition)
		if w.sources[p.Topic] == sourceEvents {
			for _, r := range p.Records {
				s.addEvent(r)
			}
		} else {
			w.takeRecords(s, p.Records)
			s.end = p.HighWatermark
		}
		if s.join != nil {
			s.advance()
			w.metrics.lost.Add(float64(s.join.lost))
			s.join.lost = 0
		}
	})
	return nil
}

func (w *writer) takeRecords(s *stream, records []*kgo.Record) {
	for _, r := range records {
		if s.stopped != nil {
			return
		}
		restoring := r.Offset < s.restored.end
		err := s.add(r)
		switch {
		case err == nil:
		case schemas.IsNewer(err):
			// Nothing may be passed over: a binary that knows it goes on from here.
			s.stopped = fmt.Errorf("%s/%d stands at offset %d: %w", r.Topic, r.Partition, r.Offset, err)
			w.pausePartition(topicPartition{r.Topic, r.Partition})
		case restoring: // it was rejected before the block was committed
		default:
			w.reject(s.source, r, err)
		}
	}
}

// reject sets a bad record aside: counted, told, and quarantined before the next commit.
func (w *writer) reject(s source, r *kgo.Record, err error) {
	w.metrics.rejected.WithLabelValues(s.String()).Inc()
	w.log.Debug("record rejected", "topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
	w.rejected = append(w.rejected, schemas.RejectedRecord(w.topics.Rejected, r, err))
}

// skip passes a batch that would not fit into memory.
func (w *writer) skip(bomb *kgo.ErrDecompressTooLarge) {
	s := w.stream(bomb.Topic, bomb.Partition)
	if w.sources[bomb.Topic] == sourceEvents {
		s.join.next = bomb.NextOffset // the router has rejected it
	} else {
		w.reject(s.source, &kgo.Record{Topic: bomb.Topic, Partition: bomb.Partition, Offset: bomb.Offset}, bomb)
		s.skipTo(bomb.NextOffset)
	}
	w.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{
		bomb.Topic: {bomb.Partition: {Epoch: bomb.Epoch, Offset: bomb.NextOffset}},
	})
}

// streamOf names the source and the topic whose stream takes a topic's records:
// routed for events, since its join holds them.
func (w *writer) streamOf(topic string) (source, string) {
	if s := w.sources[topic]; s != sourceEvents {
		return s, topic
	}
	return sourceRouted, w.topics.Routed
}

// stream returns the partition's stream.
func (w *writer) stream(topic string, partition int32) *stream {
	s, topic := w.streamOf(topic)
	key := partitionKey{s, partition}
	if found := w.streams[key]; found != nil {
		return found
	}
	st := newStream(s, topic, w.ids[topic], partition, w.committed(topic, partition))
	if s == sourceRouted {
		events := w.committed(w.topics.Events, partition)
		st.join = newJoin(w.ids[w.topics.Events], partition, events.offset)
		st.eventsNext, st.eventsCommitted = events.offset, events
	}
	w.streams[key] = st
	return st
}

// committed returns what the group had committed for a partition at its assignment.
func (w *writer) committed(topic string, partition int32) commitEntry {
	w.mu.Lock()
	defer w.mu.Unlock()
	entry, ok := w.commits[topicPartition{topic, partition}]
	if !ok {
		return commitEntry{offset: -1}
	}
	return entry
}
