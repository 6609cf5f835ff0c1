package faults

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// joins are scenarios of the table that events are joined with (P4).
func joins() []scenario {
	return []scenario{
		{
			id: "F15a", fault: "leader of webhooks frozen or killed between EndTxn and marker, while webhooks change",
			world: options{brokers: 3, settings: []string{"broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500"}, rate: pick(100, 300)},
			run:   leaderStopped,
		},
		{
			id: "F15b", fault: "router killed, and frozen for longer than tombstones are kept, while webhooks are compacted",
			world: options{brokers: 1, settings: []string{"log.cleaner.backoff.ms=500"}, rate: pick(100, 300)}, run: compactedUnder,
		},
		{id: "F15c", fault: "webhooks emptied by an operator, router started anew", world: options{brokers: 1}, run: emptied},
	}
}

// changers are clients that make webhooks, change them and send events, one after the
// other: whatever was acknowledged is in force for each event sent after.
type changers struct {
	*load

	producer *kgo.Client

	mu   sync.Mutex
	last []string // organizations that an event was sent to, the last ones; guarded by mu
	sent int      // guarded by mu
}

func (w *world) startChanges() *changers {
	w.t.Helper()
	c := &changers{load: &load{w: w, end: make(chan struct{}), http: &http.Client{Timeout: 20 * time.Second}}, producer: w.client(kgo.ProducerLinger(0), kgo.MetadataMinAge(250*time.Millisecond))}
	for client := range 6 {
		c.work.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-c.end:
					return
				case <-w.t.Context().Done():
					return
				default:
					c.one(client, n)
				}
			}
		})
	}
	return c
}

// one makes a webhook, changes it, and sends an event to its organization. Where a
// change was not acknowledged it may be in force or not, and no event is sent.
func (c *changers) one(client, n int) {
	kinds := []string{"made", "widened", "narrowed", "disabled", "deleted"}
	organization, kind := fmt.Sprintf("c%d-%d", client, n), kinds[n%len(kinds)]
	events := "*"
	if kind == "widened" {
		events = "other.*"
	}
	hook, err := c.w.createOnce(c.http, organization, "/"+organization, events, "")
	if err != nil {
		c.pause()
		return
	}
	if kind != "widened" {
		c.w.ledger.Subscribe(hook)
	}
	switch kind {
	case "widened":
		if err = c.change(http.MethodPatch, http.StatusOK, hook, `{"events":"*"}`); err == nil {
			c.w.ledger.Subscribe(hook)
		}
	case "narrowed":
		err = c.withdraw(http.MethodPatch, http.StatusOK, hook, `{"events":"other.*"}`)
	case "disabled":
		err = c.withdraw(http.MethodPatch, http.StatusOK, hook, `{"active":false}`)
	case "deleted":
		err = c.withdraw(http.MethodDelete, http.StatusNoContent, hook, "")
	}
	if err != nil {
		c.pause()
		return
	}
	c.send(organization, "event-"+organization, n%2 == 0)
}

// pause keeps clients from asking all the time while there is no answer.
func (c *changers) pause() {
	select {
	case <-c.end:
	case <-time.After(100 * time.Millisecond):
	}
}

// withdraw makes a change after which a webhook takes nothing more.
func (c *changers) withdraw(method string, status int, hook ledger.Webhook, body string) error {
	c.w.ledger.Unsubscribe(hook.Path)
	err := c.change(method, status, hook, body)
	if err == nil {
		c.w.ledger.Gone(hook.Path)
	}
	return err
}

func (c *changers) change(method string, status int, hook ledger.Webhook, body string) error {
	got, answer, err := c.w.try(c.w.t.Context(), c.http, method, "/v1/webhooks/"+hook.ID, body)
	if err == nil && got != status {
		err = fmt.Errorf("%s of webhook %s: got %d %s, want %d", method, hook.ID, got, answer, status)
	}
	return err
}

// send has an event accepted, by REST or straight by Kafka.
func (c *changers) send(organization, id string, rest bool) {
	e := c.w.sends(id, organization)
	if rest {
		c.postUntilAccepted([]sent{e})
	} else {
		accepted := make(chan struct{})
		c.produceUntilAccepted(c.producer, e, func() { close(accepted) })
		<-accepted
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent++
	c.last = append(c.last, organization)
	c.last = c.last[max(0, len(c.last)-24):]
}

// again sends an event more to each of the webhooks that were changed last.
func (c *changers) again() {
	c.mu.Lock()
	last := slices.Clone(c.last)
	c.mu.Unlock()
	for i, organization := range last {
		c.send(organization, fmt.Sprintf("again-%s-%d", organization, rand.Uint32()), i%2 == 0)
	}
}

func (c *changers) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent
}

// progress waits until so many more changes were acknowledged and events sent after them.
func (c *changers) progress(more int) {
	c.w.t.Helper()
	want := c.count() + more
	pipeline.Wait(c.w.t, 2*soon, "changes", func() error {
		if got := c.count(); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
}

func (c *changers) finish() {
	c.stop(c.w.t)
	c.w.notef("%d events after acknowledged changes", c.count())
}

// compactedUnder kills the router, and freezes it, while webhooks change and are
// compacted at once: what it missed is gone from the topic when it comes back.
func compactedUnder(w *world) {
	w.configure(w.topics.Webhooks, "segment.ms", "1000", "min.cleanable.dirty.ratio", "0.01", "delete.retention.ms", "1000")
	c := w.startChanges()
	for range pick(2, 10) {
		c.progress(50)
		w.abortDeletes()
		w.router.Kill9(w.t)
		w.router.Restart(w.t)
		w.faultEnded()
		w.router.WaitReady(w.t)
		c.again()
	}
	for range pick(1, 5) {
		c.progress(20)
		w.router.Suspend(w.t)
		c.progress(50)
		w.waitForgotten()
		w.router.Continue(w.t)
		w.faultEnded()
		c.again()
		c.progress(20)
	}
	c.finish()
	w.progress(200)
}

func (w *world) configure(topic string, settings ...string) {
	w.t.Helper()
	var changes []kadm.AlterConfig
	for i := 0; i+1 < len(settings); i += 2 {
		changes = append(changes, kadm.AlterConfig{Name: settings[i], Value: &settings[i+1]})
	}
	cl := w.client()
	defer cl.Close()
	answers, err := kadm.NewClient(cl).AlterTopicConfigs(w.t.Context(), changes, topic)
	if err == nil {
		err = answers[0].Err
	}
	if err != nil {
		w.t.Fatalf("configuring %s: %v", topic, err)
	}
}

// inTopic are the last records of webhooks by key, tombstones left out.
func (w *world) inTopic() map[string]*kgo.Record {
	w.t.Helper()
	records := map[string]*kgo.Record{}
	w.read(w.topics.Webhooks, w.endOffsets(w.topics.Webhooks, true), func(r *kgo.Record) {
		if records[string(r.Key)] = r; r.Value == nil {
			delete(records, string(r.Key))
		}
	}, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	return records
}

// transact writes records to webhooks in a transaction.
func (w *world) transact(end kgo.TransactionEndTry, records ...*kgo.Record) {
	w.t.Helper()
	cl := w.client(kgo.TransactionalID("operator"))
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		w.t.Fatal(err)
	}
	err := cl.ProduceSync(w.t.Context(), records...).FirstErr()
	if err == nil {
		err = cl.EndTransaction(w.t.Context(), end)
	}
	if err != nil {
		w.t.Fatalf("writing %d records to webhooks: %v", len(records), err)
	}
}

// abortDeletes writes a tombstone of every webhook, and takes it back.
func (w *world) abortDeletes() {
	w.t.Helper()
	var tombstones []*kgo.Record
	for id := range w.inTopic() {
		tombstones = append(tombstones, schemas.Tombstone(w.topics.Webhooks, id))
	}
	w.transact(kgo.TryAbort, tombstones...)
}

// waitForgotten waits until no tombstone of those so far is left in webhooks.
func (w *world) waitForgotten() {
	w.t.Helper()
	end := w.endOffsets(w.topics.Webhooks, true)[0]
	pipeline.Wait(w.t, 2*soon, "tombstones to be past their time", func() error {
		var left error
		w.read(w.topics.Webhooks, w.endOffsets(w.topics.Webhooks, true), func(r *kgo.Record) {
			if r.Value == nil && r.Offset < end && r.Key != nil {
				left = fmt.Errorf("there is one at %d", r.Offset)
			}
		}, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
		return left
	})
}

// emptied has an operator delete all records of webhooks, for which Kafka wants another
// policy: the router must say so, and not route by an empty table, until they are back.
func emptied(w *world) {
	w.progress(200)
	var saved []*kgo.Record
	for _, r := range w.inTopic() {
		saved = append(saved, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers})
	}
	w.router.Kill9(w.t)
	w.configure(w.topics.Webhooks, "cleanup.policy", "compact,delete")
	var to kadm.Offsets
	for p, end := range w.endOffsets(w.topics.Webhooks, true) {
		to.AddOffset(w.topics.Webhooks, p, end, -1)
	}
	cl := w.client()
	answers, err := kadm.NewClient(cl).DeleteRecords(w.t.Context(), to)
	if err == nil {
		err = answers.Error()
	}
	if err != nil {
		w.t.Fatalf("emptying webhooks: %v", err)
	}
	w.configure(w.topics.Webhooks, "cleanup.policy", "compact")
	w.router.Restart(w.t)
	pipeline.Wait(w.t, soon, "the loss to be named", func() error {
		status, body := w.router.Readyz(w.t)
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "it held records and holds none now") {
			return fmt.Errorf("status %d: %s", status, body)
		}
		return nil
	})
	before := w.log.made()
	w.pass(pick(10*time.Second, time.Minute))
	if n := w.log.made() - before; n > 0 {
		w.problemf("%d deliveries were made by a router without webhooks", n)
	}
	w.transact(kgo.TryCommit, saved...)
	w.faultEnded()
	w.router.WaitReady(w.t)
	w.progress(500)
}
