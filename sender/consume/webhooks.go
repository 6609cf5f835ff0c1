package consume

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

// barrierTimeout bounds one asking for what is in force; it is asked again.
const barrierTimeout = 10 * time.Second

// inForce is a webhook as it stands, with its secrets opened at first use.
type inForce struct {
	schemas.Webhook

	once    sync.Once
	signers []signer
	headers []deliver.Header
}

// signer makes one signature of each request, until it expires; one of the two is set.
type signer struct {
	secret    []byte
	key       ed25519.PrivateKey
	expiresAt time.Time // zero: it does not
}

// open returns what signs at now, in clear. If one does not open there are none,
// and attempts fail: what is signed with some of them would not verify.
func (w *inForce) open(ring schemas.KeyRing, log *slog.Logger, now time.Time) (secrets [][]byte, keys []ed25519.PrivateKey) {
	w.once.Do(func() {
		var err error
		if w.signers, err = w.openAll(ring); err == nil {
			w.headers, err = w.openHeaders(ring)
		}
		if err != nil {
			w.signers = nil // without a signature nothing is sent
			log.Error("webhook's secrets do not open: its attempts fail", "webhook", w.ID, "revision", w.Revision, "error", err)
		}
	})
	for _, s := range w.signers {
		switch {
		case !s.expiresAt.IsZero() && !now.Before(s.expiresAt):
		case s.key != nil:
			keys = append(keys, s.key)
		default:
			secrets = append(secrets, s.secret)
		}
	}
	return secrets, keys
}

// openAll opens the secrets of the schemes that are asked for, all or none.
func (w *inForce) openAll(ring schemas.KeyRing) (signers []signer, err error) {
	if w.SignsBy(schemas.SchemeHMAC) {
		for _, sealed := range w.Secrets {
			secret, err := ring.Open(w.SecretIdentity(), sealed)
			if err != nil {
				return nil, fmt.Errorf("opening secret: %w", err)
			}
			signers = append(signers, signer{secret: secret, expiresAt: sealed.ExpiresAt})
		}
	}
	if w.SignsBy(schemas.SchemeEd25519) {
		for _, k := range w.SigningKeys {
			seed, err := ring.Open(w.KeyIdentity(), k.Seed)
			if err == nil && len(seed) != ed25519.SeedSize {
				err = schemas.ErrInvalidSecret
			}
			if err != nil {
				return nil, fmt.Errorf("opening signing key %q: %w", k.ID, err)
			}
			signers = append(signers, signer{key: ed25519.NewKeyFromSeed(seed), expiresAt: k.Seed.ExpiresAt})
		}
	}
	return signers, nil
}

// openHeaders returns its own headers, in clear.
func (w *inForce) openHeaders(ring schemas.KeyRing) (headers []deliver.Header, err error) {
	for _, h := range w.Headers {
		value := h.Value
		if h.Sealed != nil {
			plain, err := ring.Open(w.HeaderIdentity(h.Name), *h.Sealed)
			if err != nil {
				return nil, fmt.Errorf("opening header %q: %w", h.Name, err)
			}
			value = string(plain)
		}
		if !schemas.ValidHeaderValue(value) { // its name was checked with its record
			return nil, fmt.Errorf("opening header %q: %w", h.Name, errHeaderValue)
		}
		headers = append(headers, deliver.Header{Name: h.Name, Value: value})
	}
	if w.Auth == nil {
		return headers, nil
	}
	plain, err := ring.Open(w.AuthIdentity(), w.Auth.Sealed)
	if err == nil && !schemas.ValidHeaderValue(string(plain)) {
		err = errHeaderValue
	}
	if err != nil {
		return nil, fmt.Errorf("opening authentication: %w", err)
	}
	value := "Bearer " + string(plain)
	if w.Auth.Type == schemas.AuthBasic {
		value = "Basic " + base64.StdEncoding.EncodeToString([]byte(w.Auth.Username+":"+string(plain)))
	}
	return append(headers, deliver.Header{Name: "authorization", Value: value}), nil
}

// errHeaderValue says that what was sealed is no header's value. It quotes nothing of it.
var errHeaderValue = errors.New("not a header's value")

// answers is what its owner says of its target's statuses.
func (w *inForce) answers() deliver.Answers {
	return deliver.Answers{Success2xx: w.Success == schemas.Success2xx, Final: w.FinalStatuses}
}

// barrier blocks until everything acknowledged before the call is applied: a *kafka.Follower's.
type barrier func(ctx context.Context) error

// webhooks is the table of webhooks by id. A follower's goroutine applies
// records, everyone looks up.
type webhooks struct {
	log  *slog.Logger
	bad  func() // counts records that cannot be read
	wall func(error)

	mu   sync.RWMutex // guards byID and next
	byID map[string]*inForce
	next map[string]*inForce // being read anew; nil if it is not

	barrier barrier
	asking  sync.Mutex // guards asked
	asked   *question
}

// question is one barrier that several wait for.
type question struct {
	begun bool
	done  chan struct{}
	err   error
}

func newWebhooks(log *slog.Logger, bad func(), wall func(error)) *webhooks {
	return &webhooks{log: log, bad: bad, wall: wall, byID: make(map[string]*inForce)}
}

// apply takes a record of the topic. What cannot be read leaves the key's last
// good value in force; a newer version makes the sender unready rather than wrong.
func (t *webhooks) apply(r *kgo.Record) {
	w, err := schemas.DecodeWebhook(r)
	var version *schemas.UnknownVersionError
	switch {
	case errors.Is(err, schemas.ErrTombstone):
		t.mu.Lock()
		delete(t.tableLocked(), string(r.Key))
		t.mu.Unlock()
	case errors.As(err, &version):
		t.wall(fmt.Errorf("reading webhook at %s/%d@%d: %w", r.Topic, r.Partition, r.Offset, err))
	case err != nil:
		t.bad()
		t.log.Warn("webhook record is bad: the last good one stays in force",
			"topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
	default:
		t.mu.Lock()
		t.tableLocked()[w.ID] = &inForce{Webhook: w}
		t.mu.Unlock()
	}
}

func (t *webhooks) tableLocked() map[string]*inForce {
	if t.next != nil {
		return t.next
	}
	return t.byID
}

// beginRebuild and endRebuild are the follower's when the topic is read anew.
func (t *webhooks) beginRebuild() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = make(map[string]*inForce)
}

func (t *webhooks) endRebuild() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID, t.next = t.next, nil
}

func (t *webhooks) get(id string) *inForce {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

// bounds are those of a webhook's lane, as far as is known here.
func (t *webhooks) bounds(id string, most int) laneBounds {
	if w := t.get(id); w != nil {
		return laneBounds{most: w.Concurrency(most), interval: interval(w.RateLimit)}
	}
	return laneBounds{most: most}
}

// lookup returns the webhook that is in force for a delivery, nil if it was
// deleted. Where the table is behind what the delivery says, it first waits for
// everything acknowledged until now. It blocks until that is known or ctx ends.
func (t *webhooks) lookup(ctx context.Context, d *schemas.Delivery) (*inForce, error) {
	if w := t.get(d.WebhookID); w != nil && w.Revision >= d.WebhookRevision {
		return w, nil
	}
	for {
		err := t.wait(ctx)
		if err == nil {
			return t.get(d.WebhookID), nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("looking up webhook %q: %w", d.WebhookID, err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// wait is a barrier that all who ask before it has begun share: a deleted
// webhook's backlog would else ask once for each delivery.
func (t *webhooks) wait(ctx context.Context) error {
	t.asking.Lock()
	before := t.asked
	q := before
	if q == nil || q.begun {
		q = &question{done: make(chan struct{})}
		t.asked = q
		go t.ask(context.WithoutCancel(ctx), q, before)
	}
	t.asking.Unlock()
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *webhooks) ask(ctx context.Context, q, before *question) {
	defer close(q.done)
	if before != nil {
		<-before.done // one at a time: the rest gather in q meanwhile
	}
	t.asking.Lock()
	q.begun = true
	t.asking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	q.err = t.barrier(ctx)
}
