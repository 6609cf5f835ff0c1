package ingest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/postrider/postrider/schemas"
)

// oddPayload is what a parser that writes again would change: numbers, key
// order, duplicate keys, escapes, white space.
const oddPayload = `{"z":1e400,"a":0.1000,"a":"\u00e9\ud800", "é" : [ 1.0 ]}`

func (f *fixture) events(t *testing.T) map[string]schemas.Event {
	t.Helper()
	events := map[string]schemas.Event{}
	for _, r := range f.readAll(t, f.topics.Events) {
		e, err := schemas.DecodeEvent(r)
		if err != nil {
			t.Fatalf("decoding what ingest wrote: %v", err)
		}
		if string(r.Key) != e.PartitionKey() {
			t.Errorf("got key %q, want %q", r.Key, e.PartitionKey())
		}
		events[e.ID] = e
	}
	return events
}

func TestEventsAreTakenInEveryForm(t *testing.T) {
	f, r := start(t)
	structured := `{"specversion":"1.0","id":"s1","source":"/s","type":"labs.created","organization":"acme","account":"a1",` +
		`"time":"2026-01-02T03:04:05Z","partitionkey":"pk","data":` + oddPayload + `}`
	for _, q := range []request{
		{body: `{"id":"p1","event":"labs.created","organization":"acme","account":"a1","time":"2026-01-02T03:04:05Z","payload":` + oddPayload + `}`},
		{body: structured, contentType: "application/cloudevents+json; charset=utf-8"},
		{body: oddPayload, header: map[string]string{
			"ce-specversion": "1.0", "ce-id": "b1", "ce-source": "/b", "ce-type": "labs.created", "ce-organization": "acme",
			"ce-account": `"a1"`, "ce-subject": "caf%C3%A9%20%E2%82%AC", "ce-time": "2026-01-02T03:04:05Z",
		}},
	} {
		q.path = "/v1/events"
		r.do(t, q).want(t, http.StatusAccepted)
	}
	empty := r.do(t, request{path: "/v1/events", body: `{"event":"labs","organization":"acme"}`}).want(t, http.StatusAccepted)
	batch := `[{"event":"labs.created","organization":"acme","id":"j1"},{"event":"not a name","organization":"acme","id":"j2"},7]`
	got := r.do(t, request{path: "/v1/events", body: batch}).want(t, http.StatusAccepted)
	want := []string{`{"id":"j1","status":202}`, `{"id":"j2","status":422,`, `{"id":"","status":422,`, `"pointer":"#/1/event"`, `"pointer":"#/2"`}
	for _, part := range want {
		if !strings.Contains(got.raw, part) {
			t.Errorf("got %s, want %s in it", got.raw, part)
		}
	}
	cloudBatch := strings.Replace("["+structured+"]", "s1", "c1", 1)
	r.do(t, request{path: "/v1/events", body: cloudBatch, contentType: "application/cloudevents-batch+json"}).want(t, http.StatusAccepted)

	events := f.events(t)
	for _, id := range []string{"p1", "s1", "b1", "c1"} {
		e := events[id]
		if e.Name != "labs.created" || e.Organization != "acme" || e.Account != "a1" || e.Time.Unix() != 1767323045 || string(e.Payload) != oddPayload {
			t.Errorf("got event %s as %+v with payload %s, want payload %s", id, e, e.Payload, oddPayload)
		}
	}
	s1 := events["s1"]
	if key := s1.PartitionKey(); events["b1"].Subject != "café €" || key != "pk" {
		t.Errorf("got subject %q and key %q", events["b1"].Subject, key)
	}
	id := empty.text("id")
	if e, ok := events[id]; !strings.HasPrefix(id, "evt_") || !ok || e.Payload != nil {
		t.Errorf("got event %q as %+v, want one without a payload", id, e)
	}
	if len(events) != 6 {
		t.Errorf("got %d events, want 6", len(events))
	}
}

func TestBadEventsAreRefused(t *testing.T) {
	f, r := start(t)
	large := `{"event":"a","organization":"acme","payload":{"x":"` + strings.Repeat("x", 1<<20) + `"}}`
	items := make([]string, 1001)
	for i := range items {
		items[i] = `{"event":"a","organization":"acme"}`
	}
	cloud := "application/cloudevents+json"
	binary := func(name, value string) map[string]string {
		h := map[string]string{"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/b", "ce-type": "a", "ce-organization": "acme"}
		h[name] = value
		return h
	}
	cases := []struct {
		name          string
		q             request
		status        int
		code, pointer string
	}{
		{"not JSON", request{body: `{"event"`}, 400, "invalid_json", "#"},
		{"nothing", request{}, 400, "invalid_json", "#"},
		{"two values", request{body: `{} {}`}, 400, "invalid_json", "#"},
		{"invalid UTF-8", request{body: "{\"event\":\"a\xff\"}"}, 400, "invalid_json", "#"},
		{"too deep", request{body: strings.Repeat("[", 200) + strings.Repeat("]", 200)}, 400, "too_deep", "#"},
		{"unknown field", request{body: `{"event":"a","organization":"acme","x~/y":1}`}, 422, "unknown_field", "#/x~0~1y"},
		{"field twice", request{body: `{"event":"a","event":"b","organization":"acme"}`}, 422, "duplicate_field", "#/event"},
		{"wrong type", request{body: `{"event":7,"organization":"acme"}`}, 422, "wrong_type", "#/event"},
		{"no event", request{body: `{"organization":"acme"}`}, 422, "required", "#/event"},
		{"no organization", request{body: `{"event":"a"}`}, 422, "required", "#/organization"},
		{"bad name", request{body: `{"event":"a b","organization":"acme"}`}, 422, "invalid_value", "#/event"},
		{"reserved name", request{body: `{"event":"webhook.disabled","organization":"acme"}`}, 422, "reserved_name", "#/event"},
		{"payload no object", request{body: `{"event":"a","organization":"acme","payload":[1]}`}, 422, "wrong_type", "#/payload"},
		{"bad time", request{body: `{"event":"a","organization":"acme","time":"now"}`}, 422, "invalid_value", "#/time"},
		{"too large", request{body: large}, 413, "too_large", "#"},
		{"over 5 MiB", request{body: strings.Repeat(" ", 5<<20+1)}, 413, "too_large", "#"},
		{"too many", request{body: "[" + strings.Join(items, ",") + "]"}, 413, "too_large", "#"},
		{"empty batch", request{body: `[]`}, 422, "required", "#"},
		{"batch of bad ones", request{body: `[{"event":"a"},{"organization":"acme","event":"a","b":1}]`}, 422, "unknown_field", "#/1/b"},
		{"wrong content type", request{body: `a=b`, contentType: "application/x-www-form-urlencoded"}, 415, "unsupported_content", "#"},
		{"avro", request{body: `x`, contentType: "application/cloudevents+avro"}, 415, "unsupported_content", "#"},
		{"brotli", request{body: `{}`, header: map[string]string{"Content-Encoding": "br"}}, 415, "unsupported_content", "#"},
		{"cloud event without id", request{body: `{"specversion":"1.0","source":"/s","type":"a","organization":"acme"}`, contentType: cloud}, 422, "required", "#/id"},
		{"cloud event version", request{body: `{"specversion":"0.3","id":"1","source":"/s","type":"a","organization":"acme"}`, contentType: cloud}, 422, "invalid_cloudevent", "#/specversion"},
		{"data twice", request{body: `{"specversion":"1.0","id":"1","source":"/s","type":"a","organization":"acme","data":{},"data_base64":"e30="}`, contentType: cloud}, 422, "invalid_cloudevent", "#/data_base64"},
		{"reserved type", request{body: `{"specversion":"1.0","id":"1","source":"/s","type":"delivery.dead","organization":"acme"}`, contentType: cloud}, 422, "reserved_name", "#/type"},
		{"binary without type", request{body: `{}`, header: binary("ce-type", "")}, 422, "required", "#/type"},
		{"binary data no JSON", request{body: `{`, header: binary("ce-id", "2")}, 400, "invalid_json", "#/data"},
		{"binary data of another type", request{body: `x`, contentType: "text/plain", header: binary("ce-id", "2")}, 415, "unsupported_content", "#"},
		{"binary percent", request{body: `{}`, header: binary("ce-subject", "100%")}, 422, "invalid_cloudevent", "#/subject"},
	}
	for _, c := range cases {
		c.q.path = "/v1/events"
		t.Log(c.name)
		r.do(t, c.q).want(t, c.status).wantError(t, c.code, c.pointer)
	}
	if n := len(f.readAll(t, f.topics.Events)); n != 0 {
		t.Errorf("got %d events stored, want none", n)
	}
}

// The bytes of a request belong to another one as soon as it is answered: an
// event that reaches Kafka in a borrowed slice carries another tenant's body.
func TestAcceptedBodiesAreWhatKafkaHas(t *testing.T) {
	const clients, each = 16, 60
	f, r := start(t)
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		accepted = map[string][sha256.Size]byte{}
	)
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				id := strconv.Itoa(c) + "-" + strconv.Itoa(i)
				payload := randomPayload(100 + 400*(i%7))
				if _, err := r.try(t.Context(), eventRequest(i%3, id, payload)); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				accepted[id] = sha256.Sum256(payload)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	got := map[string][sha256.Size]byte{}
	for id, e := range f.events(t) {
		got[id] = sha256.Sum256(e.Payload)
	}
	if !maps.Equal(got, accepted) || len(got) != clients*each {
		t.Errorf("got %d events in Kafka that are not byte for byte the %d that were accepted", len(got), len(accepted))
	}
}

func randomPayload(n int) []byte {
	noise := make([]byte, n)
	_, _ = rand.Read(noise)
	return fmt.Appendf(nil, `{"noise":%q}`, hex.EncodeToString(noise))
}

// eventRequest sends the same event in one of three forms.
func eventRequest(form int, id string, payload []byte) request {
	q := request{path: "/v1/events"}
	switch form {
	case 0:
		q.body = fmt.Sprintf(`{"id":%q,"event":"a.b","organization":"acme","payload":%s}`, id, payload)
	case 1:
		q.contentType = "application/cloudevents+json"
		q.body = fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/t","type":"a.b","organization":"acme","data":%s}`, id, payload)
	default:
		q.body = string(bytes.TrimSpace(payload))
		q.header = map[string]string{
			"ce-specversion": "1.0", "ce-id": id, "ce-source": "/t", "ce-type": "a.b", "ce-organization": "acme",
		}
	}
	return q
}
