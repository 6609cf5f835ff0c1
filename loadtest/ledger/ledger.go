// Package ledger is the book that a test keeps outside of the system: what
// producers were told is accepted, and what the receivers saw. Against it stands
// what the system says of itself, in its topics and in ClickHouse; Judge tells
// where the two differ.
//
// It shares no code with the services: an event is known by its id, a webhook by
// the path it calls, and a signature is verified by the reference library.
package ledger

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postrider/postrider/loadtest/receiver"
)

// Webhook is a webhook as the test has created it; each has a path of its own. It
// takes every event of its organization.
type Webhook struct{ ID, Organization, Secret, Path string }

// event is what a producer sent.
type event struct {
	organization string
	body         [sha256.Size]byte // of the request that a target should get
	sentAt       time.Time
	acceptedAt   time.Time  // zero until a producer was told so
	webhooks     []*Webhook // that were in force when it was sent
}

// delivery is what one webhook saw of one event.
type delivery struct {
	at       []time.Time // of each request
	accepted bool        // one was answered 200
}

// pair is an event and a webhook.
type pair struct{ event, webhook string }

// Ledger is safe for concurrent use.
type Ledger struct {
	mu       sync.Mutex // guards the below
	webhooks map[string]*Webhook
	force    map[string][]*Webhook // in force, by organization
	secrets  map[string][]signer   // of webhooks, by path
	moved    map[string]string     // paths that webhooks had first, by those they have now
	gone     map[string]time.Time  // since when webhooks take nothing more, by path
	events   map[string]*event
	seen     map[pair]*delivery
	accepted int
	due      int // deliveries of accepted events
	owed     int // those of them that no target has accepted
	requests int
	wrong    findings // requests that should not have come as they did
}

// New returns an empty ledger.
func New() *Ledger {
	return &Ledger{
		webhooks: map[string]*Webhook{}, force: map[string][]*Webhook{}, secrets: map[string][]signer{}, moved: map[string]string{},
		gone:   map[string]time.Time{},
		events: map[string]*event{}, seen: map[pair]*delivery{},
	}
}

// Subscribe notes a webhook whose creation was acknowledged: events sent from now
// on are owed to it.
func (l *Ledger) Subscribe(w Webhook) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.webhooks[w.Path] = &w
	l.secrets[w.Path] = []signer{{text: w.Secret}}
	l.force[w.Organization] = append(slices.Clone(l.force[w.Organization]), &w)
}

// Unsubscribe notes that a webhook is about to be deleted or disabled: what is
// sent from now on is not owed to it.
func (l *Ledger) Unsubscribe(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.webhooks[path]; w != nil {
		l.force[w.Organization] = slices.DeleteFunc(slices.Clone(l.force[w.Organization]), func(x *Webhook) bool { return x == w })
	}
}

// Gone notes that it was acknowledged that a webhook is deleted, disabled or takes
// other events: what is sent from now on must not be made a delivery to it.
func (l *Ledger) Gone(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone[path] = time.Now()
}

// Sends notes an event that is about to be sent, with the body that targets should
// get. It is owed to nobody before it is accepted.
func (l *Ledger) Sends(id, organization string, body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events[id] = &event{organization: organization, body: sha256.Sum256(body), sentAt: time.Now(), webhooks: l.force[organization]}
}

// Accepted notes that a producer was told that an event is accepted.
func (l *Ledger) Accepted(id string) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.events[id]
	if e == nil || !e.acceptedAt.IsZero() {
		return
	}
	e.acceptedAt = now
	l.accepted++
	l.due += len(e.webhooks)
	for _, w := range e.webhooks {
		if d := l.seen[pair{id, w.Path}]; d == nil || !d.accepted {
			l.owed++
		}
	}
}

// Request notes a request as a receiver saw it, before it is answered.
func (l *Ledger) Request(r receiver.Request) {
	var body struct{ ID string }
	err := json.Unmarshal(r.Body, &body)
	l.mu.Lock()
	if first, moved := l.moved[r.Path]; moved {
		r.Path = first
	}
	l.mu.Unlock()
	if err == nil {
		err = l.verify(r)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	e := l.events[body.ID]
	switch {
	case err != nil:
		l.wrong.add("%s: %v", r.Path, err)
	case e == nil:
		l.wrong.add("%s: a request of an event that nobody sent: %q", r.Path, body.ID)
		return
	case e.body != r.BodySHA256:
		l.wrong.add("%s: the body of event %s has other bytes than it should", r.Path, body.ID)
	case e.organization != l.webhooks[r.Path].Organization:
		l.wrong.add("%s: event %s is organization %s's", r.Path, body.ID, e.organization)
	}
	if e == nil {
		return
	}
	key := pair{body.ID, r.Path}
	d := l.seen[key]
	if d == nil {
		d = &delivery{}
		l.seen[key] = d
	}
	d.at = append(d.at, r.At)
	if !d.accepted && accepts(r.Answer) {
		d.accepted = true
		if !e.acceptedAt.IsZero() && slices.ContainsFunc(e.webhooks, func(w *Webhook) bool { return w.Path == r.Path }) {
			l.owed--
		}
	}
}

func accepts(a receiver.Answer) bool {
	return !a.Drop && (a.Status == 0 || a.Status == http.StatusOK)
}

func (l *Ledger) verify(r receiver.Request) error {
	l.mu.Lock()
	secrets := slices.Clone(l.secrets[r.Path])
	l.mu.Unlock()
	if len(secrets) == 0 {
		return fmt.Errorf("a request at a path that no webhook has: %s", r.Path)
	}
	return verifies(r, secrets)
}

// Count is how far the book has come.
type Count struct {
	Accepted int // events
	Due      int // deliveries of them
	Owed     int // those that no target has accepted yet
	Requests int
}

// Count is how far the book has come so far.
func (l *Ledger) Count() Count {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Count{l.accepted, l.due, l.owed, l.requests}
}

// Paths are those of all webhooks that ever were, sorted.
func (l *Ledger) Paths() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.webhooks))
}

// AcceptanceGap is the longest time within a span in which no event was accepted
// whose id has a prefix.
func (l *Ledger) AcceptanceGap(prefix string, from, to time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var times []time.Time
	for id, e := range l.events {
		if strings.HasPrefix(id, prefix) {
			times = append(times, e.acceptedAt)
		}
	}
	return longestGap(times, from, to)
}

// Silence is the longest time within a span in which a path saw no request, and
// that path, of all but those that except says.
func (l *Ledger) Silence(from, to time.Time, except func(path string) bool) (path string, longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	times := map[string][]time.Time{}
	for key, d := range l.seen {
		times[key.webhook] = append(times[key.webhook], d.at...)
	}
	for at, all := range times {
		if except != nil && except(at) {
			continue
		}
		if gap := longestGap(all, from, to); gap > longest {
			path, longest = at, gap
		}
	}
	return path, longest
}

// longestGap is that between two of some times, or an end of the span.
func longestGap(times []time.Time, from, to time.Time) (longest time.Duration) {
	times = slices.DeleteFunc(times, func(at time.Time) bool { return at.Before(from) || at.After(to) })
	slices.SortFunc(times, time.Time.Compare)
	last := from
	for _, at := range append(times, to) {
		longest = max(longest, at.Sub(last))
		last = at
	}
	return longest
}

// RequestAfter is when the first request came after a moment; zero if none has come.
func (l *Ledger) RequestAfter(moment time.Time) (first time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.seen {
		for _, at := range d.at {
			if at.After(moment) && (first.IsZero() || at.Before(first)) {
				first = at
			}
		}
	}
	return first
}

// FirstAfter is when the first request came of an event that was accepted after a
// moment; zero if none has come.
func (l *Ledger) FirstAfter(moment time.Time) (first time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, d := range l.seen {
		if l.events[key.event].acceptedAt.After(moment) && (first.IsZero() || d.at[0].Before(first)) {
			first = d.at[0]
		}
	}
	return first
}
