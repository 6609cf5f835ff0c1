package e2e

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// TestTableUnderCompaction is P4 while the topic of webhooks is compacted under the
// router, fast: killed and started again, or frozen until the tombstones that it
// missed are gone, it routes by what a map makes of the committed changes; and with
// the topic emptied it does not route at all.
func TestTableUnderCompaction(t *testing.T) {
	cluster := pipeline.StartKafka(t, 1, "log.cleaner.backoff.ms=500")
	s := prepare(t, cluster, "compacted.", pipeline.SharedClickHouse(t))
	c := &compacted{system: s, admin: kadm.NewClient(s.client(t)), model: map[string]int64{}}
	c.configure(t, map[string]string{"segment.ms": "1000", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "1000"})
	c.writer = s.client(t, kgo.TransactionalID("compacted"), kgo.ProducerLinger(0))
	c.change(t, true)
	s.router = pipeline.Start(t, "router", join(s.common(), nil, "--instance=router-1")...).WaitReady(t)
	c.check(t)
	for range 3 {
		c.change(t, true)
		c.change(t, false)
		s.router.Kill9(t)
		s.router.Restart(t)
		s.router.WaitReady(t)
		c.check(t)
	}
	s.router.Suspend(t)
	c.change(t, true)
	c.waitForgotten(t)
	s.router.Continue(t)
	c.check(t)
	c.testEmptied(t)
}

// compacted is the topic of webhooks, and what should be in force.
type compacted struct {
	*system

	admin    *kadm.Client
	writer   *kgo.Client
	model    map[string]int64 // revision by id
	revision int64
	events   int
}

func (c *compacted) configure(t *testing.T, settings map[string]string) {
	t.Helper()
	var changes []kadm.AlterConfig
	for name, value := range settings {
		changes = append(changes, kadm.AlterConfig{Name: name, Value: &value})
	}
	answers, err := c.admin.AlterTopicConfigs(t.Context(), changes, c.topics.Webhooks)
	if err == nil {
		err = answers[0].Err
	}
	if err != nil {
		t.Fatal(err)
	}
}

// change writes some changes of a hundred webhooks in a transaction.
func (c *compacted) change(t *testing.T, commit bool) {
	t.Helper()
	after := maps.Clone(c.model)
	if err := c.writer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for range 80 {
		c.revision++
		w := schemas.Webhook{
			ID: fmt.Sprintf("wh_%03d", rand.N(100)), Organization: "acme", Active: true, URL: "https://example.com/", Events: []string{"*"},
			Generation: 1, Revision: c.revision,
		}
		record, err := w.Record(c.topics.Webhooks)
		if err != nil {
			t.Fatal(err)
		}
		after[w.ID] = w.Revision
		if rand.N(3) == 0 {
			record = schemas.Tombstone(c.topics.Webhooks, w.ID)
			delete(after, w.ID)
		}
		c.writer.Produce(t.Context(), record, nil)
	}
	err := errors.Join(c.writer.Flush(t.Context()), c.writer.EndTransaction(t.Context(), kgo.TransactionEndTry(commit)))
	if err != nil {
		t.Fatal(err)
	}
	if commit {
		c.model = after
	}
}

// check has an event routed, and holds who gets it against the model.
func (c *compacted) check(t *testing.T) {
	t.Helper()
	c.events++
	id := fmt.Sprintf("event-%d", c.events)
	c.produce(t, id)
	c.waitRouted(t)
	if got := c.routedTo(t, id); !maps.Equal(got, c.model) {
		t.Errorf("%s went to %d webhooks, by revision %v; want %d: %v", id, len(got), got, len(c.model), c.model)
	}
}

func (c *compacted) produce(t *testing.T, id string) {
	t.Helper()
	value := fmt.Sprintf(`{"id":%q,"event":"a.b","organization":"acme"}`, id)
	if err := c.client(t).ProduceSync(t.Context(), &kgo.Record{Topic: c.topics.Events, Value: []byte(value)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func (c *compacted) routedTo(t *testing.T, id string) map[string]int64 {
	t.Helper()
	got := map[string]int64{}
	for _, d := range c.delivered(t) {
		if d.EventID == id {
			got[d.WebhookID] = d.WebhookRevision
		}
	}
	return got
}

// waitForgotten writes until no tombstone of those so far is left in the topic. A
// segment is compacted once another has begun, for which there must be a record.
func (c *compacted) waitForgotten(t *testing.T) {
	t.Helper()
	end := slices.Max(slices.Collect(maps.Values(c.ends(t, c.topics.Webhooks))))
	pipeline.Wait(t, 4*soon, "tombstones to be past their time", func() error {
		filler := schemas.Tombstone(c.topics.Webhooks, "wh_filler")
		if err := c.client(t).ProduceSync(t.Context(), filler).FirstErr(); err != nil {
			return fmt.Errorf("writing a tombstone: %w", err)
		}
		for _, r := range c.readAll(t, c.topics.Webhooks) {
			if r.Value == nil && r.Offset < end {
				return fmt.Errorf("%w: there is one at %d", errNotYet, r.Offset)
			}
		}
		return nil
	})
}

// testEmptied has an operator delete all records, for which Kafka wants another policy.
func (c *compacted) testEmptied(t *testing.T) {
	t.Helper()
	c.router.Kill9(t)
	c.configure(t, map[string]string{"cleanup.policy": "compact,delete"})
	end := c.ends(t, c.topics.Webhooks)
	var to kadm.Offsets
	for place, offset := range end {
		to.AddOffset(place.Topic, place.Partition, offset, -1)
	}
	if answers, err := c.admin.DeleteRecords(t.Context(), to); err != nil || answers.Error() != nil {
		t.Fatal(err, answers.Error())
	}
	c.configure(t, map[string]string{"cleanup.policy": "compact"})
	c.produce(t, "to-the-lost")
	c.router.Restart(t)
	pipeline.Wait(t, 2*soon, "the loss to be named", func() error {
		if status, body := c.router.Readyz(t); status != http.StatusServiceUnavailable || !strings.Contains(body, "it held records and holds none now") {
			return fmt.Errorf("%w: status %d: %s", errNotYet, status, body)
		}
		return nil
	})
	c.model = map[string]int64{}
	c.change(t, true) // what the operator brings back
	c.router.WaitReady(t)
	c.waitRouted(t)
	if got := c.routedTo(t, "to-the-lost"); !maps.Equal(got, c.model) {
		t.Errorf("the event went to %v, want %v", got, c.model)
	}
}
