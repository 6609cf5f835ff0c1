package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// read reads a topic from its start until enough says so.
func (s *system) read(t *testing.T, topic string, each func(*kgo.Record), enough func() bool) {
	t.Helper()
	cl := s.client(t, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for !enough() {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("reading %s: %v", topic, err)
		}
		fetches.EachRecord(each)
	}
}

// TestDurable is P1: every accepted body is in the topic, byte for byte, under
// sixteen clients at once.
func TestDurable(t *testing.T) {
	s := start(t)
	const clients, each = 16, 100
	var (
		mu       sync.Mutex
		accepted = map[string][sha256.Size]byte{}
		group    sync.WaitGroup
	)
	for c := range clients {
		group.Go(func() {
			for i := range each {
				id := fmt.Sprintf("c%d-%d", c, i)
				payload := fmt.Sprintf(`{"client":%d,"n":%d,"filler":"%0*d"}`, c, i, 200+37*c, i)
				a, err := s.try(t, http.MethodPost, "/v1/events", fmt.Sprintf(`{"event":"a.b","organization":"o%d","id":%q,"payload":%s}`, c, id, payload))
				if err != nil || a.Status != http.StatusAccepted {
					t.Errorf("posting %s: %d %s %v", id, a.Status, a.Body, err)
					return
				}
				mu.Lock()
				accepted[id] = sha256.Sum256([]byte(payload))
				mu.Unlock()
			}
		})
	}
	group.Wait()
	s.read(t, s.topics.Events, func(r *kgo.Record) {
		e, err := schemas.DecodeEvent(r)
		if err != nil {
			t.Errorf("at %d@%d: %v", r.Partition, r.Offset, err)
			return
		}
		if want, ok := accepted[e.ID]; !ok || want != sha256.Sum256(e.Payload) {
			t.Errorf("event %s holds another's payload, or came twice: %s", e.ID, e.Payload)
		}
		delete(accepted, e.ID)
	}, func() bool { return len(accepted) == 0 || t.Failed() })
}

// TestFreshJoin is P4: a webhook that was acknowledged before an event always
// gets it, from a producer straight to Kafka and by REST.
func TestFreshJoin(t *testing.T) {
	s := start(t)
	const tries = 1000 // of each kind
	producer := s.client(t, kgo.ProducerLinger(0))
	for i := range 2 * tries {
		organization, path := fmt.Sprintf("o%d", i), fmt.Sprintf("/fresh/%d", i)
		s.subscribe(t, organization, "", path, "*")
		event := fmt.Sprintf(`{"event":"a.b","organization":%q,"id":"1"}`, organization)
		if i%2 == 0 {
			s.post(t, event)
			continue
		}
		record := &kgo.Record{Topic: s.topics.Events, Key: []byte(organization), Value: []byte(event)}
		if err := producer.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	s.receiver.WaitForTotal(t, 2*tries, soon)
	for i := range 2 * tries {
		if n := s.receiver.Count(fmt.Sprintf("/fresh/%d", i)); n != 1 {
			t.Errorf("webhook %d got %d requests, want 1", i, n)
		}
	}
}

// TestNoDuplicateEvents is P3: the same id twice is routed once, also over a
// restart of the router; the same id with another payload is rejected.
func TestNoDuplicateEvents(t *testing.T) {
	s := start(t)
	s.subscribe(t, "acme", "", "/once", "*")
	event := func(id, payload string) string {
		return fmt.Sprintf(`{"event":"a.b","organization":"acme","id":%q,"payload":%s}`, id, payload)
	}
	for range 3 {
		s.post(t, event("first", `{"n":1}`))
	}
	s.receiver.WaitFor(t, "/once", 1, soon)
	s.router.Kill9(t)
	s.router.Restart(t)
	s.router.WaitReady(t)
	s.post(t, event("first", `{"n":1}`))
	s.post(t, event("first", `{"n":2}`))
	s.post(t, event("second", `{"n":1}`))
	s.receiver.WaitFor(t, "/once", 2, soon)
	s.quiet(t, "acme")
	s.receiver.WaitFor(t, "/once", 3, soon) // the fence's event too
	if n := s.receiver.Count("/once"); n != 3 {
		t.Errorf("got %d requests, want 3: %s", n, bodies(s.receiver.Requests("/once")))
	}
	var rejected []schemas.Rejected
	s.read(t, s.topics.Rejected, func(r *kgo.Record) {
		got, err := schemas.DecodeRejected(r)
		if err != nil {
			t.Error(err)
		}
		rejected = append(rejected, got)
	}, func() bool { return len(rejected) > 0 })
	if rejected[0].Reason != schemas.CodeIDReused || rejected[0].Topic != s.topics.Events {
		t.Errorf("rejected %+v, want %s", rejected, schemas.CodeIDReused)
	}
	s.waitQuery(t, `SELECT event_id, matches, copies FROM postrider.events WHERE event_id IN ('first', 'second') ORDER BY event_id`, "first\t1\t3\nsecond\t1\t0")
}

// TestRoutedOnce is P2 for many targets: ten thousand webhooks on one event.
func TestRoutedOnce(t *testing.T) {
	s := start(t)
	const webhooks = 10_000
	var group sync.WaitGroup
	work := make(chan int)
	for range 32 {
		group.Go(func() {
			for i := range work {
				body := fmt.Sprintf(`{"organization":"big","active":true,"url":%q,"events":"*"}`, s.receiver.URL(fmt.Sprintf("/many/%d", i)))
				if a, err := s.try(t, http.MethodPost, "/webhook-events", body); err != nil || a.Status != http.StatusCreated {
					t.Errorf("creating webhook %d: %d %s %v", i, a.Status, a.Body, err)
				}
			}
		})
	}
	for i := range webhooks {
		work <- i
	}
	close(work)
	group.Wait()
	if t.Failed() {
		return
	}
	s.post(t, `{"event":"a.b","organization":"big","id":"one"}`)
	s.receiver.WaitForTotal(t, webhooks, soon)
	for i := range webhooks {
		if n := s.receiver.Count(fmt.Sprintf("/many/%d", i)); n != 1 {
			t.Errorf("webhook %d got %d requests, want 1", i, n)
		}
	}
	s.waitQuery(t, `SELECT count(), uniqExact(webhook_id), uniqExact(delivery_id) FROM postrider.outcomes WHERE result = 'delivered'`, "10000\t10000\t10000")
	s.waitQuery(t, `SELECT matches FROM postrider.events WHERE `+notOperational, "10000")
}

// TestBadRecords is P12 in Kafka: a bad record goes to rejected with its reason
// and place, and its partition goes on.
func TestBadRecords(t *testing.T) {
	s := start(t)
	const webhooks = 16 // so that every partition of deliveries has one
	for i := range webhooks {
		s.subscribe(t, "acme", "", fmt.Sprintf("/good/%d", i), "*")
	}
	producer := s.client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	bad := map[string]*kgo.Record{
		"empty":            {},
		"garbage":          {Value: []byte{0, 1, 2}},
		"reserved":         {Value: []byte(`{"event":"webhook.disabled","organization":"acme"}`)},
		"no organization":  {Value: []byte(`{"event":"a.b"}`)},
		"huge header":      {Value: []byte(`{"event":"a.b"}`), Headers: []kgo.RecordHeader{{Key: "h", Value: make([]byte, 900<<10)}}},
		"no specversion":   {Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte("1")}}},
		"poison, delivery": {Topic: s.topics.Deliveries, Value: []byte("x")},
		"poison, retry":    {Topic: s.topics.Retry[0], Key: []byte("k")},
		"poison, routed":   {Topic: s.topics.Routed, Value: []byte("x")},
		"poison, outcomes": {Topic: s.topics.Outcomes, Value: []byte("x")},
	}
	for name, r := range bad {
		if r.Topic == "" {
			r.Topic = s.topics.Events
		}
		if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	const good = 20
	for i := range good { // behind the bad ones
		event := fmt.Sprintf(`{"event":"a.b","organization":"acme","id":"good-%d"}`, i)
		if err := producer.ProduceSync(t.Context(), &kgo.Record{Topic: s.topics.Events, Value: []byte(event)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range webhooks {
		s.receiver.WaitFor(t, fmt.Sprintf("/good/%d", i), good, soon)
	}
	s.waitQuery(t, `SELECT uniqExact(delivery_id) FROM postrider.outcomes WHERE result = 'delivered'`, fmt.Sprint(good*webhooks))
	seen := map[string]schemas.Rejected{}
	s.read(t, s.topics.Rejected, func(r *kgo.Record) {
		got, err := schemas.DecodeRejected(r)
		if err != nil {
			t.Error(err)
			return
		}
		if got.Reason == "" || got.Detail == "" {
			t.Errorf("rejected without a reason: %+v", got)
		}
		seen[fmt.Sprintf("%s/%d@%d", got.Topic, got.Partition, got.Offset)] = got
	}, func() bool { return len(seen) >= len(bad) })
	for name, r := range bad {
		if _, ok := seen[fmt.Sprintf("%s/%d@%d", r.Topic, r.Partition, r.Offset)]; !ok {
			t.Errorf("%s is not in rejected by its place", name)
		}
	}
}

var errNotYet = errors.New("not yet")

// TestAuditEqualsReceiver is P7: the outcomes in SQL are what the receiver saw.
func TestAuditEqualsReceiver(t *testing.T) {
	s := start(t, "--retry-schedule=1s")
	hook := s.subscribe(t, "acme", "", "/seen", "*")
	const events = 500
	for i := range events {
		s.post(t, fmt.Sprintf(`{"event":"a.b","organization":"acme","id":"e%d","payload":{"n":%d}}`, i, i))
	}
	s.receiver.WaitFor(t, "/seen", events, soon)
	s.waitQuery(t, `SELECT count() FROM postrider.outcomes`, fmt.Sprint(events))
	rows := map[string]int{}
	for _, r := range s.receiver.Requests("/seen") {
		if err := r.Verify(hook.Secret); err != nil {
			t.Error(err)
		}
		rows[r.MessageID]++
	}
	pipeline.Wait(t, soon, "equal message ids", func() error {
		if got := s.query(t, `SELECT uniqExact(message_id) FROM postrider.outcomes WHERE result = 'delivered' AND status_code = 200 AND attempt = 1`); got != fmt.Sprint(len(rows)) {
			return fmt.Errorf("%w: got %s, want %d", errNotYet, got, len(rows))
		}
		return nil
	})
	for id, n := range rows {
		if n != 1 {
			t.Errorf("message %s was sent %d times", id, n)
		}
		if got := s.query(t, `SELECT count() FROM postrider.outcomes WHERE message_id = '`+id+`'`); got != "1" {
			t.Errorf("message %s has %s rows", id, got)
		}
	}
	s.waitQuery(t, `SELECT count(), uniqExact(event_id), countIf(body = '') FROM postrider.events WHERE `+notOperational, fmt.Sprintf("%d\t%d\t0", events, events))
}
