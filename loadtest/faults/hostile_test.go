package faults

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/loadtest/nameserver"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// hostileTimeout is the time that attempts at hostile targets have. Their slack is
// what a loaded machine may need to schedule an end.
const (
	hostileTimeout = 2 * time.Second
	hostileSlack   = time.Second
)

// malice is what a hostile receiver does with a connection.
type malice struct {
	name    string
	secured *tls.Config
	stalls  bool // the connection is the attempt's to end
	accepts bool // it says 200 first: what follows takes nothing back
	reads   bool // the request, which the ledger is told of
	serve   func(p *receiver.Peer)
}

const okay = "HTTP/1.1 200 OK\r\n"

// trickles sends a byte now and then until the connection is at its end.
func trickles(p *receiver.Peer, texts ...string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for ok := p.Send(texts...); ok; ok = p.Send("x") {
		<-tick.C
	}
}

// untilClosed reads until the connection is at its end.
func untilClosed(p *receiver.Peer) {
	b := make([]byte, 512)
	for {
		if _, err := p.Read(b); err != nil {
			return
		}
	}
}

// malices are those without TLS; the request has been read where reads says so.
func (w *world) malices() []malice {
	w.t.Helper()
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	_, err := zip.Write(make([]byte, 100<<20))
	if err == nil {
		err = zip.Close()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	bomb := fmt.Sprintf("content-encoding: gzip\r\ncontent-length: %d\r\n\r\n%s", packed.Len(), packed.String())
	storm := "HTTP/1.1 103 Early Hints\r\nlink: </" + strings.Repeat("a", 8<<10) + ">\r\n\r\n"
	return []malice{
		{name: "silent", reads: true, stalls: true, serve: untilClosed},
		{name: "trickled head", reads: true, stalls: true, serve: func(p *receiver.Peer) { trickles(p, okay, "a: ") }},
		{name: "trickled body", reads: true, stalls: true, accepts: true, serve: func(p *receiver.Peer) { trickles(p, okay, "content-length: 100000\r\n\r\n") }},
		{name: "endless body", reads: true, accepts: true, serve: func(p *receiver.Peer) { p.Send(okay, "\r\n"); p.Endless("x") }},
		{name: "endless chunks", reads: true, accepts: true, serve: func(p *receiver.Peer) {
			p.Send(okay, "transfer-encoding: chunked\r\n\r\n")
			p.Endless("1\r\nx\r\n")
		}},
		{name: "endless head", reads: true, serve: func(p *receiver.Peer) { p.Send(okay); p.Endless("a: b\r\n") }},
		{name: "103 storm", reads: true, serve: func(p *receiver.Peer) { p.Endless(storm) }},
		{name: "gzip bomb", reads: true, accepts: true, serve: func(p *receiver.Peer) { p.Send(okay, bomb) }},
		{name: "two lengths", reads: true, serve: func(p *receiver.Peer) { p.Send(okay, "content-length: 2\r\ncontent-length: 7\r\n\r\nok") }},
		{name: "garbage", reads: true, serve: func(p *receiver.Peer) { p.Send("SSH-2.0-", strings.Repeat("\x00\xff", 50<<10)) }},
		{name: "reset at once", serve: (*receiver.Peer).Reset},
		{name: "reset before the head", reads: true, serve: (*receiver.Peer).Reset},
		{name: "reset in the head", reads: true, serve: func(p *receiver.Peer) { p.Send(okay, "content-le"); p.Reset() }},
		{name: "reset in the body", reads: true, accepts: true, serve: func(p *receiver.Peer) {
			p.Send(okay, "content-length: 9\r\n\r\nhalf")
			<-time.After(100 * time.Millisecond) // a reset takes back what was not read
			p.Reset()
		}},
	}
}

// securedMalices are those of TLS. The authority is one that the sender trusts.
func (w *world) securedMalices(ca *receiver.Authority) []malice {
	w.t.Helper()
	only := func(until time.Time, name string) *tls.Config {
		cert, err := ca.Issue(until, name)
		if err != nil {
			w.t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	later := time.Now().Add(time.Hour)
	return []malice{
		{name: "expired", secured: only(time.Now().Add(-time.Hour), "127.0.0.1"), serve: untilClosed},
		{name: "wrong name", secured: only(later, "example.com"), serve: untilClosed},
		{name: "TLS that stalls", stalls: true, serve: untilClosed},
		{name: "TLS that trickles", stalls: true, serve: func(p *receiver.Peer) { trickles(p, "\x16\x03\x03\x40\x00\x02\x00\xff\xff") }},
		{name: "TLS, then a trickled body", secured: only(later, "127.0.0.1"), reads: true, stalls: true, accepts: true, serve: func(p *receiver.Peer) {
			trickles(p, okay, "content-length: 100000\r\n\r\n")
		}},
	}
}

// trap is one hostile receiver with its webhooks.
type trap struct {
	malice

	raw         *receiver.Raw
	longest     atomic.Int64  // nanoseconds, of a connection that stalls
	open, atTop *atomic.Int64 // connections of all traps
}

// set starts a hostile receiver.
func (w *world) set(m malice, open, atTop *atomic.Int64) *trap {
	w.t.Helper()
	t := &trap{malice: m, open: open, atTop: atTop}
	t.raw = receiver.StartRaw(w.t, m.secured, nil, func(p *receiver.Peer) { t.serve(w, p) })
	return t
}

func (t *trap) serve(w *world, p *receiver.Peer) {
	t.atTop.Store(max(t.atTop.Load(), t.open.Add(1)))
	defer t.open.Add(-1)
	if t.reads {
		r, ok := p.Request()
		if !ok {
			return
		}
		r.Answer.Drop = !t.accepts
		w.saw(r)
	}
	from := time.Now()
	t.malice.serve(p)
	if t.stalls && w.t.Context().Err() == nil {
		t.longest.Store(max(t.longest.Load(), int64(time.Since(from))))
	}
}

// hostileRequest is further members of the request for a webhook whose target is hostile: one attempt a delivery.
const hostileRequest = `,"timeout_ms":2000,"retry_schedule":[]`

// hostile sends to receivers that would have the sender's time and memory, beside others.
func (w *world) hostile() {
	ca := receiver.NewAuthority(w.t)
	file := filepath.Join(w.t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, ca.PEM(), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.replaceSender([]string{"env", "SSL_CERT_FILE=" + file})
	var open, atTop atomic.Int64
	var traps []*trap
	var hooks []ledger.Webhook
	each := pick(3, 10)
	for i, m := range append(w.malices(), w.securedMalices(ca)...) {
		t := w.set(m, &open, &atTop)
		traps = append(traps, t)
		scheme := "http"
		if m.secured != nil || strings.HasPrefix(m.name, "TLS") {
			scheme = "https"
		}
		for k := range each {
			path := fmt.Sprintf("/hostile/%d/%d", i, k)
			hooks = append(hooks, w.subscribeURL("hostile", path, scheme+"://"+t.raw.Addr()+path, hostileRequest))
		}
	}
	before := w.sender.Memory(w.t)
	peak := w.beside(hooks)
	w.judgeDurations(5 * len(hooks))
	for _, t := range traps {
		longest := time.Duration(t.longest.Load())
		if t.raw.Conns() == 0 {
			w.problemf("%s: no attempt came to it", t.name)
		}
		if most := hostileTimeout + hostileTimeout/10 + hostileSlack; longest > most {
			w.latef("%s: an attempt took %v, want at most %v", t.name, longest, most)
		}
		if t.stalls && longest < hostileTimeout/2 {
			w.problemf("%s: the longest attempt was held for %v, want nearly all of its %v", t.name, longest, hostileTimeout)
		}
	}
	// What is collected only now and then may take as much again; 64 MiB is for the load's own.
	held := atTop.Load()
	w.notef("sender at %d MB, %d MB at most while %d attempts were held at once: %d KB an attempt", before>>20, peak>>20, held, (peak-before)>>10/max(held, 1))
	if most := before + 2*held*128<<10 + 64<<20; peak > most {
		w.problemf("the sender had %d MB, want at most %d with %d attempts held", peak>>20, most>>20, held)
	}
}

// replaceSender ends the sender in order and starts it again by another program.
func (w *world) replaceSender(by []string, more ...string) {
	w.t.Helper()
	w.sender.Terminate(w.t, soon)
	w.sender = w.startBy(by, "sender", pipeline.Binary(w.t, "sender"), "sender-1", more...)
	w.sender.WaitReady(w.t)
	w.progress(200)
}

// beside sends events to hostile webhooks with the load beside them, holds I4 and the
// attempts' durations, deletes the webhooks, and returns the sender's peak of memory.
func (w *world) beside(hooks []ledger.Webhook) (peak int64) {
	w.t.Helper()
	others := func(path string) bool { return !strings.HasPrefix(path, "/hostile") }
	quiet := w.pass(pick(8*time.Second, 20*time.Second))
	stop := w.flood("hostile", "hostile", 2)
	fault := phase{from: time.Now()}
	for time.Since(fault.from) < pick(15*time.Second, 2*time.Minute) {
		w.pass(200 * time.Millisecond)
		peak = max(peak, w.sender.Memory(w.t))
	}
	fault.to = time.Now()
	stop()
	w.settled(others, fault)
	for _, hook := range hooks { // what is left is discarded
		w.ledger.Unsubscribe(hook.Path)
		w.call(http.StatusNoContent, http.MethodDelete, "/v1/webhooks/"+hook.ID, "")
	}
	again := w.pass(pick(8*time.Second, 20*time.Second))
	w.settled(others, again)
	w.isolated(others, 1.5, fault, quiet, again)
	return peak
}

// judgeDurations holds what the audit says of the attempts at hostile targets.
func (w *world) judgeDurations(least int) {
	w.t.Helper()
	w.load.stop(w.t)
	w.load = nil
	w.settle()
	for _, f := range w.lines("SELECT reason, result, count(), max(duration_ms) FROM outcomes WHERE organization = 'hostile' AND result != 'discarded' GROUP BY reason, result ORDER BY reason, result") {
		longest, err := strconv.ParseFloat(f[3], 64)
		if err != nil {
			w.t.Fatal(err)
		}
		w.notef("%s %s: %s attempts, the longest %.0f ms", f[1], f[0], f[2], longest)
		if most := hostileTimeout + hostileTimeout/10 + hostileSlack; longest > float64(most.Milliseconds()) {
			w.latef("an attempt that ended %q took %.0f ms, want at most %v", f[0], longest, most)
		}
		least -= int(number(w.t, f[2]))
	}
	if least > 0 {
		w.problemf("%d attempts at hostile targets are missing", least)
	}
}

// ownNames makes the test's the only nameserver of the program it starts.
const ownNames = `
mount --bind "$1" /etc/resolv.conf
shift
exec "$@"`

// names sends to names whose nameserver is slow, errs or is silent.
func (w *world) names() {
	const addr = "127.53.53.53"
	server := nameserver.Start(w.t, addr+":53")
	resolv := filepath.Join(w.t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver "+addr+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.replaceSender([]string{"unshare", "--mount", "sh", "-ec", ownNames, "sh", resolv})
	_, port, err := net.SplitHostPort(w.targets.Addr())
	if err != nil {
		w.t.Fatal(err)
	}
	answers := map[string]nameserver.Answer{
		"silent.example.com": {Silent: true}, "garbled.example.com": {Garbled: true}, "servfail.example.com": {Code: dns.RcodeServerFailure},
		"refused.example.com": {Code: dns.RcodeRefused}, "nowhere.example.com": {Code: dns.RcodeNameError}, "nothing.example.com": {},
		"slow.example.com": {Addrs: []string{"127.0.0.1"}, Delay: time.Minute},
		"late.example.com": {Addrs: []string{"127.0.0.1"}, Delay: time.Second}, // in time, for a target without TLS
	}
	var hooks []ledger.Webhook
	for name, answer := range answers {
		server.Answers(name, answer)
		for k := range pick(3, 10) {
			path := fmt.Sprintf("/hostile/%s/%d", name, k)
			hooks = append(hooks, w.subscribeURL("hostile", path, "https://"+name+":"+port+path, hostileRequest))
		}
	}
	w.beside(hooks)
	w.judgeDurations(5 * len(hooks))
	for name := range answers {
		if server.Asked(name) == 0 {
			w.problemf("%s: nobody asked for it", name)
		}
	}
}
