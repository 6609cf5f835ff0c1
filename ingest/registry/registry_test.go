package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTableListsInOrder(t *testing.T) {
	table := newTable(func(s *string) string { return *s })
	for _, id := range []string{"3", "1", "5", "2", "4"} {
		organization := "odd"
		if id == "2" || id == "4" {
			organization = "even"
		}
		table.put(id, &organization)
	}
	none := ""
	table.put("0", &none)
	moved := "even"
	table.put("5", &moved)
	table.remove("4")
	table.remove("unknown")

	for _, c := range []struct {
		organization, after string
		limit               int
		want                []string
		more                bool
	}{
		{"", "", 10, []string{"", "odd", "even", "odd", "even"}, false},
		{"", "", 2, []string{"", "odd"}, true},
		{"", "1", 3, []string{"even", "odd", "even"}, false},
		{"", "10", 1, []string{"even"}, true}, // the cursor's row has gone
		{"odd", "", 2, []string{"odd", "odd"}, false},
		{"even", "2", 2, []string{"even"}, false},
		{"unknown", "", 2, []string{}, false},
	} {
		got, more, err := table.page(c.organization, c.after, c.limit, nil)
		if !slices.Equal(got, c.want) || more != c.more || err != nil {
			t.Errorf("page(%q, %q, %d) = %q, %v, %v, want %q, %v", c.organization, c.after, c.limit, got, more, err, c.want, c.more)
		}
	}
	if got := table.size(); got != 5 {
		t.Errorf("got size %d, want 5", got)
	}
}

// Whoever comes while a question is under way may have come too late for it, and
// must be answered by the next: all who wait share that one.
func TestBarrierSharesQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		release := make(chan struct{})
		b := newBarrier(func(context.Context) error {
			asked.Add(1)
			<-release
			return nil
		})
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if err := b.wait(t.Context()); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // the first is asking, the others stand in its way or wait with one another
		}
		close(release)
		wg.Wait()
		if n := asked.Load(); n != 2 {
			t.Errorf("got %d questions, want the first and the one that all others share", n)
		}
	})
}

func TestBarrierGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBarrier(func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		start := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := b.wait(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want the end of the time", err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > maxAsk {
			t.Errorf("got an answer after %s, want it within %s", took, maxAsk)
		}
	})
}

type health struct{ err error }

func (h *health) Up()            { h.err = nil }
func (h *health) Down(err error) { h.err = err }

func newRegistry(t *testing.T) (*Registry, *health) {
	t.Helper()
	h := &health{}
	r, err := New(kafka.Config{TopicPrefix: "test."}, Process{
		ClientID: "test", Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: h,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, h
}

func webhookRecord(t *testing.T, r *Registry, id string, revision int64) *kgo.Record {
	t.Helper()
	w := schemas.Webhook{ID: id, Organization: "acme", URL: "https://example.com/", Events: []string{"a"}, Revision: revision}
	record, err := w.Record(r.topics.Webhooks)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

func TestBadRecordLeavesTheLastGoodValue(t *testing.T) {
	r, h := newRegistry(t)
	r.apply(webhookRecord(t, r, "wh_1", 1))
	r.apply(webhookRecord(t, r, "wh_2", 1))
	for _, bad := range []string{``, `{`, `{}`, `{"id":"wh_2"}`} {
		record := webhookRecord(t, r, "wh_1", 2)
		record.Value = []byte(bad)
		r.apply(record)
	}
	if w, err := r.webhooks.get("wh_1"); err != nil || w == nil || w.Revision != 1 {
		t.Errorf("got %+v, %v, want the last good value", w, err)
	}
	reporter{r}.Up()
	if h.err != nil {
		t.Errorf("got %v, want a bad record not to count as an outage", h.err)
	}
	r.apply(schemas.Tombstone(r.topics.Webhooks, "wh_1"))
	if w, err := r.webhooks.get("wh_1"); w != nil || err != nil {
		t.Errorf("got %+v, %v, want it deleted", w, err)
	}
}

// newer makes a record one that only a newer binary can read.
func newer(record *kgo.Record) *kgo.Record {
	record.Headers[0].Value = []byte("2")
	return record
}

func bad(record *kgo.Record) *kgo.Record {
	record.Value = []byte(`{`)
	return record
}

func keyRecord(t *testing.T, r *Registry, id string) *kgo.Record {
	t.Helper()
	k := schemas.Key{ID: id, Organization: "acme", Scopes: []string{schemas.ScopeEventsWrite}, Hash: strings.Repeat("0a", 32)}
	record, err := k.Record(r.topics.Keys)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// TestUnknownVersion is "unready rather than wrong": while a record of a newer
// binary stands in a topic nothing older is shown in its place or written over it.
func TestUnknownVersion(t *testing.T) {
	r, h := newRegistry(t)
	r.apply(webhookRecord(t, r, "wh_1", 1))
	r.apply(webhookRecord(t, r, "wh_2", 1))
	r.apply(keyRecord(t, r, "key_1"))
	check := func(when string, webhook, key bool) {
		t.Helper()
		reporter{r}.Up()
		newer, ok := errors.AsType[*schemas.UnknownVersionError](h.err)
		if unready := !webhook || !key; ok != unready || ok && newer.Version != "2" {
			t.Errorf("%s: got health %v, want it to name the version that is not known: %v", when, h.err, unready)
		}
		_, err := r.Webhook(t.Context(), "wh_1")
		_, _, listed := r.Webhooks("other", "", 10, nil)
		if unavailable(err) == webhook || unavailable(listed) == webhook {
			t.Errorf("%s: got %v reading the webhook, %v listing, want them to be available: %v", when, err, listed, webhook)
		}
		_, err = r.Key(t.Context(), "key_1")
		_, _, listed = r.Keys("", "", 10)
		if unavailable(err) == key || unavailable(listed) == key {
			t.Errorf("%s: got %v reading the key, %v listing, want them to be available: %v", when, err, listed, key)
		}
		if w, err := r.Webhook(t.Context(), "wh_2"); err != nil || w.Revision != 1 {
			t.Errorf("%s: got %+v, %v of another webhook", when, w, err)
		}
	}
	check("at the start", true, true)
	r.apply(newer(webhookRecord(t, r, "wh_1", 2)))
	check("after a newer webhook", false, true)
	r.apply(newer(keyRecord(t, r, "key_1")))
	check("after a newer key", false, false)
	r.apply(webhookRecord(t, r, "wh_2", 1))
	r.apply(bad(webhookRecord(t, r, "wh_1", 3)))
	check("after another webhook's record and a bad one", false, false)
	r.apply(webhookRecord(t, r, "wh_1", 4))
	check("after a webhook that can be read", true, false)
	r.beginRebuild()
	r.apply(webhookRecord(t, r, "wh_2", 1))
	r.apply(newer(webhookRecord(t, r, "wh_1", 5)))
	r.apply(keyRecord(t, r, "key_1"))
	check("in the middle of a rebuild", true, false)
	r.endRebuild()
	check("after the rebuild", false, true)
	r.apply(schemas.Tombstone(r.topics.Webhooks, "wh_1"))
	reporter{r}.Up()
	if w, err := r.webhooks.get("wh_1"); w != nil || err != nil || h.err != nil {
		t.Errorf("got %+v, %v and health %v after a tombstone", w, err, h.err)
	}
}

func unavailable(err error) bool { return errors.Is(err, ErrUnavailable) }

func TestUnknownVersionIsNotWrittenOver(t *testing.T) {
	r, _ := newRegistry(t)
	r.apply(webhookRecord(t, r, "wh_1", 1))
	r.apply(newer(webhookRecord(t, r, "wh_1", 2)))
	patch := func(old *schemas.Webhook) (*schemas.Webhook, error) { return old, nil }
	deleted := func(*schemas.Webhook) (*schemas.Webhook, error) { return nil, nil } //nolint:nilnil // how a change deletes
	var batch []*write
	for _, c := range []change[schemas.Webhook]{patch, deleted} {
		w, _ := newWrite(&r.webhooks, r.topics.Changes, proposal[schemas.Webhook]{actor: Actor{ID: "test"}, action: "updated", id: "wh_1", change: c}, func(error) {})
		batch = append(batch, w)
	}
	rows, audit := decide(batch)
	if len(rows) != 0 || len(audit) != 2 || !unavailable(batch[0].decided.refused) || !unavailable(batch[1].decided.refused) {
		t.Errorf("got %d rows, %d changes and refusals %v, %v, want none written and both told",
			len(rows), len(audit), batch[0].decided.refused, batch[1].decided.refused)
	}
}

// stateRecord says that the sender has disabled a generation of wh_1.
func stateRecord(t *testing.T, r *Registry, generation int64) *kgo.Record {
	t.Helper()
	s := schemas.WebhookState{WebhookID: "wh_1", Generation: generation, DisabledAt: time.Unix(1_700_000_000, 0), Reason: "gone"}
	record, err := s.Record(r.topics.WebhookStates)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// TestStates is about what the sender found out about a webhook: it counts for its
// generation, whichever of the two topics is read first, and a bad record leaves it.
func TestStates(t *testing.T) {
	r, _ := newRegistry(t)
	r.apply(stateRecord(t, r, 0))
	r.apply(webhookRecord(t, r, "wh_1", 1))
	r.apply(webhookRecord(t, r, "wh_2", 1))
	enabled := func(id string) bool {
		w, err := r.webhooks.get(id)
		if err != nil || w == nil {
			t.Fatalf("got %v, %v", w, err)
		}
		active := *w
		active.Active = true
		return r.Enabled(&active)
	}
	check := func(when string, want bool) {
		t.Helper()
		if enabled("wh_1") != want || !enabled("wh_2") {
			t.Errorf("%s: got wh_1 enabled %v, wh_2 %v, want %v and true", when, enabled("wh_1"), enabled("wh_2"), want)
		}
	}
	check("at the start", false)
	r.apply(bad(stateRecord(t, r, 1)))
	check("after a bad record", false)
	r.beginRebuild()
	r.apply(webhookRecord(t, r, "wh_1", 1))
	r.apply(webhookRecord(t, r, "wh_2", 1))
	check("in the middle of a rebuild", false)
	r.endRebuild()
	check("after it", true)
	r.apply(stateRecord(t, r, 7))
	check("disabled in another generation", true)
	w := schemas.Webhook{ID: "wh_1"}
	if r.Enable(&w); !w.Active || w.Generation != 8 {
		t.Errorf("got %v in generation %d, want a later one than the sender knows", w.Active, w.Generation)
	}
	r.apply(stateRecord(t, r, 0))
	check("disabled in this one", false)
	r.apply(schemas.Tombstone(r.topics.WebhookStates, "wh_1"))
	check("after a tombstone", true)
}

// TestUnknownVersionOfAState is about a state that only a newer binary can read:
// whether its webhook is disabled nobody here can tell.
func TestUnknownVersionOfAState(t *testing.T) {
	r, h := newRegistry(t)
	r.apply(webhookRecord(t, r, "wh_1", 1))
	r.apply(webhookRecord(t, r, "wh_2", 1))
	r.apply(newer(stateRecord(t, r, 0)))
	_, err := r.Webhook(t.Context(), "wh_1")
	_, _, listed := r.Webhooks("other", "", 10, nil)
	_, otherErr := r.Webhook(t.Context(), "wh_2")
	reporter{r}.Up()
	if !unavailable(err) || !unavailable(listed) || otherErr != nil || h.err == nil {
		t.Errorf("got %v, %v listing, %v of another webhook and health %v", err, listed, otherErr, h.err)
	}
	enable := func(old *schemas.Webhook) (*schemas.Webhook, error) {
		w := *old
		return &w, nil
	}
	w, _ := newWrite(&r.webhooks, r.topics.Changes, proposal[schemas.Webhook]{action: "enabled", id: "wh_1", change: enable}, func(error) {})
	if rows, rest := decide([]*write{w}); len(rows) != 0 || len(rest) != 1 || !unavailable(w.decided.refused) {
		t.Errorf("got %d rows, %d changes and %v, want it left as it is", len(rows), len(rest), w.decided.refused)
	}
	r.apply(stateRecord(t, r, 1))
	reporter{r}.Up()
	if _, err := r.Webhook(t.Context(), "wh_1"); err != nil || h.err != nil {
		t.Errorf("got %v and health %v after a state that can be read", err, h.err)
	}
}

// What is given back as it is writes nothing, and says what stands.
func TestNothingChanged(t *testing.T) {
	r, _ := newRegistry(t)
	r.apply(webhookRecord(t, r, "wh_1", 3))
	same := func(old *schemas.Webhook) (*schemas.Webhook, error) { return old, nil }
	w, result := newWrite(&r.webhooks, r.topics.Changes, proposal[schemas.Webhook]{action: "enabled", id: "wh_1", change: same}, func(error) {})
	if rows, rest := decide([]*write{w}); len(rows) != 0 || len(rest) != 0 || w.decided.refused != nil || result().Revision != 3 {
		t.Errorf("got %d rows, %d further records, %v and %+v, want nothing but the webhook", len(rows), len(rest), w.decided.refused, result())
	}
}

func TestRebuildReplacesTheTables(t *testing.T) {
	r, _ := newRegistry(t)
	r.apply(webhookRecord(t, r, "wh_old", 1))
	r.beginRebuild()
	r.apply(webhookRecord(t, r, "wh_new", 1))
	has := func(id string) bool {
		w, err := r.webhooks.get(id)
		return w != nil && err == nil
	}
	if !has("wh_old") || has("wh_new") {
		t.Error("got the new table before it is whole")
	}
	r.endRebuild()
	if has("wh_old") || !has("wh_new") {
		t.Error("got the old table after the new one is whole")
	}
	r.apply(webhookRecord(t, r, "wh_next", 1))
	if rows, _, err := r.Webhooks("acme", "", 10, nil); len(rows) != 2 || err != nil {
		t.Errorf("got %d webhooks, %v, want 2", len(rows), err)
	}
}

func TestDecideSeesWhatCameBefore(t *testing.T) {
	r, _ := newRegistry(t)
	r.apply(webhookRecord(t, r, "wh_1", 1))
	refused := errors.New("refused")
	changed := func(from int64) change[schemas.Webhook] {
		return func(old *schemas.Webhook) (*schemas.Webhook, error) {
			if old == nil || old.Revision != from {
				return nil, refused
			}
			w := *old
			w.Revision++
			return &w, nil
		}
	}
	deleted := func(*schemas.Webhook) (*schemas.Webhook, error) { return nil, nil } //nolint:nilnil // how a change deletes
	var batch []*write
	for _, c := range []change[schemas.Webhook]{changed(1), changed(1), changed(2), deleted, changed(3)} {
		w, _ := newWrite(&r.webhooks, r.topics.Changes, proposal[schemas.Webhook]{actor: Actor{ID: "test"}, action: "updated", id: "wh_1", change: c}, func(error) {})
		batch = append(batch, w)
	}
	rows, rest := decide(batch) // five changes, the event webhook.deleted, and the end of its state
	got := ""
	for _, w := range batch {
		got += fmt.Sprint(w.decided.refused != nil, " ")
	}
	if want := "false true false false true "; got != want || len(rows) != 3 || len(rest) != 7 || rows[2].Value != nil {
		t.Errorf("got refusals %swith %d rows and %d further records, want %swith 3 and 7", got, len(rows), len(rest), want)
	}
	if w, err := r.webhooks.get("wh_1"); err != nil || w.Revision != 1 {
		t.Errorf("got %+v, %v in force before anything was written", w, err)
	}
}
