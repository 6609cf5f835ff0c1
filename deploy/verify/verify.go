// Package verify proves that nothing is missing (P11): for one moment it reconciles
// the log with itself and with ClickHouse, and lists each delivery that has not its
// one end or its one record that waits, each event that has not its deliveries, and
// each row that is not its record's. It only reads.
//
// Memory is a byte for each delivery of the partitions at work, which are as many as
// 256 MiB hold, and some dozens of megabytes. Run is one goroutine a processor.
package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
)

// snapshotTimeout bounds what is asked before anything is read: where brokers are
// away this is when it is told.
const snapshotTimeout = 15 * time.Second

// Config says what is verified.
type Config struct {
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	// LogOnly leaves ClickHouse out.
	LogOnly bool
	// Since and Until bound the time at which events and deliveries were accepted: from
	// Since on, and before Until. Zero does not bound.
	Since, Until time.Time
	// Organization is whose events and deliveries are looked at; empty: all.
	Organization string
	// List is how many findings are listed; all are counted.
	List int
	// Workers is how many partitions are at work at once; 0: as many as processors.
	Workers int
}

// run is one verification.
type run struct {
	cfg   Config
	cl    *kgo.Client
	snap  *snapshot
	rows  *rows // nil: ClickHouse is left out
	found *findings
	// rowsFrom is, by partition of deliveries, from where on no row was dropped for its age.
	rowsFrom map[int32]int64

	// horizon is the time up to which routed says nothing any more on some events;
	// zero: it has all.
	horizon time.Time
	// setAside are the deliveries that stand in rejected; refusedRows what ClickHouse
	// takes no row of.
	setAside, refusedRows places

	mu     sync.Mutex // guards what follows
	counts *Report
	notes  map[string]struct{}
	// tail holds the events before the moment whose deliveries may stand behind stable.
	tail map[hash]struct{}
	// partial are the events in the middle of whose fan-out the router stands.
	partial map[hash]*tally
	sums    balance
}

// Run verifies. An error says that nothing can be told, or no more; what ClickHouse
// alone keeps from being told is in the report.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Workers == 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	begun := time.Now()
	cl, err := cfg.Kafka.NewClient("postrider-verify")
	if err != nil {
		return nil, fmt.Errorf("verifying: %w", err)
	}
	defer cl.Close()
	r := &run{
		cfg: cfg, cl: cl,
		found:    &findings{most: cfg.List, byKind: make(map[Kind]int64)},
		setAside: make(places), refusedRows: make(places),
		counts: newCounts(), notes: make(map[string]struct{}),
		tail: make(map[hash]struct{}), partial: make(map[hash]*tally),
	}
	if err := r.verify(ctx); err != nil {
		return nil, err
	}
	report := r.counts
	report.AsOf, report.Since, report.Until, report.Organization = r.snap.at, cfg.Since, cfg.Until, cfg.Organization
	report.NotChecked = append([]string{}, slices.Sorted(maps.Keys(r.notes))...)
	report.Rows.Checked = r.rows != nil
	r.found.into(report)
	report.Seconds = time.Since(begun).Seconds()
	report.PerSecond = float64(report.Deliveries.Total) / report.Seconds
	return report, nil
}

func (r *run) verify(ctx context.Context) error {
	asking, cancel := context.WithTimeoutCause(ctx, snapshotTimeout, fmt.Errorf("no answer of Kafka within %s", snapshotTimeout))
	defer cancel()
	var err error
	if r.snap, err = takeSnapshot(asking, r.cl, r.cfg.Kafka.Topics(), r.cfg.Since); err != nil {
		if cause := context.Cause(asking); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return fmt.Errorf("verifying: %w", err)
	}
	r.openRows(asking)
	if r.rows != nil {
		defer r.rows.close()
	}
	if err := r.readRejected(ctx); err != nil {
		return err
	}
	if err := r.findHorizon(ctx); err != nil {
		return err
	}
	// Events before deliveries: which deliveries count depends on where events end.
	if err := r.each(ctx, r.snap.events, r.checkEvents); err != nil {
		return err
	}
	if err := r.checkDeliveries(ctx); err != nil {
		return err
	}
	if err := r.explain(ctx); err != nil {
		return err
	}
	if err := r.checkBeyondHorizon(ctx); err != nil {
		return err
	}
	return r.describe(ctx)
}

// each does a piece of work for each partition, some at once.
func (r *run) each(ctx context.Context, partitions int32, work func(context.Context, int32) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(r.cfg.Workers)
	for p := range partitions {
		group.Go(func() error { return work(ctx, p) })
	}
	return group.Wait() //nolint:wrapcheck // it says what it did
}

// finish adds what one worker counted.
func (r *run) finish(counts *Report, sums *balance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.add(counts)
	r.sums.merge(sums)
}

func (r *run) note(format string, values ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes[fmt.Sprintf(format, values...)] = struct{}{}
}

// within says whether a time is asked for.
func (r *run) within(at time.Time) bool {
	return (r.cfg.Since.IsZero() || !at.Before(r.cfg.Since)) && (r.cfg.Until.IsZero() || at.Before(r.cfg.Until))
}

// balanced says whether what was accepted at a time has its entry in routed.
func (r *run) balanced(at time.Time) bool {
	return r.horizon.IsZero() || at.After(r.horizon)
}

// readAll reads committed records of [from, end) of a partition.
func (r *run) readAll(ctx context.Context, place kafka.Place, from, end int64, each func(*kgo.Record) error) error {
	if err := kafka.ReadAll(ctx, r.cl, place, from, end, each); err != nil {
		return fmt.Errorf("verifying: %w", err)
	}
	return nil
}

// readRejected learns which deliveries were set aside, and of which records ClickHouse
// refused the row.
func (r *run) readRejected(ctx context.Context) error {
	s := r.snap
	place := kafka.Place{Topic: s.topics.Rejected}
	return r.readAll(ctx, place, s.from(place), s.ends[place], func(record *kgo.Record) error {
		if id, is := schemas.SetAside(record, s.topics, s.ids[s.topics.Deliveries]); is {
			r.setAside.add(s.topics.Deliveries, id.Partition, id.Offset)
		}
		if bad, err := schemas.DecodeRejected(record); err == nil && bad.Reason == schemas.CodeRowRefused {
			r.refusedRows.add(bad.Topic, bad.Partition, bad.Offset)
		}
		return nil
	})
}

// places are some records.
type places map[kafka.Place]map[int64]struct{}

func (p places) add(topic string, partition int32, offset int64) {
	place := kafka.Place{Topic: topic, Partition: partition}
	if p[place] == nil {
		p[place] = make(map[int64]struct{})
	}
	p[place][offset] = struct{}{}
}

func (p places) has(place kafka.Place, offset int64) bool {
	_, has := p[place][offset]
	return has
}
