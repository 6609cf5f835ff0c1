package ledger

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/postrider/postrider/loadtest/receiver"
)

// secret is 32 bytes, the least that the reference library takes being 24.
var secret = "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 32)) //nolint:gochecknoglobals // as good as a constant

func body(id string) []byte { return fmt.Appendf(nil, `{"id":%q,"event":"a.b"}`, id) }

// request is a signed one of an event, answered 200.
func request(t *testing.T, id string) receiver.Request {
	t.Helper()
	wh, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	signature, err := wh.Sign("msg_"+id, now, body(id))
	if err != nil {
		t.Fatal(err)
	}
	header := http.Header{}
	header.Set("webhook-id", "msg_"+id)
	header.Set("webhook-timestamp", fmt.Sprint(now.Unix()))
	header.Set("webhook-signature", signature)
	return receiver.Request{Path: "/w", Header: header, Body: body(id), BodySHA256: sha256.Sum256(body(id)), At: now}
}

// healthy is a book of two events that went as they should, and the facts to it.
func healthy(t *testing.T) (*Ledger, *Facts) {
	t.Helper()
	l, f := New(), &Facts{}
	l.Subscribe(Webhook{ID: "wh_1", Organization: "acme", Secret: secret, Path: "/w"})
	for i, id := range []string{"e1", "e2"} {
		l.Sends(id, "acme", body(id))
		l.Accepted(id)
		l.Request(request(t, id))
		row := Row{Offset: int64(i), DeliveryID: "dlv_" + id, Attempt: 1, Result: "delivered"}
		f.Deliveries = append(f.Deliveries, Delivery{"dlv_" + id, id, "wh_1"})
		f.Outcomes = append(f.Outcomes, Outcome{Row: row, EventID: id, WebhookID: "wh_1", Requested: true})
		f.Rows = append(f.Rows, row)
		f.Events = append(f.Events, EventRow{id, 1})
	}
	return l, f
}

func TestJudgeHealthy(t *testing.T) {
	l, f := healthy(t)
	got := l.Judge(*f)
	if len(got.Findings) > 0 || got.Accepted != 2 || got.Owed != 2 || got.Delivered != 2 {
		t.Errorf("got %+v, want two delivered and no finding", got)
	}
	if got, want := l.Count(), (Count{Accepted: 2, Due: 2, Requests: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// third adds a third event, which is called delivered.
func third(t *testing.T, l *Ledger, f *Facts, answer receiver.Answer) {
	t.Helper()
	l.Sends("e3", "acme", body("e3"))
	r := request(t, "e3")
	r.Answer = answer
	l.Request(r)
	row := Row{Offset: 2, DeliveryID: "dlv_e3", Attempt: 1, Result: "delivered"}
	f.Deliveries = append(f.Deliveries, Delivery{"dlv_e3", "e3", "wh_1"})
	f.Outcomes, f.Rows = append(f.Outcomes, Outcome{Row: row, EventID: "e3", WebhookID: "wh_1", Requested: true}), append(f.Rows, row)
}

// TestJudgeFinds plants one fault each.
func TestJudgeFinds(t *testing.T) {
	last := func(f *Facts) *Outcome { return &f.Outcomes[1] }
	for _, c := range []struct {
		name  string
		plant func(t *testing.T, l *Ledger, f *Facts)
		count func(v Verdict) int // wants 1
		text  string
	}{
		{"no delivery", func(_ *testing.T, _ *Ledger, f *Facts) { f.Deliveries = f.Deliveries[:1] }, func(v Verdict) int { return v.Lost }, "e2, accepted at"},
		{"no end", func(_ *testing.T, _ *Ledger, f *Facts) { last(f).Result, f.Rows[1].Result = "retry", "retry" }, func(v Verdict) int { return v.Lost }, "has no end"},
		{"false success", func(t *testing.T, l *Ledger, f *Facts) {
			t.Helper()
			third(t, l, f, receiver.Status(http.StatusBadGateway))
		}, func(v Verdict) int { return v.Lost }, "did not accept it"},
		{"two deliveries", func(_ *testing.T, _ *Ledger, f *Facts) {
			f.Deliveries = append(f.Deliveries, Delivery{"dlv_again", "e2", "wh_1"})
		}, func(v Verdict) int { return v.Doubled }, "two deliveries"},
		{"two ends", func(_ *testing.T, _ *Ledger, f *Facts) {
			again := *last(f)
			again.Offset, again.Requested = 9, false
			f.Outcomes, f.Rows = append(f.Outcomes, again), append(f.Rows, again.Row)
		}, func(v Verdict) int { return v.Doubled }, "ended twice"},
		{"row missing", func(_ *testing.T, _ *Ledger, f *Facts) { f.Rows = f.Rows[:1] }, func(v Verdict) int { return v.AuditMissing }, "no row of outcomes 0@1"},
		{"row that was set aside", func(_ *testing.T, _ *Ledger, f *Facts) { f.Aside = map[Place]bool{{0, 1}: true} }, func(v Verdict) int { return v.AuditExtra }, "has no record"},
		{"row twice", func(_ *testing.T, _ *Ledger, f *Facts) { f.Rows = append(f.Rows, f.Rows[0]) }, func(v Verdict) int { return v.AuditExtra }, "second one"},
		{"delivery to a webhook that is gone", func(t *testing.T, l *Ledger, f *Facts) {
			t.Helper()
			l.Unsubscribe("/w")
			l.Gone("/w")
			third(t, l, f, receiver.Status(http.StatusOK))
		}, func(v Verdict) int { return len(v.Findings) }, "was gone"},
		{"event missing", func(_ *testing.T, _ *Ledger, f *Facts) { f.Events = f.Events[:1] }, func(v Verdict) int { return v.AuditMissing }, "no row of event e2"},
		{"event twice", func(_ *testing.T, _ *Ledger, f *Facts) { f.Events = append(f.Events, f.Events[0]) }, func(v Verdict) int { return v.AuditExtra }, "e1 twice"},
		{"repeat with no kill", func(t *testing.T, l *Ledger, _ *Facts) { t.Helper(); l.Request(request(t, "e2")) }, func(v Verdict) int { return v.Repeated }, "came 2 times"},
		{"signature", func(t *testing.T, l *Ledger, _ *Facts) {
			t.Helper()
			r := request(t, "e2")
			r.Header.Set("webhook-signature", "v1,AAAA")
			l.Request(r)
		}, func(v Verdict) int { return v.Repeated }, "verifying"},
		{"bytes", func(t *testing.T, l *Ledger, _ *Facts) {
			t.Helper()
			r := request(t, "e2")
			r.BodySHA256[0]++
			l.Request(r)
		}, func(v Verdict) int { return v.Repeated }, "other bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, f := healthy(t)
			c.plant(t, l, f)
			got := l.Judge(*f)
			if c.count(got) != 1 || !strings.Contains(strings.Join(got.Findings, "\n"), c.text) {
				t.Errorf("got %+v, want 1 and a finding with %q", got, c.text)
			}
		})
	}
}

// TestJudgeRepeatsAtKills: a request in flight at a kill may come again, once.
func TestJudgeRepeatsAtKills(t *testing.T) {
	l, f := healthy(t)
	f.Kills = []Kill{{At: time.Now(), Ends: map[int32]int64{0: 1}}} // e2's outcome came after it
	l.Request(request(t, "e2"))
	if got := l.Judge(*f); len(got.Findings) > 0 || got.Repeated != 1 || got.InFlight != 1 {
		t.Errorf("got %+v, want one repeat, in flight", got)
	}
	l.Request(request(t, "e2"))
	if got := l.Judge(*f); len(got.Findings) != 2 || got.Repeated != 2 || got.InFlight != 1 {
		t.Errorf("got %+v, want a second repeat to be found", got)
	}
	f.MayRepeat = 1
	if got := l.Judge(*f); len(got.Findings) > 0 || got.Repeated != 2 {
		t.Errorf("got %+v, want the second repeat to be allowed", got)
	}
}

// TestGaps looks at times alone.
func TestGaps(t *testing.T) {
	l, _ := healthy(t)
	from := time.Now().Add(-time.Minute)
	to := from.Add(time.Hour)
	about := func(gap, want time.Duration) bool { return gap > want-time.Second && gap < want+time.Second }
	if gap := l.AcceptanceGap("e", from, to); !about(gap, 59*time.Minute) {
		t.Errorf("got a gap of %v in acceptance, want all after both", gap)
	}
	if gap := l.AcceptanceGap("other", from, to); gap != time.Hour {
		t.Errorf("got a gap of %v in acceptance of none, want all of the hour", gap)
	}
	if path, gap := l.Silence(from, to, nil); path != "/w" || !about(gap, 59*time.Minute) {
		t.Errorf("got a silence of %v at %q, want all after both at /w", gap, path)
	}
	if first := l.RequestAfter(from); first.IsZero() || !l.RequestAfter(to).IsZero() {
		t.Errorf("got a first request at %v, want one, and none after an hour", first)
	}
}
