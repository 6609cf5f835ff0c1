package e2e

import (
	"fmt"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestFirstDelivery is the README's first five minutes.
func TestFirstDelivery(t *testing.T) {
	s := start(t)
	hook := s.subscribe(t, "acme", "", "/hook", "medical-encounters")
	id := s.post(t, `{"event":"medical-encounters.created","organization":"acme","payload":{"id":7}}`)
	got := s.receiver.WaitFor(t, "/hook", 1, soon)[0]
	if want := `{"id":"` + id + `","event":"medical-encounters.created","payload":{"id":7}}`; string(got.Body) != want {
		t.Errorf("body is %s, want %s", got.Body, want)
	}
	if err := got.Verify(hook.Secret); err != nil {
		t.Error(err)
	}
	for header, want := range map[string]string{"Content-Type": "application/json", "Postrider-Sequence": "0"} {
		if value := got.Header.Get(header); value != want {
			t.Errorf("header %s is %q, want %q", header, value, want)
		}
	}
	s.waitQuery(t, `SELECT organization, event_id, attempt, status_code, result FROM postrider.outcomes`, "acme\t"+id+"\t1\t200\tdelivered")
	s.waitQuery(t, `SELECT event_id, matches, copies FROM postrider.events WHERE `+notOperational, id+"\t1\t0")
	s.waitQuery(t, `SELECT event_id, state FROM postrider.deliveries`, id+"\tdelivered")
	s.waitQuery(t, `SELECT action, object FROM postrider.changes`, "created\twebhook")
	for _, statement := range readmeSQL(t) {
		s.query(t, statement)
	}
}

// readmeSQL are the statements of the README, without comments.
func readmeSQL(t *testing.T) (statements []string) {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```sql\n")
	block, _, _ := strings.Cut(rest, "```")
	for statement := range strings.SplitSeq(block, ";") {
		statement = regexp.MustCompile(`(?m)^--.*$`).ReplaceAllString(statement, "")
		if statement = strings.TrimSpace(statement); statement != "" {
			statements = append(statements, statement)
		}
	}
	if len(statements) == 0 {
		t.Fatal("the README has no SQL to try")
	}
	return statements
}

// TestWebhookContract holds the users' own document (design section 2).
func TestWebhookContract(t *testing.T) {
	s := start(t)
	t.Run("create", s.testCreate)
	t.Run("ping reaches one webhook only", s.testPing)
	t.Run("patterns", s.testPatterns)
	t.Run("scopes", s.testScopes)
}

func (s *system) testCreate(t *testing.T) {
	for name, body := range map[string]string{
		"as the contract says": `{"organization":"c1","active":true,"url":%q,"events":"ping"}`,
		"on an account":        `{"organization":"c1","account":"a1","active":true,"url":%q,"events":"ping"}`,
		"several patterns":     `{"organization":"c1","active":true,"url":%q,"events":["a","b.created"]}`,
		"disabled":             `{"organization":"c1","active":false,"url":%q,"events":"*"}`,
	} {
		a := s.want(t, http.StatusCreated, http.MethodPost, "/webhook-events", fmt.Sprintf(body, s.receiver.URL("/c1")))
		id := a.field(t, "id")
		if read := s.want(t, http.StatusOK, http.MethodGet, "/v1/webhooks/"+id, ""); read.field(t, "organization") != "c1" {
			t.Errorf("%s: read again: %s", name, read.Body)
		}
	}
}

func (s *system) testPing(t *testing.T) {
	one := s.subscribe(t, "c2", "", "/c2/one", "x")
	s.subscribe(t, "c2", "", "/c2/two", "*")
	s.subscribe(t, "c2", "", "/c2/three", "ping")
	s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+one.ID, `{"active":false}`)
	id := s.want(t, http.StatusAccepted, http.MethodPost, "/webhook-events", `{"webhook":"`+one.ID+`","event":"ping"}`).field(t, "id")
	got := s.receiver.WaitFor(t, "/c2/one", 1, soon)
	if want := []string{`{"id":"` + id + `","event":"ping"}`}; !reflect.DeepEqual(bodies(got), want) {
		t.Errorf("got %s, want %s", bodies(got), want)
	}
	s.quiet(t, "c2")
	for _, path := range []string{"/c2/two", "/c2/three"} {
		for _, body := range bodies(s.receiver.Requests(path)) {
			if strings.Contains(body, `"event":"ping"`) {
				t.Errorf("another webhook got the ping: %s at %s", body, path)
			}
		}
	}
	s.waitQuery(t, `SELECT event, matches FROM postrider.events WHERE event_id = '`+id+`'`, "ping\t1")
}

func (s *system) testPatterns(t *testing.T) {
	want := map[string][]string{
		"medical-encounters":         {"medical-encounters.created", "medical-encounters.updated", "medical-encounters.removed"},
		"medical-encounters.created": {"medical-encounters.created"},
		"*.removed":                  {"medical-encounters.removed"},
		"*":                          {"medical-encounters.created", "medical-encounters.updated", "medical-encounters.removed", "medical-encounters-archive.created"},
	}
	for pattern := range want {
		s.subscribe(t, "c3", "", "/c3/"+pattern, pattern)
	}
	ids := map[string]string{}
	for _, name := range want["*"] {
		ids[name] = s.post(t, `{"event":"`+name+`","organization":"c3"}`)
	}
	for pattern, names := range want {
		s.receiver.WaitFor(t, "/c3/"+pattern, len(names), soon)
	}
	s.quiet(t, "c3")
	for pattern, names := range want {
		var expected []string
		for _, name := range names {
			expected = append(expected, `{"id":"`+ids[name]+`","event":"`+name+`"}`)
		}
		got := slices.DeleteFunc(bodies(s.receiver.Requests("/c3/"+pattern)), func(body string) bool {
			return pattern == "*" && strings.Contains(body, `"event":"fence.passed"`)
		})
		slices.Sort(got)
		slices.Sort(expected)
		if !reflect.DeepEqual(got, expected) {
			t.Errorf("pattern %s got %s, want %s", pattern, got, expected)
		}
	}
}

func (s *system) testScopes(t *testing.T) {
	s.subscribe(t, "c4", "", "/c4/organization", "a")
	s.subscribe(t, "c4", "north", "/c4/north", "a")
	s.subscribe(t, "c4", "south", "/c4/south", "a")
	s.subscribe(t, "c4x", "north", "/c4/other", "a")
	whole := s.post(t, `{"event":"a.b","organization":"c4"}`)
	north := s.post(t, `{"event":"a.b","organization":"c4","account":"north"}`)
	s.receiver.WaitFor(t, "/c4/organization", 2, soon)
	s.receiver.WaitFor(t, "/c4/north", 1, soon)
	s.quiet(t, "c4")
	body := func(id string) string { return `{"id":"` + id + `","event":"a.b"}` }
	got := bodies(s.receiver.Requests("/c4/organization"))
	slices.Sort(got)
	both := []string{body(whole), body(north)}
	slices.Sort(both)
	if !reflect.DeepEqual(got, both) {
		t.Errorf("the organization's webhook got %s, want %s", got, both)
	}
	if got, want := bodies(s.receiver.Requests("/c4/north")), []string{body(north)}; !reflect.DeepEqual(got, want) {
		t.Errorf("the account's webhook got %s, want %s", got, want)
	}
	if n := s.receiver.Count("/c4/south") + s.receiver.Count("/c4/other"); n != 0 {
		t.Errorf("webhooks of others got %d requests, want none", n)
	}
}

// TestSameBytes is P13: a payload reaches the target as it was sent.
func TestSameBytes(t *testing.T) {
	s := start(t)
	s.subscribe(t, "acme", "", "/bytes", "*")
	for i, payload := range []string{
		`{}`,
		`{"huge":1e400,"tenth":0.1000,"big":123456789012345678901234567890,"minus":-0}`,
		`{"b":1,"a":2,"b":3}`,
		`{"text":"\u00e9\/\ud83d\ude00\n\t","half":"\ud800","raw":"é😀"}`,
		"{ \"space\" :\t[ 1 ,\r\n2 ] }",
	} {
		id := s.post(t, `{"event":"a.b","organization":"acme","payload": `+payload+` }`)
		got := s.receiver.WaitFor(t, "/bytes", i+1, soon)
		want := `{"id":"` + id + `","event":"a.b","payload":` + payload + `}`
		if body := string(got[i].Body); body != want {
			t.Errorf("body is %s, want %s", body, want)
		}
	}
}
