package history_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// TestPagesWhileRowsArrive turns pages of each list while rows come in, newer and
// older ones: what was there at the beginning is on one page each, in order.
func TestPagesWhileRowsArrive(t *testing.T) {
	w := start(t, pipeline.SharedClickHouse(t))
	for _, list := range []struct {
		path, member, table string
		make                func(n int) row
		id                  func(n int) string
	}{
		{"/v1/deliveries", "id", "delivery_states", func(n int) row {
			d := delivery(n, "acme", "pending")
			d["routed_at"] = stamp(at0.Add(time.Duration(n/3) * time.Second)) // several in a moment
			return d
		}, dlv},
		{"/v1/events", "id", "event_log", func(n int) row {
			e := event(n, "acme")
			e["accepted_at"] = stamp(at0.Add(time.Duration(n/3) * time.Second))
			return e
		}, func(n int) string { return fmt.Sprintf("event-%d", n) }},
		{"/v1/changes", "object_id", "changes", func(n int) row { return change(n, "acme", "webhook") }, func(n int) string { return fmt.Sprint("id-", n) }},
	} {
		const n = 40
		var first []row
		for i := range n {
			first = append(first, list.make(100+i))
		}
		w.insert(t, list.table, first...)
		seen, last, next := map[string]int{}, "", 0
		path := list.path + "?organization=acme&limit=7"
		for cursor := ""; ; next++ {
			a := w.get(t, path+"&cursor="+cursor, adminKey)
			for _, id := range ids(t, a, list.member) {
				seen[id]++
				last = id
			}
			w.insert(t, list.table, list.make(200+next), list.make(10+next)) // newer, and late
			if cursor, _ = a.json["next"].(string); cursor == "" {
				break
			}
		}
		for i := range n {
			if got := seen[list.id(100+i)]; got != 1 {
				t.Errorf("%s: got %s %d times, want once", list.path, list.id(100+i), got)
			}
		}
		for id, times := range seen {
			if times != 1 {
				t.Errorf("%s: got %s %d times", list.path, id, times)
			}
		}
		if next < n/7 {
			t.Errorf("%s: got %d pages, ending with %s", list.path, next, last)
		}
	}
}

func TestFilters(t *testing.T) {
	w := start(t, pipeline.SharedClickHouse(t))
	second := func(n int) string {
		return url.QueryEscape(at0.Add(time.Duration(n) * time.Second).Format(time.RFC3339))
	}
	other := delivery(2, "acme", "dead")
	other["webhook_id"], other["event"], other["account"] = "wh_2", "a.c", "north"
	foreign := delivery(3, "other", "dead")
	w.insert(t, "delivery_states", delivery(1, "acme", "delivered"), other, foreign)
	quiet := event(2, "acme")
	quiet["matches"], quiet["event"], quiet["account"] = 0, "a.c", "north"
	unknown := event(4, "acme")
	unknown["matches"] = nil
	w.insert(t, "event_log", event(1, "acme"), quiet, event(3, "other"), unknown)
	copied := event(1, "acme")
	w.insert(t, "event_copies", row{"organization": "acme", "event_id": copied["event_id"], "result": "duplicate"}, row{"organization": "acme", "event_id": copied["event_id"], "result": "rejected"})
	refused := change(7, "acme", "key")
	refused["error"], refused["actor"], refused["action"] = "no such thing", "admin", "revoked"
	w.insert(t, "changes", change(1, "acme", "webhook"), refused, change(9, "other", "webhook"))
	key := w.makeKey(t, "acme", schemas.ScopeDeliveriesRead)
	for query, want := range map[string]string{
		"/v1/deliveries":                                          dlv(2) + " " + dlv(1),
		"/v1/deliveries?webhook=wh_2":                             dlv(2),
		"/v1/deliveries?event=a.b":                                dlv(1),
		"/v1/deliveries?event_id=event-2":                         dlv(2),
		"/v1/deliveries?event_id=event-3":                         "", // another's
		"/v1/deliveries?account=north&status=dead":                dlv(2),
		"/v1/deliveries?status=pending":                           "",
		"/v1/deliveries?since=" + second(2):                       dlv(2),
		"/v1/deliveries?until=" + second(2):                       dlv(1),
		"/v1/events":                                              "event-4 event-2 event-1",
		"/v1/events?matched=true":                                 "event-1",
		"/v1/events?matched=false":                                "event-2",
		"/v1/events?event=a.c&account=north":                      "event-2",
		"/v1/events?webhook=wh_1":                                 "event-1",
		"/v1/events?webhook=wh_1&since=" + second(2):              "",
		"/v1/events?since=" + second(1) + "&until=" + second(4):   "event-2 event-1",
		"/v1/changes":                                             "id-7 id-1",
		"/v1/changes?failed=true":                                 "id-7",
		"/v1/changes?failed=false":                                "id-1",
		"/v1/changes?actor=admin&action=revoked&object=key":       "id-7",
		"/v1/changes?object_id=id-1":                              "id-1",
		"/v1/changes?object_id=id-9":                              "", // another's
		"/v1/changes?since=" + second(1) + "&until=" + second(10): "id-7",
	} {
		member := "id"
		if strings.HasPrefix(query, "/v1/changes") {
			member = "object_id"
		}
		if got := strings.Join(ids(t, w.get(t, query, key), member), " "); got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
	w.checkBounds(t, key)
	w.get(t, "/v1/changes?organization=other", key).want(t, http.StatusForbidden)
	w.checkScopes(t, key)
}

// checkScopes looks at what a key with deliveries:read alone is shown, and what others are.
func (w *world) checkScopes(t *testing.T, key string) {
	t.Helper()
	if a := w.get(t, "/v1/events/event-1", key).want(t, http.StatusOK); a.json["copies"] != 1.0 || a.json["matches"] != 1.0 {
		t.Errorf("got %s, want it matched once and copied once", a.raw)
	}
	// What things were and became is for who may see them.
	if a := w.get(t, "/v1/changes", key); strings.Contains(a.raw, `"before"`) {
		t.Errorf("got %s without webhooks:read", a.raw)
	}
	looks := w.makeKey(t, "acme", schemas.ScopeDeliveriesRead, schemas.ScopeWebhooksRead)
	if a := w.get(t, "/v1/changes?object=webhook", looks); !strings.Contains(a.raw, `"after":{"n":2}`) {
		t.Errorf("got %s, want what became of the webhook", a.raw)
	}
	if a := w.get(t, "/v1/changes?object=key", looks); strings.Contains(a.raw, `"after"`) {
		t.Errorf("got %s, a key's change without keys:write", a.raw)
	}
}

// checkBounds asks with parameters at their bounds and beyond.
func (w *world) checkBounds(t *testing.T, key string) {
	t.Helper()
	for query, name := range map[string]string{
		"/v1/events?matched=yes": "matched", "/v1/events?account=" + strings.Repeat("a", 129): "account", "/v1/events?webhook=" + strings.Repeat("w", 65): "webhook",
		"/v1/events?status=dead": "status", "/v1/events?event=.": "event", "/v1/changes?failed=1": "failed", "/v1/changes?actor=" + strings.Repeat("a", 257): "actor",
		"/v1/changes?action=" + strings.Repeat("a", 65): "action", "/v1/changes?object=" + strings.Repeat("o", 65): "object",
		"/v1/changes?object_id=" + strings.Repeat("o", 257): "object_id", "/v1/changes?organization=" + strings.Repeat("o", 129): "organization",
		"/v1/events/event-1?limit=1x": "limit",
	} {
		if a := w.get(t, query, key).want(t, http.StatusUnprocessableEntity); !strings.Contains(a.raw, name) {
			t.Errorf("%s: got %s, want it to name %s", query, a.raw, name)
		}
	}
	for _, query := range []string{
		"/v1/events?account=" + strings.Repeat("a", 128), "/v1/events?webhook=" + strings.Repeat("w", 64),
		"/v1/changes?actor=" + strings.Repeat("a", 256) + "&action=" + strings.Repeat("a", 64) + "&object=" + strings.Repeat("o", 64),
		"/v1/changes?object_id=" + strings.Repeat("o", 256),
	} {
		w.get(t, query, key).want(t, http.StatusOK)
	}
}

// TestOneOfEach looks at an event with what matched it, and at a delivery with its
// outcomes: metadata, and what the target and the producer said, for who may.
func TestOneOfEach(t *testing.T) {
	w := start(t, pipeline.SharedClickHouse(t))
	const strange = "a/../b c?%é"
	e := event(1, "acme")
	e["event_id"], e["body"] = strange, `{"id":"`+strange+`","event":"a.b","payload":{"n": 1.0}}`
	one, two := delivery(1, "acme", "pending"), delivery(2, "acme", "dead")
	one["event_id"], two["event_id"] = strange, strange
	foreign := delivery(3, "other", "dead")
	foreign["event_id"] = strange
	w.insert(t, "event_log", e)
	w.insert(t, "delivery_states", one, two, foreign)
	w.insert(t, "outcomes",
		row{
			"organization": "acme", "webhook_id": "wh_1", "delivery_id": dlv(2), "attempt": 1, "status_code": 503, "result": "retry", "reason": "status", "url": "https://a",
			"webhook_revision": 3, "started_at": stamp(at0), "duration_ms": 12.5, "dns_ms": 1.25, "connect_ms": 2, "tls_ms": 3, "first_byte_ms": 4,
			"next_attempt_at": stamp(at0.Add(time.Second)), "response_head": "HTTP/1.1 503", "response_body": "later", "response_bytes": 5, "sender": "sender-1", "offset": 1,
		},
		row{
			"organization": "acme", "webhook_id": "wh_1", "delivery_id": dlv(2), "attempt": 2, "status_code": 500, "result": "dead", "reason": "status",
			"started_at": stamp(at0.Add(time.Second)), "duration_ms": 2.5, "first_byte_ms": 2, "response_body": "no", "response_bytes": 2, "sender": "sender-2", "offset": 2,
		})
	looks := w.makeKey(t, "acme", schemas.ScopeDeliveriesRead)
	reads := w.makeKey(t, "acme", schemas.ScopeDeliveriesRead, schemas.ScopePayloadsRead)
	foreignKey := w.makeKey(t, "other", schemas.Scopes()...)

	eventPath := "/v1/events/" + url.PathEscape(strange)
	a := w.get(t, eventPath, reads).want(t, http.StatusOK)
	for _, part := range []string{`"payload":{"n":1.0}`, dlv(1), dlv(2), `"next":null`, `"matches":1`, `"source":"/clinic"`} {
		if !strings.Contains(a.raw, part) {
			t.Errorf("got event %s, want it to hold %s", a.raw, part)
		}
	}
	if strings.Contains(a.raw, dlv(3)) {
		t.Errorf("got event %s with another organization's delivery", a.raw)
	}
	if a := w.get(t, eventPath, looks).want(t, http.StatusOK); strings.Contains(a.raw, "payload") {
		t.Errorf("got event %s without payloads:read", a.raw)
	}
	a = w.get(t, "/v1/deliveries/"+dlv(2), reads).want(t, http.StatusOK)
	for _, part := range []string{
		`"attempt":1,"status_code":503,"result":"retry","reason":"status","url":"https://a","webhook_revision":3,"started_at":"2026-11-01T12:00:00Z","duration_ms":12.5,` +
			`"dns_ms":1.25,"connect_ms":2,"tls_ms":3,"first_byte_ms":4,"next_attempt_at":"2026-11-01T12:00:01Z","response_bytes":5,"response_head":"HTTP/1.1 503","response_body":"bGF0ZXI=","sender":"sender-1"`,
		`"duration_ms":2.5,"first_byte_ms":2,"response_bytes":2,"response_body":"bm8=","sender":"sender-2"`,
	} {
		if !strings.Contains(a.raw, part) {
			t.Errorf("got delivery %s, want it to hold %s", a.raw, part)
		}
	}
	if a := w.get(t, "/v1/deliveries/"+dlv(2), looks).want(t, http.StatusOK); strings.Contains(a.raw, "response_body") || strings.Contains(a.raw, "response_head") {
		t.Errorf("got delivery %s without payloads:read", a.raw)
	}
	for _, path := range []string{"/v1/deliveries/" + dlv(2), eventPath, "/v1/events/nothing", "/v1/events/" + strings.Repeat("e", 2000)} {
		key := foreignKey
		w.get(t, path, key).want(t, http.StatusNotFound)
	}
	blind := w.makeKey(t, "acme", schemas.ScopePayloadsRead, schemas.ScopeWebhooksRead)
	for _, path := range []string{"/v1/events", eventPath, "/v1/changes", "/v1/deliveries", "/v1/webhooks/x/stats"} {
		w.get(t, path, blind).want(t, http.StatusForbidden)
	}
}

// An event that matched many is shown with the newest, and a cursor for the others.
func TestEventWithManyDeliveries(t *testing.T) {
	w := start(t, pipeline.SharedClickHouse(t))
	w.insert(t, "event_log", event(1, "acme"))
	var rows []row
	for n := range 130 {
		d := delivery(n, "acme", "pending")
		d["event_id"], d["webhook_id"] = "event-1", fmt.Sprint("wh_", n)
		rows = append(rows, d)
	}
	w.insert(t, "delivery_states", rows...)
	for key, organization := range map[string]string{w.makeKey(t, "acme", schemas.ScopeDeliveriesRead): "", adminKey: "&organization=acme"} {
		a := w.get(t, "/v1/events/event-1?"+organization, key).want(t, http.StatusOK)
		shown, _ := a.json["deliveries"].([]any)
		next, _ := a.json["next"].(string)
		rest := ids(t, w.get(t, "/v1/deliveries?event_id=event-1&cursor="+next+organization, key), "id")
		if len(shown) != 100 || len(rest) != 30 || rest[0] != dlv(29) {
			t.Errorf("got %d deliveries and then %d, want 100 and 30", len(shown), len(rest))
		}
	}
}

func TestStats(t *testing.T) {
	w := start(t, pipeline.SharedClickHouse(t))
	a, err := w.try(t.Context(), http.MethodPost, "/v1/webhooks", adminKey, `{"organization":"acme","url":"https://example.com","events":"*"}`)
	if err != nil {
		t.Fatal(err)
	}
	hook, _ := a.want(t, http.StatusCreated).json["id"].(string)
	var rows []row
	for n := range 100 {
		at := at0.Add(time.Duration(n) * time.Second)
		r := row{
			"organization": "acme", "webhook_id": hook, "delivery_id": dlv(n), "attempt": 1, "status_code": 200, "result": "delivered",
			"started_at": stamp(at), "accepted_at": stamp(at.Add(-50 * time.Millisecond)), "duration_ms": n + 1, "first_byte_ms": n + 1, "offset": n,
		}
		switch n {
		case 98:
			r["status_code"], r["result"], r["reason"] = 500, "dead", "status"
		case 99: // no request
			r["status_code"], r["result"], r["reason"], r["duration_ms"], r["first_byte_ms"] = 0, "held", "webhook_paused", 0, 0
		}
		rows = append(rows, r)
	}
	foreign := row{"organization": "other", "webhook_id": hook, "result": "dead", "started_at": stamp(at0), "duration_ms": 1}
	w.insert(t, "outcomes", append(rows, foreign)...)
	path := "/v1/webhooks/" + hook + "/stats"
	span := func(from, to int) string {
		return "?since=" + stamp(at0.Add(time.Duration(from)*time.Second)) + "&until=" + stamp(at0.Add(time.Duration(to)*time.Second))
	}
	key := w.makeKey(t, "acme", schemas.ScopeDeliveriesRead)
	all := w.get(t, path+span(0, 100), key).want(t, http.StatusOK)
	want := `"attempts":99,"results":{"dead":1,"delivered":98,"held":1},"reasons":{"status":1,"webhook_paused":1},"status_codes":{"200":98,"500":1},` +
		`"attempt_ms":{"p50":50,"p90":90,"p99":99,"max":99},"first_byte_ms":{"p50":50,"p90":90,"p99":99,"max":99},"delivery_ms":{"p50":99,"p90":139,"p99":148,"max":148}}`
	if !strings.Contains(all.raw, want) {
		t.Errorf("got %s, want %s", all.raw, want)
	}
	none := w.get(t, path+span(100, 200), key).want(t, http.StatusOK)
	if !strings.Contains(none.raw, `"attempts":0,"results":{},"reasons":{},"status_codes":{}}`) {
		t.Errorf("got %s, want nothing counted", none.raw)
	}
	w.get(t, path, key).want(t, http.StatusOK)
	for _, bad := range []string{"?since=soon", span(1, 1), "?limit=0", "?since=" + stamp(at0) + "&until=" + stamp(at0.Add(366*24*time.Hour+time.Millisecond))} {
		w.get(t, path+bad, key).want(t, http.StatusUnprocessableEntity)
	}
	w.get(t, path+"?since="+stamp(at0)+"&until="+stamp(at0.Add(366*24*time.Hour)), key).want(t, http.StatusOK)
	w.get(t, path, w.makeKey(t, "other", schemas.Scopes()...)).want(t, http.StatusNotFound)
	w.get(t, "/v1/webhooks/wh_x/stats", key).want(t, http.StatusNotFound)
}
