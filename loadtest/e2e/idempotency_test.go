package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
)

// TestIdempotencyKey sends requests again, to the same ingest and to another, which
// knows nothing of the first but what is in the log: what they ask for is done once,
// and the answers are the same.
func TestIdempotencyKey(t *testing.T) {
	s := start(t)
	s.subscribe(t, "acme", "", "/hook", "a")
	first := s.ingest
	s.startIngest(t, "ingest-2", loopback)
	second := s.ingest.WaitReady(t)
	key := func(key string) []string { return []string{"Idempotency-Key", key} }

	const one, batch = `{"event":"a.one","organization":"acme","payload":{"n":1}}`, `[{"event":"a.b","organization":"acme","payload":{"n":1}},{"id":"own","event":"a.b","organization":"acme"},{"event":"a.b","organization":"acme"}]`
	answers := map[string]string{}
	same := func(name string, a answer) {
		t.Helper()
		if before, ok := answers[name]; ok && before != string(a.Body) {
			t.Errorf("%s: answered %s, then %s", name, before, a.Body)
		}
		answers[name] = string(a.Body)
	}
	hook := fmt.Sprintf(`{"organization":"acme","url":%q,"events":"other","headers":[{"name":"X-Token","value":"t","sensitive":true}],"signatures":["v1","v1a"]}`, s.receiver.URL("/other"))
	for range 2 {
		for _, s.ingest = range []*pipeline.Service{first, second} {
			same("one", s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", one, key(`"k"`)...))
			same("one", s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", one, key(`k`)...))
			same("batch", s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", batch, key("k-batch")...))
			made := s.want(t, http.StatusCreated, http.MethodPost, "/v1/webhooks", hook, key("k-hook")...)
			same("webhook", answer{Body: []byte(made.field(t, "id") + made.field(t, "secret") + made.field(t, "created_at") + made.field(t, "public_keys"))})
			wantProblem(t, s.call(t, http.MethodPost, "/v1/webhooks", `{"organization":"acme","url":"https://example.com/","events":"other"}`, key("k-hook")...), 422, "#")
		}
	}
	s.ingest = first
	wantProblem(t, s.call(t, http.MethodPost, "/v1/events", `{"event":"a.one","organization":"acme","payload":{"n":2}}`, key("k")...), 422, "#")
	s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", one, key("")...)
	wantProblem(t, s.call(t, http.MethodPost, "/v1/events", one, key(`""`)...), 400, "#")
	if n := len(list(t, s.call(t, http.MethodGet, "/v1/webhooks?organization=acme", ""))); n != 2 {
		t.Errorf("there are %d webhooks, want the first and the one made under a key", n)
	}
	s.receiver.WaitFor(t, "/hook", 5, soon) // one, the batch of three, and one without a key
	s.quiet(t, "acme")
	if n := s.receiver.Count("/hook"); n != 5 {
		t.Errorf("%d requests came, want 5", n)
	}
	s.waitQuery(t, `SELECT countIf(copies = 0), countIf(copies > 0), sum(matches) FROM postrider.events WHERE event LIKE 'a.%'`, "1\t4\t5")
}

// TestReusedKey is what becomes of another event under a known key at an ingest that does not know it.
func TestReusedKey(t *testing.T) {
	s := start(t)
	s.subscribe(t, "acme", "", "/hook", "a")
	id := s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", `{"event":"a.b","organization":"acme","payload":{"n":1}}`, "Idempotency-Key", "k").field(t, "id")
	s.startIngest(t, "ingest-2", loopback)
	s.ingest.WaitReady(t)
	again := s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", `{"event":"a.b","organization":"acme","payload":{"n":2}}`, "Idempotency-Key", "k").field(t, "id")
	if again != id {
		t.Errorf("one key made the ids %s and %s", id, again)
	}
	s.quiet(t, "acme")
	if got := bodies(s.receiver.Requests("/hook")); len(got) != 1 || got[0] != `{"id":"`+id+`","event":"a.b","payload":{"n":1}}` {
		t.Errorf("got %v, want the first alone", got)
	}
	if n := len(s.readAll(t, s.topics.Rejected)); n != 1 {
		t.Errorf("%d records were rejected, want the other event", n)
	}
}

// TestCompressedBodies is the same events, smaller on their way.
func TestCompressedBodies(t *testing.T) {
	s := start(t)
	s.subscribe(t, "acme", "", "/hook", "a")
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write([]byte(`{"id":"zipped","event":"a.b","organization":"acme","payload":{"n": 1.50}}`)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", zipped.String(), "Content-Encoding", "gzip")
	if got := bodies(s.receiver.WaitFor(t, "/hook", 1, soon)); got[0] != `{"id":"zipped","event":"a.b","payload":{"n": 1.50}}` {
		t.Errorf("got %s", got)
	}
	wantProblem(t, s.call(t, http.MethodPost, "/v1/events", zipped.String()[:20], "Content-Encoding", "gzip"), 400, "#")
	refused := s.call(t, http.MethodPost, "/v1/events", "x", "Content-Encoding", "br")
	if wantProblem(t, refused, 415, "#"); refused.Header.Get("Accept-Encoding") != "gzip, zstd" {
		t.Errorf("the answer does not say which encodings there are: %v", refused.Header)
	}
}
