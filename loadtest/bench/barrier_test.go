package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/router/join"
	"github.com/postrider/postrider/router/table"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

// floorBarrier is what the router's throughput must be at least, of that without a barrier.
const floorBarrier = 0.95

// barrierOptions say how much is routed.
type barrierOptions struct{ events, rounds, webhooks, partitions int }

func (o *barrierOptions) register() {
	flag.IntVar(&o.events, "barrier-events", 200_000, "events of each backlog that the router alone works off")
	flag.IntVar(&o.rounds, "barrier-rounds", 3, "how often the router with its barrier and without take turns")
	o.webhooks, o.partitions = 100, 12
}

// BenchmarkBarrier measures the router alone, with and without the barrier that
// has it wait for the webhooks in force (P4).
func BenchmarkBarrier(b *testing.B) {
	for b.Loop() {
		f := barrier(b, fullBarrier)
		if err := errors.Join(f.print(os.Stdout), write(filepath.Join(filepath.Dir(results), "barrier.json"), f)); err != nil {
			b.Fatal(err)
		}
	}
}

// TestBarrierBenchAtSmallSize keeps it working.
func TestBarrierBenchAtSmallSize(t *testing.T) {
	f := barrier(t, barrierOptions{events: 8 * join.MaxEvents, rounds: 1, webhooks: 5, partitions: 2})
	if len(f.Figures) != 5 || f.Figures[0].Pipeline <= 0 || f.Figures[0].Bare <= 0 {
		t.Errorf("got %+v", f.Figures)
	}
}

func barrier(t testing.TB, o barrierOptions) found {
	t.Helper()
	f := found{other: true, Case: "Barrier", PayloadBytes: payloadBytes, Partitions: o.partitions, Setup: fmt.Sprintf(
		"router alone, in the bench's process, backlogs of %d events, each for one of %d webhooks, %d rounds; with its barrier beside without", o.events, o.webhooks, o.rounds)}
	if err := f.machine(); err != nil {
		t.Fatal(err)
	}
	r := bringUpRouter(t, o)
	r.workOff(t, o.events, true) // Java compiles Kafka meanwhile
	var with, without, ratios, work, bareWork []float64
	for round := range o.rounds {
		first := round%2 == 0 // the side that comes second has the warmer broker
		one, other := r.workOff(t, o.events, first), r.workOff(t, o.events, !first)
		if !first {
			one, other = other, one
		}
		with, without, ratios = append(with, one.rate), append(without, other.rate), append(ratios, one.rate/other.rate)
		work, bareWork = append(work, one.work), append(bareWork, other.work)
	}
	f.Figures = []figure{
		newFigure("events routed, median", "events/s", quantile(with, 0.5), quantile(without, 0.5)),
		newFigure("ratio of a round, median", "", quantile(ratios, 0.5), 0).held(floorBarrier, atLeast),
		newFigure("  lowest", "", quantile(ratios, 0), 0),
		newFigure("  highest", "", quantile(ratios, 1), 0),
		// One side alone varies twofold where others use the machine; this does not.
		newFigure("router's processor time for 1,000 events, median", "ms", quantile(work, 0.5), quantile(bareWork, 0.5)),
	}
	return f
}

// routerRig is a Kafka with webhooks, and what the router's parts need.
type routerRig struct {
	cfg      kafka.Config
	topics   schemas.Topics
	producer *kgo.Client
	webhooks int
	runs     int
}

func bringUpRouter(t testing.TB, o barrierOptions) *routerRig {
	t.Helper()
	k, prefix := pipeline.SharedKafka(t)
	r := &routerRig{cfg: kafka.Config{Brokers: k.Addrs(), TopicPrefix: prefix}, webhooks: o.webhooks}
	r.topics = r.cfg.Topics()
	var err error
	if r.producer, err = r.cfg.NewClient("bench"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.producer.Close)
	partitions := schemas.Partitions{Events: o.partitions, Deliveries: o.partitions}
	if err := kafka.CreateTopics(t.Context(), r.producer, r.topics, partitions, 0); err != nil {
		t.Fatal(err)
	}
	var records []*kgo.Record
	for n := range o.webhooks {
		w := schemas.Webhook{ID: fmt.Sprintf("wh_%05d", n), Organization: organization(n), Active: true, URL: "https://example.com/", Events: []string{"*"}, Generation: 1, Revision: 1}
		record, err := w.Record(r.topics.Webhooks)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, record)
	}
	if err := r.producer.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	return r
}

// unbarred is a follower whose end is never asked for. There is no such setting:
// the barrier is a promise.
type unbarred struct{ *kafka.Follower }

// EndOffsets implements join.Follower.
func (unbarred) EndOffsets(context.Context) (kafka.Offsets, error) { return kafka.Offsets{}, nil }

// pace is how a backlog was worked off.
type pace struct {
	rate float64 // events a second
	work float64 // milliseconds of processor time a thousand
}

// workOff writes a backlog and has a new router work it off. What is measured begins
// when a tenth of it is done, and so the router has started.
func (r *routerRig) workOff(t testing.TB, events int, barred bool) pace {
	t.Helper()
	r.runs++
	r.backlog(t, events)
	log := slog.New(slog.DiscardHandler)
	p := &process.Process{Log: log, Health: process.NewHealth(log), Metrics: prometheus.NewRegistry()}
	webhooks := table.New(r.topics, log, p.Metrics)
	follower, err := kafka.NewFollower(r.cfg, "bench-table", log, webhooks.Topics(), webhooks.Apply)
	if err != nil {
		t.Fatal(err)
	}
	follower.OnRebuild(webhooks.Begin, webhooks.Done)
	var asked join.Follower = follower
	if !barred {
		asked = unbarred{follower}
	}
	joiner := join.New(join.Config{
		Kafka: r.cfg, Instance: "bench", Sessions: 1, DedupMemory: 256 << 20,
		MaxEvents: join.MaxEvents, MaxRecords: join.MaxRecords, MaxBytes: join.MaxBytes,
	}, webhooks, asked, p)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- process.Run(ctx, process.Stage{Name: "table", Run: follower.Run}, process.Stage{Name: "sessions", Run: joiner.Run})
	}()
	began, before := reached(t, p.Metrics, events/10)
	workBefore := ownWork(t)
	end, all := reached(t, p.Metrics, events)
	work := ownWork(t) - workBefore
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if all == before {
		t.Fatalf("%d events were routed before a tenth of them was seen: there must be several batches of %d", all, join.MaxEvents)
	}
	routed := float64(all - before)
	return pace{rate: routed / end.Sub(began).Seconds(), work: work.Seconds() * 1e6 / routed}
}

// ownWork is the processor time of this process, which is the router's while it waits for it.
func ownWork(t testing.TB) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func (r *routerRig) backlog(t testing.TB, events int) {
	t.Helper()
	payload := `{"filler":"` + strings.Repeat("x", payloadBytes-13) + `"}`
	var bad error
	for n := range events {
		e := schemas.Event{ID: fmt.Sprintf("run%d-%d", r.runs, n), Name: eventName, Organization: organization(n % r.webhooks), Source: "bench", Payload: []byte(payload)}
		r.producer.Produce(t.Context(), e.Record(r.topics.Events), func(_ *kgo.Record, err error) {
			if err != nil {
				bad = err // promises are called one after another
			}
		})
	}
	if err := errors.Join(r.producer.Flush(t.Context()), bad); err != nil {
		t.Fatal(err)
	}
}

// reached waits until so many events have been routed, and tells when, and how many.
func reached(t testing.TB, metrics prometheus.Gatherer, events int) (at time.Time, n int) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(5 * time.Minute); ; {
		families, err := metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		n = 0
		for _, family := range families {
			if family.GetName() != "postrider_router_events_total" {
				continue
			}
			for _, m := range family.GetMetric() {
				n += int(m.GetCounter().GetValue())
			}
		}
		if n >= events {
			return time.Now(), n
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d of %d events were routed", n, events)
		}
	}
}
