package ingest_test

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/schemas"
)

// fakeAudit stands for ClickHouse, in memory.
type fakeAudit struct {
	audit.Audit // what else is asked, its tests ask of ClickHouse

	mu       sync.Mutex
	rows     []audit.Delivery
	outcomes map[string][]audit.Outcome // by delivery
	events   map[string]*schemas.Event  // by id
}

func newFakeAudit() *fakeAudit {
	return &fakeAudit{outcomes: map[string][]audit.Outcome{}, events: map[string]*schemas.Event{}}
}

func (f *fakeAudit) add(rows ...audit.Delivery) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows = append(f.rows, rows...)
}

func (f *fakeAudit) matching(q audit.Filter) ([]audit.Delivery, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []audit.Delivery
	for _, d := range f.rows {
		if (q.Organization == "" || q.Organization == d.Organization) && (q.WebhookID == "" || q.WebhookID == d.WebhookID) &&
			(q.Event == "" || q.Event == d.Event) && (q.Status == "" || q.Status == d.Status) && !d.UpdatedAt.Before(q.Since) &&
			(q.Until.IsZero() || d.UpdatedAt.Before(q.Until)) && (q.RoutedBefore.IsZero() || d.RoutedAt.Before(q.RoutedBefore)) {
			found = append(found, d)
		}
	}
	return found, nil
}

// page orders deliveries by a time and their ids, and cuts a page out.
func page(found []audit.Delivery, at func(d *audit.Delivery) time.Time, sign int, after audit.Place, limit int) []audit.Delivery {
	order := func(a, b audit.Place) int { return sign * cmp.Or(a.At.Compare(b.At), strings.Compare(a.ID, b.ID)) }
	place := func(d *audit.Delivery) audit.Place { return audit.Place{At: at(d), ID: d.ID} }
	slices.SortFunc(found, func(a, b audit.Delivery) int { return order(place(&a), place(&b)) })
	if after.ID != "" {
		found = slices.DeleteFunc(found, func(d audit.Delivery) bool { return order(place(&d), after) <= 0 })
	}
	return found[:min(limit, len(found))]
}

func (f *fakeAudit) Deliveries(_ context.Context, q audit.Filter, after audit.Place, limit int) ([]audit.Delivery, error) {
	found, err := f.matching(q)
	return page(found, func(d *audit.Delivery) time.Time { return d.RoutedAt }, -1, after, limit), err
}

func (f *fakeAudit) Ended(_ context.Context, q audit.Filter, after audit.Place, limit int) ([]audit.Delivery, error) {
	found, err := f.matching(q)
	return page(found, func(d *audit.Delivery) time.Time { return d.UpdatedAt }, 1, after, limit), err
}

func (f *fakeAudit) Count(_ context.Context, q audit.Filter) (int, error) {
	found, err := f.matching(q)
	return len(found), err
}

func (f *fakeAudit) Delivery(_ context.Context, organization, id string) (audit.Delivery, error) {
	found, err := f.matching(audit.Filter{Organization: organization})
	for _, d := range found {
		if d.ID == id {
			return d, err
		}
	}
	return audit.Delivery{}, cmp.Or(err, audit.ErrNotFound)
}

func (f *fakeAudit) Outcomes(_ context.Context, d *audit.Delivery) ([]audit.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.outcomes[d.ID]), nil
}

func (f *fakeAudit) EventsOf(_ context.Context, of []audit.Delivery) ([]*schemas.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	events := make([]*schemas.Event, len(of))
	for i := range of {
		events[i] = f.events[of[i].EventID]
	}
	return events, nil
}

func deliveryID(n int64) string {
	return schemas.DeliveryID{Topic: [16]byte{1}, Partition: 2, Offset: n}.String()
}

// anHourAgo is when the tests' deliveries ended; number n of them n seconds later.
var anHourAgo = time.Now().UTC().Truncate(time.Second).Add(-time.Hour) //nolint:gochecknoglobals // a constant

// addDelivery adds delivery n, dead, of an event of its own with the payload {"n": <n>.0}.
func (f *fakeAudit) addDelivery(n int64, webhookID string, set func(d *audit.Delivery)) {
	at := anHourAgo.Add(time.Duration(n) * time.Second)
	d := audit.Delivery{
		ID: deliveryID(n), Organization: "acme", WebhookID: webhookID, EventID: fmt.Sprintf("event-%d", n), Event: "a.b", Cause: "event",
		Status: "dead", Reason: "status", Attempts: 3, StatusCode: 500, AcceptedAt: at.Add(-time.Minute), RoutedAt: at.Add(-time.Minute), UpdatedAt: at,
	}
	set(&d)
	f.add(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events[d.EventID] = &schemas.Event{
		ID: d.EventID, Name: d.Event, Organization: d.Organization, Source: "/clinic", Payload: fmt.Appendf(nil, `{"n": %d.0}`, n),
	}
}

func asIs(*audit.Delivery) {}

func get(path, key string) request { return request{method: "GET", path: path, key: key} }

func idsOf(t *testing.T, got response) (ids string) {
	t.Helper()
	rows, _ := got.want(t, http.StatusOK).json["data"].([]any)
	for _, row := range rows {
		d, _ := row.(map[string]any)
		id, _ := d["id"].(string)
		parsed, err := schemas.ParseDeliveryID(id)
		if err != nil {
			t.Fatal(err)
		}
		ids += fmt.Sprint(parsed.Offset, " ")
	}
	return ids
}

func TestListDeliveries(t *testing.T) {
	f, r := start(t)
	f.audit.addDelivery(1, "wh_1", asIs)
	f.audit.addDelivery(2, "wh_1", func(d *audit.Delivery) { d.Status, d.Event = "delivered", "a.c" })
	f.audit.addDelivery(3, "wh_2", func(d *audit.Delivery) { d.RoutedAt = anHourAgo.Add(-time.Hour) })
	f.audit.addDelivery(4, "wh_1", func(d *audit.Delivery) { d.Organization = "other" })
	f.audit.addDelivery(5, "wh_1", func(d *audit.Delivery) { d.Status = "pending" })
	acme, _ := r.makeKey(t, "acme", schemas.ScopeDeliveriesRead)
	at := func(n int) string { return anHourAgo.Add(time.Duration(n) * time.Second).Format(time.RFC3339) }
	for query, want := range map[string]string{
		"":                                    "5 2 1 3 ",
		"?organization=acme&status=dead":      "1 3 ",
		"?status=pending":                     "5 ",
		"?status=held":                        "",
		"?webhook=wh_2":                       "3 ",
		"?event=a.c":                          "2 ",
		"?since=" + at(2):                     "5 2 3 ",
		"?since=" + at(2) + "&until=" + at(3): "2 ",
		"?webhook=wh_1&status=dead&since=" + at(2): "",
	} {
		if got := idsOf(t, r.do(t, get("/v1/deliveries"+query, acme))); got != want {
			t.Errorf("%q: got deliveries %q, want %q", query, got, want)
		}
	}
	if got := idsOf(t, r.do(t, get("/v1/deliveries", ""))); got != "5 4 2 1 3 " {
		t.Errorf("got deliveries %q for the admin key, want all", got)
	}
	for query, name := range map[string]string{
		"?status=gone": "status", "?event=a..": "event", "?since=yesterday": "since", "?until=1": "until", "?limit=1001": "limit", "?limit=0": "limit",
		"?webhook=" + strings.Repeat("w", 65): "webhook", "?account=" + strings.Repeat("a", 129): "account", "?event_id=" + strings.Repeat("e", 257): "event_id",
		"?webhook=a%00": "webhook", "?status=dead&status=retry": "status", "?cursor=" + strings.Repeat("c", 129): "cursor",
		"?since=1969-12-31T23:59:59Z": "since", "?until=2200-01-01T00:00:00.001Z": "until", "?since=" + at(1) + "&until=" + at(1): "since",
	} {
		got := r.do(t, get("/v1/deliveries"+query, acme)).want(t, http.StatusUnprocessableEntity)
		got.wantError(t, "invalid_parameter", "#")
		if !strings.Contains(got.text("detail"), "parameter "+name+" must be") {
			t.Errorf("%q: got %s, want it to name the parameter", query, got.raw)
		}
	}
	if got := r.do(t, get("/v1/deliveries?stauts=dead", acme)).want(t, http.StatusUnprocessableEntity); !strings.Contains(got.text("detail"), "stauts") {
		t.Errorf("got %s, want it to name what is misspelt", got.raw)
	}
	for _, query := range []string{
		"?webhook=" + strings.Repeat("w", 64), "?account=" + strings.Repeat("é", 128), "?event_id=" + strings.Repeat("e", 256), "?limit=1000", "?limit=1",
		"?since=1970-01-01T00:00:00Z", "?until=2200-01-01T00:00:00Z", "?&cursor=&limit=5",
	} {
		r.do(t, get("/v1/deliveries"+query, acme)).want(t, http.StatusOK)
	}
}

// What comes while somebody turns pages is on none of them, and moves nothing.
func TestDeliveriesCursorIsStable(t *testing.T) {
	f, r := start(t)
	for n := range int64(7) {
		f.audit.addDelivery(n, "wh_1", func(d *audit.Delivery) { d.RoutedAt = anHourAgo.Add(time.Duration(n/3) * time.Second) })
	}
	got, path := "", "/v1/deliveries?limit=2"
	for next := int64(10); path != ""; next++ {
		answer := r.do(t, get(path, ""))
		got += idsOf(t, answer) + "| "
		path = ""
		if cursor := answer.text("next"); cursor != "" {
			path = "/v1/deliveries?limit=2&cursor=" + cursor
		}
		f.audit.addDelivery(next, "wh_1", func(d *audit.Delivery) { d.RoutedAt = anHourAgo.Add(time.Minute) })
	}
	if want := "6 5 | 4 3 | 2 1 | 0 | "; got != want {
		t.Errorf("got pages %s, want %s", got, want)
	}
}

// A cursor is of one question, asked by one organization; what was changed in it is refused.
func TestCursorsAreOfTheirQuestion(t *testing.T) {
	f, r := start(t)
	for n := range int64(5) {
		f.audit.addDelivery(n, "wh_1", asIs)
		f.audit.addDelivery(n+10, "wh_1", func(d *audit.Delivery) { d.Organization = "other" })
	}
	acme, _ := r.makeKey(t, "acme", schemas.ScopeDeliveriesRead)
	other, _ := r.makeKey(t, "other", schemas.ScopeDeliveriesRead)
	cursor := r.do(t, get("/v1/deliveries?webhook=wh_1&limit=2", acme)).want(t, http.StatusOK).text("next")
	if got := idsOf(t, r.do(t, get("/v1/deliveries?limit=1&cursor="+cursor+"&webhook=wh_1", acme))); got != "2 " {
		t.Errorf("got deliveries %s on the next page, want 2", got)
	}
	refused := func(query, key string) {
		t.Helper()
		r.do(t, get("/v1/deliveries"+query, key)).want(t, http.StatusBadRequest).wantError(t, "invalid_parameter", "#")
	}
	refused("?webhook=wh_1&cursor="+cursor, other)
	refused("?webhook=wh_1&cursor="+cursor, "")
	refused("?cursor="+cursor, acme)
	refused("?webhook=wh_1&status=dead&cursor="+cursor, acme)
	for i := range cursor {
		changed := byte('A')
		if cursor[i] == 'A' {
			changed = 'B'
		}
		refused("?webhook=wh_1&cursor="+cursor[:i]+string(changed)+cursor[i+1:], acme)
		refused("?webhook=wh_1&cursor="+cursor[:i+1]+"A"+cursor[i+1:], acme)
		if i > 0 {
			refused("?webhook=wh_1&cursor="+cursor[:i], acme)
		}
	}
	for _, bad := range []string{"zz", "6162", "%00", "."} {
		if got := r.do(t, get("/v1/deliveries?cursor="+bad, acme)); got.status != http.StatusBadRequest && got.status != http.StatusUnprocessableEntity {
			t.Errorf("%s: got %d", bad, got.status)
		}
	}
}

func TestGetDelivery(t *testing.T) {
	f, r := start(t)
	f.audit.addDelivery(1, "wh_1", asIs)
	f.audit.addDelivery(2, "wh_1", asIs)
	f.audit.outcomes[deliveryID(1)] = []audit.Outcome{
		{Attempt: 1, StatusCode: 500, Result: "dead", Reason: "status", ResponseHead: "HTTP/1.1 500", ResponseBody: []byte("words")},
	}
	path := "/v1/deliveries/" + deliveryID(1)
	may, _ := r.makeKey(t, "acme", schemas.ScopeDeliveriesRead, schemas.ScopePayloadsRead)
	got := r.do(t, get(path, may)).want(t, http.StatusOK)
	for _, member := range []string{`"id":"` + deliveryID(1), `"status":"dead"`, `"reason":"status"`, `"attempts":3`, `"response_head":"HTTP/1.1 500"`, `"response_body":"d29yZHM="`} {
		if !strings.Contains(got.raw, member) {
			t.Errorf("got %s, want it to hold %s", got.raw, member)
		}
	}
	looks, _ := r.makeKey(t, "acme", schemas.ScopeDeliveriesRead)
	if got := r.do(t, get(path, looks)).want(t, http.StatusOK); strings.Contains(got.raw, "response_") || !strings.Contains(got.raw, `"outcomes":[{`) {
		t.Errorf("got %s, want it without the target's words", got.raw)
	}
	if got := r.do(t, get("/v1/deliveries/"+deliveryID(2), looks)).want(t, http.StatusOK); !strings.Contains(got.raw, `"outcomes":[]`) {
		t.Errorf("got %s, want no outcomes", got.raw)
	}
	for _, id := range []string{deliveryID(3), "dlv_1", "x", strings.ToUpper(deliveryID(1))} {
		r.do(t, get("/v1/deliveries/"+id, looks)).want(t, http.StatusNotFound).wantError(t, "not_found", "#")
	}
	blind, _ := r.makeKey(t, "acme", schemas.ScopePayloadsRead, schemas.ScopeDeliveriesRetry)
	for _, path := range []string{path, "/v1/deliveries"} {
		r.do(t, get(path, blind)).want(t, http.StatusForbidden).wantError(t, "scope_missing", "#")
	}
	r.do(t, request{path: path + "/retry", key: looks}).want(t, http.StatusForbidden).wantError(t, "scope_missing", "#")
}

// made returns what stands in deliveries, the oldest first.
func (f *fixture) made(t *testing.T) []schemas.Delivery {
	t.Helper()
	var made []schemas.Delivery
	for _, record := range f.readAll(t, f.topics.Deliveries) {
		d, err := schemas.DecodeDelivery(record, [16]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, d)
	}
	return made
}

func TestRetryDelivery(t *testing.T) {
	f, r := start(t)
	hook := r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	for n, status := range []string{"dead", "discarded", "delivered", "pending", "retry", "held"} {
		f.audit.addDelivery(int64(n), hook, func(d *audit.Delivery) { d.Status = status })
	}
	retry := func(n int64) response { return r.do(t, request{path: "/v1/deliveries/" + deliveryID(n) + "/retry"}) }
	first := retry(0).want(t, http.StatusAccepted)
	id, err := schemas.ParseDeliveryID(first.text("id"))
	d := f.made(t)[0]
	if err != nil || id.Partition != d.ID.Partition || id.Offset != d.ID.Offset || id.Topic == [16]byte{} {
		t.Errorf("got id %+v, %v, want that of the record at %+v", id, err, d.ID)
	}
	if first.header.Get("Location") != "/v1/deliveries/"+id.String() {
		t.Errorf("got Location %q", first.header.Get("Location"))
	}
	if d.WebhookID != hook || d.Cause != schemas.CauseRetry || d.EventID != "event-0" || d.Event != "a.b" || d.Organization != "acme" ||
		!d.AcceptedAt.Equal(anHourAgo.Add(-time.Minute)) || string(d.Body) != `{"id":"event-0","event":"a.b","payload":{"n": 0.0}}` {
		t.Errorf("got %+v with %s, want the same event again", d, d.Body)
	}
	retry(1).want(t, http.StatusAccepted)
	r.do(t, request{method: "PATCH", path: "/v1/webhooks/" + hook, body: `{"format":"cloudevents"}`}).want(t, http.StatusOK)
	retry(2).want(t, http.StatusAccepted)
	made := f.made(t)
	slices.SortFunc(made, func(a, b schemas.Delivery) int { return cmp.Compare(a.ID.Offset, b.ID.Offset) })
	if last := made[len(made)-1]; len(made) != 3 || last.Format != schemas.FormatCloudEvents || !strings.HasSuffix(string(last.Body), `,"data":{"n": 2.0}}`) ||
		!strings.Contains(string(last.Body), `"source":"/clinic"`) {
		t.Errorf("got %d deliveries, the last with %s, want three and a CloudEvent", len(made), last.Body)
	}
	for n := int64(3); n < 6; n++ {
		retry(n).want(t, http.StatusConflict).wantError(t, "not_ended", "#")
	}
	delete(f.audit.events, "event-1")
	retry(1).want(t, http.StatusConflict).wantError(t, "body_not_kept", "#")
	r.do(t, request{method: "DELETE", path: "/v1/webhooks/" + hook}).want(t, http.StatusNoContent)
	retry(0).want(t, http.StatusConflict).wantError(t, "webhook_deleted", "#")
	retry(9).want(t, http.StatusNotFound)
	if len(f.made(t)) != 3 {
		t.Error("got a delivery of what was refused")
	}
}

func TestRetryBody(t *testing.T) {
	_, r := start(t)
	hook := r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	path := "/v1/webhooks/" + hook + "/retry"
	for _, bad := range []struct{ body, code, pointer string }{
		{`{}`, "required", "#/since"},
		{`{"since":"yesterday"}`, "invalid_value", "#/since"},
		{`{"since":7}`, "wrong_type", "#/since"},
		{`{"since":null}`, "wrong_type", "#/since"},
		{`{"since":"2026-01-01T00:00:00Z","until":"soon"}`, "invalid_value", "#/until"},
		{`{"since":"2026-01-01T00:00:00Z","until":"2999-01-01T00:00:00Z"}`, "invalid_value", "#/until"},
		{`{"since":"2026-01-01T00:00:00Z","until":"2026-01-01T00:00:00Z"}`, "invalid_value", "#/since"},
		{`{"since":"2999-01-01T00:00:00Z"}`, "invalid_value", "#/since"},
		{`{"since":"2026-01-01T00:00:00Z","rate":0}`, "invalid_value", "#/rate"},
		{`{"since":"2026-01-01T00:00:00Z","rate":1001}`, "invalid_value", "#/rate"},
		{`{"since":"2026-01-01T00:00:00Z","rate":1.5}`, "wrong_type", "#/rate"},
		{`{"since":"2026-01-01T00:00:00Z","speed":1}`, "unknown_field", "#/speed"},
	} {
		r.do(t, request{path: path, body: bad.body}).want(t, http.StatusUnprocessableEntity).wantError(t, bad.code, bad.pointer)
	}
	r.do(t, request{path: path, body: `{`}).want(t, http.StatusBadRequest)
	r.do(t, get(path, "")).want(t, http.StatusMethodNotAllowed)
}

func TestRetryAllOfAWebhook(t *testing.T) {
	f, r := start(t)
	hook := r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	for n := range int64(6) {
		f.audit.addDelivery(n, hook, asIs)
	}
	f.audit.addDelivery(6, hook, func(d *audit.Delivery) { d.Status = "delivered" })
	f.audit.addDelivery(7, "wh_other", asIs)
	delete(f.audit.events, "event-3")
	path := "/v1/webhooks/" + hook + "/retry"
	body := fmt.Sprintf(`{"since":%q,"until":%q,"rate":%%d}`, anHourAgo.Add(time.Second).Format(time.RFC3339), anHourAgo.Add(time.Minute).Format(time.RFC3339))

	// One a second: it is running while the others are refused.
	slow := r.do(t, request{path: path, body: fmt.Sprintf(body, 1)}).want(t, http.StatusAccepted)
	if slow.text("state") != "running" || slow.json["total"] != 5.0 || slow.header.Get("Location") != path+"/"+slow.text("id") {
		t.Errorf("got %s, want a job of five", slow.raw)
	}
	r.do(t, request{path: path, body: fmt.Sprintf(body, 1)}).want(t, http.StatusConflict).wantError(t, "job_running", "#")
	slowPath := path + "/" + slow.text("id")
	r.do(t, request{method: "DELETE", path: slowPath}).want(t, http.StatusNoContent)
	r.do(t, request{method: "DELETE", path: slowPath}).want(t, http.StatusConflict).wantError(t, "job_ended", "#")
	if got := r.do(t, get(slowPath, "")).want(t, http.StatusOK); got.text("state") != "cancelled" || got.text("ended_at") == "" {
		t.Errorf("got %s, want it cancelled", got.raw)
	}
	before := len(f.made(t))

	job := r.do(t, request{path: path, body: fmt.Sprintf(body, 1000)}).want(t, http.StatusAccepted)
	var got response
	waitFor(t, "the job to be done", func() bool {
		got = r.do(t, get(path+"/"+job.text("id"), "")).want(t, http.StatusOK)
		return got.text("state") == "done"
	})
	if got.json["done"] != 4.0 || got.json["skipped"] != 1.0 || got.json["total"] != 5.0 {
		t.Errorf("got %s, want four done and one skipped", got.raw)
	}
	var events []string
	for _, d := range f.made(t) {
		events = append(events, d.EventID)
	}
	for _, n := range []int{1, 2, 4, 5} {
		if !slices.Contains(events, fmt.Sprintf("event-%d", n)) {
			t.Errorf("got deliveries of %v, want one of event-%d", events, n)
		}
	}
	if len(events) != before+4 {
		t.Errorf("got deliveries of %v after %d, want four more", events, before)
	}
	actions := ""
	for _, record := range f.readAll(t, f.topics.Changes) {
		if c, err := schemas.DecodeChange(record); err != nil || c.Object == "job" && c.Error == "" {
			actions += c.Action + " "
		}
	}
	if want := "created cancelled created done "; actions != want {
		t.Errorf("got changes %s, want %s and no steps", actions, want)
	}
}

func TestDeliveriesOfOthersAreNotThere(t *testing.T) {
	f, r := start(t)
	theirs := r.do(t, request{path: "/v1/webhooks", body: strings.Replace(create, "acme", "other", 1)}).want(t, http.StatusCreated).text("id")
	f.audit.addDelivery(1, theirs, func(d *audit.Delivery) { d.Organization = "other" })
	path := "/v1/webhooks/" + theirs + "/retry"
	body := `{"since":"2026-01-01T00:00:00Z","rate":1}`
	job := r.do(t, request{path: path, body: body}).want(t, http.StatusAccepted).text("id")
	mine := r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	acme, _ := r.makeKey(t, "acme", schemas.Scopes()...)
	for _, q := range []request{
		{method: "GET", path: "/v1/deliveries/" + deliveryID(1)},
		{path: "/v1/deliveries/" + deliveryID(1) + "/retry"},
		{path: path, body: body},
		{method: "GET", path: path + "/" + job},
		{method: "DELETE", path: path + "/" + job},
		{method: "GET", path: "/v1/webhooks/" + mine + "/retry/" + job},
		{method: "DELETE", path: "/v1/webhooks/" + mine + "/retry/" + job},
	} {
		q.key = acme
		r.do(t, q).want(t, http.StatusNotFound).wantError(t, "not_found", "#")
	}
	r.do(t, get("/v1/deliveries?organization=other", acme)).want(t, http.StatusForbidden).wantError(t, "organization_forbidden", "#/organization")
	if got := idsOf(t, r.do(t, get("/v1/deliveries", acme))); got != "" {
		t.Errorf("got deliveries %s of another organization", got)
	}
	if got := r.do(t, get(path+"/"+job, "")).want(t, http.StatusOK); got.text("state") == "cancelled" {
		t.Error("got a job cancelled by another organization")
	}
}

// ClickHouse away costs its own routes only, also where it was never there.
func TestClickHouseAway(t *testing.T) {
	f := startCluster(t)
	f.createTopics(t)
	f.audit = nil
	f.clickHouse.Address, _ = freePort(t)
	r := f.startReplica(t, "one")
	r.waitReady(t)
	waitFor(t, "the replica to say that ClickHouse is away", func() bool {
		got := r.readiness(t)
		return got.code == http.StatusOK && strings.Contains(got.body.String(), `"status":"degraded"`) &&
			strings.Contains(got.body.String(), `"name":"clickhouse","required":false,"state":"down"`)
	})
	hook := r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	r.do(t, request{path: "/v1/events", body: event}).want(t, http.StatusAccepted)
	for _, q := range []request{
		{method: "GET", path: "/v1/deliveries"},
		{method: "GET", path: "/v1/deliveries/" + deliveryID(1)},
		{path: "/v1/deliveries/" + deliveryID(1) + "/retry"},
		{path: "/v1/webhooks/" + hook + "/retry", body: `{"since":"2026-01-01T00:00:00Z"}`},
	} {
		r.wantUnavailable(t, q)
	}
}

// TestJobMakesEachOnceWhenAnswersAreLost loses every third answer to the end of a
// transaction: a step that was made is not made again, and one that was not is.
func TestJobMakesEachOnceWhenAnswersAreLost(t *testing.T) {
	t.Parallel() // most of it is waiting to try again
	l := &loss{key: kmsg.EndTxn, every: 3}
	f, r := start(t, kfake.ListenFn(l.listen))
	const n = 12
	var got response
	waitFor(t, "a webhook", func() bool {
		got = r.do(t, request{path: "/v1/webhooks", body: create})
		return got.status == http.StatusCreated
	})
	hook := got.text("id")
	for i := range int64(n) {
		f.audit.addDelivery(i, hook, asIs)
	}
	body := fmt.Sprintf(`{"since":%q,"until":%q,"rate":2}`, anHourAgo.Format(time.RFC3339), anHourAgo.Add(time.Minute).Format(time.RFC3339))
	waitFor(t, "a job", func() bool {
		status := r.do(t, request{path: "/v1/webhooks/" + hook + "/retry", body: body}).status
		return status == http.StatusAccepted || status == http.StatusConflict // begun by a call whose end was not known
	})
	waitFor(t, "the job to be done", func() bool {
		records := f.readAll(t, f.topics.Jobs)
		job, err := schemas.DecodeJob(records[len(records)-1])
		return err == nil && job.State == schemas.JobDone && job.Done == n
	})
	made := map[string]int{}
	for _, d := range f.made(t) {
		made[d.EventID]++
	}
	for event, times := range made {
		if times != 1 {
			t.Errorf("got %d deliveries of %s", times, event)
		}
	}
	if len(made) != n || l.lost.Load() == 0 {
		t.Errorf("got deliveries of %d events with %d answers lost, want %d", len(made), l.lost.Load(), n)
	}
}
