package bench

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// floorPatches is milliseconds for the p99 of changes over two replicas.
const floorPatches = 50.0

// patchOptions say how many changes are measured, and how fast they come.
type patchOptions struct{ warmup, changes, rate, rounds, webhooks int }

func (o *patchOptions) register() {
	flag.IntVar(&o.warmup, "patch-warmup", 3000, "changes before, which are not measured")
	flag.IntVar(&o.changes, "patches", 1500, "changes of webhooks, each round")
	flag.IntVar(&o.rate, "patch-rate", 100, "changes a second")
	flag.IntVar(&o.rounds, "patch-rounds", 3, "how often one replica and two take turns")
	flag.IntVar(&o.webhooks, "patch-webhooks", 20, "webhooks that are changed")
}

// BenchmarkPatches measures how long changes of webhooks take over two replicas,
// which take the place of the writer from each other, beside one.
func BenchmarkPatches(b *testing.B) {
	for b.Loop() {
		f := patches(b, fullPatches)
		if err := errors.Join(f.print(os.Stdout), write(filepath.Join(filepath.Dir(results), "patches.json"), f)); err != nil {
			b.Fatal(err)
		}
	}
}

// TestPatchesBenchAtSmallSize keeps it working.
func TestPatchesBenchAtSmallSize(t *testing.T) {
	f := patches(t, patchOptions{warmup: 10, changes: 40, rate: 50, rounds: 1, webhooks: 3})
	if len(f.Figures) != 3 || f.Figures[0].Pipeline <= 0 || f.Figures[0].Bare <= 0 {
		t.Errorf("got %+v", f.Figures)
	}
}

func patches(t testing.TB, o patchOptions) found {
	t.Helper()
	f := found{
		other: true, Case: "Patches",
		Setup: fmt.Sprintf("%d changes a second of %d webhooks, %d rounds of %d; over two replicas beside over one", o.rate, o.webhooks, o.rounds, o.changes),
	}
	if err := f.machine(); err != nil {
		t.Fatal(err)
	}
	r := bringUpReplicas(t, o.webhooks)
	r.change(t, o.warmup, o.rate, r.replicas)
	var two, one []float64
	for range o.rounds {
		one = append(one, r.change(t, o.changes, o.rate, r.replicas[:1])...)
		two = append(two, r.change(t, o.changes, o.rate, r.replicas)...)
	}
	f.Figures = []figure{
		newFigure("change of a webhook, p50", "ms", quantile(two, 0.5), quantile(one, 0.5)),
		newFigure("change of a webhook, p99", "ms", quantile(two, 0.99), quantile(one, 0.99)).held(floorPatches, atMost),
		newFigure("change of a webhook, longest", "ms", quantile(two, 1), quantile(one, 1)),
	}
	return f
}

// replicas are two ingests and the webhooks that they change.
type replicas struct {
	replicas []*pipeline.Service
	webhooks []string
}

func bringUpReplicas(t testing.TB, webhooks int) *replicas {
	t.Helper()
	k, prefix := pipeline.SharedKafka(t)
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := kafka.CreateTopics(t.Context(), cl, schemas.NewTopics(prefix), schemas.Partitions{Events: 1, Deliveries: 1}, 0); err != nil {
		t.Fatal(err)
	}
	r := &replicas{}
	for n := range 2 {
		s := pipeline.Start(t, "ingest", "--brokers="+strings.Join(k.Addrs(), ","), "--topic-prefix="+prefix, fmt.Sprintf("--instance=bench-%d", n),
			"--key-ring="+keyRing, "--admin-key="+adminKey, "--clickhouse="+pipeline.FreeAddr(t)) // where nothing is, as nothing is asked
		r.replicas = append(r.replicas, s)
	}
	for _, s := range r.replicas {
		s.WaitReady(t)
	}
	for n := range webhooks {
		body := fmt.Sprintf(`{"organization":%q,"active":true,"url":"https://example.com/%d","events":"a"}`, organization(n), n)
		text, err := r.until(t, r.replicas[0], http.MethodPost, "/webhook-events", body, http.StatusCreated)
		if err != nil {
			t.Fatal(err)
		}
		var made struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(text, &made); err != nil {
			t.Fatal(err)
		}
		r.webhooks = append(r.webhooks, made.ID)
	}
	return r
}

// change makes changes at a rate, through replicas in turn, and returns how long
// each took, in milliseconds.
func (r *replicas) change(t testing.TB, count, rate int, over []*pipeline.Service) []float64 {
	t.Helper()
	took := make([]float64, count)
	var work sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for n := range count {
		<-tick.C
		work.Go(func() {
			began := time.Now()
			body := fmt.Sprintf(`{"metadata":{"n":"%d"}}`, n)
			if _, err := r.until(t, over[n%len(over)], http.MethodPatch, "/v1/webhooks/"+r.webhooks[n%len(r.webhooks)], body, http.StatusOK); err != nil {
				t.Error(err)
			}
			took[n] = float64(time.Since(began).Microseconds()) / 1000
		})
	}
	work.Wait()
	return took
}

// until calls until the answer is as wanted: a replica that cannot write in time says
// 503, and its caller comes again. That time counts.
func (r *replicas) until(t testing.TB, s *pipeline.Service, method, path, body string, want int) (answer []byte, err error) {
	t.Helper()
	err = pipeline.Try(t, 30*time.Second, func() (err error) {
		answer, err = r.call(t.Context(), s, method, path, body, want)
		return err
	})
	return answer, err
}

func (r *replicas) call(ctx context.Context, s *pipeline.Service, method, path, body string, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.Listen+path, strings.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("making request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+adminKey)
	req.Header.Set("Content-Type", "application/json")
	return ask(req, want)
}
