package api

import (
	"errors"
	"testing"

	"github.com/postrider/postrider/schemas"
)

// bodiesServer reads bodies; it has nothing that stores what they say.
func bodiesServer(t *testing.T) *Server {
	t.Helper()
	ring, err := schemas.ParseKeyRing(schemas.NewKeyRing("test"))
	if err != nil {
		t.Fatal(err)
	}
	return &Server{Options: Options{KeyRing: ring}}
}

func wantRefusal(t *testing.T, body string, err error, code schemas.Code, pointer string) {
	t.Helper()
	var invalid *schemas.ValidationError
	if !errors.As(err, &invalid) || invalid.Fields[0].Code != code || invalid.Fields[0].Pointer != pointer {
		t.Errorf("%s: got %+v, want %s at %s", body, err, code, pointer)
	}
}

// strictMembers are refused in a webhook's body, new or changed: what the
// description does not know, and null where it has none.
var strictMembers = []struct { //nolint:gochecknoglobals // a table
	member  string
	code    schemas.Code
	pointer string
}{
	{`"rate_limit":{"count":1,"per":"second","burst":5}`, schemas.CodeUnknownField, "#/rate_limit/burst"},
	{`"rate_limit":{"count":1,"PER":"second"}`, schemas.CodeUnknownField, "#/rate_limit/PER"},
	{`"rate_limit":{"count":"1","per":"second"}`, schemas.CodeWrongType, "#/rate_limit/count"},
	{`"rate_limit":{"count":1,"per":null}`, schemas.CodeWrongType, "#/rate_limit/per"},
	{`"rate_limit":{"count":1,"count":2,"per":"second"}`, schemas.CodeDuplicateField, "#/rate_limit/count"},
	{`"headers":[{"name":7,"value":"x"}]`, schemas.CodeWrongType, "#/headers/0/name"},
	{`"headers":[{"name":"A","value":"x"},{"name":"B","value":7}]`, schemas.CodeWrongType, "#/headers/1/value"},
	{`"headers":[{"name":"A","value":null,"sensitive":true}]`, schemas.CodeWrongType, "#/headers/0/value"},
	{`"headers":[{"name":"A","value":"x","sensitive":null}]`, schemas.CodeWrongType, "#/headers/0/sensitive"},
	{`"headers":[{"name":"A","value":"x"},{"name":"B","value":"x","secret":true}]`, schemas.CodeUnknownField, "#/headers/1/secret"},
	{`"headers":[null]`, schemas.CodeWrongType, "#/headers/0"},
	{`"auth":{"type":"bearer","token":"t","scope":"x"}`, schemas.CodeUnknownField, "#/auth/scope"},
	{`"auth":{"type":"bearer","token":null}`, schemas.CodeWrongType, "#/auth/token"},
	{`"auth":{"type":["bearer"],"token":"t"}`, schemas.CodeWrongType, "#/auth/type"},
	{`"retry_schedule":["30s",null]`, schemas.CodeWrongType, "#/retry_schedule/1"},
	{`"final_statuses":[404,"410"]`, schemas.CodeWrongType, "#/final_statuses/1"},
	{`"signatures":["v1",null]`, schemas.CodeWrongType, "#/signatures/1"},
	{`"metadata":{"x":7}`, schemas.CodeWrongType, "#/metadata/x"},
	{`"metadata":{"x":"1","x":"2"}`, schemas.CodeDuplicateField, "#/metadata/x"},
	{`"filter":"payload."`, schemas.CodeInvalidFilter, "#/filter"},
	{`"filter":"event"`, schemas.CodeInvalidFilter, "#/filter"},
	{`"filter":["event"]`, schemas.CodeWrongType, "#/filter"},
	{`"description":"\ud800"`, schemas.CodeInvalidValue, "#/description"},
}

func TestNewWebhookIsStrict(t *testing.T) {
	s := bodiesServer(t)
	const rest = `"organization":"acme","url":"https://example.com","events":"a"`
	if w, _, err := s.newWebhook(principal{}, []byte(`{`+rest+`}`), ""); err != nil || !w.Active {
		t.Fatalf("got %+v, %v, want an active webhook", w, err)
	}
	for _, c := range strictMembers {
		body := `{` + rest + `,` + c.member + `}`
		_, _, err := s.newWebhook(principal{}, []byte(body), "")
		wantRefusal(t, body, err, c.code, c.pointer)
	}
	for _, name := range []string{
		"account", "active", "description", "metadata", "filter", "format", "timeout_ms", "retry_schedule", "max_concurrency",
		"rate_limit", "success", "final_statuses", "headers", "auth", "signatures", "secret",
	} {
		body := `{` + rest + `,"` + name + `":null}`
		_, _, err := s.newWebhook(principal{}, []byte(body), "")
		wantRefusal(t, body, err, schemas.CodeWrongType, "#/"+name)
	}
	for body, pointer := range map[string]string{
		`{"organization":null,"url":"https://example.com","events":"a"}`:    "#/organization",
		`{"organization":"acme","url":null,"events":"a"}`:                   "#/url",
		`{"organization":"acme","url":"https://example.com","events":null}`: "#/events",
		`{` + rest + `,"metadata":{"x":null}}`:                              "#/metadata/x",
	} {
		_, _, err := s.newWebhook(principal{organization: "acme"}, []byte(body), "")
		wantRefusal(t, body, err, schemas.CodeWrongType, pointer)
	}
}

// TestPatchIsStrict holds a patch to the same, but for null, which takes a member away where there can be none.
func TestPatchIsStrict(t *testing.T) {
	s := bodiesServer(t)
	for _, c := range strictMembers {
		body := `{` + c.member + `}`
		_, err := s.parsePatch([]byte(body))
		wantRefusal(t, body, err, c.code, c.pointer)
	}
	for _, name := range []string{"active", "url", "events"} {
		body := `{"` + name + `":null}`
		_, err := s.parsePatch([]byte(body))
		wantRefusal(t, body, err, schemas.CodeRequired, "#/"+name)
	}
	sets, err := s.parsePatch([]byte(`{"description":null,"metadata":{"x":null,"y":"2"},"format":null,"timeout_ms":null,"retry_schedule":null,` +
		`"max_concurrency":null,"rate_limit":null,"success":null,"final_statuses":null,"headers":null,"auth":null,"signatures":null}`))
	if err != nil {
		t.Fatal(err)
	}
	w := schemas.Webhook{
		Description: "d", Metadata: map[string]string{"x": "1"}, Format: schemas.FormatCloudEvents, Signatures: []string{schemas.SchemeEd25519},
		Handling: schemas.Handling{TimeoutMS: new(2000), RetrySchedule: []string{}, RateLimit: &schemas.RateLimit{Count: 1, Per: "second"}, Success: "2xx"},
		Headers:  []schemas.Header{{Name: "A", Value: "x"}}, Auth: &schemas.Auth{Type: schemas.AuthBearer},
	}
	for _, set := range sets {
		if err := set(&w); err != nil {
			t.Fatal(err)
		}
	}
	if w.Description != "" || w.Metadata["y"] != "2" || len(w.Metadata) != 1 || w.Format != "" || w.Signatures != nil ||
		w.TimeoutMS != nil || w.RetrySchedule != nil || w.RateLimit != nil || w.Success != "" || w.Headers != nil || w.Auth != nil {
		t.Errorf("got %+v, want what null takes away to be gone", w)
	}
}

// TestNewKeyIsStrict is about whose a key is: one for all organizations is made by saying nothing, never by mistake.
func TestNewKeyIsStrict(t *testing.T) {
	admin := principal{id: adminID, scopes: schemas.Scopes()}
	if k, _, err := newKey(admin, []byte(`{"scopes":["events:write"]}`)); err != nil || k.Organization != "" {
		t.Errorf("got %+v, %v, want a key for all organizations", k, err)
	}
	for _, c := range []struct {
		body    string
		code    schemas.Code
		pointer string
	}{
		{`{"organization":null,"scopes":["events:write"]}`, schemas.CodeWrongType, "#/organization"},
		{`{"organization":"","scopes":["events:write"]}`, schemas.CodeRequired, "#/organization"},
		{`{"name":null,"scopes":["events:write"]}`, schemas.CodeWrongType, "#/name"},
		{`{"scopes":null}`, schemas.CodeWrongType, "#/scopes"},
		{`{"scopes":["events:write",null]}`, schemas.CodeWrongType, "#/scopes/1"},
	} {
		_, _, err := newKey(admin, []byte(c.body))
		wantRefusal(t, c.body, err, c.code, c.pointer)
	}
}
