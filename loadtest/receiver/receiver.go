// Package receiver is a webhook target for tests that answers as it is told, path
// by path, and remembers every request. It verifies signatures with the Standard
// Webhooks reference library, so none of Postrider's own code judges itself.
//
// Goroutines: the server's, which Close ends.
package receiver

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/valyala/fasthttp"
)

// Config says what a receiver keeps and how it is reached.
type Config struct {
	// Addr is where it listens, host:port; empty is a free port of 127.0.0.1.
	Addr string
	// TLS has it speak https with a certificate of its own: see CertificatePEM.
	TLS bool
	// Names are further names in that certificate, beside localhost, 127.0.0.1 and ::1.
	Names []string
	// Light keeps of each request what a load test compares, and neither headers
	// nor body.
	Light bool
	// Seen, if it is set, is told of each request before it is answered, by many
	// goroutines at once; the receiver then keeps none itself.
	Seen func(Request)
}

// Answer is what the receiver does with one request. The zero value answers 200.
type Answer struct {
	Status int
	Header map[string]string
	Body   []byte
	// Delay passes before the answer.
	Delay time.Duration
	// Hang holds the answer until Release or Close.
	Hang bool
	// Drop closes the connection without an answer.
	Drop bool
}

// Status answers with a status and an empty body.
func Status(code int) Answer { return Answer{Status: code} }

// RetryAfter answers with a status and a Retry-After header in seconds.
func RetryAfter(code, seconds int) Answer {
	return Answer{Status: code, Header: map[string]string{"Retry-After": strconv.Itoa(seconds)}}
}

// Request is a request as it came in. In a light receiver Header and Body are nil.
type Request struct {
	Method, Path, Query, Host string
	Header                    http.Header
	Body                      []byte
	BodySHA256                [sha256.Size]byte
	// MessageID is the webhook-id header.
	MessageID string
	// At is when the request was read whole.
	At time.Time
	// Answer is what it was answered with, or will be when it is released.
	Answer Answer
}

// Verify checks the signature with the reference library for Go: secret is the
// text that Postrider showed, whsec_….
func (r Request) Verify(secret string) error {
	wh, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return fmt.Errorf("reading secret: %w", err)
	}
	if err := wh.VerifyIgnoringTimestamp(r.Body, r.Header); err != nil {
		return fmt.Errorf("verifying %s: %w", r.MessageID, err)
	}
	// The library's own look at it is for now, and tests look again when all is over.
	seconds, err := strconv.ParseInt(r.Header.Get("Webhook-Timestamp"), 10, 64)
	if off := r.At.Sub(time.Unix(seconds, 0)); err != nil || off.Abs() > tolerance {
		return fmt.Errorf("verifying %s: %w: signed %v before it came", r.MessageID, errTimestamp, off)
	}
	return nil
}

// tolerance is how far a request's timestamp may be from when it comes (Standard Webhooks 1.0).
const tolerance = 5 * time.Minute

var errTimestamp = errors.New("the timestamp is not that of the request")

// Receiver is a running receiver.
type Receiver struct {
	light  bool
	seen   func(Request)
	scheme string
	addr   string
	cert   []byte
	server *fasthttp.Server
	served chan error // the server's end

	closing chan struct{} // closed by Close, which cuts delays short

	mu       sync.Mutex // guards the below
	answers  map[string][]Answer
	released map[string]chan struct{} // by path; closed by Release, which drops it
	requests map[string][]Request
	total    int
	conns    map[net.Conn]struct{}
}

// Start starts a receiver that ends with the test.
func Start(t testing.TB, cfg Config) *Receiver {
	t.Helper()
	r, err := Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Listen starts a receiver that the caller closes. It answers 200 on every path
// until told otherwise.
func Listen(ctx context.Context, cfg Config) (*Receiver, error) {
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", cfg.Addr, err)
	}
	r := &Receiver{
		light: cfg.Light, seen: cfg.Seen, scheme: "http", addr: ln.Addr().String(), served: make(chan error, 1),
		closing: make(chan struct{}),
		answers: map[string][]Answer{}, released: map[string]chan struct{}{},
		requests: map[string][]Request{}, conns: map[net.Conn]struct{}{},
	}
	if cfg.TLS {
		cert, text, err := certificate(cfg.Names)
		if err != nil {
			return nil, errors.Join(err, ln.Close())
		}
		r.scheme, r.cert = "https", text
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	}
	r.server = &fasthttp.Server{
		Handler: r.handle, Name: "receiver", CloseOnShutdown: true, ConnState: r.trackConn,
		MaxRequestBodySize: 16 << 20, Logger: quiet{},
		// The server's cleaner notices its end only when it has slept this long, ten
		// seconds by default: too long for tests that look for leaks.
		MaxIdleWorkerDuration: 100 * time.Millisecond,
	}
	go func() { r.served <- r.server.Serve(ln) }()
	return r, nil
}

// Close releases what hangs, closes every connection and blocks until the server
// has ended.
func (r *Receiver) Close() error {
	r.mu.Lock()
	for path := range r.released {
		r.releaseLocked(path)
	}
	clear(r.answers) // what comes now does not hang again
	close(r.closing)
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// A client that keeps its connection open is not waited for: it is cut off.
	err := r.server.ShutdownWithContext(ctx)
	r.CloseConnections()
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	return errors.Join(err, <-r.served)
}

// CloseConnections cuts off every client that is connected now.
func (r *Receiver) CloseConnections() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn := range r.conns {
		_ = conn.Close()
	}
}

// URL is the target of a path, which begins with a slash.
func (r *Receiver) URL(path string) string { return r.scheme + "://" + r.addr + path }

// Addr is where the receiver listens, host:port.
func (r *Receiver) Addr() string { return r.addr }

// CertificatePEM is the certificate to be trusted by whoever calls a TLS receiver.
func (r *Receiver) CertificatePEM() []byte { return slices.Clone(r.cert) }

// Answers sets what a path does with its next requests, one answer each; the last
// is repeated. It replaces what was set before. No answers means 200.
func (r *Receiver) Answers(path string, answers ...Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[path] = slices.Clone(answers)
}

// Release lets go every request that hangs at a path now, with its own answer.
func (r *Receiver) Release(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.releaseLocked(path)
}

func (r *Receiver) releaseLocked(path string) {
	if c := r.released[path]; c != nil {
		close(c)
		delete(r.released, path)
	}
}

// Requests are the requests of a path so far, in the order in which they came.
func (r *Receiver) Requests(path string) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests[path])
}

// Count is the number of requests of a path so far.
func (r *Receiver) Count(path string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.requests[path])
}

// Total is the number of requests of all paths so far.
func (r *Receiver) Total() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

// Paths are the paths with requests so far, sorted.
func (r *Receiver) Paths() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.requests))
}

// WaitFor waits until a path has had at least n requests and returns all of them.
func (r *Receiver) WaitFor(t testing.TB, path string, n int, limit time.Duration) []Request {
	t.Helper()
	if got, ok := waitCount(t.Context(), limit, n, func() int { return r.Count(path) }); !ok {
		t.Fatalf("waiting for requests at %s: got %d within %v, want %d", path, got, limit, n)
	}
	return r.Requests(path)
}

// WaitForTotal waits until all paths together have had at least n requests.
func (r *Receiver) WaitForTotal(t testing.TB, n int, limit time.Duration) {
	t.Helper()
	if got, ok := waitCount(t.Context(), limit, n, r.Total); !ok {
		t.Fatalf("waiting for requests: got %d within %v, want %d", got, limit, n)
	}
}

func waitCount(ctx context.Context, limit time.Duration, want int, count func() int) (got int, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if got = count(); got >= want {
			return got, true
		}
		select {
		case <-ctx.Done():
			return got, false
		case <-tick.C:
		}
	}
}

// handle copies all it keeps: nothing of a fasthttp request outlives its handler.
func (r *Receiver) handle(ctx *fasthttp.RequestCtx) {
	req := Request{
		Path:       string(ctx.Path()),
		BodySHA256: sha256.Sum256(ctx.PostBody()),
		MessageID:  string(ctx.Request.Header.Peek("webhook-id")),
		At:         time.Now(),
	}
	if !r.light {
		req.Method, req.Query, req.Host = string(ctx.Method()), string(ctx.URI().QueryString()), string(ctx.Host())
		req.Body = slices.Clone(ctx.PostBody())
		req.Header = http.Header{}
		for name, value := range ctx.Request.Header.All() {
			req.Header.Add(string(name), string(value))
		}
	}
	answer, released := r.record(&req)
	if r.seen != nil {
		r.seen(req)
	}
	if answer.Hang {
		<-released
	}
	if answer.Delay > 0 {
		select {
		case <-time.After(answer.Delay):
		case <-r.closing:
		}
	}
	if answer.Drop {
		ctx.HijackSetNoResponse(true)
		ctx.Hijack(func(net.Conn) {}) // which closes it
		return
	}
	if answer.Status != 0 {
		ctx.SetStatusCode(answer.Status)
	}
	for name, value := range answer.Header {
		ctx.Response.Header.Set(name, value)
	}
	ctx.SetBody(answer.Body)
}

// record keeps a request and takes its answer in one step, so that the order of
// the requests is the order of the answers.
func (r *Receiver) record(req *Request) (Answer, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if queue := r.answers[req.Path]; len(queue) > 0 {
		req.Answer = queue[0]
		if len(queue) > 1 {
			r.answers[req.Path] = queue[1:]
		}
	}
	if r.seen == nil {
		r.requests[req.Path] = append(r.requests[req.Path], *req)
	}
	r.total++
	if !req.Answer.Hang {
		return req.Answer, nil
	}
	if r.released[req.Path] == nil {
		r.released[req.Path] = make(chan struct{})
	}
	return req.Answer, r.released[req.Path]
}

func (r *Receiver) trackConn(conn net.Conn, state fasthttp.ConnState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch state {
	case fasthttp.StateNew:
		r.conns[conn] = struct{}{}
	case fasthttp.StateClosed, fasthttp.StateHijacked:
		delete(r.conns, conn)
	case fasthttp.StateActive, fasthttp.StateIdle:
	}
}

// quiet drops what fasthttp logs: clients that break off are what some tests are about.
type quiet struct{}

func (quiet) Printf(string, ...any) {}
