package ingest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

const create = `{"organization":"acme","active":true,"url":"https://example.com/hook","events":"ping"}`

func lastWebhook(t *testing.T, records []*kgo.Record) schemas.Webhook {
	t.Helper()
	if len(records) == 0 {
		t.Fatal("no record in webhooks")
	}
	w, err := schemas.DecodeWebhook(records[len(records)-1])
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWebhookContractCreates(t *testing.T) {
	f, r := start(t)
	got := r.do(t, request{path: "/webhook-events", body: create}).want(t, http.StatusCreated)

	w := lastWebhook(t, f.readAll(t, f.topics.Webhooks))
	if w.ID != got.text("id") || w.Organization != "acme" || !w.Active || w.URL != "https://example.com/hook" ||
		fmt.Sprint(w.Events) != "[ping]" || w.Revision != 1 {
		t.Errorf("got record %+v for answer %s", w, got.raw)
	}
	if got.header.Get("ETag") != `"1"` || got.header.Get("Location") != "/v1/webhooks/"+w.ID {
		t.Errorf("got headers %v, want the revision and the place", got.header)
	}
	// The secret is shown once, and stands in the record under the key ring only.
	secret, err := schemas.ParseSecret(got.text("secret"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := schemas.ParseKeyRing(f.keyRing)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := ring.Open(w.SecretIdentity(), w.Secrets[0])
	if err != nil || string(opened) != string(secret) {
		t.Errorf("got secret %q, %v, want the one that was shown", opened, err)
	}
	again := r.do(t, request{method: "GET", path: "/v1/webhooks/" + w.ID}).want(t, http.StatusOK)
	if strings.Contains(again.raw, "secret") || again.header.Get("ETag") != `"1"` {
		t.Errorf("got %s, %v, want the webhook without its secret", again.raw, again.header)
	}
	for _, record := range append(f.readAll(t, f.topics.Webhooks), f.readAll(t, f.topics.Changes)...) {
		if strings.Contains(string(record.Value), got.text("secret")) {
			t.Errorf("got the secret in clear in %s", record.Topic)
		}
	}
}

func TestPingReachesOneWebhookOnly(t *testing.T) {
	f, r := start(t)
	id := r.do(t, request{path: "/webhook-events", body: create}).want(t, http.StatusCreated).text("id")
	r.do(t, request{path: "/webhook-events", body: create}).want(t, http.StatusCreated)
	off := `{"active":false,"events":"other"}`
	r.do(t, request{method: "PATCH", path: "/v1/webhooks/" + id, body: off}).want(t, http.StatusOK)

	first := r.do(t, request{path: "/webhook-events", body: fmt.Sprintf(`{"webhook":%q,"event":"ping"}`, id)}).want(t, http.StatusAccepted)
	second := r.do(t, request{path: "/v1/webhooks/" + id + "/ping"}).want(t, http.StatusAccepted)

	records := f.readAll(t, f.topics.Deliveries)
	if told := len(f.readAll(t, f.topics.Events)); len(records) != 2 || told != 4 {
		t.Fatalf("got %d deliveries and %d events, want 2 and those of the webhooks' changes", len(records), told)
	}
	for i, eventID := range []string{first.text("id"), second.text("id")} {
		d, err := schemas.DecodeDelivery(records[i], [16]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf(`{"id":%q,"event":"ping"}`, eventID)
		if string(d.Body) != want || d.WebhookID != id || d.Cause != schemas.CausePing || d.WebhookRevision != 2 || d.Organization != "acme" {
			t.Errorf("got delivery %+v with body %s, want body %s", d, d.Body, want)
		}
	}

	r.do(t, request{path: "/webhook-events", body: `{"webhook":"wh_unknown","event":"ping"}`}).
		want(t, http.StatusNotFound).wantError(t, "not_found", "#/webhook")
	r.do(t, request{path: "/webhook-events", body: fmt.Sprintf(`{"webhook":%q,"event":"pong"}`, id)}).
		want(t, http.StatusUnprocessableEntity).wantError(t, "invalid_value", "#/event")
	r.do(t, request{path: "/v1/webhooks/wh_unknown/ping"}).want(t, http.StatusNotFound)
}

func TestPatchIsExact(t *testing.T) {
	f, r := start(t)
	body := `{"organization":"acme","url":"https://example.com","events":["a","b.c"],"description":"d","metadata":{"x":"1","y":"2"}}`
	id := r.do(t, request{path: "/v1/webhooks", body: body}).want(t, http.StatusCreated).text("id")
	path := "/v1/webhooks/" + id
	patch := func(body, match string) response {
		header := map[string]string{}
		if match != "" {
			header["If-Match"] = match
		}
		return r.do(t, request{method: "PATCH", path: path, body: body, header: header, contentType: "application/merge-patch+json"})
	}

	got := patch(`{"url":"HTTPS://Example.COM:443/a","description":null,"metadata":{"x":null,"z":"3"}}`, `"1"`).want(t, http.StatusOK)
	if got.text("url") != "https://example.com/a" || got.text("description") != "" || got.header.Get("ETag") != `"2"` ||
		fmt.Sprint(got.json["metadata"]) != "map[y:2 z:3]" || fmt.Sprint(got.json["events"]) != "[a b.c]" {
		t.Errorf("got %s with ETag %s", got.raw, got.header.Get("ETag"))
	}
	patch(`{"description":"late"}`, `"1"`).want(t, http.StatusPreconditionFailed).wantError(t, "revision_mismatch", "#")
	patch(`{"description":"weak"}`, `W/"2"`).want(t, http.StatusPreconditionFailed)
	patch(`{"description":"any"}`, `*`).want(t, http.StatusOK)
	patch(`{"metadata":null,"active":true}`, `"7", "3"`).want(t, http.StatusOK)
	if w := lastWebhook(t, f.readAll(t, f.topics.Webhooks)); w.Revision != 4 || w.Generation != 1 || w.Metadata != nil || w.Description != "any" {
		t.Errorf("got %+v, want revision 4, the first generation and no metadata", w)
	}
	for _, bad := range []struct{ body, code, pointer string }{
		{`{"id":"wh_x"}`, "read_only", "#/id"},
		{`{"organization":"other"}`, "read_only", "#/organization"},
		{`{"url":null}`, "required", "#/url"},
		{`{"url":7}`, "wrong_type", "#/url"},
		{`{"url":"http://10.0.0.1/"}`, "invalid_target", "#/url"},
		{`{"events":[]}`, "required", "#/events"},
		{`{"events":["a",null]}`, "wrong_type", "#/events/1"},
		{`{"events":["a","not a pattern"]}`, "invalid_value", "#/events/1"},
		{`{"active":"yes"}`, "wrong_type", "#/active"},
		{`{"colour":"red"}`, "unknown_field", "#/colour"},
	} {
		patch(bad.body, "").want(t, http.StatusUnprocessableEntity).wantError(t, bad.code, bad.pointer)
	}

	r.do(t, request{method: "DELETE", path: path, header: map[string]string{"If-Match": `"1"`}}).want(t, http.StatusPreconditionFailed)
	r.do(t, request{method: "DELETE", path: path, header: map[string]string{"If-Match": `"4"`}}).want(t, http.StatusNoContent)
	r.do(t, request{method: "DELETE", path: path}).want(t, http.StatusNotFound)
	r.do(t, request{method: "GET", path: path}).want(t, http.StatusNotFound)
	patch(`{}`, "").want(t, http.StatusNotFound)
	records := f.readAll(t, f.topics.Webhooks)
	if last := records[len(records)-1]; string(last.Key) != id || last.Value != nil {
		t.Errorf("got %s as the last record, want a tombstone", last.Value)
	}
}

func TestHandling(t *testing.T) {
	f, r := start(t)
	body := `{"organization":"acme","url":"https://example.com","events":"a","timeout_ms":2000,"retry_schedule":["30s","1h30m"],` +
		`"max_concurrency":4,"success":"2xx","final_statuses":[400,404],"format":"cloudevents",` +
		`"rate_limit":{"count":90,"per":"minute"}}`
	got := r.do(t, request{path: "/v1/webhooks", body: body}).want(t, http.StatusCreated)
	path := "/v1/webhooks/" + got.text("id")
	for _, member := range []string{`"timeout_ms":2000`, `"retry_schedule":["30s","1h30m"]`, `"max_concurrency":4`, `"success":"2xx"`, `"final_statuses":[400,404]`, `"format":"cloudevents"`, `"rate_limit":{"count":90,"per":"minute"}`} {
		if !strings.Contains(got.raw, member) {
			t.Errorf("got %s, want it to hold %s", got.raw, member)
		}
	}
	patch := func(body string) response { return r.do(t, request{method: "PATCH", path: path, body: body}) }

	r.do(t, request{path: path + "/ping"}).want(t, http.StatusAccepted)
	d, err := schemas.DecodeDelivery(f.readAll(t, f.topics.Deliveries)[0], [16]byte{1})
	if err != nil || d.Format != schemas.FormatCloudEvents || !strings.HasPrefix(string(d.Body), `{"specversion":"1.0","id":"evt_`) {
		t.Errorf("got ping %s in format %q, %v, want a CloudEvent", d.Body, d.Format, err)
	}
	patch(`{"timeout_ms":null,"retry_schedule":[],"success":null,"format":null}`).want(t, http.StatusOK)
	w := lastWebhook(t, f.readAll(t, f.topics.Webhooks))
	if schedule, own := w.Schedule(); w.TimeoutMS != nil || !own || len(schedule) != 0 || w.Success != "" || w.Concurrency(32) != 4 {
		t.Errorf("got %+v, want the default timeout, no retries, and four attempts at once as before", w.Handling)
	}
	patch(`{"retry_schedule":null}`).want(t, http.StatusOK)
	if w := lastWebhook(t, f.readAll(t, f.topics.Webhooks)); w.RetrySchedule != nil {
		t.Errorf("got schedule %v, want the default", w.RetrySchedule)
	}
	for _, bad := range []struct{ member, code, pointer string }{
		{`"timeout_ms":0`, "invalid_value", "#/timeout_ms"},
		{`"timeout_ms":30001`, "invalid_value", "#/timeout_ms"},
		{`"timeout_ms":"15s"`, "wrong_type", "#/timeout_ms"},
		{`"timeout_ms":1500.5`, "wrong_type", "#/timeout_ms"},
		{`"retry_schedule":["30s","-1s"]`, "invalid_value", "#/retry_schedule/1"},
		{`"retry_schedule":["soon"]`, "invalid_value", "#/retry_schedule/0"},
		{`"retry_schedule":["100h","100h"]`, "invalid_value", "#/retry_schedule"},
		{`"retry_schedule":"30s"`, "wrong_type", "#/retry_schedule"},
		{`"max_concurrency":0`, "invalid_value", "#/max_concurrency"},
		{`"max_concurrency":513`, "invalid_value", "#/max_concurrency"},
		{`"rate_limit":{"count":-1,"per":"second"}`, "invalid_value", "#/rate_limit/count"},
		{`"rate_limit":{"count":1,"per":"hour"}`, "invalid_value", "#/rate_limit/per"},
		{`"rate_limit":5`, "wrong_type", "#/rate_limit"},
		{`"format":"xml"`, "invalid_value", "#/format"},
		{`"success":"always"`, "invalid_value", "#/success"},
		{`"final_statuses":[404,200]`, "invalid_value", "#/final_statuses/1"},
		{`"final_statuses":[404,404]`, "invalid_value", "#/final_statuses"},
	} {
		patch("{"+bad.member+"}").want(t, http.StatusUnprocessableEntity).wantError(t, bad.code, bad.pointer)
		r.do(t, request{path: "/v1/webhooks", body: `{"organization":"acme","url":"https://example.com","events":"a",` + bad.member + `}`}).
			want(t, http.StatusUnprocessableEntity).wantError(t, bad.code, bad.pointer)
	}
}

func TestListWebhooks(t *testing.T) {
	_, r := start(t)
	want := map[string]bool{}
	for i := range 7 {
		organization := []string{"acme", "other"}[i%2]
		body := fmt.Sprintf(`{"organization":%q,"url":"https://example.com/%d","events":"a"}`, organization, i)
		id := r.do(t, request{path: "/v1/webhooks", body: body}).want(t, http.StatusCreated).text("id")
		if organization == "acme" {
			want[id] = true
		}
	}
	cursor, pages := "", 0
	for {
		got := r.do(t, request{method: "GET", path: "/v1/webhooks?organization=acme&limit=3&cursor=" + cursor}).want(t, http.StatusOK)
		data, _ := got.json["data"].([]any)
		for _, item := range data {
			w, _ := item.(map[string]any)
			id, _ := w["id"].(string)
			if !want[id] {
				t.Errorf("got webhook %q twice, or another organization's", id)
			}
			delete(want, id)
		}
		pages++
		next, ok := got.json["next"].(string)
		if !ok {
			break
		}
		cursor = next
	}
	if len(want) != 0 || pages != 2 {
		t.Errorf("got all but %v in %d pages, want all 4 in 2", want, pages)
	}
	all := r.do(t, request{method: "GET", path: "/v1/webhooks"}).want(t, http.StatusOK)
	if data, _ := all.json["data"].([]any); len(data) != 7 {
		t.Errorf("got %d webhooks of all organizations, want 7", len(data))
	}
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "cursor=" + strings.Repeat("z", 129)} {
		r.do(t, request{method: "GET", path: "/v1/webhooks?" + query}).
			want(t, http.StatusUnprocessableEntity).wantError(t, "invalid_parameter", "#")
	}
}

func TestChangesTellWhoDidWhat(t *testing.T) {
	f, r := start(t)
	id := r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	path := "/v1/webhooks/" + id
	r.do(t, request{method: "PATCH", path: path, body: `{"description":"new"}`}).want(t, http.StatusOK)
	refused := r.do(t, request{method: "PATCH", path: path, body: `{}`, header: map[string]string{"If-Match": `"9"`}})
	refused.want(t, http.StatusPreconditionFailed)
	r.do(t, request{method: "DELETE", path: path}).want(t, http.StatusNoContent)

	want := []struct{ action, before, after, failed string }{
		{"created", "", `"revision":1`, ""},
		{"updated", `"revision":1`, `"description":"new"`, ""},
		{"updated", "", "", "revision 2"},
		{"deleted", `"revision":2`, "", ""},
	}
	records := f.readAll(t, f.topics.Changes)
	if len(records) != len(want) {
		t.Fatalf("got %d changes, want %d", len(records), len(want))
	}
	for i, record := range records {
		c, err := schemas.DecodeChange(record)
		if err != nil {
			t.Fatal(err)
		}
		w := want[i]
		if c.Action != w.action || c.Object != "webhook" || c.ObjectID != id || c.Actor != "admin" || c.Organization != "acme" ||
			!strings.Contains(string(c.Before), w.before) || !strings.Contains(string(c.After), w.after) ||
			(len(c.Before) == 0) != (w.before == "") || (len(c.After) == 0) != (w.after == "") ||
			!strings.Contains(c.Error, w.failed) || (c.Error == "") != (w.failed == "") || c.RequestID == "" {
			t.Errorf("got change %d %s, want %+v", i, record.Value, w)
		}
	}
	if c, _ := schemas.DecodeChange(records[2]); !strings.HasSuffix(refused.text("instance"), ":"+c.RequestID) {
		t.Errorf("got instance %q, want that of request %s", refused.text("instance"), c.RequestID)
	}
}
