// Package receive provides the receiver's side of a webhook: a handler around one's
// own that lets a request through only if it is signed, and was not handled before,
// and that answers before the sender gives up on it.
//
// It runs the handler in a goroutine of its own, which ends when the handler
// returns: that may be after the request was answered, if it overruns its time.
package receive

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/postrider/postrider/schemas"
)

// Defaults of Config.
const (
	// DefaultTimeout is below the 15 s that a sender waits by default, which begin
	// earlier, with the connection.
	DefaultTimeout = 10 * time.Second
	// DefaultMaxBody is what the largest event needs: a payload of 1 MiB in its envelope.
	DefaultMaxBody = schemas.MaxRecordBytes
	// DefaultRemembered ids take some 20 MB, with the 30 characters that Postrider's have.
	DefaultRemembered = 100_000
)

// maxTimeout is what a webhook may have as its timeout at most.
const maxTimeout = 30 * time.Second

// Config says which requests are let through, and how. Fields that are zero have their defaults.
type Config struct {
	// Keys verify signatures: secrets (whsec_…) and public keys (whpk_…) of one
	// webhook; several while they are rotated.
	Keys []string
	// Timeout is how long a request may take, from the end of its headers to the answer; at
	// most 30 s. It should be at least a second below the webhook's own timeout.
	Timeout time.Duration
	// MaxBody is how many bytes a body may have.
	MaxBody int64
	// Remembered is how many webhook-ids are remembered. The one that was handled first is
	// forgotten first, and all are when the process ends: where that is not enough, keep
	// the webhook-id in the database, in the transaction with what the handler does.
	Remembered int
	// Log gets a line for each request that was refused, at level debug, and for each
	// handler that has panicked after its time; nil for slog.Default.
	Log *slog.Logger
}

// withDefaults also says what is wrong, all at once.
func (c Config) withDefaults() (Config, error) {
	var problems []error
	if c.Timeout < 0 || c.Timeout > maxTimeout {
		problems = append(problems, fmt.Errorf("timeout is %v, allowed is at most %v", c.Timeout, maxTimeout))
	}
	if c.MaxBody < 0 {
		problems = append(problems, fmt.Errorf("longest body is %d bytes, allowed is at least 1", c.MaxBody))
	}
	if c.Remembered < 0 {
		problems = append(problems, fmt.Errorf("remembered are %d ids, allowed is at least 1", c.Remembered))
	}
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.MaxBody = cmp.Or(c.MaxBody, DefaultMaxBody)
	c.Remembered = cmp.Or(c.Remembered, DefaultRemembered)
	c.Log = cmp.Or(c.Log, slog.Default())
	return c, errors.Join(problems...)
}

// New returns a handler that calls next for each message (a webhook-id) that is
// signed by one of the keys, once it is read whole:
//
//	405  the method is not POST
//	413  the body is too long
//	400  it could not be read, or webhook-id, webhook-timestamp or webhook-signature is missing or malformed
//	401  no key has signed it, or not within five minutes of now
//	200  next was answering 2xx, now or when the same message came before
//	503  next has not returned within Config.Timeout; or it runs for the same message, and has not within that
//
// A status of next that is not 2xx is answered as it is: to a sender, all but 200 mean
// "send it again", but for 410, which disables the webhook. Such a message is not
// remembered, and next is called when it comes again. While next runs for a message,
// a copy waits for what comes of it.
//
// The request's context ends with Config.Timeout, or with the connection. Whoever returns
// after that without a status has not done what was asked; an explicit 2xx counts even
// then, and the message's next copy is answered 200. At most 16 KiB of what next
// writes are sent on, when it has returned: there is no flushing and no hijacking.
func New(cfg Config, next http.Handler) (http.Handler, error) {
	verifier, err := schemas.NewVerifier(cfg.Keys...)
	cfg, problem := cfg.withDefaults()
	if err := errors.Join(err, problem); err != nil {
		return nil, fmt.Errorf("making receiver: %w", err)
	}
	return &handler{cfg: cfg, verifier: verifier, next: next, messages: newMessages(cfg.Remembered)}, nil
}

type handler struct {
	cfg      Config
	verifier *schemas.Verifier
	next     http.Handler
	messages *messages
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), h.cfg.Timeout)
	defer cancel()
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		h.refuse(w, r, http.StatusMethodNotAllowed, nil)
		return
	}
	body, err := h.read(ctx, w, r)
	if err != nil {
		status := http.StatusBadRequest
		if _, tooLong := errors.AsType[*http.MaxBytesError](err); tooLong {
			status = http.StatusRequestEntityTooLarge
		}
		h.refuse(w, r, status, err)
		return
	}
	id, err := h.verifier.Verify(r.Header, body, time.Now())
	switch {
	case errors.Is(err, schemas.ErrSignatureHeaders):
		h.refuse(w, r, http.StatusBadRequest, err)
	case err != nil:
		h.refuse(w, r, http.StatusUnauthorized, err)
	default:
		r = r.WithContext(ctx)
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.once(w, r, id)
	}
}

// read reads the whole body, within the request's time where the connection can be told so.
func (h *handler) read(ctx context.Context, w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > h.cfg.MaxBody {
		return nil, fmt.Errorf("reading body: %w", &http.MaxBytesError{Limit: h.cfg.MaxBody})
	}
	control := http.NewResponseController(w)
	deadline, _ := ctx.Deadline()
	limited := control.SetReadDeadline(deadline) == nil
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.cfg.MaxBody))
	if err != nil {
		// The deadline stays: net/http reads on to the body's end before it answers.
		return nil, fmt.Errorf("reading body: %w", err)
	}
	if limited {
		// It is the connection's: passing, it would end the context of a handler.
		if err := control.SetReadDeadline(time.Time{}); err != nil {
			return nil, fmt.Errorf("unsetting the connection's deadline: %w", err)
		}
	}
	return body, nil
}

// refuse answers without a word about what was wrong: that is for the log.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, status int, err error) {
	h.cfg.Log.LogAttrs(r.Context(), slog.LevelDebug, "a request was refused", slog.Int("status", status), slog.Any("error", err))
	http.Error(w, http.StatusText(status), status)
}

// once has next called for a message that was not handled, and waits where it is under way.
func (h *handler) once(w http.ResponseWriter, r *http.Request, id string) {
	for {
		done, state := h.messages.claim(id)
		switch state {
		case handled:
			w.WriteHeader(http.StatusOK)
			return
		case unclaimed:
			h.run(w, r, id)
			return
		case running:
			select {
			case <-done:
			case <-r.Context().Done():
				h.refuse(w, r, http.StatusServiceUnavailable, errUnderWay)
				return
			}
		}
	}
}

// Why a request was answered 503, in the log.
var (
	errUnderWay = errors.New("its message is still being handled for another request")
	errOverran  = errors.New("the handler has not returned in time")
)

// run calls next for a message that is ours, and answers with what came of it.
func (h *handler) run(w http.ResponseWriter, r *http.Request, id string) {
	ended, left := make(chan result), make(chan struct{})
	defer close(left)
	go h.call(r, id, ended, left)
	select {
	case got := <-ended:
		if got.panicked != nil {
			panic(got.panicked) // net/http's to log, and the connection's to end
		}
		got.answer.send(w, got.well)
	case <-r.Context().Done():
		h.refuse(w, r, http.StatusServiceUnavailable, errOverran)
	}
}

// call calls next and tells what came of it, or logs a panic that nobody waits for any more.
func (h *handler) call(r *http.Request, id string, ended chan<- result, left <-chan struct{}) {
	got := result{answer: newAnswer()}
	defer func(ctx context.Context) {
		got.panicked = recover()
		h.messages.release(id, got.well)
		select {
		case ended <- got:
		case <-left:
			if got.panicked != nil {
				h.cfg.Log.LogAttrs(ctx, slog.LevelError, "a handler has panicked after its time", slog.Any("panic", got.panicked))
			}
		}
	}(r.Context())
	h.next.ServeHTTP(got.answer, r)
	got.well = got.answer.well(r.Context().Err() != nil)
}

// result is what came of a call of the handler.
type result struct {
	answer   *answer
	well     bool
	panicked any
}
