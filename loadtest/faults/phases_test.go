package faults

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/loadtest/pipeline"
)

// phase is a span of time in a scenario.
type phase struct{ from, to time.Time }

// pass lets time go by, with the load going on, and returns it.
func (w *world) pass(d time.Duration) phase {
	w.t.Helper()
	from := time.Now()
	select {
	case <-time.After(d):
	case <-w.t.Context().Done():
		w.t.Fatal("the test has ended")
	}
	return phase{from, time.Now()}
}

// p99 is that of the waits for the first request, of some webhooks' deliveries of
// events accepted in some phases.
func (w *world) p99(of func(path string) bool, phases ...phase) (p99 time.Duration, count int) {
	var all []time.Duration
	for _, p := range phases {
		all = append(all, w.ledger.Waits(p.from, p.to, of)...)
	}
	slices.Sort(all)
	return ledger.Quantile(all, 0.99), len(all)
}

// unfelt is a wait for which no target is called blocked, however short it is without
// the fault. What is blocked waits for a timeout of seconds.
const unfelt = 100 * time.Millisecond

// isolated holds I4: the 99th percentile of some webhooks' waits during a fault is at
// most so many times that of the quiet phases of the same run.
func (w *world) isolated(of func(path string) bool, factor float64, fault phase, quiet ...phase) {
	w.t.Helper()
	before, during := w.compared(of, fault, quiet...)
	if during > max(times(factor, before), unfelt) {
		w.latef("neighbours' p99 is %v in the fault and %v without: want at most %.1f times that, or %v", during, before, factor, unfelt)
	}
}

func times(factor float64, d time.Duration) time.Duration { return time.Duration(factor * float64(d)) }

// compared measures and notes the 99th percentiles of isolated.
func (w *world) compared(of func(path string) bool, fault phase, quiet ...phase) (before, during time.Duration) {
	w.t.Helper()
	before, many := w.p99(of, quiet...)
	during, n := w.p99(of, fault)
	w.notef("neighbours' p99 %d ms in the fault, %d ms without: %.2f times, %d and %d deliveries",
		during.Milliseconds(), before.Milliseconds(), float64(during)/float64(max(before, 1)), n, many)
	if many < 100 || n < 100 {
		w.problemf("the p99 of neighbours is of %d and %d deliveries, want a hundred at least", many, n)
	}
	return before, during
}

// producing is a client for events beside the load's.
func (w *world) producing() *kgo.Client {
	w.t.Helper()
	return w.client(kgo.ProducerLinger(5*time.Millisecond), kgo.MetadataMinAge(250*time.Millisecond))
}

// sendMany sends so many events of an organization, and blocks until all are accepted.
// Their ids begin with a name.
func (w *world) sendMany(producer *kgo.Client, name, organization string, n int) (ids []string) {
	w.t.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	var wrong error
	for i := range n {
		e := w.sends(fmt.Sprintf("%s-%d", name, i), organization)
		ids = append(ids, e.id)
		all.Add(1)
		producer.Produce(w.t.Context(), w.record(e), func(_ *kgo.Record, err error) {
			defer all.Done()
			if err == nil {
				w.ledger.Accepted(e.id)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			wrong = err
		})
	}
	all.Wait()
	if wrong != nil {
		w.t.Fatalf("sending events of %s: %v", organization, wrong)
	}
	return ids
}

func (w *world) record(e sent) *kgo.Record {
	return &kgo.Record{Topic: w.topics.Events, Key: []byte(e.organization), Value: []byte(e.text)}
}

// waitMade waits until so many deliveries of a webhook are made.
func (w *world) waitMade(webhook string, n int) {
	w.t.Helper()
	pipeline.Wait(w.t, soon, "deliveries", func() error {
		if got, _ := w.log.of(webhook); got < n {
			return fmt.Errorf("%d deliveries of %d", got, n)
		}
		return nil
	})
}

// waitEnded waits until so many deliveries of a webhook have ended, and returns how
// many with each result.
func (w *world) waitEnded(webhook string, n int) (results map[string]int) {
	w.t.Helper()
	pipeline.Wait(w.t, pick(2*soon, 10*soon), "ends", func() error {
		_, results = w.log.of(webhook)
		ended := results["delivered"] + results["dead"] + results["discarded"]
		if ended < n {
			return fmt.Errorf("%d of %d have ended: %v", ended, n, results)
		}
		return nil
	})
	return results
}

// of counts a webhook's deliveries, and its outcomes by result.
func (l *log) of(webhook string) (deliveries int, results map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.deliveries {
		if d.WebhookID == webhook {
			deliveries++
		}
	}
	results = map[string]int{}
	for _, o := range l.outcomes {
		if o.WebhookID == webhook {
			results[o.Result]++
		}
	}
	return deliveries, results
}

// results counts all outcomes by result.
func (l *log) results() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	results := map[string]int{}
	for _, o := range l.outcomes {
		results[o.Result]++
	}
	return results
}

// flood sends events of an organization so many times a second beside the load,
// until it is stopped; stop blocks until all are accepted.
func (w *world) flood(name, organization string, rate int) (stop func()) {
	w.t.Helper()
	producer := w.producing()
	l := &load{w: w, end: make(chan struct{})}
	slots := make(chan struct{}, mostUnanswered)
	l.work.Go(func() {
		l.every(float64(rate), func() {
			slots <- struct{}{}
			e := w.sends(fmt.Sprintf("%s-%d", name, l.numbers.Add(1)), organization)
			l.produceUntilAccepted(producer, e, func() { <-slots })
		})
		for range mostUnanswered {
			slots <- struct{}{}
		}
	})
	return sync.OnceFunc(func() { close(l.end); l.work.Wait() })
}

// metric is the sum of a service's samples whose name and labels hold all of some texts.
func (w *world) metric(s *pipeline.Service, texts ...string) (sum float64) {
	w.t.Helper()
lines:
	for line := range strings.Lines(s.Metrics(w.t)) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		var value float64
		fields := strings.Fields(line)
		if strings.HasPrefix(line, "#") || len(fields) < 2 {
			continue
		}
		if _, err := fmt.Sscan(fields[len(fields)-1], &value); err == nil {
			sum += value
		}
	}
	return sum
}
