package join

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

func TestRoutes(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 2)
	h.put(
		h.webhook("wh_all", "", "*"),
		h.webhook("wh_labs", "", "labs"),
		h.webhook("wh_removed", "", "*.removed", "labs.removed"),
		h.webhook("wh_account", "account-1", "*"),
		h.webhook("wh_ping", "", "ping"),
	)
	account := schemas.Event{ID: "of-account", Name: "labs.created", Organization: "org", Account: "account-1", Source: "test"}
	h.put(
		h.event("created", "labs.created", `{"a":1e400,  "b":0.1000}`),
		h.event("removed", "labs.removed", ""),
		h.event("other", "labs-archive.created", ""),
		h.event("ping", "ping", ""),
		account.Record(h.topics.Events),
	)
	r := h.startRouter("a", nil)
	h.routed()
	r.stop(t)

	want := []string{
		"created wh_all", "created wh_labs", "of-account wh_account", "of-account wh_all", "of-account wh_labs", "other wh_all", "ping wh_ping",
		"removed wh_all", "removed wh_labs", "removed wh_removed",
	}
	if got := h.deliveries(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, record := range h.read(h.topics.Deliveries) {
		d, err := schemas.DecodeDelivery(record, [16]byte{1})
		if err != nil || d.EventID != "created" {
			continue
		}
		if want := []byte(`{"id":"created","event":"labs.created","payload":{"a":1e400,  "b":0.1000}}`); !bytes.Equal(d.Body, want) {
			t.Errorf("got body %s, want %s", d.Body, want)
		}
		if d.WebhookRevision != 3 || d.Organization != "org" || d.Cause != schemas.CauseEvent || d.AcceptedAt.IsZero() || d.RoutedAt.Before(d.AcceptedAt) {
			t.Errorf("got %+v", d)
		}
	}
	webhooks := 0
	for _, e := range h.entries() {
		webhooks += e.Webhooks
	}
	if webhooks != len(want) {
		t.Errorf("routed tells of %d deliveries, want %d", webhooks, len(want))
	}
}

func TestDuplicateOverRestart(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 1)
	h.put(h.webhook("wh_a", "", "*"))
	h.put(h.event("one", "labs.created", `{"n":1}`), h.event("one", "labs.created", `{"n":1}`))
	r := h.startRouter("a", nil)
	h.routed()
	h.put(h.event("one", "labs.created", `{"n":1}`))
	h.routed()
	r.stop(t)
	h.put(h.event("one", "labs.created", `{"n":1}`), h.event("one", "labs.created", `{"n":2}`), h.event("two", "labs.created", `{"n":2}`))
	r = h.startRouter("b", nil)
	h.routed()
	r.stop(t)

	if got, want := h.deliveries(), []string{"one wh_a", "two wh_a"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var got []schemas.RoutedResult
	for _, e := range h.entries() {
		got = append(got, e.Result)
	}
	matched, duplicate, rejected := schemas.RoutedMatched, schemas.RoutedDuplicate, schemas.RoutedRejected
	if want := []schemas.RoutedResult{matched, duplicate, duplicate, duplicate, rejected, matched}; !slices.Equal(got, want) {
		t.Errorf("got results %v, want %v", got, want)
	}
	bad := h.read(h.topics.Rejected)
	if len(bad) != 1 {
		t.Fatalf("got %d rejected records, want 1", len(bad))
	}
	if why, err := schemas.DecodeRejected(bad[0]); err != nil || why.Reason != schemas.CodeIDReused || why.Offset != 4 {
		t.Errorf("got %+v, %v", why, err)
	}
}

// TestFanOutOverManyTransactions splits every event over transactions, while the broker answers as it may.
func TestFanOutOverManyTransactions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		key   kmsg.Key
		err   *kerr.Error
		every int // request of this kind is answered so
		most  int // times; -1 means always
	}{
		{"all goes well", kmsg.EndTxn, nil, 1000, -1},
		{"offsets refused", kmsg.TxnOffsetCommit, kerr.RebalanceInProgress, 3, -1},
		{"offsets refused for good", kmsg.TxnOffsetCommit, kerr.GroupAuthorizationFailed, 9, 2},
		{"rebalance", kmsg.Heartbeat, kerr.RebalanceInProgress, 2, -1},
		{"member forgotten", kmsg.Heartbeat, kerr.UnknownMemberID, 3, 3},
		{"end refused", kmsg.EndTxn, kerr.TransactionAbortable, 4, -1},
		{"end unknown", kmsg.EndTxn, kerr.UnknownServerError, 5, -1},
		{"end done, answer lost", kmsg.EndTxn, kerr.RequestTimedOut, 4, 3},
		{"fenced at the end", kmsg.EndTxn, kerr.InvalidProducerEpoch, 25, 1},
		{"records refused", kmsg.Produce, kerr.TopicAuthorizationFailed, 20, 2},
		{"records written, answer lost", kmsg.Produce, kerr.NotEnoughReplicasAfterAppend, 5, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const events, webhooks = 20, 15
			tiny := func(c *Config) { c.MaxRecords, c.MaxEvents = 7, 6 }
			h := startHarness(t, 3)
			h.put(h.webhooks(webhooks, "*")...)
			h.put(h.spread(ids("e", events), 1)...)
			// A fault asks When once for each thing in a request; the control sees the request itself.
			var seen int
			var struck atomic.Bool
			h.cluster.ControlKey(c.key.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
				h.cluster.KeepControl()
				seen++
				struck.Store(seen%c.every == 0)
				return nil, nil, false
			})
			fault := h.cluster.Fault(kfake.Fault{
				Keys: []kmsg.Key{c.key}, Err: c.err, Count: c.most, TopLevel: c.key == kmsg.EndTxn || c.key == kmsg.Heartbeat,
				When: func(kmsg.Request) bool { return struck.Load() },
			})
			routed := 0.0 // by the routers before: the first may have come far before it stopped
			for i := range 3 {
				r := h.startRouter("a", tiny)
				h.eventually("some are routed", func() bool { return routed+testutil.ToFloat64(r.metrics.deliveries) >= float64(i*50) })
				r.stop(t)
				routed += testutil.ToFloat64(r.metrics.deliveries)
			}
			r := h.startRouter("a", tiny)
			h.routed()
			r.stop(t)
			if c.err != nil && fault.Hits() == 0 {
				t.Error("the fault was never met")
			}
			fault.Remove()
			if got, want := h.deliveries(), product(ids("e", events), ids("wh_", webhooks)); !slices.Equal(got, want) {
				t.Errorf("got %d deliveries, want %d: %s", len(got), len(want), firstDifference(got, want))
			}
			for _, e := range h.entries() {
				if e.Result != schemas.RoutedMatched || e.Webhooks != webhooks {
					t.Errorf("got %+v, want %d webhooks", e, webhooks)
				}
			}
		})
	}
}

func firstDifference(got, want []string) string {
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return "missing " + want[i]
		case i >= len(want) || got[i] < want[i]:
			return "too many: " + got[i]
		case got[i] > want[i]:
			return "missing " + want[i]
		}
	}
	return ""
}

// TestRebalances lets routers come and go while events come, each fanned out over several transactions.
func TestRebalances(t *testing.T) {
	t.Parallel()
	const webhooks = 12
	small := func(c *Config) { c.MaxRecords, c.MaxEvents, c.Sessions = 50, 20, 2 }
	h := startHarness(t, 4)
	h.put(h.webhooks(webhooks, "*")...)
	events := 0
	// Events are sent until the router has routed some more of them.
	sendUntil := func(r *router) {
		before := testutil.ToFloat64(r.metrics.deliveries)
		h.eventually("a router has partitions", func() bool {
			h.put(h.spread(ids("e", events+10)[events:], 2)...)
			events += 10
			return testutil.ToFloat64(r.metrics.deliveries) > before
		})
	}
	first := h.startRouter("first", small)
	sendUntil(first)
	second := h.startRouter("second", small)
	sendUntil(second)
	sendUntil(first)
	first.stop(t)
	sendUntil(second)
	third := h.startRouter("third", small)
	sendUntil(third)
	second.stop(t)
	sendUntil(third)
	h.routed()
	third.stop(t)

	if got, want := h.deliveries(), product(ids("e", events), ids("wh_", webhooks)); !slices.Equal(got, want) {
		t.Errorf("got %d deliveries, want %d: %s", len(got), len(want), firstDifference(got, want))
	}
	results := make(map[schemas.RoutedResult]int)
	for _, e := range h.entries() {
		results[e.Result]++
	}
	if results[schemas.RoutedMatched] != events || results[schemas.RoutedDuplicate] != events {
		t.Errorf("got results %v, want %d matched and as many duplicate", results, events)
	}
}

func TestPoisonGoesToRejected(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 1)
	h.put(h.webhook("wh_a", "", "*"))
	poison := []*kgo.Record{
		{},
		{Value: []byte("{")},
		{Value: []byte(`{"event":"labs.created"}`)},
		{Value: []byte("x"), Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte("\xff")}}},
		{Value: bytes.Repeat([]byte{0}, 1<<20), Headers: []kgo.RecordHeader{{Key: strings.Repeat("h", 1000), Value: nil}}},
		h.event("reserved", "webhook.disabled", ""),
	}
	for _, r := range poison {
		r.Topic = h.topics.Events
		h.put(r)
	}
	h.put(h.event("good", "labs.created", ""))
	r := h.startRouter("a", nil)
	h.routed()
	r.stop(t)
	if got, want := h.deliveries(), []string{"good wh_a"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	rejected := h.read(h.topics.Rejected)
	if len(rejected) != len(poison) {
		t.Fatalf("got %d rejected, want %d", len(rejected), len(poison))
	}
	for i, r := range rejected {
		why, err := schemas.DecodeRejected(r)
		if err != nil || why.Topic != h.topics.Events || why.Offset != int64(i) || why.Reason == "" || why.Detail == "" {
			t.Errorf("record %d: got %+v, %v", i, why, err)
		}
		if !bytes.Equal(r.Value, poison[i].Value) {
			t.Errorf("record %d is not the bad one", i)
		}
	}
	if last, err := schemas.DecodeRejected(rejected[5]); err != nil || last.Reason != schemas.CodeReservedName {
		t.Errorf("got %+v, %v, want %s", last, err, schemas.CodeReservedName)
	}
	h.entries()
}

// TestInflatingBatchIsSkipped: a hostile producer's batch costs its own records and nothing else.
func TestInflatingBatchIsSkipped(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 1)
	h.put(h.webhook("wh_a", "", "*"))
	hostile, err := h.cfg.NewClient("test-hostile", kgo.ProducerBatchMaxBytes(80<<20), kgo.ProducerBatchCompression(kgo.GzipCompression()))
	if err != nil {
		t.Fatal(err)
	}
	defer hostile.Close()
	bomb := &kgo.Record{Topic: h.topics.Events, Value: make([]byte, 70<<20)}
	h.put(h.event("before", "labs.created", ""))
	if err := hostile.ProduceSync(h.within(), bomb).FirstErr(); err != nil {
		t.Fatal(err)
	}
	h.put(h.event("after", "labs.created", ""))
	r := h.startRouter("a", nil)
	h.routed()
	r.stop(t)
	if got, want := h.deliveries(), []string{"after wh_a", "before wh_a"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	rejected := h.read(h.topics.Rejected)
	if len(rejected) != 1 {
		t.Fatalf("got %d rejected, want 1", len(rejected))
	}
	if why, err := schemas.DecodeRejected(rejected[0]); err != nil || why.Reason != schemas.CodeTooLarge || why.Offset != bomb.Offset {
		t.Errorf("got %+v, %v", why, err)
	}
	h.entries()
}

// TestFreshJoin is P4 as far as kfake can show it: a webhook written before an event is in force for it, one deleted before it is not.
func TestFreshJoin(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 1)
	r := h.startRouter("a", nil)
	var want []string
	for i := range 40 {
		kept, deleted := fmt.Sprintf("kept-%d", i), fmt.Sprintf("deleted-%d", i)
		h.put(h.webhook("wh_"+kept, "", kept))
		h.put(h.event("e"+kept, kept+".created", ""))
		h.put(h.webhook("wh_"+deleted, "", deleted), schemas.Tombstone(h.topics.Webhooks, "wh_"+deleted))
		h.put(h.event("e"+deleted, deleted+".created", ""))
		want = append(want, fmt.Sprintf("e%s wh_%s", kept, kept))
		if i%10 == 0 {
			h.routed() // so that not all events come in one batch
		}
	}
	h.routed()
	r.stop(t)
	slices.Sort(want)
	if got := h.deliveries(); !slices.Equal(got, want) {
		t.Errorf("got %d deliveries, want %d: %s", len(got), len(want), firstDifference(got, want))
	}
}

func TestUnknownVersionInTheTableStopsRouting(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 1)
	h.put(h.webhook("wh_a", "", "*"))
	newer := h.webhook("wh_b", "", "*")
	newer.Headers = []kgo.RecordHeader{{Key: schemas.HeaderVersion, Value: []byte("2")}}
	h.put(newer)
	r := h.startRouter("a", nil)
	h.put(h.event("one", "labs.created", ""))
	h.eventually("a session has ended for it", func() bool { return r.table.Err() != nil })
	h.put(h.webhook("wh_b", "", "*"))
	h.routed()
	r.stop(t)
	if got, want := h.deliveries(), []string{"one wh_a", "one wh_b"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestTwoOfOneName: each takes the name back once, and the one that loses it twice ends, saying so.
func TestTwoOfOneName(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 1)
	h.put(h.webhook("wh_a", "", "*"))
	first := h.startRouter("same", nil)
	h.put(h.event("e0", "labs.created", ""))
	h.routed()
	second := h.startRouter("same", nil)
	var err error
	ended := false
	for i := 1; !ended; i++ {
		h.put(h.event(fmt.Sprintf("e%d", i), "labs.created", ""))
		select {
		case err = <-first.ended:
			second.stop(t)
			ended = true
		case err = <-second.ended:
			first.stop(t)
			ended = true
		case <-time.After(50 * time.Millisecond):
			if i > 600 {
				t.Fatal("both go on")
			}
		}
	}
	if !errors.Is(err, process.ErrFenced) {
		t.Errorf("got %v, want ErrFenced", err)
	}
}
