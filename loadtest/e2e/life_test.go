package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// TestLifeOfAWebhook pauses and resumes a webhook, has the sender disable one and
// enables it again, and has a third webhook told of all of it.
func TestLifeOfAWebhook(t *testing.T) {
	s := start(t)
	w := watcher{s, "/watcher"}
	s.subscribe(t, "acme", "", w.path, "webhook")
	s.subscribe(t, "other", "", "/stranger", "webhook")
	t.Run("paused", func(t *testing.T) { s.testPaused(t) })
	t.Run("gone", func(t *testing.T) { s.testGone(t, w) })
	t.Run("told", func(t *testing.T) { s.testTold(t, w) })
	s.quiet(t, "acme")
	if n := s.receiver.Count("/stranger"); n != 1 {
		t.Errorf("another organization was told of %d changes, want that of its own webhook", n)
	}
}

// watcher is a webhook that operational events go to.
type watcher struct {
	*system

	path string
}

// waitTold waits for an event about a webhook and returns its payload.
func (w watcher) waitTold(t *testing.T, id, name string, matches func(payload map[string]any) bool) (payload map[string]any) {
	t.Helper()
	pipeline.Wait(t, soon, name+" about "+id, func() error {
		for _, r := range w.receiver.Requests(w.path) {
			var event struct {
				Event   string         `json:"event"`
				Payload map[string]any `json:"payload"`
			}
			if err := json.Unmarshal(r.Body, &event); err != nil {
				return fmt.Errorf("reading %s: %w", r.Body, err)
			}
			if event.Event == name && event.Payload["id"] == id && matches(event.Payload) {
				payload = event.Payload
				return nil
			}
		}
		return fmt.Errorf("not among %d requests", w.receiver.Count(w.path))
	})
	return payload
}

func anyPayload(map[string]any) bool { return true }

func (s *system) testPaused(t *testing.T) {
	t.Helper()
	hook := s.subscribe(t, "acme", "", "/paused", "a")
	path := "/v1/webhooks/" + hook.ID
	if got := s.want(t, http.StatusOK, http.MethodPost, path+"/pause", "").field(t, "state"); got != "paused" {
		t.Errorf("state %s, want paused", got)
	}
	const events = 50
	var want []string
	for i := range events {
		want = append(want, s.post(t, fmt.Sprintf(`{"event":"a.b","organization":"acme","payload":{"n":%d}}`, i)))
	}
	s.waitQuery(t, `SELECT uniqExact(delivery_id), count() FROM postrider.outcomes WHERE result = 'held' AND webhook_id = '`+hook.ID+`'`, fmt.Sprintf("%d\t%d", events, events))
	if n := s.receiver.Count("/paused"); n != 0 {
		t.Errorf("%d requests came while it was paused", n)
	}
	ping := s.want(t, http.StatusAccepted, http.MethodPost, path+"/ping", "").field(t, "id")
	s.receiver.WaitFor(t, "/paused", 1, soon)

	s.want(t, http.StatusOK, http.MethodPost, path+"/resume", "")
	s.waitQuery(t, `SELECT countIf(state = 'delivered'), count() FROM postrider.deliveries WHERE webhook_id = '`+hook.ID+`'`, fmt.Sprintf("%d\t%d", events+1, events+1))
	want = append(want, ping)
	var got []string
	for _, body := range bodies(s.receiver.Requests("/paused")) {
		got = append(got, answer{Body: []byte(body)}.field(t, "id"))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got events %v, want each once: %v", got, want)
	}
}

func (s *system) testGone(t *testing.T, w watcher) {
	t.Helper()
	s.receiver.Answers("/gone", receiver.Status(http.StatusGone))
	hook := s.subscribe(t, "acme", "", "/gone", "b")
	path := "/v1/webhooks/" + hook.ID
	s.post(t, `{"event":"b.c","organization":"acme"}`)
	told := w.waitTold(t, hook.ID, "webhook.disabled", anyPayload)
	if told["reason"] != "gone" || told["generation"] != 1.0 {
		t.Errorf("told %v, want generation 1 to be gone", told)
	}
	var shown answer
	pipeline.Wait(t, soon, "the API to show it disabled", func() error {
		if shown = s.want(t, http.StatusOK, http.MethodGet, path, ""); shown.field(t, "state") != "disabled" {
			return fmt.Errorf("got %s", shown.Body)
		}
		return nil
	})
	if reason, active := shown.field(t, "disabled_reason"), shown.field(t, "active"); reason != "gone" || active != "true" || shown.field(t, "disabled_at") == "" {
		t.Errorf("the API shows %s, want it to be gone, which its owner has not asked for", shown.Body)
	}
	s.post(t, `{"event":"b.missed","organization":"acme"}`)

	s.receiver.Answers("/gone", receiver.Status(http.StatusOK))
	enabled := s.want(t, http.StatusOK, http.MethodPost, path+"/enable", "")
	if got := enabled.field(t, "state"); got != "active" {
		t.Errorf("state %s, want active", got)
	}
	id := s.post(t, `{"event":"b.d","organization":"acme"}`)
	requests := s.receiver.WaitFor(t, "/gone", 2, soon)
	if got := (answer{Body: requests[1].Body}).field(t, "id"); got != id || len(requests) != 2 {
		t.Errorf("%d requests, the second of event %s, want that of %s", len(requests), got, id)
	}
	w.waitTold(t, hook.ID, "webhook.enabled", anyPayload)
	s.waitQuery(t, `SELECT min(generation), max(generation) FROM postrider.webhooks WHERE webhook_id = '`+hook.ID+`'`, "1\t2")
}

func (s *system) testTold(t *testing.T, w watcher) {
	t.Helper()
	hook := s.subscribe(t, "acme", "north", "/told", "never")
	path := "/v1/webhooks/" + hook.ID
	w.waitTold(t, hook.ID, "webhook.created", func(p map[string]any) bool { return p["account"] == "north" && p["state"] == "active" })
	s.want(t, http.StatusOK, http.MethodPatch, path, `{"description":"new"}`)
	s.want(t, http.StatusUnprocessableEntity, http.MethodPatch, path, `{"timeout_ms":0}`)
	w.waitTold(t, hook.ID, "webhook.updated", func(p map[string]any) bool { return p["description"] == "new" && p["revision"] == 2.0 })
	s.want(t, http.StatusOK, http.MethodPatch, path, `{"active":false}`)
	told := w.waitTold(t, hook.ID, "webhook.disabled", func(p map[string]any) bool { return p["state"] == "disabled" && p["revision"] == 3.0 })
	if told["disabled_reason"] != nil {
		t.Errorf("told %v, want no reason of the sender's", told)
	}
	s.want(t, http.StatusNoContent, http.MethodDelete, path, "")
	w.waitTold(t, hook.ID, "webhook.deleted", func(p map[string]any) bool { return p["revision"] == 3.0 })
	for _, r := range s.receiver.Requests(w.path) {
		if strings.Contains(string(r.Body), "secret") || strings.Contains(string(r.Body), "whsec_") {
			t.Errorf("a secret in %s", r.Body)
		}
	}
}
