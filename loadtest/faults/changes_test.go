package faults

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// changes are scenarios of what users do at the wrong moment.
func changes() []scenario {
	return []scenario{
		{id: "F14", fault: "webhooks deleted, disabled, rotated and moved while deliveries wait", run: (*world).changeWhileWaiting},
		{id: "F19", fault: "the same event 1,000 times at once over three processes of ingest", run: (*world).sendAtOnce},
		{id: "F20", fault: "one event for thousands of webhooks", run: (*world).fanOut},
	}
}

// waiting is a webhook of its own organization with a backlog.
type waiting struct {
	w    *world
	hook ledger.Webhook
	n    int

	mu       sync.Mutex // guards the below
	requests []receiver.Request
}

// inForce is how soon a change is to be in force after its answer.
const inForce = time.Second

// changeWhileWaiting makes each kind of change while deliveries flow and many more wait.
func (w *world) changeWhileWaiting() {
	var all []*waiting
	see := func(r receiver.Request) {
		for _, b := range all {
			if strings.HasPrefix(r.Path, b.hook.Path) {
				b.mu.Lock()
				b.requests = append(b.requests, r)
				b.mu.Unlock()
			}
		}
	}
	for range 5 { // before any request comes
		all = append(all, w.startWaiting(len(all)))
	}
	w.watch.Store(&see)
	var checks []func()
	for i, change := range []func(*waiting) (check func()){(*waiting).remove, (*waiting).disable, (*waiting).replace, (*waiting).overlap, (*waiting).move} {
		all[i].fill(i)
		checks = append(checks, change(all[i]))
	}
	for _, check := range checks {
		check()
	}
}

func (w *world) startWaiting(i int) *waiting {
	w.t.Helper()
	name := fmt.Sprintf("waiting%d", i)
	w.targets.Answers("/"+name, receiver.Answer{Hang: true})
	return &waiting{w: w, n: pick(1000, 10_000), hook: w.subscribe(name, "/"+name, `,"max_concurrency":16,"timeout_ms":30000`)}
}

// fill has all deliveries made while the target hangs, and then lets it answer.
func (b *waiting) fill(i int) {
	b.w.t.Helper()
	producer := b.w.producing()
	defer producer.Close()
	b.w.sendMany(producer, fmt.Sprintf("w%d", i), b.hook.Organization, b.n)
	b.w.waitMade(b.hook.ID, b.n)
	hung := b.count(time.Time{})
	b.w.targets.Answers(b.hook.Path, receiver.Answer{Delay: 20 * time.Millisecond})
	b.w.targets.Release(b.hook.Path)
	pipeline.Wait(b.w.t, soon, "deliveries to flow", func() error {
		if n := b.count(time.Time{}); n < hung+10 {
			return fmt.Errorf("%d requests after %d", n, hung)
		}
		return nil
	})
}

// count is how many requests have come since a moment.
func (b *waiting) count(since time.Time, paths ...string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.requests {
		if r.At.After(since) && (len(paths) == 0 || slices.Contains(paths, r.Path)) {
			n++
		}
	}
	return n
}

// late is how long after a moment the last request came at a path.
func (b *waiting) late(since time.Time, path string) (late time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.requests {
		if r.Path == path {
			late = max(late, r.At.Sub(since))
		}
	}
	return late
}

// call makes the change and returns when it was answered.
func (b *waiting) call(status int, method, path, body string, headers ...string) time.Time {
	b.w.t.Helper()
	b.w.call(status, method, "/v1/webhooks/"+b.hook.ID+path, body, headers...)
	return time.Now()
}

func (b *waiting) remove() (check func()) {
	b.w.ledger.Unsubscribe(b.hook.Path)
	answered := b.call(http.StatusNoContent, http.MethodDelete, "", "")
	return func() { b.stopped("deleted", answered) }
}

func (b *waiting) disable() (check func()) {
	b.w.ledger.Unsubscribe(b.hook.Path)
	answered := b.call(http.StatusOK, http.MethodPatch, "", `{"active":false}`)
	return func() { b.stopped("disabled", answered) }
}

// stopped holds that what waits is discarded, and no request comes later than it may.
func (b *waiting) stopped(what string, answered time.Time) {
	b.w.t.Helper()
	results := b.w.waitEnded(b.hook.ID, b.n)
	late := b.late(answered, b.hook.Path)
	b.w.notef("%s: %d of %d discarded, the last request %d ms after the answer", what, results["discarded"], b.n, late.Milliseconds())
	if late > inForce {
		b.w.latef("%s: a request came %v after the answer, want at most %v", what, late, inForce)
	}
	if results["discarded"] < b.n/4 {
		b.w.problemf("%s: %d of %d deliveries waited for the change, want a quarter at least: %v", what, results["discarded"], b.n, results)
	}
}

func (b *waiting) replace() (check func()) { return b.rotate("secret replaced", 0) }

func (b *waiting) overlap() (check func()) { return b.rotate("secret rotated", 3600) }

// rotate gives the webhook another secret. The ledger holds all requests against
// those in force; while the two overlap, each must be signed by both.
func (b *waiting) rotate(what string, seconds int) (check func()) {
	b.w.t.Helper()
	secret := "whsec_" + base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789"+b.hook.Organization))
	b.w.ledger.Rotates(b.hook.Path, secret)
	answered := b.call(http.StatusCreated, http.MethodPost, "/secrets", fmt.Sprintf(`{"secret":%q,"overlap_seconds":%d}`, secret, seconds))
	if seconds == 0 {
		b.w.ledger.Retires(b.hook.Path, b.hook.Secret, answered.Add(inForce))
	}
	return func() { b.signed(what, secret, seconds > 0, answered) }
}

// signed holds that requests are signed by the new secret, and by the old one where
// the two overlap.
func (b *waiting) signed(what, secret string, overlaps bool, answered time.Time) {
	b.w.t.Helper()
	b.w.waitEnded(b.hook.ID, b.n)
	var last time.Duration // after the answer, of what is not signed as it should be now
	after, both := 0, 0
	b.mu.Lock()
	for _, r := range b.requests {
		if r.At.Before(answered) {
			continue
		}
		after++
		signedByOld := r.Verify(b.hook.Secret) == nil
		if r.Verify(secret) != nil || signedByOld != overlaps {
			last = max(last, r.At.Sub(answered))
		}
		if signedByOld {
			both++
		}
	}
	b.mu.Unlock()
	b.w.notef("%s: %d of %d requests after the answer, %d signed by the old one too, the last signed as before %d ms after the answer",
		what, after, b.n, both, last.Milliseconds())
	if last > inForce {
		b.w.latef("%s: a request %v after the answer is not signed as it should be, want at most %v", what, last, inForce)
	}
	if after < b.n/4 {
		b.w.problemf("%s: %d of %d deliveries waited for the change, want a quarter at least", what, after, b.n)
	}
}

func (b *waiting) move() (check func()) {
	b.w.t.Helper()
	to := b.hook.Path + "/moved"
	b.w.ledger.Moves(b.hook.Path, to)
	answered := b.call(http.StatusOK, http.MethodPatch, "", fmt.Sprintf(`{"url":%q}`, b.w.targets.URL(to)), "If-Match", `"1"`)
	return func() { b.moved(to, answered) }
}

// moved holds that requests come to the new URL.
func (b *waiting) moved(to string, answered time.Time) {
	b.w.t.Helper()
	b.w.waitEnded(b.hook.ID, b.n)
	late, moved := b.late(answered, b.hook.Path), b.count(time.Time{}, to)
	b.w.notef("moved: %d of %d requests at the new URL, the last at the old %d ms after the answer", moved, b.n, late.Milliseconds())
	if late > inForce {
		b.w.latef("moved: a request came to the old URL %v after the answer, want at most %v", late, inForce)
	}
	if moved < b.n/4 {
		b.w.problemf("moved: %d of %d deliveries waited for the change, want a quarter at least", moved, b.n)
	}
}

// sendAtOnce sends one event by a thousand clients at once to three processes, again and again.
func (w *world) sendAtOnce() {
	const copies = 1000
	ingests := []*pipeline.Service{w.ingest, w.start("ingest", "ingest-2"), w.start("ingest", "ingest-3")}
	for _, s := range ingests {
		s.WaitReady(w.t)
	}
	client := &http.Client{Timeout: soon, Transport: &http.Transport{MaxIdleConnsPerHost: copies}}
	defer client.CloseIdleConnections()
	var refused atomic.Int64
	for n := range pick(5, 30) {
		e := w.sends(fmt.Sprintf("same-%d", n), w.organizations[n%len(w.organizations)])
		var taken [3]atomic.Int64
		start := make(chan struct{})
		var all sync.WaitGroup
		for i := range copies {
			all.Go(func() {
				<-start
				status, _, err := tryAt(w.t.Context(), client, ingests[i%3], http.MethodPost, "/v1/events", e.text)
				if err != nil || status != http.StatusAccepted {
					refused.Add(1)
					return
				}
				taken[i%3].Add(1)
				w.ledger.Accepted(e.id)
			})
		}
		close(start)
		all.Wait()
		w.wantOnce(e, [3]int{int(taken[0].Load()), int(taken[1].Load()), int(taken[2].Load())})
	}
	w.notef("%d of %d copies were not answered 202", refused.Load(), pick(5, 30)*copies)
	if refused.Load() > 0 {
		w.problemf("%d copies were refused, want none", refused.Load())
	}
}

// wantOnce holds that one of an event's copies was routed, and all others are known as such.
func (w *world) wantOnce(e sent, taken [3]int) {
	w.t.Helper()
	sum := 0
	for i, n := range taken {
		if sum += n; n == 0 {
			w.problemf("event %s: the process %d of ingest took none of its copies", e.id, i+1)
		}
	}
	want := fmt.Sprintf("1\t%d", sum-1)
	if err := pipeline.Try(w.t, soon, func() error {
		if got := w.query("SELECT matches, copies FROM events WHERE event_id = '" + e.id + "'"); got != want {
			return fmt.Errorf("matches and copies: got %q, want %q", got, want)
		}
		return nil
	}); err != nil {
		w.problemf("event %s: %v", e.id, err)
	}
	if n := len(w.ledger.Times(e.id, "/"+e.organization)); n != 1 {
		w.problemf("event %s came %d times to its target, want once", e.id, n)
	}
}

// fanOut sends one event that thousands of webhooks match, and then another.
func (w *world) fanOut() {
	webhooks := pick(2000, 10_000)
	w.subscribeMany(webhooks, func(i int) (organization, path, more string) { return "wide", fmt.Sprintf("/wide/%d", i), "" })
	others := func(path string) bool { return !strings.HasPrefix(path, "/wide") }
	quiet := w.pass(pick(8*time.Second, 20*time.Second))
	for n := range 2 {
		before := w.ledger.Count().Requests
		from := time.Now()
		producer := w.producing()
		id := w.sendMany(producer, fmt.Sprintf("wide%d", n), "wide", 1)[0]
		pipeline.Wait(w.t, 2*soon, "all targets to be called", func() error {
			if n := w.ledger.Seen(id); n < webhooks {
				return fmt.Errorf("%d of %d webhooks were called, %d requests in all", n, webhooks, w.ledger.Count().Requests-before)
			}
			return nil
		})
		fault := phase{from, time.Now()}
		w.notef("%d webhooks called within %.1f s of one event", webhooks, fault.to.Sub(fault.from).Seconds())
		w.settled(others, fault)
		// Neighbours share what the machine can do with the deliveries of the one event:
		// for as long as those take, and no longer.
		calm, during := w.compared(others, fault, quiet)
		if most := max(times(1.5, calm), fault.to.Sub(fault.from), unfelt); during > most {
			w.latef("neighbours' p99 is %v, and %v without: want at most 1.5 times that, or the %v that the event took", during, calm, fault.to.Sub(fault.from))
		}
		w.progress(200)
	}
}

// settled waits until what was accepted in a phase has come to its targets.
func (w *world) settled(of func(path string) bool, p phase) {
	w.t.Helper()
	pipeline.Wait(w.t, soon, "what was accepted to come", func() error {
		if n := w.ledger.Unseen(p.from, p.to, of); n > 0 {
			return fmt.Errorf("%d deliveries have not come", n)
		}
		return nil
	})
}
