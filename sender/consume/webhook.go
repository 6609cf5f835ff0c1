package consume

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

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
