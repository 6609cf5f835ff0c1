// Package join provides the router's main work: each event joined with the webhooks in force, and its deliveries written in the transaction that commits
// its offset (P2). What is in force is left to package table, whether an event was seen before to package dedup.
//
// A Joiner runs a goroutine for each of its sessions, and one for each question for end offsets that is under way; kgo's run besides. All have ended when Run returns.
package join

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/router/dedup"
	"github.com/postrider/postrider/router/table"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

// Bounds of a batch and of a transaction in production.
const (
	MaxEvents  = 5_000
	MaxRecords = 20_000
	MaxBytes   = 64 << 20
)

const (
	// fencedAgain is within what time a second process of the same name shows: each that is fenced takes the name back once.
	fencedAgain = time.Minute
	minPause    = 100 * time.Millisecond
	maxPause    = 5 * time.Second
	// steady is how long a session has run that is not counted as one more in a row of failures.
	steady = 10 * time.Second
	// leaveTimeout bounds the goodbye to the group; after it the session timeout does the same.
	leaveTimeout = 2 * time.Second
)

// Config says how a Joiner works.
type Config struct {
	Kafka    kafka.Config
	Instance string // names the transactional ids and members: stable over restarts, no other process's
	Sessions int
	// DedupMemory bounds the memory of all windows together, in bytes.
	DedupMemory int64

	MaxEvents  int // polled at once
	MaxRecords int // of a transaction
	MaxBytes   int // of a transaction, without compression
}

// Follower is what a Joiner asks of the table's follower.
type Follower interface {
	EndOffsets(ctx context.Context) (kafka.Offsets, error)
	WaitFor(ctx context.Context, offsets kafka.Offsets) error
	Barrier(ctx context.Context) error
}

// A Joiner routes events in sessions, each with a client of its own.
type Joiner struct {
	cfg      Config
	topics   schemas.Topics
	log      *slog.Logger
	table    *table.Table
	follower Follower
	members  []*process.Dependency // by session
	metrics  *metrics
	filters  *filters
	routed   dedup.Log

	client *kgo.Client  // for questions, of all sessions
	owned  atomic.Int64 // partitions with a window, over all sessions
}

// New returns a joiner by the table that follower fills. Whether its sessions are in the group is told to p.
func New(cfg Config, t *table.Table, follower Follower, p *process.Process) *Joiner {
	topics := cfg.Kafka.Topics()
	j := &Joiner{
		cfg: cfg, topics: topics, log: p.Log, table: t, follower: follower,
		metrics: newMetrics(p.Metrics),
		filters: newFilters(p.Log, p.Metrics),
		routed: dedup.Log{
			NewClient: func(opts ...kgo.Opt) (*kgo.Client, error) { return cfg.Kafka.NewClient("router-dedup", opts...) },
			Topic:     topics.Routed, Logger: p.Log, Age: schemas.DedupWindow,
		},
	}
	p.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postrider_router_dedup_window_ids",
		Help: "Ids that the window of each partition may hold: 1,000,000, or fewer where that many of all partitions exceed --dedup-memory.",
	}, func() float64 { return float64(j.windowLimit()) }))
	for range cfg.Sessions {
		j.members = append(j.members, p.Health.Dependency("group", process.Required))
	}
	return j
}

// Run routes until ctx ends. Sessions that fail are made anew; process.ErrFenced is returned when another process has the instance's name.
func (j *Joiner) Run(ctx context.Context) error {
	client, err := j.cfg.Kafka.NewClient("router-" + j.cfg.Instance)
	if err != nil {
		return err
	}
	defer client.Close()
	j.client = client
	sessions, ctx := errgroup.WithContext(ctx)
	for n := range j.cfg.Sessions {
		sessions.Go(func() error { return j.supervise(ctx, n) })
	}
	return sessions.Wait()
}

// supervise makes a session, and another one when it has ended.
func (j *Joiner) supervise(ctx context.Context, n int) error {
	id := j.topics.RouterGroup + "." + j.cfg.Instance + "." + strconv.Itoa(n)
	var lastFenced time.Time
	for wait := minPause; ; wait = min(2*wait, maxPause) {
		began := time.Now()
		err := j.session(ctx, id, j.members[n])
		if ctx.Err() != nil {
			j.leave(ctx, id)
			return nil //nolint:nilerr // it was told to stop, and its error is of that
		}
		if time.Since(began) > steady || errors.Is(err, errSkipped) {
			wait = minPause
		}
		j.metrics.sessionEnds.WithLabelValues(label(err)).Inc()
		j.members[n].Down(err)
		j.log.Warn("session has ended, making a new one", "session", id, "error", err, "pause", wait)
		if isFenced(err) {
			if !lastFenced.IsZero() && time.Since(lastFenced) < fencedAgain {
				return fmt.Errorf("running session %q: %w (%w)", id, process.ErrFenced, err)
			}
			lastFenced = time.Now()
		}
		if !process.Pause(ctx, wait) {
			return nil
		}
	}
}

func (j *Joiner) session(ctx context.Context, id string, member *process.Dependency) error {
	// Nobody may route by a table that cannot be read whole, nor hold partitions that others could work on.
	if err := j.follower.Barrier(ctx); err != nil {
		return err
	}
	if err := j.table.Err(); err != nil {
		return err
	}
	s, err := j.open(ctx, id, member)
	if err != nil {
		return err
	}
	defer s.close()
	return s.run(ctx)
}

// leave takes the session's member out of the group when the process stops, so that others have its partitions at once: a static member's client does not.
func (j *Joiner) leave(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = j.topics.RouterGroup
	member := kmsg.NewLeaveGroupRequestMember()
	member.InstanceID = new(id)
	member.Reason = new("the router stops")
	req.Members = append(req.Members, member)
	if _, err := req.RequestWith(ctx, j.client); err != nil {
		j.log.Warn("leaving group", "session", id, "error", err)
	}
}

// isFenced says that another client took the transactional id or the group instance id.
func isFenced(err error) bool {
	return errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.FencedInstanceID)
}

// windowLimit is how many ids each window may hold.
func (j *Joiner) windowLimit() int {
	share := j.cfg.DedupMemory / dedup.BytesPerID / max(j.owned.Load(), 1)
	return int(min(max(share, 1), dedup.MaxIDs))
}

// ends is the answer to a question for the table's end offsets.
type ends struct {
	asked   time.Time
	offsets kafka.Offsets
	err     error
}

// askEnds asks for the table's end offsets, as they are after the poll that came before.
func (j *Joiner) askEnds(ctx context.Context) <-chan ends {
	answer := make(chan ends, 1)
	go func() {
		e := ends{asked: time.Now()}
		e.offsets, e.err = j.follower.EndOffsets(ctx)
		answer <- e
	}()
	return answer
}

// await is the barrier (P4): it blocks until the table holds everything that was acknowledged before the events were polled.
func (j *Joiner) await(ctx context.Context, answer <-chan ends) error {
	e := <-answer
	err := e.err
	if err == nil {
		err = j.follower.WaitFor(ctx, e.offsets)
	}
	if errors.Is(err, kafka.ErrRebuilt) {
		err = j.follower.Barrier(ctx)
	}
	if err == nil {
		err = j.table.Err()
	}
	j.metrics.barrierSeconds.Observe(time.Since(e.asked).Seconds())
	return err
}

// label is a session's end as a metric's label.
func label(err error) string {
	if errors.Is(err, errSkipped) {
		return "skipped"
	}
	return kafka.ErrorLabel(err)
}

// Results of events and transactions, as labels.
const (
	resultMatched   = "matched"
	resultUnmatched = "unmatched"
	resultDuplicate = "duplicate"
	resultRejected  = "rejected"
	resultCommitted = "committed"
	resultAborted   = "aborted"
	resultFailed    = "failed"
)

type metrics struct {
	events             *prometheus.CounterVec
	deliveries         prometheus.Counter
	transactions       *prometheus.CounterVec
	transactionSeconds prometheus.Histogram
	barrierSeconds     prometheus.Histogram
	sessionEnds        *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer) *metrics {
	// From half a millisecond, what a barrier takes, to 16 s, longer than a transaction may.
	buckets := prometheus.ExponentialBuckets(0.0005, 2, 16)
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_router_events_total", Help: "Events decided on in committed transactions, by result.",
		}, []string{"result"}),
		deliveries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postrider_router_deliveries_total", Help: "Deliveries written in committed transactions.",
		}),
		transactions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_router_transactions_total", Help: "Transactions, by result; the outcome of a failed one is the broker's.",
		}, []string{"result"}),
		transactionSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "postrider_router_transaction_seconds", Help: "Time from the begin of a transaction to its end.", Buckets: buckets,
		}),
		barrierSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "postrider_router_barrier_seconds", Help: "Time from a poll to a table that is as fresh as what was polled.", Buckets: buckets,
		}),
		sessionEnds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_router_session_ends_total", Help: "Sessions that ended and were made anew, by kind of error.",
		}, []string{"error"}),
	}
	registry.MustRegister(m.events, m.deliveries, m.transactions, m.transactionSeconds, m.barrierSeconds, m.sessionEnds)
	for _, result := range []string{resultMatched, resultUnmatched, resultDuplicate, resultRejected} {
		m.events.WithLabelValues(result)
	}
	return m
}

// count adds what a committed transaction did.
func (m *metrics) count(t tally) {
	m.events.WithLabelValues(resultMatched).Add(float64(t.matched))
	m.events.WithLabelValues(resultUnmatched).Add(float64(t.unmatched))
	m.events.WithLabelValues(resultDuplicate).Add(float64(t.duplicate))
	m.events.WithLabelValues(resultRejected).Add(float64(t.rejected))
	m.deliveries.Add(float64(t.deliveries))
}
