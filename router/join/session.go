package join

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/router/table"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// transactionTimeout bounds how long a router that died stops the readers of what it wrote.
	transactionTimeout = 10 * time.Second
	// sessionTimeout is the least a broker allows by default: how long a dead router's partitions stand still if nobody takes its name.
	sessionTimeout = 6 * time.Second
	heartbeat      = 500 * time.Millisecond
	// fetchBytes bounds what is held of records not yet polled; a batch of 5,000 events of 500 bytes is 3 MiB.
	fetchBytes = 16 << 20
	// linger lets records gather into full batches; Flush ends it.
	linger = 5 * time.Millisecond
	// gatherEach and gatherMost are how long is waited for each event of the last batch, and for all: see gather.
	gatherEach = 200 * time.Microsecond
	gatherMost = 20 * time.Millisecond
	// idlePoll is how long a poll waits for records: a session that was left without partitions, of which no poll brings anything, looks after it.
	idlePoll = time.Second
	// maxPatterns bounds the names whose patterns are remembered.
	maxPatterns = 4096
)

var (
	errNotOwned  = errors.New("the partition is not this session's")
	errLostOwned = errors.New("partitions were taken away before their offsets were committed")
	errSkipped   = errors.New("a batch of records was skipped: starting behind it")
)

// session is one client in the group, with its transactional id and the partitions it owns. All but what mu guards belongs to the goroutine of run.
type session struct {
	joiner   *Joiner
	id       string // transactional id and group instance id
	member   *process.Dependency
	log      *slog.Logger
	eventsID [16]byte
	group    *kgo.GroupTransactSession

	adopted    uint64 // the ownership that partitions belong to
	partitions map[int32]*partition
	patterns   map[string][]string
	matched    []*table.Webhook
	ended      time.Time // of the last transaction
	polled     int       // records of the last batch

	unwritten atomic.Pointer[error] // the first record of the transaction that was not written

	mu sync.Mutex // guards the rest
	// ownership counts assignments, revocations and losses: while it is the same, so is what the session owns.
	ownership uint64
	fetched   map[int32]position // what was committed when the partitions were assigned; nil until that is known
}

// open makes the client. Taking the transactional id ends what a former process of this name left open, before partitions are assigned.
func (j *Joiner) open(ctx context.Context, id string, member *process.Dependency) (*session, error) {
	ids, err := kafka.TopicIDs(ctx, j.client, j.topics.Events)
	if err != nil {
		return nil, err
	}
	s := &session{
		joiner: j, id: id, member: member, log: j.log.With("session", id), eventsID: ids[j.topics.Events],
		partitions: make(map[int32]*partition),
		patterns:   make(map[string][]string),
	}
	s.group, err = j.cfg.Kafka.NewTransactSession(id,
		kgo.TransactionalID(id),
		kgo.TransactionTimeout(transactionTimeout),
		kgo.ConsumerGroup(j.topics.RouterGroup),
		// A static member: a process that comes back under its name gets its partitions at once, without a rebalance.
		kgo.InstanceID(id),
		kgo.ConsumeTopics(j.topics.Events),
		// Eager: a new assignment names everything the session owns. Sticky, so that windows stay where they are.
		kgo.Balancers(kgo.StickyBalancer()),
		// What a poll returns is tied to an ownership until AllowRebalance.
		kgo.BlockRebalanceOnPoll(),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(heartbeat),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.ProducerLinger(linger),
		kgo.MaxBufferedRecords(2*j.cfg.MaxRecords),
		kgo.OnPartitionsAssigned(s.assigned),
		kgo.OnPartitionsRevoked(s.changed),
		kgo.OnPartitionsLost(s.changed),
		kgo.OnOffsetsFetched(s.fetchedOffsets),
		kgo.WithHooks(s),
	)
	if err != nil {
		return nil, err
	}
	if _, _, err := s.group.Client().ProducerID(ctx); err != nil {
		s.close()
		return nil, fmt.Errorf("taking transactional id %q: %w", id, err)
	}
	return s, nil
}

func (s *session) close() {
	s.group.CloseAllowingRebalance()
	s.joiner.owned.Add(-int64(len(s.partitions)))
}

func (s *session) changed(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ownership++
	s.fetched = nil
	s.log.Debug("ownership has changed", "partitions", partitions)
}

func (s *session) assigned(ctx context.Context, cl *kgo.Client, partitions map[string][]int32) {
	s.changed(ctx, cl, partitions)
	if len(partitions[s.joiner.topics.Events]) == 0 { // nothing will be fetched
		s.mu.Lock()
		s.fetched = make(map[int32]position)
		s.mu.Unlock()
	}
	s.member.Up() // also without a partition: there may be more sessions than those
}

// OnGroupManageError implements kgo.HookGroupManageError: the membership was lost,
// and the client joins again by itself, after a pause that grows. A poll tells the
// same, but may come when that has happened long since.
func (s *session) OnGroupManageError(err error) {
	s.member.Down(err)
}

// fetchedOffsets is called after the partitions were assigned and before the first record of them.
func (s *session) fetchedOffsets(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	positions, err := fetchedPositions(s.joiner.topics.Events, s.eventsID, resp)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetched = positions
	return nil
}

// run routes until ctx ends or the session cannot go on.
func (s *session) run(ctx context.Context) error {
	for s.gather(ctx) {
		if err := s.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// step polls once, and routes what came.
func (s *session) step(ctx context.Context) error {
	fetches := s.poll(ctx)
	// Until rebalances are allowed again, what was polled is what this ownership owns.
	s.mu.Lock()
	ownership, fetched := s.ownership, s.fetched
	s.mu.Unlock()
	s.group.AllowRebalance()
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it was told to stop
	}
	if err := s.checkGroup(fetches); err != nil {
		return err
	}
	if isEmpty(fetches) {
		if fetched != nil && len(fetched) == 0 { // no poll will bring anything
			return s.adopt(ctx, ownership, fetched)
		}
		return nil
	}
	// Before the positions are known nothing is polled but a partition's error. Nothing is owned then, so collect returns it.
	ends := s.joiner.askEnds(ctx)
	if err := s.adopt(ctx, ownership, fetched); err != nil {
		return err
	}
	b, err := s.collect(fetches, ownership)
	if err != nil {
		return err
	}
	if err := s.joiner.await(ctx, ends); err != nil {
		b.rollback()
		return err
	}
	s.polled = fetches.NumRecords()
	return s.route(ctx, b)
}

func (s *session) poll(ctx context.Context) kgo.Fetches {
	ctx, cancel := context.WithTimeout(ctx, idlePoll)
	defer cancel()
	return s.group.PollRecords(ctx, s.joiner.cfg.MaxEvents)
}

// isEmpty says that a poll brought nothing of any partition: no record and no error.
func isEmpty(fetches kgo.Fetches) bool {
	return fetches.NumRecords() == 0 && !slices.ContainsFunc(fetches.Errors(), func(e kgo.FetchError) bool { return e.Topic != "" })
}

// gather lets events gather before the next poll, the longer the more the last
// one brought, and says whether ctx is still alive. A transaction costs the broker
// the same whatever is in it, and its readers a fetch: at 100 events/s nothing is
// waited for, at 5,000 batches grow until there are about 40 a second.
func (s *session) gather(ctx context.Context) bool {
	return process.Pause(ctx, min(time.Duration(s.polled)*gatherEach, gatherMost)-time.Since(s.ended))
}

// checkGroup takes what a poll says of the group itself out of its errors. After an outage that is one error for each attempt to join again.
func (s *session) checkGroup(fetches kgo.Fetches) error {
	var last error
	for _, e := range fetches.Errors() {
		lost, isGroup := errors.AsType[*kgo.ErrGroupSession](e.Err)
		switch {
		case isGroup && !errors.Is(lost.Err, kerr.FencedInstanceID):
			last = lost.Err
		case e.Topic == "" && errors.Is(e.Err, context.DeadlineExceeded): // of the poll: nothing came
		case isGroup, e.Topic == "":
			return fmt.Errorf("reading from group %q: %w", s.joiner.topics.RouterGroup, e.Err)
		}
	}
	if last != nil {
		s.log.Info("the group was left, joining again", "error", last)
	}
	return nil
}

// adopt makes partitions those of an ownership. A window is read back unless nobody has moved the partition since this session did.
func (s *session) adopt(ctx context.Context, ownership uint64, fetched map[int32]position) error {
	if ownership == s.adopted {
		return nil
	}
	before := len(s.partitions)
	kept := make(map[int32]*partition, len(fetched))
	var missing []int32
	for number, at := range fetched {
		if p := s.partitions[number]; p != nil && p.at == at {
			kept[number] = p
			continue
		}
		missing = append(missing, number)
	}
	s.partitions = kept
	s.joiner.owned.Add(int64(len(fetched) - before))
	defer func() { s.joiner.owned.Add(int64(len(s.partitions) - len(fetched))) }()
	limit := s.joiner.windowLimit()
	started := time.Now()
	windows, err := s.joiner.routed.Windows(ctx, missing, limit)
	if err != nil {
		return err
	}
	ids := 0
	for number, w := range windows {
		ids += w.Len()
		s.partitions[number] = &partition{number: number, window: w, at: fetched[number]}
	}
	for _, p := range kept {
		p.window.SetLimit(limit)
		p.window.Settle(time.Time{})
	}
	s.adopted = ownership
	s.log.Info("partitions assigned", "partitions", len(fetched), "windows_read", len(missing), "ids_read", ids,
		"duration", time.Since(started))
	return nil
}

// patternsFor remembers the patterns of the names seen.
func (s *session) patternsFor(name string) []string {
	patterns, known := s.patterns[name]
	if !known {
		if len(s.patterns) >= maxPatterns {
			clear(s.patterns)
		}
		patterns = schemas.PatternsFor(name)
		s.patterns[name] = patterns
	}
	return patterns
}

// match returns the webhooks that get an event, by id, until the next call.
func (s *session) match(it *item) []*table.Webhook {
	e := &it.event
	s.matched = s.joiner.table.Match(s.matched[:0], e.Organization, e.Account, s.patternsFor(e.Name))
	return s.joiner.filters.passing(s.matched, it)
}

// owns says whether what the session owned is still its own.
func (s *session) owns(ownership uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ownership == ownership
}
