package ledger

import (
	"encoding/base64"
	"slices"
	"testing"
	"time"
)

// TestRetiredSecret: a request that an old secret has signed is found from when on that may not be.
func TestRetiredSecret(t *testing.T) {
	next := "whsec_" + base64.StdEncoding.EncodeToString([]byte("another secret of 32 bytes ....."))
	for name, c := range map[string]struct {
		from time.Duration // from the request's time on
		want int
	}{"before": {time.Second, 0}, "after": {-time.Second, 1}} {
		l := New()
		l.Subscribe(Webhook{ID: "wh_1", Organization: "acme", Secret: secret, Path: "/w"})
		l.Sends("e1", "acme", body("e1"))
		r := request(t, "e1")
		l.Rotates("/w", next)
		l.Retires("/w", secret, r.At.Add(c.from))
		l.Request(r)
		if got := l.wrong.texts; len(got) != c.want {
			t.Errorf("%s: got %q, want %d", name, got, c.want)
		}
	}
}

// TestMoved: what comes at a webhook's new path is its own.
func TestMoved(t *testing.T) {
	l := New()
	l.Subscribe(Webhook{ID: "wh_1", Organization: "acme", Secret: secret, Path: "/w"})
	l.Sends("e1", "acme", body("e1"))
	l.Accepted("e1")
	l.Moves("/w", "/new")
	r := request(t, "e1")
	r.Path = "/new"
	l.Request(r)
	if len(l.wrong.texts) > 0 {
		t.Errorf("got %q, want nothing wrong", l.wrong.texts)
	}
	if l.Seen("e1") != 1 || len(l.Times("e1", "/w")) != 1 || l.Count().Owed != 0 {
		t.Errorf("got %d webhooks called, %v, %+v, want one that owes nothing", l.Seen("e1"), l.Times("e1", "/w"), l.Count())
	}
}

// TestWaits: what has not come yet has waited until now.
func TestWaits(t *testing.T) {
	l, from := New(), time.Now()
	l.Subscribe(Webhook{ID: "wh_1", Organization: "acme", Secret: secret, Path: "/w"})
	for _, id := range []string{"came", "waits"} {
		l.Sends(id, "acme", body(id))
		l.Accepted(id)
	}
	r := request(t, "came")
	r.At = from.Add(time.Hour)
	l.Request(r)
	all := func(string) bool { return true }
	waits := l.Waits(from, time.Now(), all)
	slices.Sort(waits)
	if len(waits) != 2 || waits[0] > time.Minute || waits[1] < 59*time.Minute || Quantile(waits, 0.99) != waits[1] || Quantile(waits, 0.5) != waits[0] {
		t.Errorf("got %v, want one that waits and one of an hour", waits)
	}
	if n := l.Unseen(from, time.Now(), all); n != 1 {
		t.Errorf("%d have not come, want 1", n)
	}
	if n := len(l.Waits(from, time.Now(), func(path string) bool { return path != "/w" })); n != 0 {
		t.Errorf("%d waits of others, want none", n)
	}
}
