package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// loadEnv holds a client's load, and is what makes a process one.
const loadEnv = "POSTRIDER_BENCH_LOAD"

// options say how much is measured.
type options struct {
	events, warmup, rate, seconds, connections, webhooks int
	partitions                                           schemas.Partitions
}

//nolint:gochecknoglobals // the flags of a test binary have no other place
var (
	full        = options{connections: 64, webhooks: 100}
	fullSender  senderOptions
	fullPatches patchOptions
	fullBarrier barrierOptions
	results     string
)

func TestMain(m *testing.M) {
	if text := os.Getenv(loadEnv); text != "" {
		if err := clientMain(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.IntVar(&full.events, "events", 100_000, "events of the bench")
	flag.IntVar(&full.warmup, "warmup", 400_000, "events before, which are not measured: Java compiles Kafka while it runs")
	flag.IntVar(&full.rate, "rate", 100, "events a second while latency is measured")
	flag.IntVar(&full.seconds, "seconds", 20, "seconds for which latency is measured")
	production := schemas.DefaultPartitions()
	flag.IntVar(&full.partitions.Events, "events-partitions", production.Events, "partitions of events")
	flag.IntVar(&full.partitions.Deliveries, "deliveries-partitions", production.Deliveries, "partitions of deliveries")
	fullSender.register()
	fullPatches.register()
	fullBarrier.register()
	flag.StringVar(&results, "results", filepath.Join("results", "bench.json"), "file for the figures, from the package's folder; the sender's go beside it")
	pipeline.Main(m)
}

// BenchmarkPipeline measures, prints a table and writes JSON.
func BenchmarkPipeline(b *testing.B) {
	for b.Loop() {
		r := measure(b, full)
		if err := errors.Join(r.print(os.Stdout), write(results, r)); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(r.Figures[0].Pipeline, "events/s")
	}
}

// TestBenchAtSmallSize keeps the bench itself working: every event arrives once,
// and each figure is there.
func TestBenchAtSmallSize(t *testing.T) {
	r := measure(t, options{
		events: 500, warmup: 100, rate: 50, seconds: 2, connections: 4, webhooks: 5,
		partitions: schemas.Partitions{Events: 4, Deliveries: 4},
	})
	path := filepath.Join(t.TempDir(), "results", "bench.json")
	var table bytes.Buffer
	if err := errors.Join(r.print(&table), write(path, r)); err != nil {
		t.Fatal(err)
	}
	t.Log(table.String())
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var written report
	if err := json.Unmarshal(text, &written); err != nil {
		t.Fatal(err)
	}
	for _, f := range written.Figures {
		if f.Pipeline <= 0 && !strings.HasPrefix(f.Name, " ") { // a hop may take no whole millisecond
			t.Errorf("%s: got %v, want a figure", f.Name, f.Pipeline)
		}
	}
	if len(written.Figures) != 9 || len(written.Costs) != 8 {
		t.Errorf("got %d figures and %d processes", len(written.Figures), len(written.Costs))
	}
}

// measure brings everything up and measures, one thing after another.
func measure(t testing.TB, o options) report {
	t.Helper()
	r := report{
		Events: o.events, Warmup: o.warmup, PayloadBytes: payloadBytes, Connections: o.connections, Webhooks: o.webhooks,
		Partitions: o.partitions, LatencyRate: o.rate, LatencyEvents: o.rate * o.seconds,
	}
	if err := r.machine(); err != nil {
		t.Fatal(err)
	}
	b := bringUp(t, o.webhooks, o.partitions)
	var atRest int64
	for _, s := range b.services() {
		atRest += s.Memory(t)
	}
	b.through(t, load{Run: "warmup", Connections: o.connections, Events: o.warmup})

	fast := load{Connections: o.connections, Events: o.events}
	fast.Run = "fast"
	flow := b.through(t, fast)
	fast.Run = "fast-bare"
	bareFlow := b.bare(t, fast)

	// After the load: a broker that runs for days has been compiled long ago.
	slow := load{Connections: o.connections, Events: r.LatencyEvents, Rate: o.rate}
	slow.Run = "slow"
	latency := b.through(t, slow)
	hops := b.hops(t, slow.Run)
	slow.Run = "slow-bare"
	bareLatency := b.bare(t, slow)

	bareRate := rate(o.events, bareFlow.sent.EndedAt-bareFlow.sent.StartedAt)
	since := func(at int64) float64 { return rate(o.events, at-flow.sent.StartedAt) }
	r.Figures = []figure{
		newFigure("last row in ClickHouse", "events/s", since(flow.rowsAt), bareRate).held(floorRate, atLeast),
		newFigure("last request at the receiver", "events/s", since(flow.lastAt), bareRate),
		newFigure("last answer of ingest", "events/s", since(flow.sent.EndedAt), bareRate),
		newFigure("send to receiver, p50", "ms", quantile(latency.waits, 0.5), quantile(bareLatency.waits, 0.5)).held(floorP50, atMost),
		newFigure("send to receiver, p99", "ms", quantile(latency.waits, 0.99), quantile(bareLatency.waits, 0.99)).held(floorP99, atMost),
		newFigure("  of it in events to routed, p50", "ms", hops[0], 0),
		newFigure("  of it routed to its request, p50", "ms", hops[1], 0),
		newFigure("services' memory, peak", "MB", flow.services(), megabytes(bareFlow.sent.PeakBytes)).held(floorMemory, atMost),
		newFigure("services' memory, at rest", "MB", megabytes(atRest), 0),
	}
	r.Costs = together(flow.costs(o.events, bareFlow))
	return r
}

func megabytes(bytes int64) float64 { return float64(bytes) / 1e6 }

// runClient runs a client as a process, to its end, and returns what it used too.
func runClient(t testing.TB, l load) (sent, used) {
	t.Helper()
	text, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), loadEnv+"="+string(text))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("running client: %v: %s", err, stderr.String())
	}
	var s sent
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatalf("reading what the client sent: %v", err)
	}
	return s, used{"client", cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), s.PeakBytes}
}

// clientMain is the main function of a client.
func clientMain(text string) error {
	var l load
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return fmt.Errorf("reading load: %w", err)
	}
	s, err := l.post(context.Background())
	if err != nil {
		return err
	}
	if s.PeakBytes, err = peakBytes("self"); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// message gives the message id of an event for the webhook of its organization.
func (b *bed) message(run string) func(number int) string {
	return func(number int) string {
		n := number % len(b.webhooks)
		return schemas.MessageID(organization(n), eventID(run, number), b.webhooks[n])
	}
}
