package receiver

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Raw is a target below HTTP: what it sends on a connection is the test's to say.
type Raw struct {
	addr string
	held chan struct{} // closed by Release
	once sync.Once

	conns, holding, wrote atomic.Int64
}

// Peer is a raw receiver's side of one connection.
type Peer struct {
	net.Conn

	raw      *Raw
	buffered *bufio.Reader
}

// StartRaw starts a receiver that ends with the test: each connection is closed
// when serve returns. With a TLS configuration serve speaks inside of TLS, and
// its first reading or writing shakes hands. slow may be nil; else it is asked for
// what stands in place of each accepted connection, below the TLS.
func StartRaw(t testing.TB, secured *tls.Config, slow func(p *Peer) net.Conn, serve func(p *Peer)) *Raw {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listening: %v", err)
	}
	r := &Raw{addr: ln.Addr().String(), held: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			r.conns.Add(1)
			all.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				serve(r.peer(conn, secured, slow))
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		r.Release()
		cancel()
		all.Wait()
	})
	return r
}

func (r *Raw) peer(conn net.Conn, secured *tls.Config, slow func(p *Peer) net.Conn) *Peer {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(32 << 10) // so that Wrote is near to what was taken
	}
	conn = &countedConn{Conn: conn, wrote: &r.wrote}
	if slow != nil {
		conn = slow(&Peer{Conn: conn, raw: r})
	}
	if secured != nil {
		conn = tls.Server(conn, secured)
	}
	return &Peer{Conn: conn, raw: r, buffered: bufio.NewReader(conn)}
}

// Addr is where the receiver listens, host:port.
func (r *Raw) Addr() string { return r.addr }

// Conns is how many connections were made so far.
func (r *Raw) Conns() int { return int(r.conns.Load()) }

// Holding is how many calls of Hold wait for Release.
func (r *Raw) Holding() int { return int(r.holding.Load()) }

// Wrote is how many bytes all connections took so far, TLS's own among them.
func (r *Raw) Wrote() int64 { return r.wrote.Load() }

// Release lets every Hold return, now and later.
func (r *Raw) Release() { r.once.Do(func() { close(r.held) }) }

// Hold blocks until Release.
func (p *Peer) Hold() {
	p.raw.holding.Add(1)
	<-p.raw.held
}

// Released is closed by Release.
func (p *Peer) Released() <-chan struct{} { return p.raw.held }

// ReadRequest reads a request with its body and tells whether there was one.
func (p *Peer) ReadRequest() bool {
	_, ok := p.Request()
	return ok
}

// Request reads a request with its body, and tells whether there was one. Its
// answer is not known yet.
func (p *Peer) Request() (r Request, ok bool) {
	req, err := http.ReadRequest(p.buffered)
	if err != nil {
		return r, false
	}
	body, err := io.ReadAll(req.Body)
	return Request{
		Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Host: req.Host, Header: req.Header,
		Body: body, BodySHA256: sha256.Sum256(body), MessageID: req.Header.Get("webhook-id"), At: time.Now(),
	}, err == nil
}

// Send writes texts and tells whether the connection took them.
func (p *Peer) Send(texts ...string) bool {
	_, err := io.WriteString(p, strings.Join(texts, ""))
	return err == nil
}

// Endless sends the text again and again until the connection is at its end.
func (p *Peer) Endless(text string) {
	block := strings.Repeat(text, 1+4096/len(text))
	for p.Send(block) {
	}
}

// Reset closes the connection with RST.
func (p *Peer) Reset() {
	if counted, ok := p.Conn.(*countedConn); ok {
		if tcp, ok := counted.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	}
	_ = p.Close()
}

// countedConn counts what is written.
type countedConn struct {
	net.Conn

	wrote *atomic.Int64
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.wrote.Add(int64(n))
	if err != nil {
		return n, fmt.Errorf("writing: %w", err)
	}
	return n, nil
}
