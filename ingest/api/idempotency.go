package api

import (
	"crypto/sha256"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
)

const (
	headerIdempotencyKey = "Idempotency-Key"
	// maxIdempotencyKey is what a key may be long: a UUID has 36 characters.
	maxIdempotencyKey = 255
	// rememberFor and rememberMost bound what this replica knows of keys: 100 bytes
	// each, 10 MB. Behind it the ids of events tell repeats (P3).
	rememberFor  = 10 * time.Minute
	rememberMost = 100_000
)

// repeats knows which idempotency keys have come to this replica, and with which
// request (draft-ietf-httpapi-idempotency-key-header-07). It stores no answer:
// that is a function of the request and its key, since ids are.
type repeats struct {
	mu    sync.Mutex // guards what known holds
	known *lru.Cache[[sha256.Size]byte, *repeat]
}

// repeat is a key's first request here.
type repeat struct {
	request [sha256.Size]byte
	begunAt time.Time
	running bool
}

func newRepeats() *repeats {
	known, err := lru.New[[sha256.Size]byte, *repeat](rememberMost)
	if err != nil {
		panic("BUG: what is known of idempotency keys has the size " + err.Error())
	}
	return &repeats{known: known}
}

// idempotencyKey returns a request's, "" if it has none. It is a quoted string (RFC 8941, section 3.3.3); without quotes it is taken, too.
func (c *call) idempotencyKey() (string, error) {
	text := string(c.http.Request.Header.Peek(headerIdempotencyKey))
	if text == "" {
		return "", nil
	}
	key := unquote(text)
	if key == "" || len(key) > maxIdempotencyKey || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", &requestError{
			status: fasthttp.StatusBadRequest, code: codeInvalidParameter,
			detail: "header Idempotency-Key must be a string of 1 to 255 printable ASCII characters",
		}
	}
	return key, nil
}

// begin notes that a request with a key has come; what it asks for must then be run.
// While one with the same key runs it is 409; another request under a known key is
// 422. A key is its caller's organization's, or that of a key for all its own.
func (r *repeats) begin(c *call, key string, body []byte) (run func(ask func() error) error, err error) {
	if key == "" {
		return func(ask func() error) error { return ask() }, nil
	}
	caller := c.who.organization
	if caller == "" {
		caller = "/" + c.who.id
	}
	name, request := schemas.Digest(caller, key), c.digest(body)
	r.mu.Lock()
	defer r.mu.Unlock()
	before, known := r.known.Get(name)
	known = known && (before.running || time.Since(before.begunAt) < rememberFor)
	switch {
	case known && before.request != request:
		return nil, &requestError{
			status: fasthttp.StatusUnprocessableEntity, code: codeKeyReused,
			detail: "this Idempotency-Key came with another request before",
		}
	case known && before.running:
		return nil, &requestError{
			status: fasthttp.StatusConflict, code: codeKeyRunning,
			detail: "a request with this Idempotency-Key is running: wait for its answer",
		}
	}
	this := &repeat{request: request, begunAt: time.Now(), running: true}
	r.known.Add(name, this)
	return func(ask func() error) (err error) {
		refused := false // also where it ends in a panic: nobody knows then
		defer func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if this.running = false; refused && !known {
				r.known.Remove(name) // nothing came of it: it may be mended, and sent again
			}
		}()
		err = ask()
		refused = err != nil && problemOf(err).Status < fasthttp.StatusInternalServerError
		return err
	}, nil
}

// digest is of a request: what is asked of which path, in which form.
func (c *call) digest(body []byte) [sha256.Size]byte {
	h := &c.http.Request.Header
	parts := []string{string(h.Method()), string(c.http.Path()), string(h.ContentType())}
	for key, value := range h.All() { // in the order in which they came, as a repeat has them
		if name := strings.ToLower(string(key)); strings.HasPrefix(name, schemas.HTTPAttributePrefix) {
			parts = append(parts, name, string(value))
		}
	}
	return schemas.Digest(append(parts, string(body))...)
}
