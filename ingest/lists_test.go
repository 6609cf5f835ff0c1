package ingest_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/postrider/postrider/schemas"
)

func TestListWebhooksThatAre(t *testing.T) {
	_, r := start(t)
	ids := map[string]string{}
	for name, more := range map[string]string{
		"plain": ``, "north": `,"account":"north"`, "off": `,"active":false`, "blue": `,"metadata":{"team":"blue","a:b":""}`, "labs": `,"events":"labs"`,
	} {
		if !strings.Contains(more, "events") {
			more += `,"events":["orders.created","*.removed"]`
		}
		body := fmt.Sprintf(`{"organization":"acme","url":"https://%s.example.com/hook"%s}`, name, more)
		ids[r.do(t, request{path: "/v1/webhooks", body: body}).want(t, http.StatusCreated).text("id")] = name
	}
	for id, name := range ids {
		if name == "labs" {
			r.do(t, request{path: "/v1/webhooks/" + id + "/pause"}).want(t, http.StatusOK)
		}
	}
	for query, want := range map[string]string{
		"":                                   "blue labs north off plain",
		"state=active":                       "blue north plain",
		"state=paused":                       "labs",
		"state=disabled":                     "off",
		"account=north":                      "north",
		"account=south":                      "",
		"event=orders.created":               "blue north off plain",
		"event=orders":                       "",
		"event=x.removed":                    "blue north off plain",
		"event=labs.created&state=paused":    "labs",
		"event=labs.created&state=active":    "",
		"url=https%3A%2F%2Fblue.example":     "blue",
		"url=https%3A%2F%2Fblue.example.org": "",
		"metadata=team%3Ablue":               "blue",
		"metadata=team%3Ared":                "",
		"metadata=a%3Ab%3A":                  "", // the key ends at the first colon
		"organization=other":                 "",
	} {
		got := r.listed(t, query)
		for i, id := range got {
			got[i] = ids[id]
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %v, want %s", query, got, want)
		}
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, query := range []string{
		"account=" + long(128), "url=" + long(2048), "event=" + long(200), "metadata=" + long(64) + "%3A" + long(512),
	} {
		r.do(t, request{method: "GET", path: "/v1/webhooks?" + query}).want(t, http.StatusOK)
	}
	for _, query := range []string{
		"state=enabled", "state=active&state=paused", "states=active", "account=" + long(129), "url=" + long(2049), "event=" + long(201), "event=a+b", "event=.a",
		"metadata=team", "metadata=%3Ablue", "metadata=" + long(64) + "%3A" + long(513),
	} {
		r.do(t, request{method: "GET", path: "/v1/webhooks?" + query}).want(t, http.StatusUnprocessableEntity).wantError(t, "invalid_parameter", "#")
	}
}

// listed is the ids of all pages of a list of webhooks.
func (r *replica) listed(t *testing.T, query string) (ids []string) {
	t.Helper()
	cursor := ""
	for pages := 0; pages == 0 || cursor != ""; pages++ {
		page := r.do(t, request{method: "GET", path: "/v1/webhooks?limit=2&" + query + "&cursor=" + cursor}).want(t, http.StatusOK)
		data, _ := page.json["data"].([]any)
		for _, item := range data {
			w, _ := item.(map[string]any)
			id, _ := w["id"].(string)
			ids = append(ids, id)
		}
		cursor, _ = page.json["next"].(string)
	}
	return ids
}

func TestMaxWebhooks(t *testing.T) {
	f := startCluster(t)
	f.maxWebhooks = 3
	f.createTopics(t)
	r := f.startReplica(t, "one")
	r.waitReady(t)
	acme, _ := r.makeKey(t, "acme", schemas.ScopeWebhooksWrite)
	other, _ := r.makeKey(t, "other", schemas.ScopeWebhooksWrite)
	const body = `{"url":"https://example.com/","events":"a"}`
	results := make(chan int)
	for range 8 { // at once: some stand in the same transaction
		go func() {
			got, err := r.try(t.Context(), request{path: "/v1/webhooks", key: acme, body: body})
			if err != nil {
				t.Error(err)
			}
			results <- got.status
		}()
	}
	counts := map[int]int{}
	for range 8 {
		counts[<-results]++
	}
	if counts[201] != 3 || counts[422] != 5 {
		t.Errorf("got %v, want three of eight made", counts)
	}
	refused := r.do(t, request{path: "/v1/webhooks", key: acme, body: body}).want(t, http.StatusUnprocessableEntity)
	refused.wantError(t, "too_many_webhooks", "#")
	r.do(t, request{path: "/v1/webhooks", key: other, body: body}).want(t, http.StatusCreated)
	made := r.do(t, request{path: "/v1/webhooks", body: `{"organization":"acme","url":"https://example.com/","events":"a"}`}).want(t, http.StatusCreated) // the admin may
	r.do(t, request{method: "PATCH", path: "/v1/webhooks/" + made.text("id"), key: acme, body: `{"description":"x"}`}).want(t, http.StatusOK)
	r.do(t, request{method: "DELETE", path: "/v1/webhooks/" + made.text("id"), key: acme}).want(t, http.StatusNoContent)
	r.do(t, request{path: "/v1/webhooks", key: acme, body: body}).want(t, http.StatusUnprocessableEntity)
}

func TestKeyRate(t *testing.T) {
	f := startCluster(t)
	f.keyRate = "2/minute"
	f.createTopics(t)
	r := f.startReplica(t, "one")
	r.waitReady(t)
	key, id := r.makeKey(t, "acme", schemas.Scopes()...)
	own := r.do(t, request{path: "/v1/keys", body: `{"organization":"acme","scopes":["keys:write"],"rate_limit":{"count":1,"per":"minute"}}`}).want(t, http.StatusCreated)
	for left := range 2 {
		got := r.do(t, request{method: "GET", path: "/v1/keys/" + id, key: key}).want(t, http.StatusOK)
		if policy, rest := got.header.Get("RateLimit-Policy"), got.header.Get("RateLimit"); policy != `"key";q=2;w=60` || !strings.HasPrefix(rest, fmt.Sprintf(`"key";r=%d;t=`, 1-left)) {
			t.Errorf("got policy %s, %s left", policy, rest)
		}
	}
	got := r.do(t, request{path: "/v1/events", body: `{"event":"a"}`, key: key}).want(t, http.StatusTooManyRequests)
	got.wantError(t, "rate_limited", "#")
	if after := got.header.Get("Retry-After"); after == "" || after == "0" {
		t.Errorf("got Retry-After %q", after)
	}
	r.do(t, request{method: "GET", path: "/v1/keys", key: own.text("key")}).want(t, http.StatusOK)
	r.do(t, request{method: "GET", path: "/v1/keys", key: own.text("key")}).want(t, http.StatusTooManyRequests)
	for range 5 {
		r.do(t, request{method: "GET", path: "/v1/keys"}).want(t, http.StatusOK) // the admin's
	}
	for body, pointer := range map[string]string{
		`{"scopes":["keys:write"],"rate_limit":{"count":0,"per":"second"}}`:     "#/rate_limit/count",
		`{"scopes":["keys:write"],"rate_limit":{"count":10001,"per":"second"}}`: "#/rate_limit/count",
		`{"scopes":["keys:write"],"rate_limit":{"count":1,"per":"hour"}}`:       "#/rate_limit/per",
		`{"scopes":["keys:write"],"rate_limit":null}`:                           "#/rate_limit",
		`{"scopes":["keys:write"],"rate_limit":{"count":1}}`:                    "#/rate_limit/per",
	} {
		if got := r.do(t, request{path: "/v1/keys", body: body}).want(t, http.StatusUnprocessableEntity); !strings.Contains(got.raw, pointer) {
			t.Errorf("%s: got %s, want it to tell of %s", body, got.raw, pointer)
		}
	}
}
