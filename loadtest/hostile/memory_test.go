package hostile

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/sender/deliver"
)

const (
	// atOnce is how many attempts are held by each receiver.
	atOnce = 100
	// maxMemory of an attempt is what is promised.
	maxMemory = 128 << 10
	// maxPadded is what certificates may take beside it that a trusted authority's
	// holder sends along for nothing: crypto/tls keeps them, six times their bytes.
	maxPadded = 80 << 10
	// maxWire is what an attempt may take from a receiver: the 128 KiB that it reads,
	// and what the kernel takes on both sides.
	maxWire = 4 << 20
)

// hostile is a receiver that would have the memory of whoever calls it. Where it
// has most of it, it holds the attempt, until all are there and have been measured.
type hostile struct {
	name    string
	secured *tls.Config
	slow    func(p *receiver.Peer) net.Conn
	serve   func(p *receiver.Peer)
	want    end
	padded  bool
}

const head = "HTTP/1.1 200 OK\r\n"

// held sends the texts, holds the attempt, and does what is to be done then.
func held(then func(p *receiver.Peer), texts ...string) func(p *receiver.Peer) {
	return func(p *receiver.Peer) {
		p.ReadRequest()
		p.Send(texts...) // it may have heard enough before the end
		p.Hold()
		then(p)
	}
}

func closing(*receiver.Peer) {}

func endless(text string) func(p *receiver.Peer) {
	return func(p *receiver.Peer) { p.Endless(text) }
}

// trickling sends a byte now and then while it holds the attempt, and then resets it.
func trickling(texts ...string) func(p *receiver.Peer) {
	return func(p *receiver.Peer) {
		if !p.ReadRequest() || !p.Send(texts...) {
			return
		}
		go p.Hold() // ends with the receiver
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for p.Send("x") {
			select {
			case <-tick.C:
			case <-p.Released():
				p.Reset()
				return
			}
		}
	}
}

// fill repeats a text up to a length.
func fill(text string, length int) string {
	return strings.Repeat(text, 1+length/len(text))[:length/len(text)*len(text)]
}

func bomb(t testing.TB) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(make([]byte, 100<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// plain are receivers without TLS. Reading ends at 128 KiB, a head at 16 KiB.
func plain(t testing.TB) []hostile {
	t.Helper()
	const most = 127 << 10
	tooLarge, reset := end{200, "", deliver.ReasonResponseTooLarge}, end{0, deliver.ReasonReset, ""}
	packed := bomb(t)
	interim := "HTTP/1.1 103 Early Hints\r\nlink: </" + fill("a", 10<<10) + ">\r\n\r\n"
	chunked := head + "transfer-encoding: chunked\r\n\r\n"
	return []hostile{
		{name: "endless body", serve: held(endless("x"), head, "\r\n", fill("x", most)), want: tooLarge},
		{name: "endless chunks", serve: held(endless("1\r\nx\r\n"), chunked, fill("1\r\nx\r\n", most)), want: tooLarge},
		{name: "endless chunk extension", serve: held(endless("x"), chunked, "1;", fill("x", 4000)), want: end{200, "", deliver.ReasonProtocol}},
		{name: "endless trailer", serve: held(endless("a:\r\n"), chunked, "0\r\n", fill("a:\r\n", 15<<10)), want: tooLarge},
		{name: "petabyte declared", serve: held(endless("x"), head, "content-length: 1000000000000000\r\n\r\n", fill("x", most)), want: tooLarge},
		{name: "petabyte chunk", serve: held(endless("x"), chunked, "38d7ea4c68000\r\n", fill("x", most)), want: tooLarge},
		{name: "huge head and body", serve: held(endless("x"), head, "a: ", fill("b", 16000), "\r\n\r\n", fill("x", 100<<10)), want: tooLarge},
		{name: "head of many fields", serve: held(closing, head, "content-length: 9\r\n", fill("a:\r\n", 16000), "\r\n", "half"), want: end{0, deliver.ReasonHeadTooLarge, ""}},
		{name: "head of 128 fields", serve: held(endless("x"), head, strings.Repeat("a: "+fill("b", 120)+"\r\n", 128), "\r\n", fill("x", 100<<10)), want: tooLarge},
		{name: "trailer of many fields", serve: held(closing, head, "connection: close\r\n", chunked[len(head):], fill("1\r\nx\r\n", 64<<10), "0\r\n", fill("a:\r\n", 16000), "\r\n"), want: end{200, "", ""}},
		{name: "gzip bomb", serve: held(closing, head, fmt.Sprintf("content-encoding: gzip\r\ncontent-length: %d\r\n\r\n", len(packed)+1), packed), want: end{200, "", deliver.ReasonReset}},
		{name: "trickled body", serve: trickling(head, "content-length: 100000\r\n\r\n", fill("x", 60<<10)), want: end{200, "", deliver.ReasonReset}},
		{name: "trickled head", serve: trickling(head, "a: ", fill("b", 12<<10)), want: reset},
		{name: "endless head", serve: held(endless("a: b\r\n"), head, fill("a: b\r\n", 15<<10)), want: end{0, deliver.ReasonHeadTooLarge, ""}},
		{name: "103 storm", serve: held(endless(interim), strings.Repeat(interim, 8)), want: end{0, deliver.ReasonProtocol, ""}},
		{name: "garbage", serve: held(closing, "SSH-2.0-", fill("\x00\xff", 100<<10)), want: end{0, deliver.ReasonProtocol, ""}},
		{name: "reset", serve: held((*receiver.Peer).Reset), want: reset},
		{name: "closed in the head", serve: held(closing, head, "content-le"), want: reset},
	}
}

// secured are receivers whose malice is in TLS, and one with all of it inside of it.
func secured(t testing.TB, ca *receiver.Authority) []hostile {
	t.Helper()
	var all []hostile
	later := time.Now().Add(time.Hour)
	good, stranger := issue(t, ca, later, "127.0.0.1"), receiver.NewAuthority(t)
	refused := end{0, deliver.ReasonTLSFailed, ""}
	for _, one := range []struct {
		name   string
		change func(c *tls.Config)
	}{
		{"expired", func(c *tls.Config) { c.Certificates[0] = issue(t, ca, time.Now().Add(-time.Hour), "127.0.0.1") }},
		{"wrong host", func(c *tls.Config) { c.Certificates[0] = issue(t, ca, later, "example.com") }},
		{"unknown authority", func(c *tls.Config) { c.Certificates[0] = issue(t, stranger, later, "127.0.0.1") }},
		{"TLS 1.0", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }},
		{"TLS 1.1", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }},
		{"wants a client's certificate", func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }},
	} {
		c := &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS12}
		one.change(c)
		all = append(all, hostile{
			name: one.name, secured: c, want: refused,
			slow:  func(p *receiver.Peer) net.Conn { return &holdingConn{Conn: p.Conn, peer: p} },
			serve: func(p *receiver.Peer) { p.ReadRequest() },
		})
	}
	return append(all, largeInTLS(t, ca, good)...)
}

// largeInTLS are receivers that have TLS itself take much, beside the response or before it.
func largeInTLS(t testing.TB, ca *receiver.Authority, good tls.Certificate) []hostile {
	t.Helper()
	refused, tooLarge := end{0, deliver.ReasonTLSFailed, ""}, end{200, "", deliver.ReasonResponseTooLarge}
	large := held(endless("x"), head, "a: ", fill("b", 16000), "\r\n\r\n", fill("x", 100<<10))
	only := func(cert tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	var serial atomic.Int64
	chain := func(n, size int) *tls.Config { // another for each connection
		return &tls.Config{MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := ca.Padded(good, n, size, 1000+serial.Add(100))
			return &cert, err
		}}
	}
	refusedChain := func(n, size int) *tls.Config {
		cert, err := ca.Padded(good, n, size, 1000)
		if err != nil {
			t.Fatal(err)
		}
		return only(cert)
	}
	huge := tls.Certificate{Certificate: [][]byte{good.Certificate[0], make([]byte, 240<<10)}, PrivateKey: good.PrivateKey}
	ticket := only(good)
	ticket.WrapSession = func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { return make([]byte, 60000), nil }
	holdAfter := func(n int) func(p *receiver.Peer) net.Conn {
		return func(p *receiver.Peer) net.Conn { return &holdingConn{Conn: p.Conn, peer: p, after: n} }
	}
	return []hostile{
		{name: "closed in the handshake", serve: func(p *receiver.Peer) { _, _ = p.Read(make([]byte, 5)); p.Hold() }, want: refused},
		{name: "handshake without end", serve: func(p *receiver.Peer) {
			// A server hello that is said to have 64 KiB, in records of 16.
			p.Send(strings.Repeat("\x16\x03\x03\x40\x00\x02\x00\xff\xff"+fill("x", 16380), 4))
			p.Hold()
		}, want: refused},
		{name: "twenty certificates", secured: refusedChain(20, 200), serve: large, want: refused},
		{name: "large certificates", secured: refusedChain(9, 1900), serve: large, want: refused},
		{name: "ten certificates", secured: chain(9, 200), serve: large, want: tooLarge, padded: true},
		{name: "ten larger certificates", secured: chain(9, 1050), serve: large, want: tooLarge, padded: true},
		{name: "huge certificates", secured: only(huge), slow: holdAfter(230 << 10), serve: func(p *receiver.Peer) { p.ReadRequest() }, want: refused},
		{name: "huge certificates, in part", secured: only(huge), slow: holdAfter(32000), serve: func(p *receiver.Peer) { p.ReadRequest() }, want: refused},
		{name: "huge ticket, in part", secured: ticket, slow: holdAfter(32000), serve: large, want: refused},
		{name: "huge head and body in TLS", secured: only(good), serve: large, want: tooLarge},
	}
}

func issue(t testing.TB, ca *receiver.Authority, until time.Time, name string) tls.Certificate {
	t.Helper()
	cert, err := ca.Issue(until, name)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// holdingConn holds the attempt once so many bytes were written, or no more can be.
type holdingConn struct {
	net.Conn

	peer         *receiver.Peer
	after, wrote int
	done         bool
}

func (c *holdingConn) Write(b []byte) (int, error) {
	first := min(len(b), max(0, c.after-c.wrote))
	n, err := c.Conn.Write(b[:first])
	c.wrote += n
	if c.done || err == nil && n == len(b) {
		return n, err
	}
	c.done, c.after = true, math.MaxInt
	c.peer.Hold()
	if err != nil {
		return n, err
	}
	more, err := c.Conn.Write(b[first:])
	return n + more, err
}

// TestMemoryOfHostileReceivers is the promise of 128 KiB an attempt: what each of
// a hundred holds while the receiver has it where it is largest, and after.
func TestMemoryOfHostileReceivers(t *testing.T) {
	ca := receiver.NewAuthority(t)
	for _, h := range slices.Concat(plain(t), secured(t, ca)) {
		t.Run(h.name, func(t *testing.T) {
			raw := receiver.StartRaw(t, h.secured, h.slow, h.serve)
			p := plan{URL: "http://" + raw.Addr() + "/", Count: atOnce, Timeout: 30 * time.Second, Roots: ca.PEM()}
			if h.want.Reason == deliver.ReasonTLSFailed || h.secured != nil {
				p.URL = "https://" + raw.Addr() + "/"
			}
			a := startAttempts(t, p)
			wait(t, "all attempts to be held", func() bool { return raw.Holding() == atOnce })
			holding := a.measure(t)
			raw.Release()
			e := a.wait(t)
			t.Logf("%d + %d KiB an attempt, heap and stack; %d + %d after its end; %d KiB written; the longest took %s",
				holding.Heap>>10, holding.Stack>>10, e.Kept.Heap>>10, e.Kept.Stack>>10, raw.Wrote()/atOnce>>10, e.Longest.Round(time.Millisecond))
			most := uint64(maxMemory)
			if h.padded {
				most += maxPadded
			}
			if got := holding.Heap + holding.Stack; got > most || e.Kept.Heap > maxMemory {
				t.Errorf("%d bytes an attempt, %d after its end, want at most %d", got, e.Kept.Heap, most)
			}
			if got := raw.Wrote() / atOnce; got > maxWire {
				t.Errorf("%d bytes taken an attempt, want at most %d", got, maxWire)
			}
			if len(e.Count) != 1 || e.Count[h.want] != atOnce {
				t.Errorf("the attempts came to %v, want all %v", e.Count, h.want)
			}
		})
	}
}

// wait waits until a condition holds.
func wait(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !condition() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waiting for %s: not within 30s", what)
		}
	}
}
