package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/router/dedup"
	"github.com/postrider/postrider/schemas"
)

// What a router that starts again is held to.
const (
	floorRestart  = 5.0 // seconds until it is ready with 100,000 webhooks
	floorReadBack = 2.0 // seconds for a window of 1,000,000 ids
)

// restartOptions say what a router has to read when it starts.
type restartOptions struct{ webhooks, ids, rounds int }

// BenchmarkRestart measures what a router reads before it routes: the webhooks, and
// the ids of events seen.
func BenchmarkRestart(b *testing.B) {
	for b.Loop() {
		f := restart(b, restartOptions{webhooks: 100_000, ids: dedup.MaxIDs, rounds: 3})
		if err := errors.Join(f.print(os.Stdout), write(filepath.Join(filepath.Dir(results), "restart.json"), f)); err != nil {
			b.Fatal(err)
		}
	}
}

// TestRestartBenchAtSmallSize keeps it working.
func TestRestartBenchAtSmallSize(t *testing.T) {
	f := restart(t, restartOptions{webhooks: 300, ids: 5000, rounds: 1})
	if len(f.Figures) != 5 {
		t.Errorf("got %+v", f.Figures)
	}
	for _, x := range f.Figures {
		if x.Pipeline <= 0 {
			t.Errorf("%s: got %v, want a figure", x.Name, x.Pipeline)
		}
	}
}

func restart(t testing.TB, o restartOptions) found {
	t.Helper()
	f := found{other: true, Case: "Restart", Setup: fmt.Sprintf("a router's start with %d webhooks, and the window of a partition with %d ids read back; median of %d", o.webhooks, o.ids, o.rounds)}
	if err := f.machine(); err != nil {
		t.Fatal(err)
	}
	r := bringUpRouter(t, barrierOptions{webhooks: o.webhooks, partitions: 1})
	args := []string{"--brokers=" + strings.Join(r.cfg.Brokers, ","), "--topic-prefix=" + r.topics.Prefix, "--instance=bench"}
	var starts, reads []float64
	var memory int64
	var work []float64
	for range o.rounds {
		began := time.Now()
		s := pipeline.Start(t, "router", args...).WaitReady(t)
		starts = append(starts, time.Since(began).Seconds())
		memory, work = peakMemory(t, s.PID()), append(work, s.CPU(t).Seconds())
		s.Kill9(t)
	}
	r.route(t, o.ids)
	for range o.rounds {
		reads = append(reads, r.readBack(t, o.ids))
	}
	s := pipeline.Start(t, "router", args...).WaitReady(t)
	f.Figures = []figure{
		newFigure("start until ready", "s", quantile(starts, 0.5), 0).held(floorRestart, atMost),
		newFigure("  processor time until then", "s", quantile(work, 0.5), 0),
		newFigure("  memory then, peak", "MB", megabytes(memory), 0),
		newFigure("window read back", "s", quantile(reads, 0.5), 0).held(floorReadBack, atMost),
		newFigure("  memory of a router with both, peak", "MB", megabytes(peakMemory(t, s.PID())), 0),
	}
	return f
}

// route writes what a router wrote of so many events that matched, a hundred a poll.
func (r *routerRig) route(t testing.TB, ids int) {
	t.Helper()
	cl, err := r.cfg.NewClient("bench-routed", kgo.TransactionalID(r.topics.Prefix+"bench"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	const each, records = 100, 1000 // ids a record, records a transaction
	for n := 0; n < ids; {
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < records && n < ids; i++ {
			routed := schemas.Routed{}
			for ; len(routed.Entries) < each && n < ids; n++ {
				e := schemas.RoutedEntry{Offset: int64(n), Result: schemas.RoutedMatched, Webhooks: 1}
				binary.BigEndian.PutUint64(e.IDHash[:], uint64(n))
				routed.Entries = append(routed.Entries, e)
			}
			cl.Produce(t.Context(), routed.Record(r.topics.Routed), nil)
		}
		if err := errors.Join(cl.Flush(t.Context()), cl.EndTransaction(t.Context(), kgo.TryCommit)); err != nil {
			t.Fatal(err)
		}
	}
}

// readBack reads the window of partition 0 and returns how many seconds that took.
func (r *routerRig) readBack(t testing.TB, ids int) float64 {
	t.Helper()
	l := dedup.Log{
		NewClient: func(opts ...kgo.Opt) (*kgo.Client, error) { return r.cfg.NewClient("bench-dedup", opts...) },
		Topic:     r.topics.Routed, Logger: slog.New(slog.DiscardHandler), Age: schemas.DedupWindow,
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	began := time.Now()
	windows, err := l.Windows(ctx, []int32{0}, dedup.MaxIDs)
	if err != nil {
		t.Fatal(err)
	}
	if n := windows[0].Len(); n != ids {
		t.Fatalf("read %d ids back, want %d", n, ids)
	}
	return time.Since(began).Seconds()
}
