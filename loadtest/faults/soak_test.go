package faults

import (
	"flag"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

//nolint:gochecknoglobals // flags of a test binary
var (
	soakFor  = flag.Duration("soak", 30*time.Second, "how long TestSoak goes on")
	soakRate = flag.Int("soak-rate", 150, "events a second of TestSoak")
)

// TestSoak has faults of all kinds strike at random, one after another, for as
// long as -soak says, and then holds the ledger and `postrider verify` against what
// is left. One process of each service is spared: its memory, goroutines and
// descriptors must come to stand.
func TestSoak(t *testing.T) {
	s := scenario{id: "soak", fault: "random faults for " + soakFor.String(), world: options{brokers: 3, ownClickHouse: true, rate: *soakRate}, run: soak}
	s.test(t)
}

func soak(w *world) {
	var spared []*pipeline.Service
	for _, name := range []string{"router", "sender"} {
		spared = append(spared, w.start(name, name+"-2").WaitReady(w.t))
	}
	spared = append(spared, w.ingest)
	usage := &usage{services: spared}
	counts := map[string]int{}
	for begun := time.Now(); time.Since(begun) < *soakFor; {
		f := soakFaults()[rand.IntN(len(soakFaults()))]
		f.strike(w)
		counts[f.name]++
		w.faultEnded()
		w.progress(*soakRate)
		w.pass(pick(time.Second, 10*time.Second))
		usage.sample(w)
	}
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		w.notef("%s %d×", name, counts[name])
	}
	usage.judge(w)
	w.mayRepeat = w.ledger.Count().Requests / 100
}

// soakFault is something that strikes and is over when it returns.
type soakFault struct {
	name   string
	strike func(w *world)
}

func soakFaults() []soakFault {
	return []soakFault{
		{"router killed", func(w *world) { w.killOnce(w.router) }},
		{"sender killed", func(w *world) { w.killOnce(w.sender) }},
		{"router stopped", func(w *world) { w.stopOnce(w.router) }},
		{"sender stopped", func(w *world) { w.stopOnce(w.sender) }},
		{"router frozen", func(w *world) { w.freezeOnce(w.router) }},
		{"sender frozen", func(w *world) { w.freezeOnce(w.sender) }},
		{"broker killed", func(w *world) {
			b := w.kafka.Brokers[rand.IntN(len(w.kafka.Brokers))]
			b.Kill9(w.t)
			w.pass(5 * time.Second)
			b.Restart(w.t)
			w.kafka.WaitReady(w.t, 2*soon)
		}},
		{"ClickHouse killed", func(w *world) {
			w.ch.Kill9(w.t)
			w.pass(5 * time.Second)
			w.ch.Restart(w.t)
		}},
		{"target away", func(w *world) {
			path := "/" + w.organizations[rand.IntN(len(w.organizations))]
			w.targets.Answers(path, receiver.Status(http.StatusServiceUnavailable))
			w.pass(5 * time.Second)
			w.targets.Answers(path)
		}},
	}
}

func (w *world) killOnce(s *pipeline.Service) {
	w.t.Helper()
	if s == w.sender {
		w.killSender(s)
	} else {
		s.Kill9(w.t)
	}
	s.Restart(w.t)
	s.WaitReady(w.t)
}

func (w *world) stopOnce(s *pipeline.Service) {
	w.t.Helper()
	if code := s.Terminate(w.t, 30*time.Second+slack); code != 0 {
		w.problemf("got exit code %d after SIGTERM, want 0: %s", code, s.Output(w.t))
	}
	s.Restart(w.t)
	s.WaitReady(w.t)
}

// freezeOnce freezes a process for longer than its group waits for it.
func (w *world) freezeOnce(s *pipeline.Service) {
	w.t.Helper()
	s.Suspend(w.t)
	w.pass(10 * time.Second)
	if s == w.sender {
		w.noteKill()
	}
	s.Continue(w.t)
	if w.backOrGone(s); !s.Running() {
		s.Restart(w.t)
		s.WaitReady(w.t)
	}
}

// usage is what some processes used over time: bytes, goroutines, descriptors.
type usage struct {
	services []*pipeline.Service
	samples  [][][3]float64 // by time and service
}

func (u *usage) sample(w *world) {
	w.t.Helper()
	var now [][3]float64
	for _, s := range u.services {
		goroutines, err := strconv.ParseFloat(metric(s.Metrics(w.t), "go_goroutines"), 64)
		if err != nil {
			w.t.Fatal(err)
		}
		now = append(now, [3]float64{float64(s.Resident()) / (1 << 20), goroutines, float64(s.Descriptors(w.t))})
	}
	u.samples = append(u.samples, now)
}

// metric is a value of a text of metrics, as text.
func metric(text, name string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// judge compares the medians of the second and the last quarter: what grows with
// time grows between them. A tenth more is allowed (I8), and a handful more.
func (u *usage) judge(w *world) {
	w.t.Helper()
	const fewest = 20
	if len(u.samples) < fewest {
		w.notef("%d samples of memory, too few to compare", len(u.samples))
		return
	}
	quarter := len(u.samples) / 4
	for i, name := range []string{"router", "sender", "ingest"} {
		for k, unit := range []string{"MB", "goroutines", "descriptors"} {
			before, after := median(u.samples[quarter:2*quarter], i, k), median(u.samples[3*quarter:], i, k)
			w.notef("%s %.0f → %.0f %s", name, before, after, unit)
			if after > 1.1*before+10 {
				w.problemf("%s grew from %.0f to %.0f %s", name, before, after, unit)
			}
		}
	}
}

func median(samples [][][3]float64, service, what int) float64 {
	values := make([]float64, 0, len(samples))
	for _, s := range samples {
		values = append(values, s[service][what])
	}
	slices.Sort(values)
	return values[len(values)/2]
}
