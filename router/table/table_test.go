package table_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/postrider/postrider/router/table"
	"github.com/postrider/postrider/schemas"
)

// model keeps the last good record of each key and asks all webhooks about each event.
type model struct {
	webhooks map[string]schemas.Webhook
	states   map[string]schemas.WebhookState
}

func (m *model) match(organization, account, name string) []string {
	var ids []string
	for id, w := range m.webhooks {
		s, found := m.states[id]
		switch {
		case !w.Active, found && s.Generation == w.Generation && !s.DisabledAt.IsZero():
		case w.Organization != organization, w.Account != "" && w.Account != account:
		case slices.ContainsFunc(w.Events, func(pattern string) bool { return matches(pattern, name) }):
			ids = append(ids, fmt.Sprint(id, " revision ", w.Revision))
		}
	}
	slices.Sort(ids)
	return ids
}

// matches is the webhook contract's rule, written without regard to an index.
func matches(pattern, name string) bool {
	service, method := schemas.SplitName(name)
	special := name == "ping" || service == "webhook" || service == "delivery"
	anyMethod, isAnyMethod := strings.CutPrefix(pattern, "*.")
	switch {
	case pattern == name:
		return true
	case method != "" && pattern == service:
		return true
	case special:
		return false
	default:
		return pattern == "*" || isAnyMethod && method != "" && anyMethod == method
	}
}

func TestTableAgreesWithModel(t *testing.T) {
	t.Parallel()
	topics := schemas.NewTopics("test.")
	ids := []string{"wh_a", "wh_b", "wh_c", "wh_d", "wh_e"}
	organizations, accounts := []string{"org-1", "org-2"}, []string{"", "account-1", "account-2"}
	patterns := []string{"*", "ping", "labs", "labs.created", "*.created", "com.labs", "com.labs.created", "webhook", "webhook.disabled", "*.disabled"}
	names := []string{"ping", "labs", "labs.created", "labs.removed", "com.labs.created", "webhook.disabled", "orders.disabled", "created"}
	rapid.Check(t, func(t *rapid.T) {
		one := func(label string, of []string) string { return rapid.SampledFrom(of).Draw(t, label) }
		tbl := newTable(t)
		m := &model{webhooks: map[string]schemas.Webhook{}, states: map[string]schemas.WebhookState{}}
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			id := one("id", ids)
			generation := int64(rapid.IntRange(1, 2).Draw(t, "generation"))
			switch one("what", []string{"webhook", "webhook", "webhook", "state", "delete", "delete state", "bad"}) {
			case "webhook":
				w := schemas.Webhook{
					ID: id, Organization: one("organization", organizations), Account: one("account", accounts), URL: "https://example.com",
					Active: rapid.IntRange(0, 3).Draw(t, "active") > 0, Generation: generation, Revision: int64(step),
					Events: rapid.SliceOfNDistinct(rapid.SampledFrom(patterns), 1, 4, rapid.ID).Draw(t, "events"),
				}
				m.webhooks[id] = w
				tbl.Apply(must(w.Record(topics.Webhooks)))
			case "state":
				s := schemas.WebhookState{WebhookID: id, Generation: generation}
				if rapid.Bool().Draw(t, "disabled") {
					s.DisabledAt = time.Unix(1_700_000_000, 0)
				}
				m.states[id] = s
				tbl.Apply(must(s.Record(topics.WebhookStates)))
			case "delete":
				delete(m.webhooks, id)
				tbl.Apply(schemas.Tombstone(topics.Webhooks, id))
			case "delete state":
				delete(m.states, id)
				tbl.Apply(schemas.Tombstone(topics.WebhookStates, id))
			case "bad":
				bad := schemas.Tombstone(topics.Webhooks, id)
				bad.Value, bad.Offset = []byte("{"), int64(step)
				tbl.Apply(bad)
			}
			organization, account, name := one("organization", organizations), one("account", accounts), one("name", names)
			var got []string
			for _, w := range tbl.Match(nil, organization, account, schemas.PatternsFor(name)) {
				got = append(got, fmt.Sprint(w.ID, " revision ", w.Revision))
			}
			if want := m.match(organization, account, name); !slices.Equal(got, want) {
				t.Fatalf("%s of %s/%s: got %v, want %v", name, organization, account, got, want)
			}
		}
	})
}

func TestBadRecordsAreCountedOnce(t *testing.T) {
	t.Parallel()
	topics := schemas.NewTopics("test.")
	registry := prometheus.NewRegistry()
	var log strings.Builder
	tbl := table.New(topics, slog.New(slog.NewTextHandler(&log, nil)), registry)
	good := schemas.Webhook{ID: "wh_a", Organization: "org", URL: "https://example.com", Active: true, Events: []string{"*"}, Revision: 1}
	tbl.Apply(must(good.Record(topics.Webhooks)))
	bad := must(good.Record(topics.Webhooks))
	bad.Value, bad.Offset = []byte(`{"id":7}`), 1
	for range 3 {
		tbl.Apply(bad)
	}
	want := `
# HELP postrider_router_bad_table_records_total Records of compacted topics that could not be read.
# TYPE postrider_router_bad_table_records_total counter
postrider_router_bad_table_records_total{topic="webhook-states"} 0
postrider_router_bad_table_records_total{topic="webhooks"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "postrider_router_bad_table_records_total"); err != nil {
		t.Error(err)
	}
	if got := strings.Count(log.String(), "offset=1"); got != 1 {
		t.Errorf("got %d log lines, want 1:\n%s", got, log.String())
	}
	if got := tbl.Match(nil, "org", "", schemas.PatternsFor("labs.created")); len(got) != 1 || got[0].Revision != 1 {
		t.Errorf("got %v, want the last good value", got)
	}
}

// TestInvalidWebhookIsNotRoutedTo writes settings that make no sense past the API: what was in force before is not any more.
func TestInvalidWebhookIsNotRoutedTo(t *testing.T) {
	t.Parallel()
	topics := schemas.NewTopics("test.")
	registry := prometheus.NewRegistry()
	var log strings.Builder
	tbl := table.New(topics, slog.New(slog.NewTextHandler(&log, nil)), registry)
	w := schemas.Webhook{ID: "wh_a", Organization: "org", URL: "https://example.com", Active: true, Events: []string{"*"}, Revision: 1}
	matched := func() int { return len(tbl.Match(nil, "org", "", schemas.PatternsFor("labs.created"))) }
	tbl.Apply(must(w.Record(topics.Webhooks)))
	w.TimeoutMS = new(0)
	bad := must(w.Record(topics.Webhooks))
	bad.Offset = 1
	for range 3 {
		tbl.Apply(bad)
	}
	if got := matched(); got != 0 {
		t.Errorf("got %d webhooks while its timeout is 0, want none", got)
	}
	if got := strings.Count(log.String(), "#/timeout_ms"); got != 1 || !strings.Contains(log.String(), "its webhook is disabled") || tbl.Err() != nil {
		t.Errorf("got %d log lines and %v, want 1:\n%s", got, tbl.Err(), log.String())
	}
	w.TimeoutMS = nil
	tbl.Apply(must(w.Record(topics.Webhooks)))
	if got := matched(); got != 1 {
		t.Errorf("got %d webhooks after it was mended, want 1", got)
	}
}

func TestUnknownVersionStopsRouting(t *testing.T) {
	t.Parallel()
	topics := schemas.NewTopics("test.")
	tbl := newTable(t)
	newer := schemas.Tombstone(topics.Webhooks, "wh_a")
	newer.Value = []byte("?") // a tombstone of any version is one
	newer.Headers = []kgo.RecordHeader{{Key: schemas.HeaderVersion, Value: []byte("2")}}
	tbl.Apply(newer)
	if err := tbl.Err(); err == nil || !strings.Contains(err.Error(), `"2"`) {
		t.Errorf("got %v, want an error that names the version", err)
	}
	tbl.Apply(schemas.Tombstone(topics.Webhooks, "wh_a"))
	if err := tbl.Err(); err != nil {
		t.Errorf("after the key was written again: %v", err)
	}
}

func TestRebuildTakesTheOldTablesPlaceWhole(t *testing.T) {
	t.Parallel()
	topics := schemas.NewTopics("test.")
	tbl := newTable(t)
	match := func() (ids []string) {
		for _, w := range tbl.Match(nil, "org", "", schemas.PatternsFor("labs.created")) {
			ids = append(ids, w.ID)
		}
		return ids
	}
	write := func(id string) {
		w := schemas.Webhook{ID: id, Organization: "org", URL: "https://example.com", Active: true, Events: []string{"labs"}}
		tbl.Apply(must(w.Record(topics.Webhooks)))
	}
	write("wh_a")
	tbl.Begin()
	write("wh_b")
	if got, want := match(), []string{"wh_a"}; !slices.Equal(got, want) {
		t.Errorf("while it is read again: got %v, want %v", got, want)
	}
	tbl.Done()
	if got, want := match(), []string{"wh_b"}; !slices.Equal(got, want) {
		t.Errorf("after that: got %v, want %v", got, want)
	}
}

func newTable(t rapid.TB) *table.Table {
	t.Helper()
	return table.New(schemas.NewTopics("test."), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

func must(r *kgo.Record, err error) *kgo.Record {
	if err != nil {
		panic(err)
	}
	return r
}

func BenchmarkMatch(b *testing.B) {
	topics := schemas.NewTopics("test.")
	for _, webhooks := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(webhooks, " webhooks, 2 matched"), func(b *testing.B) {
			tbl := table.New(topics, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			for i := range webhooks {
				w := schemas.Webhook{
					ID: fmt.Sprintf("wh_%026d", i), Organization: "org", URL: "https://example.com", Active: true,
					Events: []string{fmt.Sprintf("service-%d", i/2)},
				}
				tbl.Apply(must(w.Record(topics.Webhooks)))
			}
			patterns := schemas.PatternsFor("service-0.created")
			var matched []*table.Webhook
			b.ReportAllocs()
			for b.Loop() {
				matched = tbl.Match(matched[:0], "org", "account", patterns)
			}
		})
	}
}
