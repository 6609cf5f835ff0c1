package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/postrider/postrider/schemas"
)

// senderOptions say how much of the sender alone is measured.
type senderOptions struct {
	warmup, deliveries, rounds, seconds int
	share                               float64
	targets, concurrency                int
	outage, outageRate                  int
	partitions                          int
	audit                               bool
}

// register adds the flags, with the defaults of a run in full.
func (o *senderOptions) register() {
	flag.IntVar(&o.warmup, "sender-warmup", 50_000, "deliveries before, which are not measured")
	flag.IntVar(&o.deliveries, "deliveries", 100_000, "deliveries of a backlog")
	flag.IntVar(&o.rounds, "rounds", 2, "how often baseline and case take turns")
	flag.IntVar(&o.seconds, "steady", 60, "seconds of a steady rate: for which a target hangs, or a second sender comes and goes")
	flag.Float64Var(&o.share, "share", 0.5, "the steady rate, as a share of that at full speed")
	flag.IntVar(&o.targets, "targets", 10_000, "targets of ManyTargets")
	flag.IntVar(&o.concurrency, "concurrency", 128, "raised max_concurrency of OneTarget")
	flag.IntVar(&o.outage, "outage", 60, "seconds for which the target of Outage is away; below 10 no breaker opens")
	flag.IntVar(&o.outageRate, "outage-rate", 500, "deliveries a second to it")
	flag.BoolVar(&o.audit, "audit", true, "whether the sender writes the audit meanwhile")
}

// senderCase is one of the sender alone.
type senderCase struct {
	name    string
	measure func(testing.TB, senderOptions) found
}

func senderCases() []senderCase {
	return []senderCase{
		{"OneHangs", neighbours{
			setup:   "nine quick targets, and a tenth that is quick or hangs, all with as many deliveries",
			healthy: 9, others: 1, full: true, slower: 1.5,
		}.measure},
		{"HalfHang", neighbours{
			setup:   "fifty quick targets, and fifty that are quick or hang, all with as many deliveries",
			healthy: 50, others: 50, slower: 3,
		}.measure},
		{"DeadOrganization", neighbours{
			setup:   "nine quick targets, and one with nine times their deliveries that is quick or refuses connections",
			healthy: 9, others: 1, each: 9, refuses: true, slower: 1.5,
		}.measure},
		{"ManyTargets", manyTargets},
		{"OneTarget", oneTarget},
		{"Outage", outage},
		{"Assignment", assignment},
	}
}

// BenchmarkSender measures the cases, one by one (-bench Sender/OneHangs), prints
// tables and writes JSON beside that of the pipeline.
func BenchmarkSender(b *testing.B) {
	fullSender.partitions = full.partitions.Deliveries
	for _, c := range senderCases() {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				f := c.run(b, fullSender)
				if err := errors.Join(f.print(os.Stdout), write(filepath.Join(filepath.Dir(results), "sender-"+c.name+".json"), f)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestSenderBenchAtSmallSize keeps the cases themselves working: every delivery
// is counted, and each figure is there.
func TestSenderBenchAtSmallSize(t *testing.T) {
	figures := map[string]int{
		"OneHangs": 4, "HalfHang": 2, "DeadOrganization": 4, "ManyTargets": 3, "OneTarget": 4, "Outage": 5, "Assignment": 9,
	}
	for _, c := range senderCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := c.run(t, senderOptions{
				warmup: 50, deliveries: 100, rounds: 1, seconds: 1, share: 0.2, targets: 40, concurrency: 64,
				outage: 2, outageRate: 40, partitions: 4, audit: c.name == "OneHangs",
			})
			path := filepath.Join(t.TempDir(), "results", "case.json")
			var table bytes.Buffer
			if err := errors.Join(f.print(&table), write(path, f)); err != nil {
				t.Fatal(err)
			}
			t.Log(table.String())
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var written found
			if err := json.Unmarshal(text, &written); err != nil {
				t.Fatal(err)
			}
			for _, x := range written.Figures {
				if x.Pipeline <= 0 {
					t.Errorf("%s: got %v, want a figure", x.Name, x.Pipeline)
				}
			}
			if len(written.Figures) != figures[c.name] {
				t.Errorf("got %d figures, want %d", len(written.Figures), figures[c.name])
			}
		})
	}
}

// run measures the case in its surroundings.
func (c *senderCase) run(t testing.TB, o senderOptions) found {
	t.Helper()
	var s surroundings
	if err := s.machine(); err != nil {
		t.Fatal(err)
	}
	f := c.measure(t, o)
	f.surroundings, f.Case, f.Audit, f.Partitions = s, c.name, o.audit, o.partitions
	f.PayloadBytes, f.Warmup = payloadBytes, o.warmup
	return f
}

// atOnce is what the sender lets run of a webhook as it is shipped.
const atOnce = 32

// quickOnes are webhooks with quick targets, whose ids begin with their name.
func (r *rig) quickOnes(t testing.TB, name string, count int) []*schemas.Webhook {
	t.Helper()
	return r.webhooks(t, name, count, r.quickURL, nil)
}
