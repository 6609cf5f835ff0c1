// Package deliver makes one HTTP attempt of a delivery and says what came of it.
//
// A Client signs the request (Standard Webhooks), sends the body byte for byte
// through the egress policy (P8), reads the answer within fixed bounds of time
// and memory, and returns an Attempt; Judge turns that into a Verdict. When and
// whether to try again, lanes and outcomes are the caller's. Requests and
// responses are written and parsed by fasthttp; connections are kept here,
// because an attempt needs what fasthttp's own pool cannot give: a dial that ends
// with its context, and a fresh connection in place of one that went stale.
//
// The package starts no goroutines but short-lived ones: a timer that closes
// idle connections, and what watches a context while its attempt runs.
package deliver

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/postrider/postrider/schemas"
)

const (
	// DefaultTimeout bounds a whole attempt: name, connection, TLS, request, head and body.
	DefaultTimeout = 15 * time.Second

	// defaultIdle is under the shortest keep-alive in wide use (Node closes at 5 s),
	// so that it is mostly us who close an idle connection.
	defaultIdle = 4 * time.Second
	// defaultMaxConns is fasthttp's own limit for a host.
	defaultMaxConns = 512
)

// Config is what a Client needs to know. The zero value works: public https targets only.
type Config struct {
	// Version stands in the user-agent header.
	Version string
	Policy  schemas.TargetPolicy
	// Resolver is Go's own where nil. The C library's is no choice: it takes
	// 0x7f000001 for an address.
	Resolver Resolver
	// RootCAs are the system's where nil.
	RootCAs *x509.CertPool
	// MaxConnsPerHost bounds connections to one scheme, host and port; 512 where 0.
	MaxConnsPerHost int
	// IdleTimeout closes idle connections; 4 s where 0.
	IdleTimeout time.Duration
}

// Request is one attempt to be made.
type Request struct {
	// URL is the webhook's as its record has it: it is checked again, topics are not trusted.
	URL       string
	MessageID string
	// Sequence is the offset of the delivery.
	Sequence int64
	// Secrets and Keys are the live ones in clear, one signature each (v1, v1a); at least one.
	Secrets [][]byte
	Keys    []ed25519.PrivateKey
	// Headers are the webhook's own. Names and values are what schemas allows: to see to it is the caller's.
	Headers []Header
	// ContentType is the body's; application/json where empty.
	ContentType string
	// Body is only read, and not kept after Do returned.
	Body []byte
	// Timeout is DefaultTimeout where 0.
	Timeout time.Duration
	// Traceparent is left out of the request where it is not one (W3C Trace Context).
	Traceparent string
}

// Header is a header of a webhook's own, in clear.
type Header struct{ Name, Value string }

// Attempt is what one request came to. It holds copies only.
type Attempt struct {
	// StatusCode is the response's, 0 without one: it stands only where a whole head was read.
	StatusCode int
	// Reason says why there is no StatusCode; empty where there is one.
	Reason Reason
	// BodyReason says why the body was not read to its end; empty where it was.
	// A known status stays known, however its body ends.
	BodyReason Reason

	StartedAt time.Time
	Duration  time.Duration
	// DNS, Connect and TLS are 0 on a connection that was there already.
	DNS, Connect, TLS time.Duration
	// FirstByte is from the request being written to the first byte of the answer.
	FirstByte time.Duration

	// ResponseHead is the status line and headers, at most 16 KiB.
	ResponseHead []byte
	// ResponseBody is the body's first 16 KiB, as they came (never decompressed).
	ResponseBody []byte
	// ResponseBytes is the body's length: as read, or as declared where reading stopped at the limit.
	ResponseBytes int64
	// RetryAfter is the wait that the answer asks for, 0 without.
	RetryAfter time.Duration
	// Directive is what the answer says in DirectiveHeader, if that is known here.
	Directive string
}

// Client makes attempts. It is safe for concurrent use.
type Client struct {
	policy    schemas.TargetPolicy
	resolver  Resolver
	dialer    net.Dialer
	tls       *tls.Config
	userAgent string
	conns     *pool
	exchanges sync.Pool // of *exchange
	targets   targetCache
}

// New returns a client. Close it to close its idle connections.
func New(cfg Config) *Client {
	if cfg.Resolver == nil {
		cfg.Resolver = &net.Resolver{PreferGo: true}
	}
	if cfg.MaxConnsPerHost <= 0 {
		cfg.MaxConnsPerHost = defaultMaxConns
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = defaultIdle
	}
	if cfg.Version == "" {
		cfg.Version = "dev"
	}
	return &Client{
		policy:    cfg.Policy,
		resolver:  cfg.Resolver,
		userAgent: "Postrider/" + cfg.Version,
		tls: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			RootCAs:            cfg.RootCAs,
			NextProtos:         []string{"http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(1024),
			VerifyConnection:   checkChain,
		},
		conns:     newPool(cfg.MaxConnsPerHost, cfg.IdleTimeout),
		exchanges: sync.Pool{New: func() any { return newExchange() }},
		targets:   targetCache{known: make(map[string]*endpoint)},
	}
}

// Close closes idle connections, and others as their attempts end. Attempts
// that begin after it end with ReasonCanceled.
func (c *Client) Close() { c.conns.close() }

// Do makes one attempt and blocks until it has ended, at the latest when its
// timeout has passed. When ctx is done the attempt is broken off (ReasonCanceled).
func (c *Client) Do(ctx context.Context, r Request) Attempt {
	if r.Timeout <= 0 {
		r.Timeout = DefaultTimeout
	}
	a := Attempt{StartedAt: time.Now()}
	if err := c.attempt(ctx, &r, &a); err != nil {
		a.StatusCode = 0
		a.Reason = reasonOf(ctx, err)
	}
	a.Duration = time.Since(a.StartedAt)
	return a
}

// attempt fills a, and returns an error where no status can be trusted.
func (c *Client) attempt(ctx context.Context, r *Request, a *Attempt) error {
	if err := checkSecrets(r); err != nil {
		return err
	}
	to, err := c.targets.lookup(c.policy, r.URL)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	cn, err := c.conns.take(to.key)
	if err != nil {
		return err
	}
	deadline := a.StartedAt.Add(r.Timeout)
	reused := cn != nil
	for {
		if cn == nil {
			if cn, err = c.dial(ctx, to, deadline, a); err != nil {
				c.conns.drop(to.key)
				return err
			}
		}
		again, stale, err := c.exchange(ctx, cn, to, r, deadline, a)
		if err == nil && again {
			c.conns.put(to.key, cn)
			return nil
		}
		cn.abort()
		// The server may have closed an idle connection just as we took it. If it
		// sent nothing, once more on a fresh one; in the worst case it has read
		// the request and sees the same webhook-id twice.
		if err == nil || !reused || !stale || ctx.Err() != nil {
			c.conns.drop(to.key)
			return err
		}
		reused, cn = false, nil
	}
}

// exchange sends the request on cn and reads the answer. Its memory is taken only
// now: before, TLS's handshake may need as much.
func (c *Client) exchange(ctx context.Context, cn *conn, to *endpoint, r *Request, deadline time.Time, a *Attempt) (again, stale bool, err error) {
	x := c.exchanges.Get().(*exchange)
	defer func() {
		x.reset()
		c.exchanges.Put(x)
	}()
	x.prepare(to, r, c.userAgent, a.StartedAt)
	again, err = x.run(ctx, cn, deadline, a)
	return again, err != nil && x.stale(err), err
}

// checkSecrets refuses what would make a signature that anyone can forge.
func checkSecrets(r *Request) error {
	if len(r.Secrets)+len(r.Keys) == 0 {
		return errNoSecret
	}
	for _, secret := range r.Secrets {
		if len(secret) == 0 {
			return errNoSecret
		}
	}
	return nil
}

// endpoint is a checked target and the key of its connections.
type endpoint struct {
	schemas.Target

	key string
}

// maxCachedTargets bounds the texts kept: 8 MiB are some 100,000 usual URLs.
const maxCachedTargets = 8 << 20

// targetCache keeps what the texts of URLs parsed to. The policy never changes
// in a client's life, so nothing in it ages.
type targetCache struct {
	mu    sync.RWMutex // guards known and bytes
	known map[string]*endpoint
	bytes int
}

func (tc *targetCache) lookup(policy schemas.TargetPolicy, raw string) (*endpoint, error) {
	tc.mu.RLock()
	to := tc.known[raw]
	tc.mu.RUnlock()
	if to != nil {
		return to, nil
	}
	target, err := policy.ParseTarget(raw)
	if err != nil {
		return nil, err
	}
	to = &endpoint{Target: target, key: target.Scheme + "://" + target.Authority}
	tc.mu.Lock()
	defer tc.mu.Unlock()
	size := len(raw) + len(target.URL)
	if tc.bytes+size > maxCachedTargets {
		clear(tc.known)
		tc.bytes = 0
	}
	if tc.known[raw] == nil {
		tc.known[raw] = to
		tc.bytes += size
	}
	return to, nil
}

var (
	errNoSecret     = errors.New("no secret to sign with")
	errNoFreeConns  = errors.New("all connections to the host are in use")
	errClientClosed = errors.New("the client is closed")
)
