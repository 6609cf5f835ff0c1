package consume

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas/kafka"
)

const (
	// fetchPartition is asked for from each partition. Up to two such fetches of
	// every waiting tier are kept: 18 tiers × 24 partitions × 128 KiB × 2 is 108 MiB
	// at the very worst.
	fetchPartition = 128 << 10
	sweepEvery     = time.Minute
	// abortsTold is how many transactions aborted one after the other are told of.
	abortsTold = 20
)

// session is the time from joining the group to leaving it.
type session struct {
	*Consumer

	clock      func() time.Time // time.Now, but in tests
	board      *board
	partitions int // of each topic of deliveries
	writer     *writer
	consumer   *kgo.Client
	producer   *kgo.Client

	// txMu is held by whoever writes a transaction, and by the callbacks of the
	// group: the broker checks the membership of a commit, not whose a partition
	// is, so no partition may be given up under a transaction with its results.
	txMu    sync.Mutex
	lost    bool // the session is over: nothing is written any more; guarded by txMu
	aborted int  // transactions since one was committed; guarded by txMu
	// fetchMu makes looking at the heads and pausing as they say one step: a pause
	// that came after the partition was assigned anew would last for ever.
	fetchMu sync.Mutex

	kick chan struct{} // has room for one: look at the heads
	full chan struct{} // has room for one: commit now
	// reassigned and restate have room for one: ask for the ends, and for what others
	// wrote to webhook-states.
	reassigned, restate chan struct{}
	failed              chan error    // has room for one: the first failure
	leaving             chan struct{} // closed by run: a revoke need not wait
	attempts            sync.WaitGroup
}

// open makes the clients. The transactional id is taken before the group is
// joined: that ends the transaction of a process of this name that died, for
// which a new owner of its partitions would wait.
func (c *Consumer) open(ctx context.Context) (s *session, err error) {
	s = &session{
		Consumer:   c,
		clock:      time.Now,
		kick:       make(chan struct{}, 1),
		full:       make(chan struct{}, 1),
		reassigned: make(chan struct{}, 1),
		restate:    make(chan struct{}, 1),
		failed:     make(chan error, 1),
		leaving:    make(chan struct{}),
	}
	id := c.topics.Prefix + "sender." + c.cfg.Instance
	s.producer, err = c.cfg.Kafka.NewClient(c.clientID("producer"),
		kgo.TransactionalID(id), kgo.TransactionTimeout(transactionTimeout), kgo.ProducerLinger(5*time.Millisecond),
		// The first record of each of two dozen topics waits for it, and with it a
		// commit: what a crash would then repeat grows by all attempts of that time.
		kgo.MetadataMinAge(20*time.Millisecond))
	if err != nil {
		return nil, err
	}
	producer := s.producer // a return of nil, err sets s
	defer func() {
		if err != nil {
			producer.Close()
		}
	}()
	if _, _, err = s.producer.ProducerID(ctx); err != nil {
		return nil, fmt.Errorf("taking transactional id %q: %w", id, err)
	}
	if err = c.checkTopics(ctx, s.producer); err != nil {
		return nil, err
	}
	sources := c.topics.Sources()
	if err = kafka.EnsureCommits(ctx, s.producer, c.topics.SenderGroup, c.cfg.StartAt, sources...); err != nil {
		return nil, err
	}
	ids, err := kafka.TopicIDs(ctx, s.producer, sources...)
	if err != nil {
		return nil, err
	}
	if err = kafka.Evict(ctx, s.producer, c.log, c.topics.SenderGroup, c.clientID("consumer")); err != nil {
		return nil, err
	}
	s.writer = &writer{client: s.producer, id: id, group: c.topics.SenderGroup, topics: ids}
	_, ends, err := kafka.Bounds(ctx, s.producer, c.topics.Deliveries)
	if err != nil {
		return nil, err
	}
	s.partitions = len(ends)
	s.board = newBoard(&effects{
		topics: c.topics, topicID: ids[c.topics.Deliveries], schedule: c.cfg.Schedule, instance: c.cfg.Instance,
		disableAfter: c.cfg.DisableAfter,
	}, table{
		bounds: func(id string) laneBounds { return c.webhooks.bounds(id, c.cfg.Concurrency, len(c.cfg.Schedule)) },
		state:  c.webhooks.state,
	}, c.cfg.InFlight)
	return s, nil
}

// checkTopics returns what lets a promise not be kept, and logs what else differs, once for each process.
func (c *Consumer) checkTopics(ctx context.Context, cl *kgo.Client) error {
	if c.checked {
		return nil
	}
	found, err := kafka.CheckTopics(ctx, cl, c.topics)
	if err != nil {
		return fmt.Errorf("checking topics: %w", err)
	}
	if err = kafka.Judge(c.log, found); err == nil {
		err = kafka.CheckTable(ctx, cl, c.topics)
	}
	c.checked = err == nil
	return err
}

func (s *session) join() (err error) {
	s.consumer, err = s.cfg.Kafka.NewClient(s.clientID("consumer"),
		kgo.ConsumerGroup(s.topics.SenderGroup),
		kgo.ConsumeTopics(s.topics.Sources()...),
		kgo.DisableAutoCommit(), // offsets go with their effects
		kgo.BlockRebalanceOnPoll(),
		kgo.Balancers(kgo.RangeBalancer()),     // partition p of every source to one member
		kgo.FetchMaxWait(100*time.Millisecond), // a resumed tier waits behind the fetch in flight
		kgo.FetchMaxPartitionBytes(fetchPartition),
		kgo.KeepControlRecords(),                    // see idleLocked
		kgo.HeartbeatInterval(300*time.Millisecond), // members learn of a rebalance by it
		kgo.SessionTimeout(6*time.Second),
		kgo.OnPartitionsAssigned(s.assigned),
		kgo.OnOffsetsFetched(s.offsetsFetched),
		kgo.OnPartitionsRevoked(s.revoked),
		kgo.OnPartitionsLost(s.gone),
	)
	return err
}

// run works deliveries until ctx ends or the session fails.
func (s *session) run(ctx context.Context) (err error) {
	defer s.producer.Close()
	// Attempts and commits outlive ctx: what was started is to come to its end.
	base := context.WithoutCancel(ctx)
	work, stopWork := context.WithCancel(base)
	defer stopWork()
	if err := s.join(); err != nil {
		return err
	}
	polling, stopPolling := context.WithCancel(base)
	committing, stopCommitting := context.WithCancel(base)
	var polls, commits sync.WaitGroup
	polls.Go(func() { s.pollLoop(polling) })
	polls.Go(func() { s.startLoop(polling, work) })
	polls.Go(func() { s.endsLoop(polling) })
	polls.Go(func() { s.learnStates(polling) })
	commits.Go(func() { s.commitLoop(committing) })

	select {
	case <-ctx.Done():
	case err = <-s.failed:
	}
	// In order: nothing new is started; what was is awaited while it is committed;
	// the group is left, which commits the rest; attempts that still run are broken off.
	stopPolling()
	polls.Wait()
	if err == nil {
		err = s.drain()
	}
	close(s.leaving)
	s.consumer.CloseAllowingRebalance()
	stopCommitting()
	commits.Wait()
	stopWork()
	s.attempts.Wait()
	return err
}

// drain waits until every attempt that was begun has ended and is committed, or
// the time for it is over. What only waits is the next owner's.
func (s *session) drain() error {
	s.board.stop(nil)
	deadline := time.After(s.cfg.Drain)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.board.outstanding() {
		select {
		case <-tick.C:
		case err := <-s.failed:
			return err
		case <-deadline:
			return nil
		}
	}
	return nil
}

// startLoop starts what can be started whenever that may have changed. Attempts run under work.
func (s *session) startLoop(ctx, work context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			s.board.sweep(time.Now())
			continue
		case <-s.kick:
		case <-timer.C:
		}
		if at := s.start(work); !at.IsZero() {
			timer.Reset(time.Until(at))
		} else {
			timer.Stop()
		}
	}
}

func (s *session) start(work context.Context) (wakeAt time.Time) {
	s.fetchMu.Lock()
	r := s.board.admit(time.Now())
	if len(r.pause) > 0 {
		s.consumer.PauseFetchPartitions(byTopic(r.pause))
	}
	if len(r.resume) > 0 {
		s.consumer.ResumeFetchPartitions(byTopic(r.resume))
	}
	s.fetchMu.Unlock()
	s.begin(work, r.begin)
	s.metrics.parked.Add(float64(r.parked))
	s.metrics.rejected.Add(float64(r.rejected))
	s.metrics.removed.Add(float64(r.removed))
	if r.pending >= transactionFull {
		wake(s.full)
	}
	return r.wake
}

// begin makes attempts, each in a goroutine.
func (s *session) begin(work context.Context, items []*item) {
	for _, it := range items {
		s.attempts.Go(func() { s.workLane(work, it) })
	}
}

// workLane makes an attempt and goes on with the next of its lane.
func (s *session) workLane(ctx context.Context, it *item) {
	for it != nil {
		e := s.board.finish(it, s.attempt(ctx, it), time.Now())
		if e.pending >= transactionFull {
			wake(s.full)
		}
		if e.blocked {
			wake(s.kick)
		}
		if e.disable != "" {
			s.metrics.disabled.WithLabelValues(e.disable).Inc()
			s.log.Info("webhook disabled", "webhook", it.delivery.WebhookID, "reason", e.disable)
		}
		it = nil
		if len(e.begin) > 0 {
			it = e.begin[0]
			s.begin(ctx, e.begin[1:])
		}
	}
}

func (s *session) commitLoop(ctx context.Context) {
	tick := time.NewTicker(transactionEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.full:
		}
		s.txMu.Lock()
		s.commitLocked(ctx)
		s.txMu.Unlock()
	}
}

// commitLocked writes everything that is finished in one transaction; the caller holds txMu.
func (s *session) commitLocked(ctx context.Context) {
	if s.lost {
		return
	}
	t := s.board.take()
	if len(t.results) == 0 {
		return
	}
	wake(s.kick) // what was taken leaves room
	begun := time.Now()
	committed, cause, err := s.writer.write(ctx, t)
	took := time.Since(begun)
	s.metrics.duration.Observe(took.Seconds())
	if err != nil && took >= transactionTimeout {
		err = fmt.Errorf("%w: %w", errSlow, err)
	}
	switch {
	case err != nil:
		s.metrics.transactions.WithLabelValues("unknown").Inc()
		s.board.release(t)
		s.failLocked(err)
	case !committed:
		s.metrics.transactions.WithLabelValues("aborted").Inc()
		s.board.putBack(t)
		s.health.Down(cause)
		level := slog.LevelDebug
		if s.aborted++; s.aborted%abortsTold == 0 {
			level = slog.LevelWarn // it does not pass: the sender stands still
		}
		s.log.Log(ctx, level, "transaction aborted, to be written again", "results", len(t.results), "aborted", s.aborted, "error", cause)
	default:
		s.metrics.transactions.WithLabelValues("committed").Inc()
		s.aborted = 0
		s.board.wrote(t, time.Now())
		s.board.release(t)
		s.health.Up()
		wake(s.kick)
	}
}

// failLocked ends the session: what it has has no effect any more. The caller holds txMu.
func (s *session) failLocked(err error) {
	s.lost = true
	s.board.giveUp(nil)
	select {
	case s.failed <- err:
	default: // it is ending already
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // somebody has: one look sees it all
	}
}
