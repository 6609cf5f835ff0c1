package ingest_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/postrider/postrider/schemas"
)

func TestHeadersAndAuth(t *testing.T) {
	f, r := start(t)
	ring, err := schemas.ParseKeyRing(f.keyRing)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"organization":"acme","url":"https://example.com","events":"a",` +
		`"headers":[{"name":"X-Team","value":"blue"},{"name":"X-Token","value":"planted-token","sensitive":true}],` +
		`"auth":{"type":"basic","username":"Aladdin","password":"planted password"}}`
	made := r.do(t, request{path: "/v1/webhooks", body: body}).want(t, http.StatusCreated)
	path := "/v1/webhooks/" + made.text("id")
	shown := `"headers":[{"name":"X-Team","value":"blue"},{"name":"X-Token","sensitive":true}],"auth":{"type":"basic","username":"Aladdin"}`
	if !strings.Contains(made.raw, shown) {
		t.Errorf("got %s, want it to hold %s", made.raw, shown)
	}
	// opened returns what is sealed of the sensitive header and of auth.
	opened := func() (header, auth string) {
		w := lastWebhook(t, f.readAll(t, f.topics.Webhooks))
		for _, h := range w.Headers {
			if h.Sealed != nil {
				plain, err := ring.Open(w.HeaderIdentity(h.Name), *h.Sealed)
				if err != nil {
					t.Fatal(err)
				}
				header = string(plain)
			}
		}
		if w.Auth != nil {
			plain, err := ring.Open(w.AuthIdentity(), w.Auth.Sealed)
			if err != nil {
				t.Fatal(err)
			}
			auth = string(plain)
		}
		return header, auth
	}
	if header, auth := opened(); header != "planted-token" || auth != "planted password" {
		t.Errorf("got %q and %q sealed", header, auth)
	}
	patch := func(body string) response { return r.do(t, request{method: "PATCH", path: path, body: body}) }
	// What was read can be written back: secrets that were not shown stay.
	patch(`{`+strings.Replace(shown, "Aladdin", "Jasmine", 1)+`}`).want(t, http.StatusOK)
	if header, auth := opened(); header != "planted-token" || auth != "planted password" {
		t.Errorf("got %q and %q sealed after writing back what was read", header, auth)
	}
	patch(`{"headers":[{"name":"x-token","value":"planted-two","sensitive":true}],"auth":{"type":"bearer","token":"planted-three"}}`).want(t, http.StatusOK)
	if header, auth := opened(); header != "planted-two" || auth != "planted-three" {
		t.Errorf("got %q and %q sealed after a change", header, auth)
	}
	patch(`{"headers":null,"auth":null}`).want(t, http.StatusOK)
	if header, auth := opened(); header != "" || auth != "" {
		t.Errorf("got %q and %q after taking them away", header, auth)
	}
	for _, record := range append(f.readAll(t, f.topics.Webhooks), f.readAll(t, f.topics.Changes)...) {
		if strings.Contains(string(record.Value), "planted") {
			t.Errorf("a secret stands in clear in %s: %s", record.Topic, record.Value)
		}
	}
}

func TestHeadersAndAuthRefused(t *testing.T) {
	_, r := start(t)
	path := "/v1/webhooks/" + r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	for _, bad := range []struct{ member, code, pointer string }{
		{`"headers":[{"name":"Host","value":"other"}]`, "invalid_value", "#/headers/0/name"},
		{`"headers":[{"name":"Content-Length","value":"0"}]`, "invalid_value", "#/headers/0/name"},
		{`"headers":[{"name":"Webhook-Signature","value":"x"}]`, "invalid_value", "#/headers/0/name"},
		{`"headers":[{"name":"X Y","value":"x"}]`, "invalid_value", "#/headers/0/name"},
		{`"headers":[{"name":"","value":"x"}]`, "invalid_value", "#/headers/0/name"},
		{`"headers":[{"name":"A","value":"x"},{"name":"B","value":"x\r\nHost: other"}]`, "invalid_value", "#/headers/1/value"},
		{`"headers":[{"name":"A","value":"x\u0000","sensitive":true}]`, "invalid_value", "#/headers/0/value"},
		{`"headers":[{"name":"A"}]`, "required", "#/headers/0/value"},
		{`"headers":[{"name":"A","sensitive":true}]`, "required", "#/headers/0/value"},
		{`"headers":[{"name":"A","value":"1"},{"name":"a","value":"2"}]`, "invalid_value", "#/headers"},
		{`"auth":{"type":"digest"}`, "invalid_value", "#/auth/type"},
		{`"auth":{"type":"basic","password":"p"}`, "required", "#/auth/username"},
		{`"auth":{"type":"basic","username":"u:v","password":"p"}`, "invalid_value", "#/auth/username"},
		{`"auth":{"type":"basic","username":"u"}`, "required", "#/auth/password"},
		{`"auth":{"type":"bearer","token":"a b"}`, "invalid_value", "#/auth/token"},
		{`"auth":{"type":"bearer","token":""}`, "required", "#/auth/token"},
		{`"auth":{"type":"bearer","password":"p","token":"t"}`, "invalid_value", "#/auth"},
		{`"headers":[{"name":"authorization","value":"x"}],"auth":{"type":"bearer","token":"t"}`, "invalid_value", "#/headers/0/name"},
	} {
		r.do(t, request{method: "PATCH", path: path, body: "{" + bad.member + "}"}).
			want(t, http.StatusUnprocessableEntity).wantError(t, bad.code, bad.pointer)
		r.do(t, request{path: "/v1/webhooks", body: `{"organization":"acme","url":"https://example.com","events":"a",` + bad.member + `}`}).
			want(t, http.StatusUnprocessableEntity).wantError(t, bad.code, bad.pointer)
	}
}
