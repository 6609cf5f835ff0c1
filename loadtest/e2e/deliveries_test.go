package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
)

// shown is a delivery as REST shows it, with its outcomes where it is read alone.
type shown struct {
	ID, Organization, Event, Cause, Status, Reason string
	MessageID                                      string `json:"message_id"`
	WebhookID                                      string `json:"webhook_id"`
	EventID                                        string `json:"event_id"`
	Attempts                                       int
	StatusCode                                     int       `json:"status_code"`
	RoutedAt                                       time.Time `json:"routed_at"`
	UpdatedAt                                      time.Time `json:"updated_at"`
	Outcomes                                       []struct {
		Result, Sender string
		DurationMS     float64 `json:"duration_ms"`
		ConnectMS      float64 `json:"connect_ms"`
		FirstByteMS    float64 `json:"first_byte_ms"`
		ResponseHead   string  `json:"response_head"`
		ResponseBody   []byte  `json:"response_body"`
	}
}

// deliveries lists them page by page, of at most limit each.
func (s *system) deliveries(t *testing.T, query string, limit int) (all []shown) {
	t.Helper()
	path := fmt.Sprintf("/v1/deliveries?%s&limit=%d", query, limit)
	for cursor := new(""); cursor != nil; {
		var page struct {
			Data []shown
			Next *string
		}
		a := s.want(t, http.StatusOK, http.MethodGet, path+"&cursor="+*cursor, "")
		if err := json.Unmarshal(a.Body, &page); err != nil {
			t.Fatalf("reading %s: %v", a.Body, err)
		}
		if len(page.Data) > limit || page.Next != nil && len(page.Data) < limit {
			t.Errorf("got a page of %d of %d, and a next one: %v", len(page.Data), limit, page.Next != nil)
		}
		all, cursor = append(all, page.Data...), page.Next
	}
	return all
}

// waitDeliveries waits until a query finds n.
func (s *system) waitDeliveries(t *testing.T, query string, n int) (all []shown) {
	t.Helper()
	pipeline.Wait(t, soon, "deliveries with "+query, func() error {
		if all = s.deliveries(t, query, 100); len(all) != n {
			return fmt.Errorf("%w: got %d, want %d", errNotYet, len(all), n)
		}
		return nil
	})
	return all
}

// die sends events to a target that answers 500, until all are dead.
func (s *system) die(t *testing.T, hook webhook, organization string, n int) []shown {
	t.Helper()
	s.receiver.Answers(hook.Path, receiver.Answer{Status: 500, Body: []byte("broken")})
	for i := range n {
		s.post(t, fmt.Sprintf(`{"event":"a.b","organization":%q,"id":"event-%d","payload":{"n": %d.00,  "s":"<&>\u00e9"}}`, organization, i, i))
	}
	return s.waitDeliveries(t, "status=dead&webhook="+hook.ID, n)
}

// waitJob waits until a job has ended.
func (s *system) waitJob(t *testing.T, path string) answer {
	t.Helper()
	var a answer
	pipeline.Wait(t, 2*soon, "the job to end", func() error {
		if a = s.want(t, http.StatusOK, http.MethodGet, path, ""); a.field(t, "state") == "running" {
			return fmt.Errorf("%w: %s", errNotYet, a.Body)
		}
		return nil
	})
	return a
}

// TestDeadLetters finds what a broken target missed, with the reason, and sends
// it again when the target is well: one delivery, then all.
func TestDeadLetters(t *testing.T) {
	s := start(t, "--retry-schedule=1s")
	const n = 7
	begun := time.Now().UTC().Format(time.RFC3339)
	hook := s.subscribe(t, "acme", "", "/broken", "*")
	other := s.subscribe(t, "other", "", "/other", "*")
	s.post(t, `{"event":"a.b","organization":"other"}`)
	dead := s.die(t, hook, "acme", n)
	t.Run("listed", func(t *testing.T) { s.checkListed(t, hook, other, dead, begun) })
	t.Run("one", func(t *testing.T) { s.checkDelivery(t, dead[0]) })

	before := bodiesByID(s.receiver.Requests(hook.Path))
	s.receiver.Answers(hook.Path, receiver.Status(200))
	again := s.want(t, http.StatusAccepted, http.MethodPost, "/v1/deliveries/"+dead[0].ID+"/retry", "").field(t, "id")
	delivered := s.waitDeliveries(t, "status=delivered&webhook="+hook.ID, 1)[0]
	if delivered.ID != again || delivered.Cause != "retry" || delivered.MessageID != dead[0].MessageID || delivered.EventID != dead[0].EventID {
		t.Errorf("got %+v, want delivery %s of the same event as %+v", delivered, again, dead[0])
	}

	job := s.want(t, http.StatusAccepted, http.MethodPost, "/v1/webhooks/"+hook.ID+"/retry", fmt.Sprintf(`{"since":%q,"rate":3}`, begun))
	if job.field(t, "total") != fmt.Sprint(n) {
		t.Errorf("got job %s, want one of %d", job.Body, n)
	}
	ended := s.waitJob(t, job.Header.Get("Location"))
	if ended.field(t, "state") != "done" || ended.field(t, "done") != fmt.Sprint(n) || ended.field(t, "skipped") != "0" {
		t.Errorf("got %s, want %d sent again", ended.Body, n)
	}
	s.waitDeliveries(t, "status=delivered&webhook="+hook.ID, n+1)
	if after := bodiesByID(s.receiver.Requests(hook.Path)); len(after) != n {
		t.Errorf("got messages %v, want the %d of before", after, n)
	} else {
		for id, bodies := range after {
			if len(bodies) != 1 || before[id][0] != bodies[0] {
				t.Errorf("message %s has had bodies %q", id, bodies)
			}
		}
	}
}

// bodiesByID are the different bodies that came under each webhook-id.
func bodiesByID(requests []receiver.Request) map[string][]string {
	all := map[string][]string{}
	for _, r := range requests {
		if !slices.Contains(all[r.MessageID], string(r.Body)) {
			all[r.MessageID] = append(all[r.MessageID], string(r.Body))
		}
	}
	return all
}

func (s *system) checkListed(t *testing.T, hook, other webhook, dead []shown, begun string) {
	t.Helper()
	for i, d := range dead {
		if d.WebhookID != hook.ID || d.Organization != "acme" || d.Event != "a.b" || d.Cause != "event" || d.Status != "dead" ||
			d.Reason == "" || d.StatusCode != 500 || d.Attempts != 2 || d.UpdatedAt.Before(d.RoutedAt) {
			t.Errorf("got %+v, want it dead after two answers of 500", d)
		}
		if i > 0 && d.RoutedAt.After(dead[i-1].RoutedAt) {
			t.Errorf("delivery %d is newer than the one before", i)
		}
	}
	var ids []string
	for _, d := range dead {
		ids = append(ids, d.ID)
	}
	for _, limit := range []int{1, 2, len(dead), len(dead) + 1} {
		var paged []string
		for _, d := range s.deliveries(t, "status=dead", limit) {
			paged = append(paged, d.ID)
		}
		if !slices.Equal(paged, ids) {
			t.Errorf("pages of %d: got %v, want %v", limit, paged, ids)
		}
	}
	s.waitDeliveries(t, "organization=other&status=delivered&webhook="+other.ID, 1)
	for query, want := range map[string]int{
		"organization=acme": len(dead), "organization=nobody": 0, "": len(dead) + 1,
		"webhook=" + other.ID: 1, "webhook=wh_'--": 0, "event=a.b": len(dead) + 1, "event=a.c": 0, "status=retry": 0,
		"since=" + begun: len(dead) + 1, "until=" + begun: 0, "since=" + begun + "&until=2200-01-01T00:00:00Z&organization=acme": len(dead),
		"since=2200-01-01T00:00:00Z": 0,
		"since=" + dead[3].UpdatedAt.Format(time.RFC3339Nano) + "&until=" + dead[3].UpdatedAt.Add(time.Millisecond).Format(time.RFC3339Nano) + "&status=dead": sameMoment(dead, dead[3]),
	} {
		if got := len(s.deliveries(t, query, 100)); got != want {
			t.Errorf("%s: got %d deliveries, want %d", query, got, want)
		}
	}
	key := s.key(t, "other", schemas.Scopes()...)
	if a := s.as(t, key, http.MethodGet, "/v1/deliveries/"+dead[0].ID, ""); a.Status != http.StatusNotFound {
		t.Errorf("another organization's key got %d %s, want 404", a.Status, a.Body)
	}
}

func sameMoment(all []shown, one shown) (n int) {
	for _, d := range all {
		if d.UpdatedAt.Equal(one.UpdatedAt) {
			n++
		}
	}
	return n
}

// checkDelivery reads one with its outcomes, whose words of the target need a scope.
func (s *system) checkDelivery(t *testing.T, d shown) {
	t.Helper()
	path := "/v1/deliveries/" + d.ID
	a := s.want(t, http.StatusOK, http.MethodGet, path, "")
	var one shown
	if err := json.Unmarshal(a.Body, &one); err != nil {
		t.Fatal(err)
	}
	if len(one.Outcomes) != 2 || one.Outcomes[0].Result != "retry" || one.Outcomes[1].Result != "dead" || string(one.Outcomes[1].ResponseBody) != "broken" {
		t.Errorf("got %s, want a retry, then its end, with what the target said", a.Body)
	}
	for _, o := range one.Outcomes {
		// The name is an address, and the connection may be there already: then there is nothing to connect.
		if o.Sender == "" || o.FirstByteMS <= 0 || o.DurationMS < o.ConnectMS+o.FirstByteMS || !strings.HasPrefix(o.ResponseHead, "HTTP/1.1 500") {
			t.Errorf("got outcome %+v, want who made it, how long its steps took, and the answer's head", o)
		}
	}
	event := s.want(t, http.StatusOK, http.MethodGet, "/v1/events/"+d.EventID+"?organization=acme", "")
	if !strings.Contains(string(event.Body), `"payload":{"n":`) || !strings.Contains(string(event.Body), d.ID) || !strings.Contains(string(event.Body), `"matches":1`) {
		t.Errorf("got event %s, want its payload and the delivery that matched it", event.Body)
	}
	if a := s.want(t, http.StatusOK, http.MethodGet, "/v1/changes?organization=acme&object=webhook&object_id="+d.WebhookID, ""); !strings.Contains(string(a.Body), `"action":"created"`) {
		t.Errorf("got changes %s, want that the webhook was created", a.Body)
	}
	stats := s.want(t, http.StatusOK, http.MethodGet, "/v1/webhooks/"+d.WebhookID+"/stats", "")
	if !strings.Contains(string(stats.Body), `"status_codes":{"500":14}`) || !strings.Contains(string(stats.Body), `"attempt_ms":{"p50":`) {
		t.Errorf("got statistics %s, want fourteen answers of 500", stats.Body)
	}
	key := s.key(t, "acme", schemas.ScopeDeliveriesRead)
	if a := s.as(t, key, http.MethodGet, path, ""); a.Status != http.StatusOK || strings.Contains(string(a.Body), "response_body") {
		t.Errorf("without payloads:read got %d %s", a.Status, a.Body)
	}
}

// TestRetryOutlivesItsRunner kills the ingest that runs a job, in the middle of
// it: another takes the job over, and each delivery is made once.
func TestRetryOutlivesItsRunner(t *testing.T) {
	s := start(t, "--retry-schedule=1s")
	const n = 16
	begun := time.Now().UTC().Format(time.RFC3339)
	hook := s.subscribe(t, "acme", "", "/broken", "*")
	s.die(t, hook, "acme", n)
	s.receiver.Answers(hook.Path, receiver.Status(200))
	runner := s.ingest
	job := s.want(t, http.StatusAccepted, http.MethodPost, "/v1/webhooks/"+hook.ID+"/retry", fmt.Sprintf(`{"since":%q,"rate":2}`, begun)).Header.Get("Location")
	s.waitDeliveries(t, "status=delivered&webhook="+hook.ID, 4)
	runner.Kill9(t)
	s.startIngest(t, "ingest-2", loopback)
	s.ingest.WaitReady(t)
	if ended := s.waitJob(t, job); ended.field(t, "state") != "done" || ended.field(t, "done") != fmt.Sprint(n) {
		t.Errorf("got %s, want %d sent again", ended.Body, n)
	}
	s.waitQuery(t, `SELECT count(), uniqExact(event_id) FROM postrider.deliveries WHERE cause = 'retry' AND state = 'delivered'`, fmt.Sprintf("%d\t%d", n, n))
	if made := len(s.readAll(t, s.topics.Deliveries)); made != 2*n {
		t.Errorf("got %d deliveries in all, want %d", made, 2*n)
	}
}
