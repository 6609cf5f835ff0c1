package bench

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
)

func TestAppendEvent(t *testing.T) {
	l := load{Run: "run", Organizations: 7}
	for _, number := range []int{0, 8, 99_999} {
		event, err := schemas.DecodePlainEvent(l.appendEvent(nil, number))
		if err != nil {
			t.Fatal(err)
		}
		if err := event.Validate(); err != nil {
			t.Error(err)
		}
		if event.ID != eventID("run", number) || event.Organization != organization(number%7) ||
			len(event.Payload) != payloadBytes || !json.Valid(event.Payload) {
			t.Errorf("event %d: got %+v with %d bytes of payload: %s", number, event, len(event.Payload), event.Payload)
		}
	}
	if a, b := l.appendEvent(nil, 3), l.appendEvent(nil, 3); string(a) != string(b) {
		t.Errorf("the same event twice: got %s and %s", a, b)
	}
}

func TestPost(t *testing.T) {
	r := receiver.Start(t, receiver.Config{Light: true})
	l := load{Addr: r.Addr(), Path: "/bare", PathEach: true, Want: http.StatusOK, Run: "run", Organizations: 3, Connections: 4, Events: 50}
	for _, l.Rate = range []int{0, 1000} {
		before := r.Total()
		s, err := l.post(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Total() - before; got != 50 || len(r.Paths()) != 3 {
			t.Errorf("rate %d: got %d requests at %q, want 50 at three paths", l.Rate, got, r.Paths())
		}
		for number, at := range s.SentAt {
			if at < s.StartedAt || at > s.EndedAt {
				t.Errorf("event %d: sent at %d, want from %d to %d", number, at, s.StartedAt, s.EndedAt)
			}
		}
	}
}

func TestPostEndsAtARefusal(t *testing.T) {
	r := receiver.Start(t, receiver.Config{})
	r.Answers("/a", receiver.Status(200), receiver.Status(200), receiver.Status(503))
	for _, rate := range []int{0, 1000} {
		l := load{Addr: r.Addr(), Path: "/a", Want: http.StatusOK, Run: "run", Organizations: 1, Connections: 2, Events: 1_000_000, Rate: rate}
		if _, err := l.post(t.Context()); !errors.Is(err, errNotAccepted) || !strings.Contains(err.Error(), "status 503, want 200") {
			t.Errorf("got %v, want a status", err)
		}
	}
}
