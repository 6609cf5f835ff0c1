package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// kills are scenarios of processes that end, freeze, come and go.
func kills() []scenario {
	return []scenario{
		{id: "F01", fault: "ingest killed in mid request, under load", run: func(w *world) {
			w.killEach(w.ingest, pick(5, 20), w.anyMoment)
			w.bound("recovery", w.recovered(), 2*time.Second+slack)
		}},
		{id: "F02a", fault: "router killed at random, under load", run: func(w *world) {
			w.killEach(w.router, pick(4, 20), w.anyMoment)
			w.bound("recovery", w.recovered(), 5*time.Second+slack)
		}},
		{id: "F02b", fault: "router killed between produce and end of transaction", run: func(w *world) {
			w.killEach(w.router, pick(4, 20), func() { w.midTransaction(w.topics.Deliveries) })
			w.wantAborted(w.topics.Deliveries)
			w.bound("recovery", w.recovered(), 5*time.Second+slack)
		}},
		{id: "F02c", fault: "router killed, another takes over under its own name", run: routerTakesOver},
		{id: "F03a", fault: "sender killed in mid attempt, under load", world: options{delay: 50 * time.Millisecond}, run: func(w *world) {
			w.killEach(w.sender, pick(4, 20), w.anyMoment)
		}},
		{id: "F03b", fault: "sender killed between produce and end of transaction", world: options{delay: 20 * time.Millisecond}, run: func(w *world) {
			w.killEach(w.sender, pick(4, 20), func() { w.midTransaction(w.topics.Outcomes) })
			w.wantAborted(w.topics.Outcomes)
		}},
		{id: "F04", fault: "audit writer killed between insert and commit", run: func(w *world) { w.killEach(w.sender, pick(4, 20), w.rowsInserted) }},
		{id: "F05a", fault: "router frozen in mid transaction, a second one started, then continued", run: zombieRouter},
		{id: "F05b", fault: "sender frozen in mid transaction, a second one started, then continued", world: options{delay: 20 * time.Millisecond}, run: zombieSender},
		{id: "F10", fault: "a second sender joins and leaves every three seconds, while a target hangs", run: rebalanceStorm},
		{id: "F22", fault: "SIGTERM to every role, under load", world: options{delay: 20 * time.Millisecond}, run: orderlyStops},
	}
}

// slack is added to a bound for a machine that does much else at once: the driver,
// brokers and ClickHouse share its processors with the services.
const slack = 3 * time.Second

// bound says that something took longer than it may.
func (w *world) bound(what string, got, most time.Duration) {
	w.t.Helper()
	if got > most {
		w.latef("%s took %.1f s, want %.1f s at most", what, got.Seconds(), most.Seconds())
	}
}

// recovered waits until events accepted after the last fault are seen, and is the
// longest recovery so far.
func (w *world) recovered() (longest time.Duration) {
	w.t.Helper()
	for _, end := range w.ends {
		var first time.Time
		pipeline.Wait(w.t, soon, "a request of an event accepted after a fault", func() error {
			if first = w.ledger.FirstAfter(end); first.IsZero() {
				return fmt.Errorf("none came: %+v", w.ledger.Count())
			}
			return nil
		})
		longest = max(longest, first.Sub(end))
	}
	return longest
}

// killEach kills a service so many times, each time when the moment has come after
// events flow again, and starts it anew under its name.
func (w *world) killEach(s *pipeline.Service, times int, moment func()) {
	w.t.Helper()
	for range times {
		w.progress(100)
		moment()
		if s == w.sender {
			w.killSender(s)
		} else {
			s.Kill9(w.t)
		}
		s.Restart(w.t)
		w.faultEnded()
		s.WaitReady(w.t)
	}
	w.progress(500)
}

func (w *world) anyMoment() { w.progress(rand.IntN(300)) }

// midTransaction blocks until a record is written to a topic by a transaction, which
// then is open still, or was a moment ago.
func (w *world) midTransaction(topic string) {
	w.t.Helper()
	cl := w.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
		kgo.FetchIsolationLevel(kgo.ReadUncommitted()), kgo.FetchMaxWait(100*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), soon)
	defer cancel()
	for ctx.Err() == nil {
		if cl.PollRecords(ctx, 1).NumRecords() > 0 {
			return
		}
	}
	w.t.Fatalf("waiting for a transaction on %s: %v", topic, ctx.Err())
}

// suspendMidTransaction freezes a process that has a transaction open on a topic.
func (w *world) suspendMidTransaction(s *pipeline.Service, topic string) {
	w.t.Helper()
	pipeline.Wait(w.t, soon, "a transaction to stay open", func() error {
		w.midTransaction(topic)
		s.Suspend(w.t)
		w.pass(300 * time.Millisecond) // the broker may be about to end it
		written, committed := w.endOffsets(topic, false), w.endOffsets(topic, true)
		for p, end := range written {
			if committed[p] < end {
				return nil
			}
		}
		s.Continue(w.t)
		return fmt.Errorf("it had ended when the process froze: %v", written)
	})
}

// wantAborted makes sure that some transaction was cut off indeed: there are records
// that were never committed.
func (w *world) wantAborted(topic string) {
	w.t.Helper()
	ends := w.endOffsets(topic, true)
	written, committed := 0, 0
	w.read(topic, ends, func(*kgo.Record) { written++ }, kgo.FetchIsolationLevel(kgo.ReadUncommitted()))
	w.read(topic, ends, func(*kgo.Record) { committed++ }, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	w.notef("%d records aborted", written-committed)
	if written <= committed {
		w.problemf("no transaction was cut off: %d records written, %d committed", written, committed)
	}
}

// rowsInserted blocks until the audit has inserted rows that it has not said so of,
// or has a moment ago.
func (w *world) rowsInserted() {
	w.t.Helper()
	count := func() string { return w.query("SELECT count() FROM outcomes") }
	before := count()
	pipeline.Wait(w.t, soon, "rows", func() error {
		if now := count(); now == before {
			return fmt.Errorf("still %s", now)
		}
		return nil
	})
}

func routerTakesOver(w *world) {
	w.progress(200)
	second := w.start("router", "router-2").WaitReady(w.t)
	w.progress(200)
	w.router.Kill9(w.t)
	w.faultEnded()
	w.progress(500)
	w.bound("recovery", w.recovered(), 15*time.Second+slack)
	w.router.Restart(w.t)
	w.router.WaitReady(w.t)
	w.progress(200)
	second.Kill9(w.t)
	w.faultEnded()
	w.progress(500)
	w.bound("recovery", w.recovered(), 15*time.Second+slack)
}

func zombieRouter(w *world) {
	w.progress(200)
	w.suspendMidTransaction(w.router, w.topics.Deliveries)
	w.start("router", "router-2").WaitReady(w.t)
	w.pass(pick(25*time.Second, time.Minute))
	w.progress(200) // the second works
	w.router.Continue(w.t)
	w.faultEnded()
	w.backOrGone(w.router)
	w.progress(500)
	w.wantAborted(w.topics.Deliveries)
}

func zombieSender(w *world) {
	w.progress(200)
	w.suspendMidTransaction(w.sender, w.topics.Outcomes)
	w.start("sender", "sender-2").WaitReady(w.t)
	w.pass(pick(25*time.Second, time.Minute))
	w.progress(200)
	w.noteKill()
	w.sender.Continue(w.t)
	w.faultEnded()
	w.backOrGone(w.sender)
	w.progress(500)
	w.mayRepeat = aboutToSend
}

// aboutToSend bounds the requests that a frozen sender had begun and not sent: it
// sends them when it goes on, and only then learns that it was replaced.
const aboutToSend = 100

// backOrGone waits until a process that was frozen is ready again or has ended.
func (w *world) backOrGone(s *pipeline.Service) {
	w.t.Helper()
	begun := time.Now()
	pipeline.Wait(w.t, soon, "the frozen process to join again or end", func() error {
		if status, body := s.Readyz(w.t); s.Running() && status != 200 {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	w.bound("coming back", time.Since(begun), 10*time.Second+slack)
	if !s.Running() {
		w.notef("the frozen process ended with %d", s.WaitExit(w.t, time.Second))
	}
}

func rebalanceStorm(w *world) {
	const hung = "/hung"
	w.targets.Answers(hung, receiver.Answer{Hang: true})
	w.subscribe("hung", hung, `,"timeout_ms":2000`)
	producer := w.producing()
	from := time.Now()
	handovers := 0
	for time.Since(from) < pick(20*time.Second, time.Minute) {
		w.sendMany(producer, fmt.Sprintf("hung%d", handovers), "hung", 10)
		second := w.start("sender", fmt.Sprintf("sender-%d", handovers+2)).WaitReady(w.t)
		w.pass(3 * time.Second)
		if code := second.Terminate(w.t, 30*time.Second); code != 0 {
			w.problemf("a sender ended with code %d after SIGTERM, want 0: %s", code, second.Output(w.t))
		}
		handovers++
		w.pass(3 * time.Second)
	}
	w.faultEnded()
	path, silence := w.ledger.Silence(from, time.Now(), func(path string) bool { return path == hung })
	w.notef("%d joined and left; longest silence %.1f s", handovers, silence.Seconds())
	w.bound("the longest silence, at "+path+",", silence, 7*time.Second+slack)
	w.targets.Answers(hung)
	w.targets.Release(hung)
	w.progress(500)
	w.mayRepeat = w.ledger.Count().Requests / 1000
}

func orderlyStops(w *world) {
	for range pick(3, 20) {
		for _, s := range []*pipeline.Service{w.ingest, w.router, w.sender} {
			w.progress(100)
			begun := time.Now()
			if code := s.Terminate(w.t, 30*time.Second+slack); code != 0 {
				w.problemf("got exit code %d after SIGTERM, want 0: %s", code, s.Output(w.t))
			}
			w.bound("an orderly end", time.Since(begun), 30*time.Second)
			s.Restart(w.t)
			w.faultEnded()
			s.WaitReady(w.t)
		}
	}
	w.progress(500)
}
