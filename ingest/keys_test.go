package ingest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/postrider/postrider/schemas"
)

// makeKey makes a key and returns it and its id.
func (r *replica) makeKey(t *testing.T, organization string, scopes ...string) (key, id string) {
	t.Helper()
	body := fmt.Sprintf(`{"organization":%q,"name":"test","scopes":["%s"]}`, organization, strings.Join(scopes, `","`))
	got := r.do(t, request{path: "/v1/keys", body: body}).want(t, http.StatusCreated)
	return got.text("key"), got.text("id")
}

func TestKeysAreKeptAsHashes(t *testing.T) {
	f, r := start(t)
	key, id := r.makeKey(t, "acme", schemas.ScopeEventsWrite)
	records := f.readAll(t, f.topics.Keys)
	k, err := schemas.DecodeKey(records[0])
	if err != nil {
		t.Fatal(err)
	}
	if k.ID != id || k.Organization != "acme" || k.Name != "test" || fmt.Sprint(k.Scopes) != "[events:write]" {
		t.Errorf("got %+v", k)
	}
	secret := key[strings.LastIndexByte(key, '_')+1:]
	for _, record := range append(records, f.readAll(t, f.topics.Changes)...) {
		if strings.Contains(string(record.Value), secret) {
			t.Errorf("got the key in clear in %s", record.Topic)
		}
	}
	list := r.do(t, request{method: "GET", path: "/v1/keys"}).want(t, http.StatusOK)
	if !strings.Contains(list.raw, id) || strings.Contains(list.raw, secret) || strings.Contains(list.raw, k.Hash) {
		t.Errorf("got %s, want the key without itself or its hash", list.raw)
	}
	for _, bad := range []struct{ body, code, pointer string }{
		{`{"scopes":[]}`, "required", "#/scopes"},
		{`{"scopes":["all"]}`, "invalid_value", "#/scopes/0"},
		{`{"scopes":["keys:write"],"role":"x"}`, "unknown_field", "#/role"},
	} {
		r.do(t, request{path: "/v1/keys", body: bad.body}).want(t, http.StatusUnprocessableEntity).wantError(t, bad.code, bad.pointer)
	}
}

func TestKeysOpenWhatTheyShould(t *testing.T) {
	f, r := start(t)
	key, id := r.makeKey(t, "acme", schemas.ScopeEventsWrite)
	event := request{path: "/v1/events", body: `{"id":"1","event":"a"}`, key: key}
	r.do(t, event).want(t, http.StatusAccepted)
	if e := f.events(t)["1"]; e.Organization != "acme" {
		t.Errorf("got organization %q, want the key's own", e.Organization)
	}
	r.do(t, request{path: "/v1/webhooks", body: create, key: key}).want(t, http.StatusForbidden).wantError(t, "scope_missing", "#")

	last := key[len(key)-1:]
	for _, wrong := range []string{
		"-", "x", key + "x", "postrider_", strings.Repeat("x", 80), adminKey + "x",
		strings.TrimSuffix(key, last) + map[bool]string{true: "B", false: "A"}[last == "A"],
		strings.Replace(key, key[len("postrider_"):len("postrider_")+26], strings.Repeat("0", 26), 1),
	} {
		event.key = wrong
		got := r.do(t, event).want(t, http.StatusUnauthorized)
		got.wantError(t, "unauthorized", "#")
		if !strings.HasPrefix(got.header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("got WWW-Authenticate %q", got.header.Get("WWW-Authenticate"))
		}
	}

	// Revoked on one replica, refused on the other at its next look: a second at most.
	other := f.startReplica(t, "two")
	other.waitReady(t)
	event.key = key
	other.do(t, event).want(t, http.StatusAccepted)
	r.do(t, request{method: "DELETE", path: "/v1/keys/" + id}).want(t, http.StatusNoContent)
	r.do(t, event).want(t, http.StatusUnauthorized)
	waitFor(t, "the other replica to refuse the key", func() bool { return other.do(t, event).status == http.StatusUnauthorized })
	r.do(t, request{method: "DELETE", path: "/v1/keys/key_unknown"}).want(t, http.StatusNotFound)

	// A key made on one is good on the other at once: it asks before it refuses.
	for range 20 {
		event.key, _ = other.makeKey(t, "acme", schemas.ScopeEventsWrite)
		r.do(t, event).want(t, http.StatusAccepted)
	}
}

func TestOrganizationsAreApart(t *testing.T) {
	f, r := start(t)
	all := schemas.Scopes()
	acme, _ := r.makeKey(t, "acme", all...)
	other, otherID := r.makeKey(t, "other", all...)
	limited, _ := r.makeKey(t, "acme", schemas.ScopeKeysWrite)
	mine := r.do(t, request{path: "/webhook-events", body: `{"url":"https://example.com","events":"a"}`, key: acme}).want(t, http.StatusCreated)
	if mine.text("organization") != "acme" {
		t.Errorf("got %s, want the key's own organization", mine.raw)
	}
	theirs := r.do(t, request{path: "/webhook-events", body: `{"url":"https://example.com","events":"a"}`, key: other}).want(t, http.StatusCreated).text("id")
	before := len(f.readAll(t, f.topics.Webhooks))

	path := "/v1/webhooks/" + theirs
	for _, q := range []request{
		{method: "GET", path: path},
		{method: "PATCH", path: path, body: `{"active":false}`},
		{method: "DELETE", path: path},
		{path: path + "/ping"},
		{path: "/webhook-events", body: fmt.Sprintf(`{"webhook":%q,"event":"ping"}`, theirs)},
		{method: "DELETE", path: "/v1/keys/" + otherID},
	} {
		q.key = acme
		r.do(t, q).want(t, http.StatusNotFound)
	}
	for _, q := range []request{
		{path: "/webhook-events", body: strings.Replace(create, "acme", "other", 1)},
		{path: "/v1/events", body: `{"event":"a","organization":"other"}`},
		{path: "/v1/keys", body: `{"organization":"other","scopes":["keys:write"]}`},
		{method: "GET", path: "/v1/webhooks?organization=other"},
		{method: "GET", path: "/v1/keys?organization=other"},
	} {
		q.key = acme
		r.do(t, q).want(t, http.StatusForbidden).wantError(t, "organization_forbidden", "#/organization")
	}
	got := r.do(t, request{path: "/v1/events", body: `[{"event":"a","organization":"other"},{"event":"a"}]`, key: acme}).want(t, http.StatusAccepted)
	if !strings.Contains(got.raw, `"status":403`) || !strings.Contains(got.raw, `"status":202`) {
		t.Errorf("got %s, want the other organization's event refused", got.raw)
	}
	list := r.do(t, request{method: "GET", path: "/v1/webhooks", key: acme}).want(t, http.StatusOK)
	if strings.Contains(list.raw, theirs) || !strings.Contains(list.raw, mine.text("id")) {
		t.Errorf("got %s, want this organization's only", list.raw)
	}
	r.do(t, request{path: "/v1/keys", body: `{"scopes":["events:write"]}`, key: limited}).
		want(t, http.StatusForbidden).wantError(t, "scope_missing", "#/scopes/0")
	if len(f.readAll(t, f.topics.Webhooks)) != before || len(f.readAll(t, f.topics.Deliveries)) != 0 {
		t.Error("got something stored for another organization")
	}
}
