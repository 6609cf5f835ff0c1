package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// TestFanOutOverTransactions is P2 for an event whose deliveries fill several of
// the router's transactions: each webhook gets one, also where the router is
// killed between two of them.
func TestFanOutOverTransactions(t *testing.T) {
	cluster, prefix := pipeline.SharedKafka(t)
	s := prepare(t, cluster, prefix, pipeline.SharedClickHouse(t))
	const (
		webhooks = 50_000
		ofOne    = 20_000 // records of a transaction: two are full and the third is not
	)
	ids := s.writeWebhooks(t, webhooks)
	s.router = pipeline.Start(t, "router", join(s.common(), nil, "--instance=router-1")...)
	s.router.WaitReady(t)

	s.produceEvent(t, "whole")
	s.waitStable(t, webhooks)
	s.checkFanOut(t, "whole", ids)
	if text := s.router.Metrics(t); !strings.Contains(text, `postrider_router_transactions_total{result="committed"} 3`) {
		t.Errorf("the router does not say that it took three transactions:\n%s", text)
	}

	before := s.stable(t)
	s.produceEvent(t, "killed")
	s.waitStable(t, before+ofOne)
	s.router.Kill9(t)
	n := len(s.deliveriesOf(t, "killed"))
	t.Logf("%d of %d deliveries were committed at the kill", n, webhooks)
	if n < ofOne || n >= webhooks {
		t.Fatal("want those of some transactions, and not of all: the test shows nothing")
	}
	s.router.Restart(t)
	s.waitStable(t, before+webhooks)
	s.checkFanOut(t, "killed", ids)
}

// writeWebhooks puts webhooks of acme for all events straight into the topic, and
// returns their ids. Nobody is to call them: they have no secrets.
func (s *system) writeWebhooks(t *testing.T, n int) (ids map[string]bool) {
	t.Helper()
	cl := s.client(t)
	ids = map[string]bool{}
	now := time.Now().UTC()
	var records []*kgo.Record
	for range n {
		w := schemas.Webhook{
			ID: schemas.NewWebhookID(), Organization: "acme", Active: true, URL: "https://example.com/", Events: []string{"*"},
			Generation: 1, Revision: 1, CreatedAt: now, UpdatedAt: now,
		}
		r, err := w.Record(s.topics.Webhooks)
		if err != nil {
			t.Fatal(err)
		}
		records, ids[w.ID] = append(records, r), true
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*soon)
	defer cancel()
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	return ids
}

func (s *system) produceEvent(t *testing.T, id string) {
	t.Helper()
	event := fmt.Sprintf(`{"event":"a.b","organization":"acme","id":%q}`, id)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	record := &kgo.Record{Topic: s.topics.Events, Key: []byte("acme"), Value: []byte(event)}
	if err := s.client(t).ProduceSync(ctx, record).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// stable is how many records and markers of deliveries a read-committed reader can see.
func (s *system) stable(t *testing.T) (n int64) {
	t.Helper()
	cl := s.client(t)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	listed, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, s.topics.Deliveries)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		t.Fatalf("asking for the ends of deliveries: %v", err)
	}
	listed.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n
}

func (s *system) waitStable(t *testing.T, n int64) {
	t.Helper()
	pipeline.Wait(t, 2*soon, fmt.Sprintf("%d committed deliveries", n), func() error {
		if got := s.stable(t); got < n {
			return fmt.Errorf("%w: got %d", errNotYet, got)
		}
		return nil
	})
}

// deliveriesOf counts an event's committed deliveries by webhook.
func (s *system) deliveriesOf(t *testing.T, event string) map[string]int {
	t.Helper()
	topicIDs, err := kafka.TopicIDs(t.Context(), s.client(t), s.topics.Deliveries)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, r := range s.readAll(t, s.topics.Deliveries) {
		d, err := schemas.DecodeDelivery(r, topicIDs[s.topics.Deliveries])
		if err != nil {
			t.Fatal(err)
		}
		if d.EventID == event {
			count[d.WebhookID]++
		}
	}
	return count
}

// checkFanOut waits until an event has a delivery for each webhook, and fails if
// one has a second.
func (s *system) checkFanOut(t *testing.T, event string, webhooks map[string]bool) {
	t.Helper()
	var got map[string]int
	pipeline.Wait(t, 2*soon, "the deliveries of event "+event, func() error {
		if got = s.deliveriesOf(t, event); len(got) < len(webhooks) {
			return fmt.Errorf("%w: %d of %d webhooks have one", errNotYet, len(got), len(webhooks))
		}
		return nil
	})
	for id, n := range got {
		if n != 1 || !webhooks[id] {
			t.Fatalf("event %s has %d deliveries to %s, want 1 to each webhook that there is", event, n, id)
		}
	}
}
