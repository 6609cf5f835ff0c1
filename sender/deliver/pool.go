package deliver

import (
	"net"
	"sync"
	"time"
)

// conn is a connection to a target, with TLS where the scheme wants it.
type conn struct {
	net.Conn

	raw       net.Conn     // under the TLS
	metered   *meteredConn // between the two; nil without TLS
	idleSince time.Time
}

// Read reads what the peer says, inside of TLS.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.metered != nil {
		c.metered.left = maxBarren
	}
	return n, err
}

// abort closes without TLS's farewell, which would block up to 5 s on a peer that does not read.
func (c *conn) abort() { _ = c.raw.Close() }

// pool keeps idle connections by endpoint, the newest first, and counts those in use.
type pool struct {
	maxPerHost int
	idle       time.Duration

	mu       sync.Mutex // guards what follows
	hosts    map[string]*hostConns
	sweeping bool // a sweep is due
	closed   bool
}

type hostConns struct {
	idle []*conn // by idleSince, oldest first
	open int     // idle ones and those taken
}

func newPool(maxPerHost int, idle time.Duration) *pool {
	return &pool{maxPerHost: maxPerHost, idle: idle, hosts: make(map[string]*hostConns)}
}

// take returns an idle connection, or nil and the right to dial one; either is
// given back with put or drop. It never waits.
func (p *pool) take(key string) (*conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errClientClosed
	}
	h := p.hosts[key]
	if h == nil {
		h = &hostConns{}
		p.hosts[key] = h
	}
	if n := len(h.idle); n > 0 {
		newest := h.idle[n-1]
		if time.Since(newest.idleSince) < p.idle {
			h.idle[n-1] = nil
			h.idle = h.idle[:n-1]
			return newest, nil
		}
		// Then all are too old; the sweep that is due closes them.
	}
	if h.open >= p.maxPerHost+len(h.idle) {
		return nil, errNoFreeConns
	}
	h.open++
	return nil, nil
}

// put gives back a connection that may be used again.
func (p *pool) put(key string, c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.dropLocked(key)
		c.abort()
		return
	}
	c.idleSince = time.Now()
	h := p.hosts[key]
	h.idle = append(h.idle, c)
	if !p.sweeping {
		p.sweeping = true
		time.AfterFunc(p.idle, p.sweep)
	}
}

// drop gives back the right to a connection that is closed, or was never made.
func (p *pool) drop(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropLocked(key)
}

func (p *pool) dropLocked(key string) {
	h := p.hosts[key]
	h.open--
	if h.open == 0 {
		delete(p.hosts, key)
	}
}

// sweep closes what has been idle too long, and comes back while anything is idle.
func (p *pool) sweep() {
	old, more := p.takeOld(time.Now().Add(-p.idle))
	if more {
		time.AfterFunc(p.idle/2, p.sweep)
	}
	for _, c := range old {
		_ = c.Close()
	}
}

// takeOld removes the connections idle since before limit. Without more it also
// ends the sweeping, under the same lock, so that the next put starts it again.
func (p *pool) takeOld(limit time.Time) (old []*conn, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, h := range p.hosts {
		n := 0
		for n < len(h.idle) && !h.idle[n].idleSince.After(limit) {
			n++
		}
		old = append(old, h.idle[:n]...)
		kept := copy(h.idle, h.idle[n:])
		clear(h.idle[kept:])
		h.idle = h.idle[:kept]
		h.open -= n
		more = more || kept > 0
		if h.open == 0 {
			delete(p.hosts, key)
		}
	}
	p.sweeping = more
	return old, more
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	old, _ := p.takeOld(time.Now().Add(time.Hour))
	for _, c := range old {
		c.abort()
	}
}
