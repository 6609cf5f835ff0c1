package ledger

import (
	"errors"
	"time"

	"github.com/postrider/postrider/loadtest/receiver"
)

// signer is one of a webhook's secrets.
type signer struct {
	text  string
	until time.Time // requests from then on may not be signed by it alone; zero: for ever
}

// Rotates notes that a webhook is about to get a further secret: its requests may
// be signed by any that it has.
func (l *Ledger) Rotates(path, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.secrets[path] = append(l.secrets[path], signer{text: text})
}

// Retires notes from when on a webhook's requests may no longer be signed by a
// secret alone.
func (l *Ledger) Retires(path, text string, from time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.secrets[path]
	for i := range all {
		if all[i].text == text {
			all[i].until = from
		}
	}
}

// Moves notes that a webhook is about to be called at another path: what comes
// there counts as if it came at the one it was created with, which stays its name.
func (l *Ledger) Moves(path, to string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.moved[to] = path
}

var errRetired = errors.New("signed by a secret that is no longer in force")

// verifies tells whether one of the secrets that are in force at a request's time
// has signed it.
func verifies(r receiver.Request, secrets []signer) error {
	err := errRetired
	for _, s := range secrets {
		if !s.until.IsZero() && !r.At.Before(s.until) {
			continue
		}
		if err = r.Verify(s.text); err == nil {
			return nil
		}
	}
	return err
}
