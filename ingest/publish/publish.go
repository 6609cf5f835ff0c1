// Package publish makes records durable: it hands them to Kafka and answers
// once every in-sync replica has them (acks=all), or says in time that it
// cannot tell. What the records hold, and whom they belong to, it leaves to others.
//
// Run is its one goroutine. It paces the hand-over, so that a busy ingest sends
// few large requests and an idle one sends at once.
package publish

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas/kafka"
)

const (
	// Within is the longest that Publish takes: what is not durable by then is
	// answered 503, and the promise is an answer within 5 s.
	Within = 4500 * time.Millisecond

	// A produce request costs client and broker about 0.6 CPU-ms however little is
	// in it (facts.md: 35 CPU-ms per 1,000 records at 1 ms of linger, 19 at 5).
	// Records that come within pace of the last hand-over share the next one: at
	// most 200 a second under load. At 100 events a second, two of five wait, for
	// 2.5 ms on average.
	pace = 5 * time.Millisecond

	// linger lets a round that is handed over record by record leave as one
	// request a broker instead of its first record alone and the rest behind it.
	linger = time.Millisecond

	// maxBufferedBytes bounds what waits for Kafka. At 5,000 events of 500 bytes
	// a second it is filled after 25 s; the answers turn to 503 before.
	maxBufferedBytes = 64 << 20
)

// Errors of Publish, by record.
var (
	// ErrNotDurable means that Kafka did not acknowledge in time. The record may
	// still turn up in the topic.
	ErrNotDurable = errors.New("not acknowledged by Kafka in time")
	// ErrOverloaded means that too much is waiting for Kafka already; the record was not taken.
	ErrOverloaded = errors.New("too much is waiting for Kafka")
	// ErrTooLarge means that the record does not fit into the topic.
	ErrTooLarge = errors.New("larger than the topic's records may be")
)

// Publisher is one producer, shared by all requests.
type Publisher struct {
	cl   *kgo.Client
	wake chan struct{} // capacity 1: something is pending

	errors  *prometheus.CounterVec
	latency prometheus.Histogram

	mu      sync.Mutex
	pending []entry // guarded by mu
	bytes   int64   // of pending, guarded by mu
}

type entry struct {
	record *kgo.Record
	index  int
	done   chan<- result
}

type result struct {
	index int
	err   error
}

// New returns a publisher. It connects when it first has something to send.
func New(cfg kafka.Config, clientID string, metrics prometheus.Registerer) (*Publisher, error) {
	p := &Publisher{
		wake: make(chan struct{}, 1),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_ingest_publish_errors_total",
			Help: "Records that could not be made durable in time, by error.",
		}, []string{"error"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "postrider_ingest_publish_duration_seconds",
			Help:    "From the hand-over of a request's records to the acknowledgement of the last.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5},
		}),
	}
	cl, err := cfg.NewClient(
		clientID,
		kgo.ProducerLinger(linger),
		kgo.MaxBufferedBytes(maxBufferedBytes),
		// Nobody waits for a record longer than this, so trying on would only
		// fill the buffer that the next requests need.
		kgo.RecordDeliveryTimeout(Within),
	)
	if err != nil {
		return nil, fmt.Errorf("making the client for events: %w", err)
	}
	p.cl = cl
	metrics.MustRegister(p.errors, p.latency, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postrider_ingest_publish_buffered_bytes",
		Help: "Bytes taken over and not yet acknowledged by Kafka.",
	}, func() float64 { return float64(p.buffered()) }))
	return p, nil
}

// Run hands records over until ctx ends, then closes the client. Publish
// answers ErrNotDurable from then on.
func (p *Publisher) Run(ctx context.Context) error {
	defer p.cl.Close()
	// A request's own context stays out of producing: that of the first record
	// would decide for all that wait for the same partition.
	background := context.WithoutCancel(ctx)
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		}
		for _, e := range p.take() {
			p.cl.TryProduce(background, e.record, func(_ *kgo.Record, err error) {
				e.done <- result{e.index, err}
			})
		}
		rest.Reset(pace)
		select {
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
	}
}

func (p *Publisher) take() []entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	entries := p.pending
	p.pending, p.bytes = nil, 0
	return entries
}

// Publish returns when all records are durable, or ctx ends, or Within has
// passed. It returns nil if all are, else an error or nil for each record.
// Records that failed may still be written later, so they and what they alias
// must not be changed after the call.
func (p *Publisher) Publish(ctx context.Context, records ...*kgo.Record) []error {
	start := time.Now()
	done := make(chan result, len(records)) // holds all answers: a late one finds nobody and blocks nobody
	if !p.enqueue(records, done) {
		return p.failed(records, nil, ErrOverloaded)
	}
	timeout := time.NewTimer(Within)
	defer timeout.Stop()

	answers := make([]result, 0, len(records))
	for len(answers) < len(records) {
		select {
		case r := <-done:
			answers = append(answers, r)
			continue
		case <-timeout.C:
		case <-ctx.Done():
		}
		return p.failed(records, answers, ErrNotDurable)
	}
	p.latency.Observe(time.Since(start).Seconds())
	for _, r := range answers {
		if r.err != nil {
			return p.failed(records, answers, ErrNotDurable)
		}
	}
	return nil
}

func (p *Publisher) enqueue(records []*kgo.Record, done chan<- result) bool {
	var size int64
	for _, r := range records {
		size += int64(len(r.Key) + len(r.Value))
	}
	p.mu.Lock()
	if p.bytes+size > maxBufferedBytes {
		p.mu.Unlock()
		return false
	}
	p.bytes += size
	for i, r := range records {
		p.pending = append(p.pending, entry{r, i, done})
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return true
}

// failed gives each record its error; unanswered is that of records without an answer.
func (p *Publisher) failed(records []*kgo.Record, answers []result, unanswered error) []error {
	errs := make([]error, len(records))
	for i := range errs {
		errs[i] = unanswered
	}
	for _, r := range answers {
		errs[r.index] = classify(r.err)
	}
	for _, err := range errs {
		if err != nil {
			p.errors.WithLabelValues(label(err)).Inc()
		}
	}
	return errs
}

func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kgo.ErrMaxBuffered):
		return ErrOverloaded
	case errors.Is(err, kerr.MessageTooLarge):
		return ErrTooLarge
	default:
		return fmt.Errorf("%w: %w", ErrNotDurable, err)
	}
}

// label is an error's label in metrics.
func label(err error) string {
	switch {
	case errors.Is(err, ErrOverloaded):
		return "overloaded"
	case errors.Is(err, ErrTooLarge):
		return "too_large"
	case err == ErrNotDurable: //nolint:errorlint // exactly this: nothing came back, so there is no cause to name
		return "timeout"
	default:
		return kafka.ErrorLabel(err)
	}
}

func (p *Publisher) buffered() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes + p.cl.BufferedProduceBytes()
}
