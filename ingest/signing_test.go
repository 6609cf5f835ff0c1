package ingest_test

import (
	"crypto/ed25519"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/schemas"
)

const ownSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" //nolint:gosec // the specification's example

func TestRotateSecret(t *testing.T) {
	f, r := start(t)
	ring, err := schemas.ParseKeyRing(f.keyRing)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"organization":"acme","url":"https://example.com","events":"a","secret":"` + ownSecret + `"}`
	made := r.do(t, request{path: "/v1/webhooks", body: body}).want(t, http.StatusCreated)
	if made.text("secret") != ownSecret {
		t.Errorf("got secret %q, want the owner's own", made.text("secret"))
	}
	path := "/v1/webhooks/" + made.text("id")
	rotate := func(body string) response { return r.do(t, request{path: path + "/secrets", body: body}) }
	// live returns the secrets in force, newest first, and when the second ends.
	live := func() (secrets []string, until time.Time) {
		w := lastWebhook(t, f.readAll(t, f.topics.Webhooks))
		for i, sealed := range w.Secrets {
			plain, err := ring.Open(w.SecretIdentity(), sealed)
			if err != nil {
				t.Fatal(err)
			}
			secrets = append(secrets, schemas.FormatSecret(plain))
			if i == 1 {
				until = sealed.ExpiresAt
			}
		}
		return secrets, until
	}

	second := rotate("").want(t, http.StatusCreated).text("secret")
	secrets, until := live()
	if left := time.Until(until); len(secrets) != 2 || secrets[0] != second || secrets[1] != ownSecret || left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("got %v, the old one until %v, want both for a day", secrets, until)
	}
	third := rotate(`{"overlap_seconds":0}`).want(t, http.StatusCreated).text("secret")
	if secrets, _ := live(); len(secrets) != 1 || secrets[0] != third {
		t.Errorf("got %v, want the newest only", secrets)
	}
	got := rotate(`{"secret":"`+ownSecret+`"}`).want(t, http.StatusCreated)
	if got.text("secret") != ownSecret || got.header.Get("ETag") != `"4"` {
		t.Errorf("got %s with ETag %s", got.raw, got.header.Get("ETag"))
	}
	for range 6 {
		rotate("").want(t, http.StatusCreated)
	}
	rotate("").want(t, http.StatusConflict).wantError(t, "too_many_secrets", "#")

	for _, record := range append(f.readAll(t, f.topics.Webhooks), f.readAll(t, f.topics.Changes)...) {
		if value := string(record.Value); strings.Contains(value, ownSecret) || strings.Contains(value, third) {
			t.Errorf("a secret stands in clear in %s", record.Topic)
		}
	}
}

func TestRotationRefuses(t *testing.T) {
	_, r := start(t)
	path := "/v1/webhooks/" + r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	for _, bad := range []struct{ body, code, pointer string }{
		{`{"secret":""}`, "invalid_value", "#/secret"},
		{`{"secret":"whsec_c2hvcnQ="}`, "invalid_value", "#/secret"},
		{`{"overlap_seconds":-1}`, "invalid_value", "#/overlap_seconds"},
		{`{"overlap_seconds":604801}`, "invalid_value", "#/overlap_seconds"},
		{`{"overlap_seconds":"1d"}`, "wrong_type", "#/overlap_seconds"},
		{`{"colour":1}`, "unknown_field", "#/colour"},
	} {
		r.do(t, request{path: path + "/secrets", body: bad.body}).
			want(t, http.StatusUnprocessableEntity).wantError(t, bad.code, bad.pointer)
	}
	r.do(t, request{path: "/v1/webhooks", body: `{"organization":"acme","url":"https://example.com","events":"a","secret":""}`}).
		want(t, http.StatusUnprocessableEntity).wantError(t, "invalid_value", "#/secret")
	r.do(t, request{path: path + "/secrets", header: map[string]string{"If-Match": `"7"`}}).want(t, http.StatusPreconditionFailed)
	r.do(t, request{path: "/v1/webhooks/wh_unknown/secrets"}).want(t, http.StatusNotFound)
}

func TestSigningKeys(t *testing.T) {
	f, r := start(t)
	made := r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated)
	id := made.text("id")
	path := "/v1/webhooks/" + id
	keys := func() []any {
		got := r.do(t, request{method: "GET", path: "/.well-known/webhook-keys?webhook=" + id, key: "-"}).want(t, http.StatusOK)
		list, _ := got.json["keys"].([]any)
		return list
	}
	if list := keys(); len(list) != 0 {
		t.Errorf("got keys %v of a webhook that signs by v1 only", list)
	}
	r.do(t, request{method: "PATCH", path: path, body: `{"signatures":["v1","v1a"]}`}).want(t, http.StatusOK)
	first := keys()
	r.do(t, request{method: "PATCH", path: path, body: `{"signatures":["v1a"]}`}).want(t, http.StatusOK)
	if again := keys(); len(first) != 1 || len(again) != 1 || again[0].(map[string]any)["id"] != first[0].(map[string]any)["id"] {
		t.Errorf("got keys %v, then %v, want one and the same", first, again)
	}
	r.do(t, request{path: path + "/secrets"}).want(t, http.StatusCreated)
	list := keys()
	if len(list) != 2 || list[1].(map[string]any)["public_key"] != first[0].(map[string]any)["public_key"] {
		t.Fatalf("got keys %v after a rotation, want another and %v", list, first)
	}

	ring, err := schemas.ParseKeyRing(f.keyRing)
	if err != nil {
		t.Fatal(err)
	}
	w := lastWebhook(t, f.readAll(t, f.topics.Webhooks))
	seed, err := ring.Open(w.KeyIdentity(), w.SigningKeys[0].Seed)
	if err != nil {
		t.Fatal(err)
	}
	public, _ := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	if got := list[0].(map[string]any)["public_key"]; got != schemas.FormatPublicKey(public) {
		t.Errorf("got public key %v, want %s", got, schemas.FormatPublicKey(public))
	}

	all := r.do(t, request{method: "GET", path: "/.well-known/webhook-keys", key: "-"}).want(t, http.StatusOK)
	if listed, _ := all.json["keys"].([]any); len(listed) != 2 || all.json["next"] != nil {
		t.Errorf("got %s, want both keys", all.raw)
	}
	r.do(t, request{method: "GET", path: "/.well-known/webhook-keys?webhook=wh_x", key: "-"}).want(t, http.StatusNotFound)
	r.do(t, request{method: "PATCH", path: path, body: `{"signatures":["v2"]}`}).
		want(t, http.StatusUnprocessableEntity).wantError(t, "invalid_value", "#/signatures/0")
}
