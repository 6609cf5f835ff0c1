package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/schemas"
)

// TestTenantsModel is P10 over random calls: two organizations and the admin make,
// change, list and delete webhooks and keys of their own and of each other, with keys of
// all scopes or some, and a model that holds who may do what foretells each answer.
func TestTenantsModel(t *testing.T) {
	s := start(t)
	// Of about thirty calls each; ids are new each time, so that a file of draws would repeat nothing.
	for name, value := range map[string]string{"rapid.checks": "30", "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		m := &tenants{
			t: t, s: s, webhooks: map[string]modelWebhook{}, keys: map[string]modelKey{},
			organizations: []string{fmt.Sprintf("a%d", run), fmt.Sprintf("b%d", run)},
		}
		m.tokens = append(m.tokens, modelKey{token: adminKey, scopes: schemas.Scopes()})
		for _, o := range m.organizations {
			m.tokens = append(m.tokens, m.newKey(rt, m.tokens[0], o, schemas.Scopes()))
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create webhook": m.createWebhook,
			"read webhook":   m.readWebhook,
			"change webhook": m.changeWebhook,
			"delete webhook": m.deleteWebhook,
			"list webhooks":  m.listWebhooks,
			"create key":     m.createKey,
			"read key":       m.readKey,
			"revoke key":     m.revokeKey,
			"list keys":      m.listKeys,
			"post event":     m.postEvent,
		})
	})
}

type modelWebhook struct{ organization, description string }

type modelKey struct {
	id, token    string
	organization string // empty: all
	scopes       []string
	revoked      bool
}

func (k modelKey) sees(organization string) bool {
	return k.organization == "" || k.organization == organization
}

// tenants is what there is, as the model has it.
type tenants struct {
	t             *testing.T
	s             *system
	organizations []string
	webhooks      map[string]modelWebhook // by id; what was deleted is an empty one
	keys          map[string]modelKey     // by id
	tokens        []modelKey              // that calls are made with
}

// who draws a key; it may have been revoked since.
func (m *tenants) who(rt *rapid.T) modelKey {
	k := rapid.SampledFrom(m.tokens).Draw(rt, "key")
	if known, ok := m.keys[k.id]; ok {
		return known
	}
	return k
}

// draw draws one of the ids that there are or were, or one that never was.
func draw[T any](rt *rapid.T, of map[string]T, never string) string {
	return rapid.SampledFrom(append(slices.Sorted(maps.Keys(of)), never)).Draw(rt, "id")
}

// call makes a call and holds its status to what the model says: 401 for a revoked key, 403 without the scope, else want.
func (m *tenants) call(rt *rapid.T, k modelKey, scope string, want int, method, path, body string) (a answer, done bool) {
	switch {
	case k.revoked:
		want = http.StatusUnauthorized
	case !slices.Contains(k.scopes, scope):
		want = http.StatusForbidden
	}
	a = m.s.as(m.t, k.token, method, path, body)
	if a.Status != want {
		rt.Fatalf("%s %s %s as %s of %q (revoked: %t, scopes %v): got %d %s, want %d", method, path, body, k.id, k.organization, k.revoked, k.scopes, a.Status, a.Body, want)
	}
	return a, want/100 == 2
}

// target draws the organization a call names, "" for none, and what becomes of it.
func (m *tenants) target(rt *rapid.T, k modelKey, missing int) (named, organization string, status int) {
	named = rapid.SampledFrom(append([]string{""}, m.organizations...)).Draw(rt, "organization")
	organization = named
	if named == "" {
		organization = k.organization
	}
	switch {
	case organization == "":
		return named, organization, missing
	case !k.sees(organization):
		return named, organization, http.StatusForbidden
	}
	return named, organization, 0
}

func member(name, value string) string {
	if value == "" {
		return ""
	}
	return fmt.Sprintf(",%q:%q", name, value)
}

func (m *tenants) createWebhook(rt *rapid.T) {
	k := m.who(rt)
	named, organization, status := m.target(rt, k, http.StatusUnprocessableEntity)
	if status == 0 {
		status = http.StatusCreated
	}
	body := fmt.Sprintf(`{"url":"https://example.com/","events":"a"%s}`, member("organization", named))
	if a, done := m.call(rt, k, schemas.ScopeWebhooksWrite, status, http.MethodPost, "/v1/webhooks", body); done {
		m.webhooks[a.field(m.t, "id")] = modelWebhook{organization: organization}
	}
}

// visible is the status of a call about one thing: 404 for what is not there, or another's.
func visible(k modelKey, organization string, ok int) int {
	if organization == "" || !k.sees(organization) {
		return http.StatusNotFound
	}
	return ok
}

func (m *tenants) readWebhook(rt *rapid.T) {
	k, id := m.who(rt), draw(rt, m.webhooks, schemas.NewWebhookID())
	w := m.webhooks[id]
	a, done := m.call(rt, k, schemas.ScopeWebhooksRead, visible(k, w.organization, http.StatusOK), http.MethodGet, "/v1/webhooks/"+id, "")
	if done && (a.field(m.t, "organization") != w.organization || !strings.Contains(string(a.Body), fmt.Sprintf(`"description":%q`, w.description)) && w.description != "") {
		rt.Fatalf("webhook %s is %s, want it of %s with %q", id, a.Body, w.organization, w.description)
	}
}

func (m *tenants) changeWebhook(rt *rapid.T) {
	k, id := m.who(rt), draw(rt, m.webhooks, schemas.NewWebhookID())
	w := m.webhooks[id]
	w.description = rapid.SampledFrom([]string{"one", "two", "three"}).Draw(rt, "description")
	if _, done := m.call(rt, k, schemas.ScopeWebhooksWrite, visible(k, w.organization, http.StatusOK), http.MethodPatch, "/v1/webhooks/"+id, `{"description":"`+w.description+`"}`); done {
		m.webhooks[id] = w
	}
}

func (m *tenants) deleteWebhook(rt *rapid.T) {
	k, id := m.who(rt), draw(rt, m.webhooks, schemas.NewWebhookID())
	if _, done := m.call(rt, k, schemas.ScopeWebhooksWrite, visible(k, m.webhooks[id].organization, http.StatusNoContent), http.MethodDelete, "/v1/webhooks/"+id, ""); done {
		m.webhooks[id] = modelWebhook{}
	}
}

// list lists, and returns the ids of those of this run: the admin sees other runs', too.
func (m *tenants) list(rt *rapid.T, k modelKey, scope, path string, known func(organization string) []string) {
	named, organization, status := m.target(rt, k, 0)
	if status == 0 {
		status = http.StatusOK
	}
	query := "?limit=1000"
	if named != "" {
		query += "&organization=" + named
	}
	a, done := m.call(rt, k, scope, status, http.MethodGet, path+query, "")
	if !done || organization == "" {
		return
	}
	got, want := list(m.t, a), known(organization)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		rt.Fatalf("%s%s as a key of %q has %v, want %v", path, query, k.organization, got, want)
	}
}

func (m *tenants) listWebhooks(rt *rapid.T) {
	m.list(rt, m.who(rt), schemas.ScopeWebhooksRead, "/v1/webhooks", func(organization string) (ids []string) {
		for id, w := range m.webhooks {
			if w.organization == organization {
				ids = append(ids, id)
			}
		}
		return ids
	})
}

func (m *tenants) listKeys(rt *rapid.T) {
	m.list(rt, m.who(rt), schemas.ScopeKeysWrite, "/v1/keys", func(organization string) (ids []string) {
		for id, k := range m.keys {
			if k.organization == organization {
				ids = append(ids, id)
			}
		}
		return ids
	})
}

// newKey makes a key that may be made.
func (m *tenants) newKey(rt *rapid.T, by modelKey, organization string, scopes []string) modelKey {
	text, err := json.Marshal(scopes)
	if err != nil {
		rt.Fatal(err)
	}
	a, _ := m.call(rt, by, schemas.ScopeKeysWrite, http.StatusCreated, http.MethodPost, "/v1/keys", fmt.Sprintf(`{"scopes":%s,"organization":%q}`, text, organization))
	k := modelKey{id: a.field(m.t, "id"), token: a.field(m.t, "key"), organization: organization, scopes: scopes}
	m.keys[k.id] = k
	return k
}

func (m *tenants) createKey(rt *rapid.T) {
	by := m.who(rt)
	scopes := rapid.SliceOfNDistinct(rapid.SampledFrom(schemas.Scopes()), 1, 3, rapid.ID[string]).Draw(rt, "scopes")
	organization := rapid.SampledFrom(m.organizations).Draw(rt, "organization")
	gives := by.sees(organization) && !slices.ContainsFunc(scopes, func(scope string) bool { return !slices.Contains(by.scopes, scope) })
	if gives && !by.revoked && slices.Contains(by.scopes, schemas.ScopeKeysWrite) {
		m.tokens = append(m.tokens, m.newKey(rt, by, organization, scopes))
		return
	}
	text, err := json.Marshal(scopes)
	if err != nil {
		rt.Fatal(err)
	}
	m.call(rt, by, schemas.ScopeKeysWrite, http.StatusForbidden, http.MethodPost, "/v1/keys", fmt.Sprintf(`{"scopes":%s,"organization":%q}`, text, organization))
}

func (m *tenants) readKey(rt *rapid.T) {
	k, id := m.who(rt), draw(rt, m.keys, schemas.NewKeyID())
	a, done := m.call(rt, k, schemas.ScopeKeysWrite, visible(k, m.keys[id].organization, http.StatusOK), http.MethodGet, "/v1/keys/"+id, "")
	if done && strings.Contains(string(a.Body), "revoked_at") != m.keys[id].revoked {
		rt.Fatalf("key %s is %s, want it revoked: %t", id, a.Body, m.keys[id].revoked)
	}
}

func (m *tenants) revokeKey(rt *rapid.T) {
	k, id := m.who(rt), draw(rt, m.keys, schemas.NewKeyID())
	if _, done := m.call(rt, k, schemas.ScopeKeysWrite, visible(k, m.keys[id].organization, http.StatusNoContent), http.MethodDelete, "/v1/keys/"+id, ""); done {
		revoked := m.keys[id]
		revoked.revoked = true
		m.keys[id] = revoked
	}
}

func (m *tenants) postEvent(rt *rapid.T) {
	k := m.who(rt)
	named, _, status := m.target(rt, k, http.StatusUnprocessableEntity)
	if status == 0 {
		status = http.StatusAccepted
	}
	m.call(rt, k, schemas.ScopeEventsWrite, status, http.MethodPost, "/v1/events", fmt.Sprintf(`{"event":"a.b"%s}`, member("organization", named)))
}
