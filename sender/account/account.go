// Package account counts what is not accounted for (P11): the deliveries of this
// sender's partitions that have been passed, though they have neither an end in
// outcomes nor a record that waits. It reads the log as others do, and knows nothing
// of what the sender holds in memory: so what the sender loses, it sees.
//
// Run is one loop on the goroutine that calls it; each cursor it reads by has one more.
package account

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// every is how often the books are balanced, unless that takes long: it is to take
	// a fiftieth of the time at most, which matters where millions of deliveries wait.
	every = 20 * time.Second
	share = 50
	// patience bounds one balance.
	patience = 10 * time.Minute
)

// Config says which log is read.
type Config struct {
	Kafka    kafka.Config
	Instance string
	// Every is how often the books are balanced; 0 stands for 20 s.
	Every time.Duration
	// Share bounds the part of the time that it takes: one in so many; 0 stands for 50.
	Share int
}

// accountant keeps a book for each partition.
type accountant struct {
	cfg    Config
	topics schemas.Topics
	cl     *kgo.Client
	log    *slog.Logger
	owned  func() []int32
	books  map[int32]*book
	// rejected is what is read next of the topic rejected, which has one partition.
	rejected int64

	unaccounted prometheus.Gauge
	watermark   prometheus.Gauge
}

// Run balances the books of the partitions that owned returns, again and again, until
// ctx ends. While Kafka is away the metrics stay as they are. It returns an error
// only for a bad Config.
func Run(ctx context.Context, cfg Config, p *process.Process, owned func() []int32) error {
	if cfg.Every == 0 {
		cfg.Every = every
	}
	if cfg.Share == 0 {
		cfg.Share = share
	}
	cl, err := cfg.Kafka.NewClient("postrider-account-" + cfg.Instance)
	if err != nil {
		return fmt.Errorf("starting account: %w", err)
	}
	defer cl.Close()
	a := &accountant{
		cfg: cfg, topics: cfg.Kafka.Topics(), cl: cl, log: p.Log.With("part", "account"), owned: owned, books: make(map[int32]*book),
		unaccounted: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postrider_unaccounted",
			Help: "Deliveries, of those this sender's partitions had or got since it has them, that the senders have passed and that have neither an end nor a record that waits. Always 0; postrider verify lists them.",
		}),
		watermark: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postrider_accounted_timestamp_seconds",
			Help: "Up to when postrider_unaccounted counts, in seconds since 1970; 0 before the first time.",
		}),
	}
	p.Metrics.MustRegister(a.unaccounted, a.watermark)
	for wait := cfg.Every; process.Pause(ctx, wait); {
		began := time.Now()
		balancing, cancel := context.WithTimeout(ctx, patience)
		err := a.balance(balancing)
		cancel()
		if err != nil && ctx.Err() == nil {
			// A book that was left in the middle of a balance is begun anew.
			clear(a.books)
			a.log.Info("deliveries are not accounted for now", "error", err)
		}
		wait = max(cfg.Every, time.Duration(cfg.Share)*time.Since(began))
	}
	return nil
}

// moment is where everything stood at one time. Stable was asked for before the
// marks, which are the moment, and the ends after: whatever was committed by the
// moment stands before the ends, and nothing that was committed after it before stable.
type moment struct {
	at     time.Time
	id     [16]byte // of deliveries
	stable map[kafka.Place]int64
	marks  map[kafka.Place]schemas.Mark
	starts map[kafka.Place]int64
	ends   map[kafka.Place]int64
}

func (a *accountant) look(ctx context.Context) (*moment, error) {
	m := &moment{at: time.Now()}
	ids, err := kafka.TopicIDs(ctx, a.cl, a.topics.Deliveries)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what it did
	}
	m.id = ids[a.topics.Deliveries]
	if m.stable, err = kafka.StableEnds(ctx, a.cl, a.topics.Outcomes, a.topics.Rejected); err != nil {
		return nil, err //nolint:wrapcheck // it says what it did
	}
	if m.marks, err = kafka.Marks(ctx, a.cl, a.topics); err != nil {
		return nil, err //nolint:wrapcheck // it says what it did
	}
	m.starts, m.ends, err = kafka.Bounds(ctx, a.cl, append(a.topics.Sources(), a.topics.Outcomes, a.topics.Rejected)...)
	return m, err //nolint:wrapcheck // it says what it did
}

// balance brings all books up to a moment, and counts what is missing in them.
func (a *accountant) balance(ctx context.Context) error {
	owned := a.owned()
	for partition := range a.books {
		if !slices.Contains(owned, partition) {
			delete(a.books, partition)
		}
	}
	m, err := a.look(ctx)
	if err != nil {
		return err
	}
	aside, err := a.readRejected(ctx, m)
	if err != nil {
		return err
	}
	missing := 0
	for _, partition := range owned {
		b := a.books[partition]
		if b == nil {
			if b, err = a.begin(ctx, m, partition); err != nil {
				return err
			}
			a.books[partition] = b
		}
		for offset := range aside[partition] {
			b.open.remove(offset)
		}
		n, err := b.balance(ctx, m, aside[partition])
		if err != nil {
			return err
		}
		missing += n
	}
	a.unaccounted.Set(float64(missing))
	a.watermark.Set(float64(m.at.UnixMilli()) / 1000)
	return nil
}

// readRejected returns the deliveries that were set aside since it was read last, by partition.
func (a *accountant) readRejected(ctx context.Context, m *moment) (map[int32]map[int64]struct{}, error) {
	place := kafka.Place{Topic: a.topics.Rejected}
	if len(a.books) == 0 {
		a.rejected = m.stable[place]
	}
	aside := make(map[int32]map[int64]struct{})
	err := a.read(ctx, place, a.rejected, m.ends[place], func(r *kgo.Record) {
		id, is := schemas.SetAside(r, a.topics, m.id)
		if !is {
			return
		}
		if aside[id.Partition] == nil {
			aside[id.Partition] = make(map[int64]struct{})
		}
		aside[id.Partition][id.Offset] = struct{}{}
	})
	a.rejected = max(a.rejected, m.ends[place])
	return aside, err
}

// read gives the committed records of [from, end) of a partition.
func (a *accountant) read(ctx context.Context, place kafka.Place, from, end int64, each func(*kgo.Record)) error {
	return kafka.ReadAll(ctx, a.cl, place, from, end, func(r *kgo.Record) error { //nolint:wrapcheck // it says what it did
		each(r)
		return nil
	})
}
