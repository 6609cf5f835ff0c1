package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// TestTenancy is P10: a key sees, changes and feeds what is its organization's,
// by the scopes that it has, for as long as it is in force.
func TestTenancy(t *testing.T) {
	s := start(t)
	ours, theirs := s.subscribe(t, "ours", "", "/ours", "*"), s.subscribe(t, "theirs", "north", "/theirs", "*")
	key := s.key(t, "ours", schemas.Scopes()...)
	t.Run("cannot see", func(t *testing.T) { s.checkUnseen(t, key, ours, theirs) })
	t.Run("cannot change", func(t *testing.T) { s.checkUnchanged(t, key, theirs) })
	t.Run("cannot feed", func(t *testing.T) { s.checkUnfed(t, key) })
	t.Run("scopes", func(t *testing.T) { s.checkScopes(t, ours) })
	t.Run("not in force", func(t *testing.T) { s.checkNotInForce(t, key) })
	t.Run("revoked", func(t *testing.T) { s.checkRevoked(t) })
}

// as is call with a key.
func (s *system) as(t *testing.T, key, method, path, body string, headers ...string) answer {
	t.Helper()
	return s.call(t, method, path, body, append(headers, bearer(key)...)...)
}

// list is the ids of a list.
func list(t *testing.T, a answer) (ids []string) {
	t.Helper()
	var page struct {
		Data []struct{ ID, Organization string }
	}
	if err := json.Unmarshal(a.Body, &page); err != nil || a.Status != http.StatusOK {
		t.Fatalf("got %d %s, want a list: %v", a.Status, a.Body, err)
	}
	for _, row := range page.Data {
		ids = append(ids, row.ID)
	}
	return ids
}

func (s *system) checkUnseen(t *testing.T, key string, ours, theirs webhook) {
	t.Helper()
	for _, query := range []string{"", "?organization=ours"} {
		if got, want := list(t, s.as(t, key, http.MethodGet, "/v1/webhooks"+query, "")), []string{ours.ID}; !reflect.DeepEqual(got, want) {
			t.Errorf("the list%s has webhooks %v, want %v", query, got, want)
		}
	}
	if both := list(t, s.call(t, http.MethodGet, "/v1/webhooks", "")); len(both) != 2 {
		t.Errorf("the admin sees %v, want both webhooks", both)
	}
	wantProblem(t, s.as(t, key, http.MethodGet, "/v1/webhooks?organization=theirs", ""), 403, "#/organization")
	wantProblem(t, s.as(t, key, http.MethodGet, "/v1/keys?organization=theirs", ""), 403, "#/organization")
	if a := s.as(t, key, http.MethodGet, "/v1/webhooks/"+ours.ID, ""); a.Status != http.StatusOK {
		t.Errorf("got %d for its own webhook, want 200", a.Status)
	}
	// What is another's looks as if it was not there at all.
	hidden := s.as(t, key, http.MethodGet, "/v1/webhooks/"+theirs.ID, "")
	wantProblem(t, hidden, 404, "#")
	absent := s.as(t, key, http.MethodGet, "/v1/webhooks/"+schemas.NewWebhookID(), "")
	if without(hidden.Body) != without(absent.Body) {
		t.Errorf("another's webhook answers %s, none at all %s", hidden.Body, absent.Body)
	}
	made := s.as(t, key, http.MethodPost, "/v1/keys", `{"scopes":["events:write"]}`).field(t, "id")
	other := s.want(t, http.StatusCreated, http.MethodPost, "/v1/keys", `{"organization":"theirs","scopes":["events:write"]}`).field(t, "id")
	if ids := list(t, s.as(t, key, http.MethodGet, "/v1/keys", "")); !slices.Contains(ids, made) || slices.Contains(ids, other) {
		t.Errorf("the list has keys %v, want %s and not %s", ids, made, other)
	}
}

// without is a problem without the request's id.
func without(problem []byte) string {
	text, _, _ := strings.Cut(string(problem), `"instance"`)
	return text
}

func (s *system) checkUnchanged(t *testing.T, key string, theirs webhook) {
	t.Helper()
	path := "/v1/webhooks/" + theirs.ID
	before := s.call(t, http.MethodGet, path, "")
	other := s.want(t, http.StatusCreated, http.MethodPost, "/v1/keys", `{"organization":"theirs","scopes":["events:write"]}`)
	wantProblem(t, s.as(t, key, http.MethodPatch, path, `{"active":false}`), 404, "#")
	wantProblem(t, s.as(t, key, http.MethodPatch, path, `{"active":false}`, "If-Match", `"1"`), 404, "#")
	wantProblem(t, s.as(t, key, http.MethodDelete, path, ""), 404, "#")
	wantProblem(t, s.as(t, key, http.MethodPost, path+"/ping", ""), 404, "#")
	wantProblem(t, s.as(t, key, http.MethodPost, "/webhook-events", `{"webhook":"`+theirs.ID+`","event":"ping"}`), 404, "#/webhook")
	wantProblem(t, s.as(t, key, http.MethodPost, "/webhook-events", `{"organization":"theirs","url":"https://example.com/","events":"*"}`), 403, "#/organization")
	wantProblem(t, s.as(t, key, http.MethodPost, "/v1/keys", `{"organization":"theirs","scopes":["events:write"]}`), 403, "#/organization")
	wantProblem(t, s.as(t, key, http.MethodDelete, "/v1/keys/"+other.field(t, "id"), ""), 404, "#")
	s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", `{"event":"a.b"}`, bearer(other.field(t, "key"))...)
	if after := s.call(t, http.MethodGet, path, ""); string(after.Body) != string(before.Body) {
		t.Errorf("their webhook was %s, is %s", before.Body, after.Body)
	}
}

// checkUnfed posts for another organization in every form, and for its own.
func (s *system) checkUnfed(t *testing.T, key string) {
	t.Helper()
	theirs := s.receiver.Count("/theirs")
	binary := []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/", "Ce-Type", "a.b", "Ce-Organization", "theirs", "Ce-Account", "north"}
	cloud := `{"specversion":"1.0","id":"1","source":"/","type":"a.b","organization":"theirs","account":"north"}`
	wantProblem(t, s.as(t, key, http.MethodPost, "/v1/events", `{"event":"a.b","organization":"theirs","account":"north"}`), 403, "#/organization")
	wantProblem(t, s.as(t, key, http.MethodPost, "/v1/events", `{}`, binary...), 403, "#/organization")
	wantProblem(t, s.as(t, key, http.MethodPost, "/v1/events", cloud, "Content-Type", "application/cloudevents+json"), 403, "#/organization")
	wantProblem(t, s.as(t, key, http.MethodPost, "/v1/events", "["+cloud+"]", "Content-Type", "application/cloudevents-batch+json"), 422, "#/0/organization")
	mixed := s.as(t, key, http.MethodPost, "/v1/events", `[{"id":"mixed","event":"a.b"},{"event":"a.b","organization":"theirs"}]`)
	var results struct{ Results []struct{ Status int } }
	if err := json.Unmarshal(mixed.Body, &results); err != nil || mixed.Status != http.StatusAccepted ||
		fmt.Sprint(results.Results) != "[{202} {403}]" {
		t.Errorf("a mixed batch got %d %s, want 202 and 403", mixed.Status, mixed.Body)
	}
	got := bodies(s.receiver.WaitFor(t, "/ours", 1, soon))
	if want := []string{`{"id":"mixed","event":"a.b"}`}; !reflect.DeepEqual(got, want) {
		t.Errorf("their own webhook got %s, want %s", got, want)
	}
	// An account of the same name does not make it theirs.
	s.as(t, key, http.MethodPost, "/v1/events", `{"event":"a.b","account":"north"}`)
	s.receiver.WaitFor(t, "/ours", 2, soon)
	s.quiet(t, "theirs")
	if n := s.receiver.Count("/theirs") - theirs; n != 0 { // the fence is the organization's, and this webhook the account's
		t.Errorf("another organization's webhook got %d requests, want none", n)
	}
}

// checkScopes makes a key for each scope and tries every route with it.
func (s *system) checkScopes(t *testing.T, ours webhook) {
	t.Helper()
	routes := []struct{ scope, method, path, body string }{
		{schemas.ScopeEventsWrite, http.MethodPost, "/v1/events", `{"event":"scoped.event"}`},
		{schemas.ScopeWebhooksRead, http.MethodGet, "/v1/webhooks", ``},
		{schemas.ScopeWebhooksRead, http.MethodGet, "/v1/webhooks/" + ours.ID, ``},
		{schemas.ScopeWebhooksWrite, http.MethodPatch, "/v1/webhooks/" + ours.ID, `{"description":"x"}`},
		{schemas.ScopeWebhooksWrite, http.MethodPost, "/v1/webhooks/" + ours.ID + "/ping", ``},
		{schemas.ScopeWebhooksWrite, http.MethodPost, "/webhook-events", `{"webhook":"` + ours.ID + `","event":"ping"}`},
		{schemas.ScopeWebhooksWrite, http.MethodPost, "/v1/webhooks", `{"url":"` + s.receiver.URL("/scoped") + `","events":"scoped"}`},
		{schemas.ScopeKeysWrite, http.MethodGet, "/v1/keys", ``},
		{schemas.ScopeKeysWrite, http.MethodPost, "/v1/keys", `{"scopes":["keys:write"]}`},
	}
	for _, scope := range schemas.Scopes() {
		key := s.key(t, "ours", scope)
		for _, r := range routes {
			a := s.as(t, key, r.method, r.path, r.body)
			if scope == r.scope && a.Status/100 != 2 {
				t.Errorf("%s: %s %s got %d %s, want it done", scope, r.method, r.path, a.Status, a.Body)
			}
			if scope != r.scope {
				wantProblem(t, a, 403, "#")
			}
		}
	}
	// Nobody gives what they do not have.
	key := s.key(t, "ours", schemas.ScopeKeysWrite)
	wantProblem(t, s.as(t, key, http.MethodPost, "/v1/keys", `{"scopes":["keys:write","events:write"]}`), 403, "#/scopes/1")
}

func (s *system) checkNotInForce(t *testing.T, key string) {
	t.Helper()
	changed := key[:len(key)-2] + "AA"
	if changed == key {
		changed = key[:len(key)-2] + "BA"
	}
	for name, header := range map[string]string{
		"none": "", "no scheme": key, "another scheme": "Basic " + key, "unknown": "Bearer " + strings.Repeat("x", 40),
		"one letter off": "Bearer " + changed, "cut": "Bearer " + key[:len(key)-1], "admin's, cut": "Bearer " + adminKey[:len(adminKey)-1],
	} {
		a := s.call(t, http.MethodPost, "/v1/events", `{"event":"a.b","organization":"ours"}`, "Authorization", header)
		wantProblem(t, a, 401, "#")
		if a.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: the answer does not say how to authenticate", name)
		}
	}
}

// checkRevoked revokes a key at one ingest: neither that one nor another takes a
// request with it that begins a second later.
func (s *system) checkRevoked(t *testing.T) {
	t.Helper()
	first := s.ingest
	s.startIngest(t, "ingest-2", loopback)
	second := s.ingest.WaitReady(t)
	made := s.want(t, http.StatusCreated, http.MethodPost, "/v1/keys", `{"organization":"ours","scopes":["events:write"]}`)
	key := made.field(t, "key")
	post := func(at *pipeline.Service) answer {
		s.ingest = at
		return s.as(t, key, http.MethodPost, "/v1/events", `{"event":"a.b"}`)
	}
	for _, at := range []*pipeline.Service{first, second} {
		if a := post(at); a.Status != http.StatusAccepted {
			t.Fatalf("a new key got %d %s, want 202", a.Status, a.Body)
		}
	}
	s.ingest = first
	s.want(t, http.StatusNoContent, http.MethodDelete, "/v1/keys/"+made.field(t, "id"), "")
	revoked := time.Now()
	wantProblem(t, post(first), 401, "#") // it has applied the change itself
	pipeline.Wait(t, soon, "the other ingest to refuse the key", func() error {
		begun := time.Now()
		a := post(second)
		if a.Status == http.StatusAccepted && begun.Sub(revoked) > time.Second {
			t.Errorf("the other ingest took a request that began %v after the key was revoked", begun.Sub(revoked))
		}
		if a.Status != http.StatusUnauthorized {
			return fmt.Errorf("%w: got %d", errNotYet, a.Status)
		}
		return nil
	})
	s.ingest = first
}
