package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestFilters has the router and the call that tries a filter decide on the same events.
func TestFilters(t *testing.T) {
	s := start(t)
	filters := []string{
		``, `payload.amount > 100`, `account == "north" && event.endsWith(".created")`, `has(payload.tags) && "vip" in payload.tags`,
		`payload.customer.name.matches("^M.*r$")`, `time < timestamp("2026-01-01T00:00:00Z")`, `payload.id == 9007199254740993`, `payload.paid`,
	}
	payloads := []string{
		`{}`, `{"amount":100.5,"tags":["vip"]}`, `{"amount":7,"id":9007199254740993,"paid":true}`, `{"id":9007199254740992,"paid":"yes"}`,
		`{"customer":{"name":"Müller"},"tags":[]}`, `{"amount":1e400}`,
	}
	for i, filter := range filters {
		body := fmt.Sprintf(`{"organization":"acme","url":%q,"events":"orders","filter":%s}`, s.receiver.URL("/"+strconv.Itoa(i)), quoted(t, filter))
		if shown := s.want(t, http.StatusCreated, http.MethodPost, "/v1/webhooks", body); filter != "" && shown.field(t, "filter") != filter {
			t.Errorf("made with the filter %q, shown is %s", filter, shown.Body)
		}
	}
	producer := s.client(t)
	want := make([]int, len(filters))
	for i, payload := range payloads {
		event := fmt.Sprintf(`{"id":"%d","event":"orders.created","organization":"acme","account":"north","payload":%s}`, i, payload)
		for f, filter := range filters {
			answer := s.want(t, http.StatusOK, http.MethodPost, "/v1/filters/test", fmt.Sprintf(`{"filter":%s,"event":%s}`, quoted(t, orTrue(filter)), event))
			if strings.Contains(string(answer.Body), `"matches":true`) {
				want[f]++
			}
		}
		if i%2 == 0 {
			s.post(t, event)
			continue
		}
		record := &kgo.Record{Topic: s.topics.Events, Key: []byte("acme"), Value: []byte(event)}
		if err := producer.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	s.waitQuery(t, `SELECT count() FROM postrider.events WHERE `+notOperational, strconv.Itoa(len(payloads)))
	for f, filter := range filters {
		s.receiver.WaitFor(t, "/"+strconv.Itoa(f), want[f], soon)
		if want[f] == 0 && !strings.HasPrefix(filter, "time") {
			t.Errorf("%q passes none of these: nothing was tried", filter)
		}
	}
	s.quiet(t, "acme")
	for f, filter := range filters {
		if got := s.receiver.Count("/" + strconv.Itoa(f)); got != want[f] {
			t.Errorf("%q: the router let %d events pass, the test %d", filter, got, want[f])
		}
	}
}

// TestBadFilters says what is wrong, and where.
func TestBadFilters(t *testing.T) {
	s := start(t)
	id := s.subscribe(t, "acme", "", "/hook", "a").ID
	for body, wants := range map[string]string{
		`{"filter":"payload.","event":{"event":"a","organization":"acme"}}`: "line 1, column 9",
		`{"filter":"true\n&& evnt == 'a'","event":{"event":"a"}}`:           "line 2, column 4",
		`{"filter":"","event":{"event":"a","organization":"acme"}}`:         "#/filter",
		`{"filter":"true"}`:                          "#/event",
		`{"filter":"true","event":{"event":"a"}}`:    "#/event/organization",
		`{"filter":"true","event":null}`:             "#/event",
		`{"filter":"true","event":{},"webhook":"x"}`: "#/webhook",
		`{"filter":7,"event":{"event":"a"}}`:         "#/filter",
		`{"filter":"` + strings.Repeat("(", 5000) + `","event":{"event":"a","organization":"acme"}}`: "4096",
	} {
		if a := s.want(t, http.StatusUnprocessableEntity, http.MethodPost, "/v1/filters/test", body); !strings.Contains(string(a.Body), wants) {
			t.Errorf("%.60s: got %s, want it to tell of %q", body, a.Body, wants)
		}
	}
	for _, change := range []string{`{"filter":"payload."}`, `{"filter":"event"}`, `{"filter":["true"]}`, `{"filter":"` + strings.Repeat("true&&", 1000) + `true"}`} {
		s.want(t, http.StatusUnprocessableEntity, http.MethodPatch, "/v1/webhooks/"+id, change)
	}
	s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+id, `{"filter":"false"}`)
	if a := s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+id, `{"filter":null}`); strings.Contains(string(a.Body), "filter") {
		t.Errorf("taken away, the filter is still shown: %s", a.Body)
	}
	answer := s.want(t, http.StatusOK, http.MethodPost, "/v1/filters/test", `{"filter":"payload.x == 1","event":{"event":"a","organization":"acme"}}`)
	if !strings.Contains(string(answer.Body), `"matches":false`) || !strings.Contains(string(answer.Body), "no such key: x") {
		t.Errorf("a member that is not there: got %s", answer.Body)
	}
}

func quoted(t *testing.T, text string) string {
	t.Helper()
	b, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func orTrue(filter string) string {
	if filter == "" {
		return "true"
	}
	return filter
}
