package ingest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// life is a webhook under test.
type life struct {
	*fixture
	*replica
	id, path string
}

func startLife(t *testing.T) *life {
	t.Helper()
	f, r := start(t)
	l := &life{fixture: f, replica: r}
	l.id = r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	l.path = "/v1/webhooks/" + l.id
	return l
}

// post makes a change without a body.
func (l *life) post(t *testing.T, action string) response {
	t.Helper()
	return l.do(t, request{path: l.path + "/" + action}).want(t, http.StatusOK)
}

func (l *life) patch(t *testing.T, body string) response {
	t.Helper()
	return l.do(t, request{method: "PATCH", path: l.path, body: body})
}

// wantState looks at an answer's state and revision, and at the record's generation.
func (l *life) wantState(t *testing.T, got response, state string, revision, generation int64) {
	t.Helper()
	w := lastWebhook(t, l.readAll(t, l.topics.Webhooks))
	if got.text("state") != state || got.header.Get("ETag") != fmt.Sprintf("%q", fmt.Sprint(revision)) || w.Revision != revision || w.Generation != generation {
		t.Errorf("got state %s at %s, record at revision %d, generation %d; want %s, %d, %d",
			got.text("state"), got.header.Get("ETag"), w.Revision, w.Generation, state, revision, generation)
	}
}

// say writes what a sender found out about the webhook.
func (l *life) say(t *testing.T, s schemas.WebhookState) {
	t.Helper()
	s.WebhookID = l.id
	record, err := s.Record(l.topics.WebhookStates)
	if err == nil {
		err = l.fixture.client(t).ProduceSync(t.Context(), record).FirstErr()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// told returns the names of operational events, in the order in which they were made.
func (l *life) told(t *testing.T) (names []string, records []*kgo.Record) {
	t.Helper()
	for _, record := range l.readAll(t, l.topics.Events) {
		e, err := schemas.DecodeEvent(record)
		if err != nil {
			t.Fatal(err)
		}
		if e.Source != schemas.OperationalSource || e.Organization != "acme" || string(record.Key) != e.PartitionKey() {
			t.Errorf("got event %+v under key %s", e, record.Key)
		}
		names, records = append(names, e.Name), append(records, record)
	}
	return names, records
}

func TestPauseResumeEnable(t *testing.T) {
	l := startLife(t)
	l.wantState(t, l.post(t, "resume"), "active", 1, 1)
	for range 2 {
		l.wantState(t, l.post(t, "pause"), "paused", 2, 1)
	}
	before := time.Now().Add(-time.Millisecond)
	for range 2 {
		l.wantState(t, l.post(t, "resume"), "active", 3, 1)
	}
	if w := lastWebhook(t, l.readAll(t, l.topics.Webhooks)); w.Paused || w.ResumedAt.Before(before) || w.ResumedAt.After(time.Now()) {
		t.Errorf("got paused %v, resumed at %s, want it just now", w.Paused, w.ResumedAt)
	}
	l.post(t, "pause")
	for range 2 {
		l.wantState(t, l.patch(t, `{"active":false}`), "disabled", 5, 1)
	}
	l.wantState(t, l.post(t, "enable"), "paused", 6, 2)
	l.wantState(t, l.patch(t, `{"active":true}`), "paused", 6, 2)
	l.patch(t, `{"active":false}`).want(t, http.StatusOK)
	l.wantState(t, l.post(t, "resume"), "disabled", 8, 2)
	for range 2 {
		got := l.patch(t, `{"active":true,"metadata":{},"signatures":null}`)
		l.wantState(t, got, "active", 9, 3)
		if strings.Contains(got.raw, "disabled") || strings.Contains(got.raw, "failing") {
			t.Errorf("got %s, want nothing of what the sender has not found", got.raw)
		}
	}
	names, _ := l.told(t)
	want := []string{"created", "updated", "updated", "updated", "disabled", "enabled", "disabled", "updated", "enabled"}
	if got := strings.ReplaceAll(fmt.Sprint(names), "webhook.", ""); got != fmt.Sprint(want) {
		t.Errorf("got events %s, want %v", got, want)
	}
	var actions []string
	for _, record := range l.readAll(t, l.topics.Changes) {
		c, err := schemas.DecodeChange(record)
		if err != nil {
			t.Fatal(err)
		}
		actions = append(actions, c.Action)
	}
	if got := fmt.Sprint(actions); got != "[created paused resumed paused updated enabled updated resumed updated]" {
		t.Errorf("got changes %s", got)
	}
}

func TestLifeIsRefused(t *testing.T) {
	l := startLife(t)
	foreign, _ := l.makeKey(t, "other", schemas.ScopeWebhooksWrite)
	reader, _ := l.makeKey(t, "acme", schemas.ScopeWebhooksRead)
	own, _ := l.makeKey(t, "acme", schemas.ScopeWebhooksWrite)
	for _, action := range []string{"pause", "resume", "enable"} {
		path := l.path + "/" + action
		l.do(t, request{path: "/v1/webhooks/wh_unknown/" + action}).want(t, http.StatusNotFound).wantError(t, "not_found", "#")
		l.do(t, request{path: path, key: foreign}).want(t, http.StatusNotFound).wantError(t, "not_found", "#")
		l.do(t, request{path: path, key: reader}).want(t, http.StatusForbidden).wantError(t, "scope_missing", "#")
		l.do(t, request{path: path, key: "-"}).want(t, http.StatusUnauthorized)
		l.do(t, request{method: "GET", path: path}).want(t, http.StatusMethodNotAllowed)
		l.do(t, request{path: path + "/more"}).want(t, http.StatusNotFound)
		l.do(t, request{path: path, header: map[string]string{"If-Match": `"7"`}}).
			want(t, http.StatusPreconditionFailed).wantError(t, "revision_mismatch", "#")
	}
	for _, member := range []string{`"state":"active"`, `"disabled_at":null`, `"disabled_reason":""`, `"failing_since":null`} {
		name := strings.Split(member, `"`)[1]
		l.patch(t, "{"+member+"}").want(t, http.StatusUnprocessableEntity).wantError(t, "read_only", "#/"+name)
		l.do(t, request{path: "/v1/webhooks", body: `{"organization":"acme","url":"https://example.com","events":"a",` + member + `}`}).
			want(t, http.StatusUnprocessableEntity).wantError(t, "unknown_field", "#/"+name)
	}
	if names, _ := l.told(t); len(names) != 1 || len(l.readAll(t, l.topics.Webhooks)) != 1 {
		t.Errorf("got events %v and %d records, want those of the creation alone", names, len(l.readAll(t, l.topics.Webhooks)))
	}
	l.do(t, request{path: l.path + "/pause", key: own, header: map[string]string{"If-Match": `"1"`}}).want(t, http.StatusOK)
}

// TestEnablingAlwaysWins is a sender that disables, in time and too late.
func TestEnablingAlwaysWins(t *testing.T) {
	l := startLife(t)
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	gone := schemas.WebhookState{Generation: 1, FailingSince: at, Attempts: 3, DisabledAt: at.Add(time.Minute), Reason: "gone"}

	l.say(t, schemas.WebhookState{Generation: 1, FailingSince: at, Attempts: 2})
	got := l.post(t, "resume") // a change reads the topics to their end
	l.wantState(t, got, "active", 1, 1)
	if got.text("failing_since") != "2026-11-23T12:00:00Z" || got.text("disabled_reason") != "" {
		t.Errorf("got %s, want it to be failing", got.raw)
	}
	l.say(t, gone)
	got = l.post(t, "pause")
	l.wantState(t, got, "disabled", 2, 1)
	for name, want := range map[string]string{
		"disabled_at": "2026-11-23T12:01:00Z", "disabled_reason": "gone", "failing_since": "2026-11-23T12:00:00Z", "active": "true",
	} {
		if fmt.Sprint(got.json[name]) != want {
			t.Errorf("got %s %v, want %s", name, got.json[name], want)
		}
	}
	list := l.do(t, request{method: "GET", path: "/v1/webhooks"}).want(t, http.StatusOK)
	if !strings.Contains(list.raw, `"disabled_reason":"gone"`) {
		t.Errorf("got list %s, want the state in it", list.raw)
	}
	l.wantState(t, l.post(t, "enable"), "paused", 3, 2)
	changes := l.readAll(t, l.topics.Changes)
	if c, err := schemas.DecodeChange(changes[len(changes)-1]); err != nil || !strings.Contains(string(c.Before), `"state":"disabled"`) || !strings.Contains(string(c.After), `"state":"paused"`) {
		t.Errorf("got change %+v, %v, want it to show both states", c, err)
	}
	l.say(t, gone) // decided before, written after
	l.wantState(t, l.post(t, "resume"), "active", 4, 2)

	gone.Generation = 2
	l.say(t, gone)
	l.wantState(t, l.patch(t, `{"active":true}`), "active", 5, 3)
	gone.Generation = 3
	l.say(t, gone)
	l.wantState(t, l.patch(t, `{"active":false}`), "disabled", 6, 3)
	l.wantState(t, l.post(t, "enable"), "active", 7, 4)
	l.wantState(t, l.post(t, "enable"), "active", 8, 5)
	gone.Generation = 4
	l.say(t, gone) // decided before it was enabled once more
	l.wantState(t, l.post(t, "resume"), "active", 8, 5)
	names, _ := l.told(t)
	want := []string{"created", "updated", "enabled", "updated", "enabled", "disabled", "enabled"}
	if got := strings.ReplaceAll(fmt.Sprint(names), "webhook.", ""); got != fmt.Sprint(want) {
		t.Errorf("got events %s, want %v", got, want)
	}
}

// TestOperationalEvents looks at what the events say, and that they stand in the transaction of the change.
func TestOperationalEvents(t *testing.T) {
	f, r := start(t)
	l := &life{fixture: f, replica: r}
	made := r.do(t, request{path: "/webhook-events", body: `{"organization":"acme","account":"north","url":"https://example.com/hook","events":"a",` +
		`"headers":[{"name":"X-Token","value":"pl4nted","sensitive":true}],"auth":{"type":"bearer","token":"pl4nted"}}`}).want(t, http.StatusCreated)
	l.id = made.text("id")
	l.path = "/v1/webhooks/" + l.id
	l.patch(t, `{"description":"new","active":false}`).want(t, http.StatusOK)
	l.patch(t, `{"description":"new","active":false}`).want(t, http.StatusOK) // no change
	l.patch(t, `{"description":7}`).want(t, http.StatusUnprocessableEntity)
	l.patch(t, `{"events":["not a pattern"]}`).want(t, http.StatusUnprocessableEntity)
	rotated := l.do(t, request{path: l.path + "/secrets"}).want(t, http.StatusCreated)
	l.do(t, request{method: "DELETE", path: l.path}).want(t, http.StatusNoContent)
	l.do(t, request{method: "DELETE", path: l.path}).want(t, http.StatusNotFound)

	want := []struct{ name, payload string }{
		{"r1.webhook.created", `"state":"active"`},
		{"r2.webhook.updated", `"description":"new"`},
		{"r2.webhook.disabled", `"state":"disabled"`},
		{"r3.webhook.updated", `"revision":3`},
		{"r3.webhook.deleted", `"revision":3`},
	}
	names, records := l.told(t)
	if len(records) != len(want) {
		t.Fatalf("got events %v, want %d", names, len(want))
	}
	for i, record := range records {
		e, err := schemas.DecodeEvent(record)
		if err != nil || e.ID != l.id+"."+want[i].name || e.Account != "north" || !strings.Contains(string(e.Payload), want[i].payload) {
			t.Errorf("got event %+v with %s, %v, want %+v", e, e.Payload, err, want[i])
		}
		for _, secret := range []string{"pl4nted", made.text("secret"), rotated.text("secret"), "nonce", "ciphertext", "sealed"} {
			if strings.Contains(string(e.Payload), secret) {
				t.Errorf("got %q in %s", secret, e.Payload)
			}
		}
		var members map[string]any
		if err := json.Unmarshal(e.Payload, &members); err != nil || members["id"] != l.id {
			t.Errorf("got payload %s, %v, want the webhook", e.Payload, err)
		}
	}
}

// TestInvalidSettingsInTheTopic writes them past the API.
func TestInvalidSettingsInTheTopic(t *testing.T) {
	l := startLife(t)
	spoil := func() {
		w := lastWebhook(t, l.readAll(t, l.topics.Webhooks))
		w.Active, w.Revision = true, w.Revision+1
		w.TimeoutMS, w.MaxConcurrency = new(0), new(-1)
		w.Headers = []schemas.Header{{Name: "Host", Value: "a\r\nb"}, {}}
		w.Auth, w.Format, w.Signatures = &schemas.Auth{Type: "?"}, "?", []string{"?"}
		w.RetrySchedule, w.RateLimit = []string{"soon"}, &schemas.RateLimit{Count: -1}
		record, err := w.Record(l.topics.Webhooks)
		if err == nil {
			err = l.fixture.client(t).ProduceSync(t.Context(), record).FirstErr()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	spoil()
	const mended = `"headers":null,"auth":null,"format":null,"signatures":null,"retry_schedule":null,"rate_limit":null,"timeout_ms":null`
	l.patch(t, `{`+mended+`}`).want(t, http.StatusUnprocessableEntity).wantError(t, "invalid_value", "#/max_concurrency")
	got := l.do(t, request{method: "GET", path: l.path}).want(t, http.StatusOK)
	if got.text("state") != "disabled" || !strings.HasPrefix(got.text("disabled_reason"), "invalid: #/") || got.json["active"] != false {
		t.Errorf("got %s, want it disabled with the reason", got.raw)
	}
	if n := l.metric(t, "postrider_ingest_registry_bad_records_total"); n != 1 {
		t.Errorf("got %v bad records, want 1", n)
	}
	for _, action := range []string{"pause", "enable", "secrets"} {
		l.do(t, request{path: l.path + "/" + action}).want(t, http.StatusUnprocessableEntity)
	}
	l.patch(t, `{"active":true}`).want(t, http.StatusUnprocessableEntity)
	l.do(t, request{path: l.path + "/ping"}).want(t, http.StatusConflict).wantError(t, "invalid_webhook", "#")
	l.do(t, request{method: "GET", path: "/v1/webhooks"}).want(t, http.StatusOK)
	l.do(t, request{method: "GET", path: "/.well-known/webhook-keys"}).want(t, http.StatusOK)

	got = l.patch(t, `{`+mended+`,"max_concurrency":4}`).want(t, http.StatusOK)
	l.wantState(t, got, "disabled", 3, 1)
	if got.text("disabled_reason") != "" {
		t.Errorf("got %s, want no reason any more", got.raw)
	}
	l.wantState(t, l.post(t, "enable"), "active", 4, 2)
	spoil()
	l.wantState(t, l.patch(t, `{"active":true,"max_concurrency":4,`+mended+`}`), "active", 6, 3)
	spoil()
	waitFor(t, "the bad record to be read", func() bool {
		return strings.HasPrefix(l.do(t, request{method: "GET", path: l.path}).text("disabled_reason"), "invalid")
	})
	l.do(t, request{method: "DELETE", path: l.path}).want(t, http.StatusNoContent)
	if names, _ := l.told(t); !slices.Equal(names[len(names)-3:], []string{"webhook.updated", "webhook.enabled", "webhook.deleted"}) {
		t.Errorf("got events %v", names)
	}
}
