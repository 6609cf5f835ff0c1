package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// badRequest is a request and how it must be refused.
type badRequest struct {
	name         string
	method, path string // POST unless said otherwise
	headers      []string
	body         string
	status       int
	pointers     string // of the answer's errors, in their order, with spaces between
}

// TestBadRequests is P12 over REST: each bad request is answered with the right
// status, and with a problem that says where it is wrong; nothing of it is stored.
func TestBadRequests(t *testing.T) {
	s := start(t)
	hook := s.subscribe(t, "acme", "", "/bad", "*")
	foreign := s.key(t, "other", schemas.Scopes()...)
	requests := slices.Concat(badWebhooks(foreign), badChanges(hook.ID), badPlainEvents(foreign), badCloudEvents(), badBatches(), badCalls())

	// Refused changes are told in changes, as they must be.
	stored := slices.DeleteFunc(s.all(), func(topic string) bool { return topic == s.topics.Changes })
	s.waitQuery(t, `SELECT count() FROM postrider.webhooks`, "1") // nothing is on its way any more
	before := s.ends(t, stored...)
	for _, r := range requests {
		t.Run(r.name, func(t *testing.T) {
			if r.method == "" {
				r.method = http.MethodPost
			}
			a := s.call(t, r.method, r.path, r.body, r.headers...)
			wantProblem(t, a, r.status, strings.Fields(r.pointers)...)
		})
	}
	if after := s.ends(t, stored...); !reflect.DeepEqual(before, after) {
		t.Errorf("something was stored: ends of topics were %v, are %v", before, after)
	}
	if n := s.receiver.Total(); n != 0 {
		t.Errorf("the receiver got %d requests, want none", n)
	}
	if !strings.Contains(s.ingest.Metrics(t), "postrider_ingest_panics_total 0") {
		t.Error("a request ended in a panic")
	}
}

// wantProblem checks that an answer is a problem (RFC 9457) with one error at each
// of the pointers.
func wantProblem(t *testing.T, a answer, status int, pointers ...string) {
	t.Helper()
	var p schemas.Problem
	if err := json.Unmarshal(a.Body, &p); err != nil {
		t.Fatalf("got %d with %q, want a problem: %v", a.Status, a.Body, err)
	}
	if a.Status != status || p.Status != status || a.Header.Get("Content-Type") != schemas.ProblemContentType {
		t.Errorf("got %d of type %q, want %d: %s", a.Status, a.Header.Get("Content-Type"), status, a.Body)
	}
	if p.Type == "" || p.Title == "" || p.Detail == "" || p.Instance == "" {
		t.Errorf("the problem lacks a member: %s", a.Body)
	}
	var got []string
	for _, e := range p.Errors {
		if e.Code == "" || e.Detail == "" {
			t.Errorf("an error lacks a member: %s", a.Body)
		}
		got = append(got, e.Pointer)
	}
	if !reflect.DeepEqual(got, pointers) {
		t.Errorf("errors are at %q, want %q: %s", got, pointers, a.Body)
	}
}

// key makes an API key and returns the text that its holder sends.
func (s *system) key(t *testing.T, organization string, scopes ...string) string {
	t.Helper()
	body, err := json.Marshal(map[string]any{"organization": organization, "scopes": scopes})
	if err != nil {
		t.Fatal(err)
	}
	return s.want(t, http.StatusCreated, http.MethodPost, "/v1/keys", string(body)).field(t, "key")
}

func bearer(key string) []string { return []string{"Authorization", "Bearer " + key} }

// badWebhooks are bodies that create no webhook, and send no ping.
func badWebhooks(foreign string) []badRequest {
	const path = "/webhook-events"
	requests := []badRequest{
		{name: "unknown field", body: `{"organization":"acme","url":"https://example.com/","events":"a","colour":1}`, status: 422, pointers: "#/colour"},
		{name: "organization a number", body: `{"organization":7,"url":"https://example.com/","events":"a"}`, status: 422, pointers: "#/organization"},
		{name: "active a string", body: `{"organization":"acme","active":"yes","url":"https://example.com/","events":"a"}`, status: 422, pointers: "#/active"},
		{name: "url a number", body: `{"organization":"acme","url":7,"events":"a"}`, status: 422, pointers: "#/url"},
		{name: "account null", body: `{"organization":"acme","account":null,"url":"https://example.com/","events":"a"}`, status: 422, pointers: "#/account"},
		{name: "active null", body: `{"organization":"acme","active":null,"url":"https://example.com/","events":"a"}`, status: 422, pointers: "#/active"},
		{name: "header's name a number", body: `{"organization":"acme","url":"https://example.com/","events":"a","headers":[{"name":7,"value":"x"}]}`, status: 422, pointers: "#/headers/0/name"},
		{name: "unknown field of auth", body: `{"organization":"acme","url":"https://example.com/","events":"a","auth":{"type":"bearer","token":"t","colour":1}}`, status: 422, pointers: "#/auth/colour"},
		{name: "events a number", body: `{"organization":"acme","url":"https://example.com/","events":7}`, status: 422, pointers: "#/events"},
		{name: "events of numbers", body: `{"organization":"acme","url":"https://example.com/","events":[7]}`, status: 422, pointers: "#/events"},
		{name: "events empty", body: `{"organization":"acme","url":"https://example.com/","events":[]}`, status: 422, pointers: "#/events"},
		{name: "events an empty string", body: `{"organization":"acme","url":"https://example.com/","events":""}`, status: 422, pointers: "#/events/0"},
		{name: "no pattern", body: `{"organization":"acme","url":"https://example.com/","events":["a","b c"]}`, status: 422, pointers: "#/events/1"},
		{name: "several faults", body: `{"account":"a\u0000","url":"ftp://example.com/","events":["?"]}`, status: 422, pointers: "#/url #/organization #/account #/events/0"},
		{name: "nothing but braces", body: `{}`, status: 422, pointers: "#/organization #/url #/events"},
		{name: "field twice", body: `{"organization":"acme","organization":"other","url":"https://example.com/","events":"a"}`, status: 422, pointers: "#/organization"},
		{name: "an array", body: `[]`, status: 422, pointers: "#"},
		{name: "not JSON", body: `{"organization":`, status: 400, pointers: "#"},
		{name: "nothing", body: ``, status: 400, pointers: "#"},
		{name: "two values", body: `{} {}`, status: 400, pointers: "#"},
		{name: "invalid UTF-8", body: "{\"organization\":\"\xff\"}", status: 400, pointers: "#"},
		{name: "body over 1 MiB", body: `{"organization":"` + strings.Repeat("a", 1<<20) + `"}`, status: 413, pointers: "#"},
		{name: "not said to be JSON", headers: []string{"Content-Type", "text/plain"}, body: `{}`, status: 415, pointers: "#"},
		{name: "brotli", headers: []string{"Content-Encoding", "br"}, body: `{}`, status: 415, pointers: "#"},
		{name: "ping of nobody", body: `{"webhook":"wh_00000000000000000000000000","event":"ping"}`, status: 404, pointers: "#/webhook"},
		{name: "ping of a number", body: `{"webhook":7,"event":"ping"}`, status: 422, pointers: "#/webhook"},
		{name: "ping of nothing", body: `{"webhook":"","event":"ping"}`, status: 422, pointers: "#/webhook"},
		{name: "ping by another name", body: `{"webhook":"wh_00000000000000000000000000","event":"pong"}`, status: 422, pointers: "#/event"},
		{name: "ping with an unknown field", body: `{"webhook":"wh_0","event":"ping","payload":{}}`, status: 422, pointers: "#/payload"},
		{name: "another organization's key", headers: bearer(foreign), body: `{"organization":"acme","url":"https://example.com/","events":"a"}`, status: 403, pointers: "#/organization"},
	}
	for _, url := range []string{
		"example.com", "//example.com/", "http://example.com/", "javascript:alert(1)", "https://", "https://user:secret@example.com/",
		"https://example.com:0/", "https://example.com:25/", "https://exa mple.com/", "https://example.com/#part", "https://10.0.0.1/",
		"https://169.254.169.254/latest", "https://[::1]/", "https://2130706433/", "https://localhost/", "https://example.com/" + strings.Repeat("a", 2048),
	} {
		requests = append(requests, badRequest{
			name: "url " + url[:min(len(url), 40)], status: 422, pointers: "#/url",
			body: fmt.Sprintf(`{"organization":"acme","url":%q,"events":"a"}`, url),
		})
	}
	for i := range requests {
		requests[i].name, requests[i].path = "webhook, "+requests[i].name, path
	}
	return requests
}

// badChanges are changes of a webhook, and keys, that are refused.
func badChanges(id string) []badRequest {
	path := "/v1/webhooks/" + id
	return []badRequest{
		{name: "patch, unknown field", method: http.MethodPatch, path: path, body: `{"colour":1}`, status: 422, pointers: "#/colour"},
		{name: "patch, read-only", method: http.MethodPatch, path: path, body: `{"organization":"other","revision":9}`, status: 422, pointers: "#/organization #/revision"},
		{name: "patch, bad url and type", method: http.MethodPatch, path: path, body: `{"url":"https://10.0.0.1/","active":1}`, status: 422, pointers: "#/active #/url"},
		{name: "patch, unknown field of a header", method: http.MethodPatch, path: path, body: `{"headers":[{"name":"A","value":"x","colour":1}]}`, status: 422, pointers: "#/headers/0/colour"},
		{name: "patch, unknown field of a rate limit", method: http.MethodPatch, path: path, body: `{"rate_limit":{"count":1,"per":"second","burst":5}}`, status: 422, pointers: "#/rate_limit/burst"},
		{name: "patch, url null", method: http.MethodPatch, path: path, body: `{"url":null}`, status: 422, pointers: "#/url"},
		{name: "patch, no events", method: http.MethodPatch, path: path, body: `{"events":[]}`, status: 422, pointers: "#/events"},
		{name: "patch, old revision", method: http.MethodPatch, path: path, headers: []string{"If-Match", `"7"`}, body: `{"active":true}`, status: 412, pointers: "#"},
		{name: "patch, unknown webhook", method: http.MethodPatch, path: "/v1/webhooks/wh_0", body: `{"active":true}`, status: 404, pointers: "#"},
		{name: "delete, unknown webhook", method: http.MethodDelete, path: "/v1/webhooks/wh_0", status: 404, pointers: "#"},
		{name: "key, organization null", path: "/v1/keys", body: `{"organization":null,"scopes":["events:write"]}`, status: 422, pointers: "#/organization"},
		{name: "key, organization empty", path: "/v1/keys", body: `{"organization":"","scopes":["events:write"]}`, status: 422, pointers: "#/organization"},
		{name: "key, unknown scope", path: "/v1/keys", body: `{"organization":"acme","scopes":["events:write","all"]}`, status: 422, pointers: "#/scopes/1"},
		{name: "key, no scopes", path: "/v1/keys", body: `{"organization":"acme","scopes":[]}`, status: 422, pointers: "#/scopes"},
		{name: "key, wrong type", path: "/v1/keys", body: `{"organization":"acme","scopes":"events:write"}`, status: 422, pointers: "#/scopes"},
		{name: "key, unknown", method: http.MethodDelete, path: "/v1/keys/key_0", status: 404, pointers: "#"},
	}
}

func badPlainEvents(foreign string) []badRequest {
	deep := strings.Repeat(`{"a":`, 200) + `1` + strings.Repeat(`}`, 200)
	requests := []badRequest{
		{name: "nothing but braces", body: `{}`, status: 422, pointers: "#/event #/organization"},
		{name: "unknown field", body: `{"event":"a.b","organization":"acme","colour":1}`, status: 422, pointers: "#/colour"},
		{name: "wrong types", body: `{"event":7,"organization":[],"account":null}`, status: 422, pointers: "#/event #/organization #/account"},
		{name: "name with a space", body: `{"event":"a b","organization":"acme"}`, status: 422, pointers: "#/event"},
		{name: "reserved name", body: `{"event":"webhook.disabled","organization":"acme"}`, status: 422, pointers: "#/event"},
		{name: "empty id", body: `{"id":"","event":"a.b","organization":"acme"}`, status: 422, pointers: "#/id"},
		{name: "long id", body: `{"id":"` + strings.Repeat("a", 257) + `","event":"a.b","organization":"acme"}`, status: 422, pointers: "#/id"},
		{name: "bad time", body: `{"event":"a.b","organization":"acme","time":"yesterday"}`, status: 422, pointers: "#/time"},
		{name: "payload an array", body: `{"event":"a.b","organization":"acme","payload":[1]}`, status: 422, pointers: "#/payload"},
		{name: "field twice", body: `{"event":"a.b","event":"a.c","organization":"acme"}`, status: 422, pointers: "#/event"},
		{name: "too deep", body: `{"event":"a.b","organization":"acme","payload":` + deep + `}`, status: 400, pointers: "#"},
		{name: "not JSON", body: `event=a.b`, status: 400, pointers: "#"},
		{name: "invalid UTF-8", body: "{\"event\":\"a.b\",\"organization\":\"acme\",\"payload\":{\"a\":\"\xc3\"}}", status: 400, pointers: "#"},
		{name: "body over 1 MiB", body: `{"event":"a.b","organization":"acme","payload":{"a":"` + strings.Repeat("a", 1<<20) + `"}}`, status: 413, pointers: "#"},
		{name: "a form", headers: []string{"Content-Type", "application/x-www-form-urlencoded"}, body: `event=a.b`, status: 415, pointers: "#"},
		{name: "another organization's key", headers: bearer(foreign), body: `{"event":"a.b","organization":"acme"}`, status: 403, pointers: "#/organization"},
	}
	for i := range requests {
		requests[i].name, requests[i].path = "event, "+requests[i].name, "/v1/events"
	}
	return requests
}

func badCloudEvents() []badRequest {
	binary := func(more ...string) []string { // the last of two of a name counts
		return append([]string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/lab", "Ce-Type", "a.b", "Ce-Organization", "acme"}, more...)
	}
	structured := func(contentType string) []string { return []string{"Content-Type", contentType} }
	const format = "application/cloudevents+json"
	requests := []badRequest{
		{name: "binary, no id nor source", headers: binary("Ce-Id", "", "Ce-Source", ""), body: `{}`, status: 422, pointers: "#/id #/source"},
		{name: "binary, version", headers: binary("Ce-Specversion", "0.3"), body: `{}`, status: 422, pointers: "#/specversion"},
		{name: "binary, type", headers: binary("Ce-Type", "a b"), body: `{}`, status: 422, pointers: "#/type"},
		{name: "binary, time", headers: binary("Ce-Time", "1 o'clock"), body: `{}`, status: 422, pointers: "#/time"},
		{name: "binary, attribute's name", headers: binary("Ce-Bad-Name", "1"), body: `{}`, status: 422, pointers: "#/bad-name"},
		{name: "binary, encoding", headers: binary("Ce-Subject", "100%"), body: `{}`, status: 422, pointers: "#/subject"},
		{name: "binary, no organization", headers: binary("Ce-Organization", ""), body: `{}`, status: 422, pointers: "#/organization"},
		{name: "binary, data is text", headers: binary(), body: `hello`, status: 400, pointers: "#/data"},
		{name: "binary, data is a number", headers: binary(), body: `7`, status: 422, pointers: "#/data"},
		{name: "structured, empty", headers: structured(format), body: `{}`, status: 422, pointers: "#/specversion #/id #/source #/type #/organization"},
		{
			name: "structured, both data", headers: structured(format), status: 422, pointers: "#/data_base64",
			body: `{"specversion":"1.0","id":"1","source":"/","type":"a.b","organization":"acme","data":{},"data_base64":"e30="}`,
		},
		{
			name: "structured, no base64", headers: structured(format), status: 422, pointers: "#/data_base64",
			body: `{"specversion":"1.0","id":"1","source":"/","type":"a.b","organization":"acme","data_base64":"?"}`,
		},
		{
			name: "structured, attribute an object", headers: structured(format), status: 422, pointers: "#/subject",
			body: `{"specversion":"1.0","id":"1","source":"/","type":"a.b","organization":"acme","subject":{}}`,
		},
		{
			name: "structured, data is XML", headers: structured(format), status: 422, pointers: "#/datacontenttype",
			body: `{"specversion":"1.0","id":"1","source":"/","type":"a.b","organization":"acme","datacontenttype":"text/xml","data":{}}`,
		},
		{name: "structured, Avro", headers: structured("application/cloudevents+avro"), body: `x`, status: 415, pointers: "#"},
	}
	for i := range requests {
		requests[i].name, requests[i].path = "CloudEvent, "+requests[i].name, "/v1/events"
	}
	return requests
}

func badBatches() []badRequest {
	const cloud = "application/cloudevents-batch+json"
	requests := []badRequest{
		{name: "empty", body: `[]`, status: 422, pointers: "#"},
		{name: "all bad", body: `[{"event":"a b","organization":"acme"},7]`, status: 422, pointers: "#/0/event #/1 #/1/event #/1/organization"},
		{name: "not JSON", body: `[{},`, status: 400, pointers: "#"},
		{name: "over 1,000", body: "[" + strings.Repeat(`{},`, 1000) + `{}]`, status: 413, pointers: "#"},
		{name: "over 5 MiB", body: `["` + strings.Repeat("a", 5<<20) + `"]`, status: 413, pointers: "#"},
		{name: "of CloudEvents, an object", headers: []string{"Content-Type", cloud}, body: `{}`, status: 422, pointers: "#"},
		{name: "of CloudEvents, bad", headers: []string{"Content-Type", cloud}, body: `[{"specversion":"1.0","id":"1","source":"/","type":"a b","organization":"acme"}]`, status: 422, pointers: "#/0/type"},
	}
	for i := range requests {
		requests[i].name, requests[i].path = "batch, "+requests[i].name, "/v1/events"
	}
	return requests
}

// badCalls are wrong whatever their bodies.
func badCalls() []badRequest {
	return []badRequest{
		{name: "no key", path: "/v1/events", headers: []string{"Authorization", ""}, body: `{}`, status: 401, pointers: "#"},
		{name: "unknown key", path: "/v1/events", headers: bearer(strings.Repeat("k", 40)), body: `{}`, status: 401, pointers: "#"},
		{name: "unknown path", path: "/v2/events", body: `{}`, status: 404, pointers: "#"},
		{name: "unknown method", method: http.MethodPut, path: "/v1/webhooks", body: `{}`, status: 405, pointers: "#"},
		{name: "bad limit", method: http.MethodGet, path: "/v1/webhooks?limit=0", status: 422, pointers: "#"},
		{name: "bad cursor", method: http.MethodGet, path: "/v1/webhooks?cursor=next", status: 400, pointers: "#"},
		{name: "long head", path: "/v1/events", headers: []string{"X-Long", strings.Repeat("x", 20<<10)}, body: `{}`, status: 431, pointers: "#"},
	}
}

// TestBadSettings is P12 at the start: all wrong settings are told at once, each by
// its name, with exit code 2, and no secret.
func TestBadSettings(t *testing.T) {
	for program, wrong := range map[string]map[string]string{
		"ingest": {"listen": "nowhere", "clickhouse": "nowhere", "admin-key": "too-short-a-key", "key-ring": "k1:not-base64", "allow-targets": "10.0.0.1/8", "topic-prefix": "a b", "unknown": "1"},
		"router": {"admin-listen": "1", "brokers": "", "sessions": "0", "dedup-memory": "lots", "start-at": "soon", "instance": "a/b", "unknown": "1"},
		"sender": {
			"key-ring": "k1:not-base64", "retry-schedule": "5", "webhook-concurrency": "many", "in-flight": "1KiB", "clickhouse": "nowhere",
			"clickhouse-database": "a-b", "allow-targets": "10.0.0.1/8", "kafka-tls-ca": "/nowhere", "unknown": "1",
		},
	} {
		t.Run(program, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "settings.yaml")
			if err := os.WriteFile(file, []byte("log_level: loud\nmisspelt: 1\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("POSTRIDER_LOG_FORMAT", "pictures")
			args := []string{"--config=" + file}
			for name, value := range wrong {
				args = append(args, "--"+name+"="+value)
			}
			_, told, code := pipeline.Run(t, program, args...)
			if code != 2 {
				t.Errorf("got exit code %d, want 2", code)
			}
			for _, name := range []string{"--log-level", "--log-format", `"misspelt"`} {
				wrong[strings.TrimPrefix(name, "--")] = ""
			}
			for name := range wrong {
				if !strings.Contains(told, name) {
					t.Errorf("nothing is said of %s:\n%s", name, told)
				}
			}
			for _, secret := range []string{"too-short-a-key", "not-base64"} {
				if strings.Contains(told, secret) {
					t.Errorf("a secret is told:\n%s", told)
				}
			}
		})
	}
}

// TestPortTaken is P12 where another process listens: the program says which of
// its settings names the port, and ends with exit code 2.
func TestPortTaken(t *testing.T) {
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct{ program, flag string }{
		{"ingest", "--listen"}, {"ingest", "--admin-listen"}, {"router", "--admin-listen"}, {"sender", "--admin-listen"},
	} {
		args := []string{c.flag + "=" + taken.Addr().String(), "--brokers=" + pipeline.FreeAddr(t)}
		if c.program != "router" {
			args = append(args, "--key-ring="+keyRing)
		}
		if c.flag == "--listen" {
			args = append(args, "--admin-listen="+pipeline.FreeAddr(t))
		}
		_, told, code := pipeline.Run(t, c.program, args...)
		if code != 2 || !strings.Contains(told, taken.Addr().String()) || !strings.Contains(told, c.flag+"\n") {
			t.Errorf("%s with %s taken: got exit code %d and:\n%s", c.program, c.flag, code, told)
		}
	}
}
