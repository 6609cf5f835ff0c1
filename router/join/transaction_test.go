package join

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/postrider/postrider/router/dedup"
	"github.com/postrider/postrider/router/table"
	"github.com/postrider/postrider/schemas"
)

// world is Kafka and the table as a partition's routing sees them, with what was committed.
type world struct {
	t        *rapid.T
	topics   schemas.Topics
	log      []*kgo.Record // of events, one partition
	webhooks []*table.Webhook

	committed  int64
	metadata   string
	deliveries map[string]int // event id and webhook id → how often
	entries    []schemas.RoutedEntry
	rejected   []int64

	session *session
}

// restart is a new process: it knows what was committed.
func (w *world) restart() {
	c, err := parseCursor(w.metadata)
	if err != nil {
		w.t.Fatal(err)
	}
	window := dedup.NewWindow(dedup.MaxIDs, time.Hour)
	for _, e := range w.entries {
		if e.Result == schemas.RoutedMatched {
			window.Add(e.IDHash, e.PayloadHash, now())
		}
	}
	w.session = &session{partitions: map[int32]*partition{0: {window: window, at: position{w.committed, c}}}}
}

func now() time.Time { return time.Unix(1_700_000_000, 0) }

// poll returns what stands in the log from the committed offset on.
func (w *world) poll(most int) *batch {
	i := slices.IndexFunc(w.log, func(r *kgo.Record) bool { return r.Offset >= w.committed })
	if i < 0 {
		return &batch{}
	}
	records := w.log[i:min(i+most, len(w.log))]
	b, err := w.session.collect(kgo.Fetches{{Topics: []kgo.FetchTopic{{
		Topic: w.topics.Events, Partitions: []kgo.FetchPartition{{Records: records}},
	}}}}, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// transact fills one transaction and commits it, or does not.
func (w *world) transact(b *batch, most limits, commit bool) {
	var written []*kgo.Record
	t := &transaction{
		topics: w.topics, limits: most,
		match: func(*item) []*table.Webhook { return w.webhooks },
		emit:  func(r *kgo.Record) { written = append(written, r) },
	}
	t.fill(b)
	if len(written) == 0 || len(t.moved) == 0 {
		w.t.Fatal("a transaction without a record")
	}
	if !commit {
		b.rollback()
		return
	}
	at := t.positions()[0]
	w.committed, w.metadata = at.offset, at.cursor.metadata()
	t.commit(dedup.MaxIDs)
	for _, r := range written {
		switch r.Topic {
		case w.topics.Deliveries:
			d, err := schemas.DecodeDelivery(r, [16]byte{1})
			if err != nil {
				w.t.Fatal(err)
			}
			if asked := w.webhook(d.WebhookID).Format; strings.HasPrefix(string(d.Body), `{"specversion":`) != (asked == schemas.FormatCloudEvents) {
				w.t.Fatalf("body %s of a webhook that asks for %s", d.Body, asked)
			}
			w.deliveries[d.EventID+" "+d.WebhookID]++
		case w.topics.Routed:
			routed, err := schemas.DecodeRouted(r)
			if err != nil {
				w.t.Fatal(err)
			}
			w.entries = append(w.entries, routed.Entries...)
		case w.topics.Rejected:
			rejected, err := schemas.DecodeRejected(r)
			if err != nil {
				w.t.Fatal(err)
			}
			w.rejected = append(w.rejected, rejected.Offset)
		}
	}
}

func (w *world) webhook(id string) *table.Webhook {
	for _, known := range w.webhooks {
		if known.ID == id {
			return known
		}
	}
	w.t.Fatalf("a delivery to webhook %q, which is none", id)
	return nil
}

// TestEachWebhookOnceHoweverTransactionsEnd routes a log in transactions of any size, which commit, abort or are cut off by a crash at will, and holds
// what was committed to what the log and the webhooks ask for.
func TestEachWebhookOnceHoweverTransactionsEnd(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, topics: schemas.NewTopics("test."), deliveries: make(map[string]int)}
		for i := range rapid.IntRange(0, 40).Draw(t, "webhooks") {
			format := []schemas.Format{schemas.FormatPlain, schemas.FormatCloudEvents}[i%2]
			w.webhooks = append(w.webhooks, &table.Webhook{ID: fmt.Sprintf("wh_%02d", i), Revision: 1, Format: format})
		}
		want := make(map[string]int)
		results := make(map[int64]schemas.RoutedResult)
		seen := make(map[int]int)
		offset := int64(0)
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			offset += int64(rapid.IntRange(1, 3).Draw(t, "gap")) // commit markers take offsets too
			id, payload := rapid.IntRange(0, 9).Draw(t, "id"), rapid.IntRange(0, 1).Draw(t, "payload")
			first, known := seen[id]
			switch {
			case known && first == payload:
				results[offset] = schemas.RoutedDuplicate
			case known:
				results[offset] = schemas.RoutedRejected
			default:
				seen[id] = payload
				results[offset] = schemas.RoutedMatched
				for _, h := range w.webhooks {
					want[fmt.Sprint("e", id, " ", h.ID)] = 1
				}
			}
			w.log = append(w.log, &kgo.Record{
				Topic: w.topics.Events, Offset: offset, Timestamp: now(),
				Value: fmt.Appendf(nil, `{"id":"e%d","event":"labs.created","organization":"org","payload":{"n":%d}}`, id, payload),
			})
		}

		w.restart()
		end := w.log[len(w.log)-1].Offset + 1
		for failures := 0; w.committed < end; {
			b := w.poll(rapid.IntRange(1, 6).Draw(t, "polled"))
			for !b.done() {
				outcome := rapid.SampledFrom([]string{"commit", "commit", "abort", "crash"}).Draw(t, "outcome")
				if failures > 20 {
					outcome = "commit"
				}
				w.transact(b, limits{records: rapid.IntRange(1, 25).Draw(t, "records"), bytes: 1 << 20}, outcome == "commit")
				if outcome == "commit" {
					continue
				}
				failures++
				if outcome == "crash" {
					w.restart()
				}
				break
			}
		}
		w.check(want, results)
	})
}

func (w *world) check(want map[string]int, results map[int64]schemas.RoutedResult) {
	if !maps.Equal(w.deliveries, want) {
		w.t.Errorf("deliveries: got %v, want %v", w.deliveries, want)
	}
	if w.metadata != "" {
		w.t.Errorf("metadata after the last event: got %q, want none", w.metadata)
	}
	if len(w.entries) != len(w.log) {
		w.t.Fatalf("got %d entries of routed, want %d", len(w.entries), len(w.log))
	}
	for i, e := range w.entries {
		count := 0
		if results[e.Offset] == schemas.RoutedMatched {
			count = len(w.webhooks)
		}
		if e.Offset != w.log[i].Offset || e.Result != results[e.Offset] || e.Webhooks != count {
			w.t.Errorf("entry %d: got %+v, want offset %d, result %d, %d webhooks", i, e, w.log[i].Offset, results[w.log[i].Offset], count)
		}
		if (e.Result == schemas.RoutedRejected) != slices.Contains(w.rejected, e.Offset) {
			w.t.Errorf("rejected: got %v, entry %+v", w.rejected, e)
		}
	}
}

func TestCursorOutlivesChangesOfTheTable(t *testing.T) {
	t.Parallel()
	targets := func(ids ...string) (list []*table.Webhook) {
		for _, id := range ids {
			list = append(list, &table.Webhook{ID: id})
		}
		return list
	}
	for _, c := range []struct {
		name   string
		cursor cursor
		table  []*table.Webhook
		want   []*table.Webhook
	}{
		{"at the beginning", cursor{}, targets("a", "b"), targets("a", "b")},
		{"in the middle", cursor{"a", 1}, targets("a", "b"), targets("b")},
		{"at the end", cursor{"b", 2}, targets("a", "b"), nil},
		{"the last one deleted", cursor{"b", 2}, targets("a", "c"), targets("c")},
		{"all deleted", cursor{"b", 2}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := c.cursor.rest(c.table)
			if !slices.EqualFunc(got, c.want, func(a, b *table.Webhook) bool { return a.ID == b.ID }) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestCursorText(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text    string
		want    cursor
		wantErr bool
	}{
		{"", cursor{}, false},
		{"kgo-member-id", cursor{}, false},
		{"fan-out/1 7 wh_a", cursor{"wh_a", 7}, false},
		{"fan-out/1 7 an id with spaces", cursor{"an id with spaces", 7}, false},
		{"fan-out/1 x wh_a", cursor{}, true},
		{"fan-out/1 0 wh_a", cursor{}, true},
		{"fan-out/1 7", cursor{}, true},
		{"fan-out/2 7 wh_a", cursor{}, true},
	} {
		got, err := parseCursor(c.text)
		if got != c.want || (err != nil) != c.wantErr {
			t.Errorf("%q: got %v, %v, want %v, error %v", c.text, got, err, c.want, c.wantErr)
		}
		if err == nil && strings.HasPrefix(c.text, cursorKind) && got.metadata() != c.text {
			t.Errorf("%q: written again it is %q", c.text, got.metadata())
		}
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	plain := func(value string) *kgo.Record { return &kgo.Record{Value: []byte(value), Timestamp: now()} }
	ours, err := schemas.Operational(schemas.WebhookDisabled, "wh_1.1", "org", "", now(), struct{}{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		record *kgo.Record
		want   schemas.RoutedResult
		reason schemas.Code
	}{
		{"fresh", plain(`{"id":"b","event":"labs.created","organization":"org"}`), schemas.RoutedMatched, ""},
		{"known", plain(`{"id":"a","event":"labs.created","organization":"org"}`), schemas.RoutedDuplicate, ""},
		{"known, another organization's", plain(`{"id":"a","event":"labs.created","organization":"org2"}`), schemas.RoutedMatched, ""},
		{"known, other payload", plain(`{"id":"a","event":"labs.created","organization":"org","payload":{}}`), schemas.RoutedRejected, schemas.CodeIDReused},
		{"without an id", plain(`{"event":"labs.created","organization":"org"}`), schemas.RoutedMatched, ""},
		{"ping", plain(`{"event":"ping","organization":"org"}`), schemas.RoutedMatched, ""},
		{"reserved service", plain(`{"event":"webhook.disabled","organization":"org"}`), schemas.RoutedRejected, schemas.CodeReservedName},
		{"reserved service alone", plain(`{"event":"delivery","organization":"org"}`), schemas.RoutedRejected, schemas.CodeReservedName},
		{"Postrider's own", ours.Record("events"), schemas.RoutedMatched, ""},
		{"empty", plain(""), schemas.RoutedRejected, schemas.CodeInvalidJSON},
		{"garbage", plain("\x00\xff"), schemas.RoutedRejected, schemas.CodeInvalidJSON},
		{"inflated", plain(strings.Repeat(" ", schemas.MaxEventRecordBytes+1)), schemas.RoutedRejected, schemas.CodeTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := dedup.NewWindow(10, time.Hour)
			d := decider{}
			d.decide(w, plain(`{"id":"a","event":"labs.created","organization":"org"}`))
			it := d.decide(w, c.record)
			if it.entry.Result != c.want {
				t.Errorf("got %v (%v), want %v", it.entry.Result, it.reason, c.want)
			}
			rejected, err := schemas.DecodeRejected(schemas.RejectedRecord("rejected", &kgo.Record{Topic: "events"}, errorOr(it.reason)))
			if err != nil || c.reason != "" && rejected.Reason != c.reason {
				t.Errorf("got reason %q, %v, want %q", rejected.Reason, err, c.reason)
			}
			if fresh := 2 - 1; c.want == schemas.RoutedMatched && w.Len() != 1+fresh || c.want != schemas.RoutedMatched && w.Len() != 1 {
				t.Errorf("the window holds %d ids after %v", w.Len(), it.entry.Result)
			}
		})
	}
}

func errorOr(err error) error {
	if err == nil {
		return schemas.Invalid(schemas.CodeInvalidRecord, "#", "no reason")
	}
	return err
}
