package history_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// lines reads an export, and how it ended: nil after the chunk that ends an answer.
func (w *world) lines(t *testing.T, path, key string, each func(n int, line []byte)) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("got %d with %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	scan := bufio.NewScanner(resp.Body)
	n := 0
	for ; scan.Scan(); n++ {
		if !json.Valid(scan.Bytes()) {
			t.Fatalf("line %d is %q", n, scan.Bytes())
		}
		each(n, scan.Bytes())
	}
	return scan.Err()
}

func TestExport(t *testing.T) {
	w := start(t, pipeline.SharedClickHouse(t))
	const n = 12_000 // more than two pages of ClickHouse's
	var deliveries, events, changes []row
	for i := range n {
		deliveries, events, changes = append(deliveries, delivery(i, "acme", "pending")), append(events, event(i, "acme")), append(changes, change(i, "acme", "webhook"))
	}
	w.insert(t, "delivery_states", append(deliveries, delivery(n, "other", "pending"))...)
	ended := delivery(7, "acme", "dead")
	ended["version"] = 1
	w.insert(t, "delivery_states", ended)
	w.insert(t, "event_log", append(events, event(n, "other"))...)
	w.insert(t, "changes", append(changes, change(n, "other", "webhook"))...)
	key := w.makeKey(t, "acme", schemas.ScopeDeliveriesRead)
	for path, want := range map[string]int{
		"/v1/deliveries": n, "/v1/deliveries?status=dead": 1, "/v1/deliveries?status=held": 0, "/v1/events": n, "/v1/events?webhook=wh_1": n, "/v1/changes": n,
	} {
		seen := map[string]bool{}
		err := w.lines(t, path, key, func(i int, line []byte) {
			if strings.Contains(string(line), `"other"`) || strings.Contains(string(line), `"before"`) {
				t.Errorf("%s: got line %d %s", path, i, line)
			}
			seen[string(line)] = true
		})
		if len(seen) != want || err != nil {
			t.Errorf("%s: got %d different lines, %v, want %d", path, len(seen), err, want)
		}
	}
	ndjson := []string{"Accept", "text/html, application/x-ndjson;q=0.9"}
	for _, bad := range []string{"?limit=1", "?cursor=", "?status=gone"} {
		w.get(t, "/v1/deliveries"+bad, key, ndjson...).want(t, http.StatusUnprocessableEntity)
	}
	w.get(t, "/v1/deliveries?organization=other", key, ndjson...).want(t, http.StatusForbidden)
}

// begin begins an export that nobody reads, and returns what gives it up.
func (w *world) begin(t *testing.T) (giveUp func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+"/v1/deliveries", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminKey)
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req) //nolint:bodyclose // closed below, unread
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("got %v, %v, want an export", resp, err)
	}
	return func() { cancel(); _ = resp.Body.Close() }
}

// checkExportsAreFew begins exports until no more are taken. One that is given up
// makes room, and so does one whose client stays and does not read.
func (w *world) checkExportsAreFew(t *testing.T) {
	t.Helper()
	const most = 4
	giveUp := make([]func(), most)
	for i := range giveUp {
		giveUp[i] = w.begin(t)
	}
	none := []string{"/v1/deliveries?status=held", adminKey, "Accept", "application/x-ndjson"}
	roomAgain := func(why string) {
		t.Helper()
		pipeline.Wait(t, time.Minute, why, func() error {
			if a := w.get(t, none[0], none[1], none[2:]...); a.status != http.StatusOK || a.raw != "" {
				return fmt.Errorf("got %d with %s", a.status, a.raw) //nolint:err113 // told once
			}
			return nil
		})
	}
	w.get(t, none[0], none[1], none[2:]...).want(t, http.StatusServiceUnavailable)
	w.get(t, "/v1/deliveries?limit=1", adminKey).want(t, http.StatusOK)
	giveUp[0]()
	roomAgain("room for an export after one was given up")
	giveUp[0] = w.begin(t)
	roomAgain("room for an export while nobody reads the others")
	for _, end := range giveUp {
		end()
	}
}

// TestExportThatCannotEnd kills ClickHouse in the middle: the last line says so, and
// the answer has no proper end. Afterwards audit routes are 503, others go on.
func TestExportThatCannotEnd(t *testing.T) {
	store := pipeline.StartClickHouse(t)
	w := start(t, store)
	w.store.Query(t, `INSERT INTO postrider.delivery_states (organization, webhook_id, delivery_id, event_id, state, routed_at, updated_at, message_id)
		SELECT 'acme', 'wh_1', concat('dlv_', leftPad(toString(number), 45, '0')), toString(number), 'pending', now(), now(), repeat('m', 100) FROM numbers(300000)`)
	w.checkExportsAreFew(t)
	last, told := "", 0
	err := w.lines(t, "/v1/deliveries", adminKey, func(n int, line []byte) {
		if n == 1000 {
			store.Kill9(t)
		}
		last, told = string(line), n
	})
	if err == nil || !strings.HasPrefix(last, `{"error":{"type":"about:blank","title":"Service Unavailable","status":503`) || told < 1000 || told >= 300000 {
		t.Errorf("got line %d %s, and %v, want a 503 in the last line and no end", told, last, err)
	}
	for _, path := range []string{
		"/v1/events", "/v1/events/x", "/v1/deliveries", "/v1/deliveries/" + dlv(1), "/v1/changes",
	} {
		for _, accept := range []string{"application/json", "application/x-ndjson"} {
			if a := w.get(t, path, adminKey, "Accept", accept).want(t, http.StatusServiceUnavailable); a.header.Get("Retry-After") != "1" {
				t.Errorf("%s: got Retry-After %q", path, a.header.Get("Retry-After"))
			}
		}
	}
	a, err := w.try(t.Context(), http.MethodPost, "/v1/webhooks", adminKey, `{"organization":"acme","url":"https://example.com","events":"*"}`)
	if err != nil {
		t.Fatal(err)
	}
	hook, _ := a.want(t, http.StatusCreated).json["id"].(string)
	w.get(t, "/v1/webhooks/"+hook+"/stats", adminKey).want(t, http.StatusServiceUnavailable)
	if a, err = w.try(t.Context(), http.MethodPost, "/v1/events", adminKey, `{"event":"a.b","organization":"acme"}`); err != nil || a.status != http.StatusAccepted {
		t.Errorf("got %d, %v for an event while ClickHouse is away", a.status, err)
	}
}
