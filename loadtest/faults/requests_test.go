package faults

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/schemas"
)

// badRequest is text that goes to ingest as it is, over a connection of its own.
type badRequest struct {
	what   string
	text   string
	status int
	code   schemas.Code // of the answer's first error; empty: any
}

func badRequests() []badRequest {
	head := "POST /v1/events HTTP/1.1\r\nhost: ingest\r\nauthorization: Bearer " + adminKey + "\r\n"
	plain := func(what, body string, status int, code schemas.Code) badRequest {
		return badRequest{what, fmt.Sprintf("%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", head, len(body), body), status, code}
	}
	deep := strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200)
	const two = "content-length: 2\r\n"
	return []badRequest{
		plain("too large", `{"event":"a.b","organization":"o","payload":{"a":"`+strings.Repeat("a", 1<<20)+`"}}`, 413, schemas.CodeTooLarge),
		plain("batch too large", `["`+strings.Repeat("a", 5<<20)+`"]`, 413, schemas.CodeTooLarge),
		plain("too deep", `{"event":"a.b","organization":"o","payload":`+deep+`}`, 400, schemas.CodeTooDeep),
		plain("far too deep", strings.Repeat("[", 900_000), 400, ""),
		plain("a member twice", `{"event":"a.b","event":"a.c","organization":"o"}`, 422, schemas.CodeDuplicateField),
		plain("invalid UTF-8", "{\"event\":\"a.b\",\"organization\":\"o\",\"payload\":{\"a\":\"\xc3\x28\"}}", 400, schemas.CodeInvalidJSON),
		plain("NUL in a name", `{"event":"a\u0000b","organization":"o"}`, 422, schemas.CodeInvalidValue),
		plain("NUL in the text", "{\"event\":\"a.b\",\x00\"organization\":\"o\"}", 400, schemas.CodeInvalidJSON),
		plain("NUL in an organization", `{"event":"a.b","organization":"o\u0000"}`, 422, schemas.CodeInvalidValue),
		plain("nothing", "", 400, schemas.CodeInvalidJSON),
		{"head too large", head + "x-long: " + strings.Repeat("x", 20<<10) + "\r\n\r\n", 431, ""},
		{"no such method", "BREW" + head[len("POST"):] + two + "\r\n{}", 405, ""},
		{"no number for a length", head + "content-length: many\r\n\r\n", 400, ""},
		{"NUL in the head", head + "x-nul: a\x00b\r\n" + two + "content-type: application/json\r\n\r\n{}", 0, ""},
		{"two lengths", head + two + "content-length: 3\r\n\r\n{}", 0, ""},
		{"garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, ""},
		{"another protocol", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, ""},
	}
}

// send sends the request and says what was wrong with its answer: it must be a 4xx with
// a code. What is no HTTP may be answered by the connection's end alone.
func (b *badRequest) send(ctx context.Context, addr string) error {
	conn, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		return fmt.Errorf("setting deadline: %w", err)
	}
	_, _ = io.WriteString(conn, b.text) // it may be answered before its end
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		if b.status == 0 {
			return nil
		}
		return fmt.Errorf("reading the answer: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	var problem schemas.Problem
	switch err := json.Unmarshal(text, &problem); {
	case resp.StatusCode < 400 || resp.StatusCode > 499 || b.status != 0 && resp.StatusCode != b.status:
		return fmt.Errorf("%w %d: want %d: %s", errAnswer, resp.StatusCode, b.status, text)
	case err != nil || len(problem.Errors) == 0 || problem.Errors[0].Code == "":
		return fmt.Errorf("%w %d has no code: %q", errAnswer, resp.StatusCode, text)
	case b.code != "" && problem.Errors[0].Code != b.code:
		return fmt.Errorf("%w %d: code %s, want %s", errAnswer, resp.StatusCode, problem.Errors[0].Code, b.code)
	}
	return nil
}

func dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: soon}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return conn, nil
}

var errAnswer = errors.New("got an answer")

// badRequests sends bad requests, and has very many clients that trickle theirs, while
// others send good ones: those are to notice as little as may be.
func (w *world) badRequests() {
	good := w.startProbes(4, 25)
	quiet := w.pass(pick(8*time.Second, 20*time.Second))
	slow := w.startTrickling(pick(500, 5000))
	bad := w.startBad()
	fault := w.pass(pick(15*time.Second, time.Minute))
	sent, wrong := bad()
	w.notef("%d slow clients, %d of them cut off by ingest", slow.count, slow.stop())
	w.faultEnded()
	again := w.pass(pick(8*time.Second, 20*time.Second))
	good.stop()

	for _, err := range wrong {
		w.problemf("%v", err)
	}
	if sent < len(badRequests()) {
		w.problemf("%d bad requests were sent, want each of %d", sent, len(badRequests()))
	}
	if slow.connected < slow.count {
		w.problemf("%d of %d slow clients were let in", slow.connected, slow.count)
	}
	before, many := good.p99(quiet, again)
	during, n := good.p99(fault)
	refused := w.metric(w.ingest, "postrider_ingest_request_duration_seconds_count", `status="4`)
	broken := w.metric(w.ingest, "postrider_ingest_request_duration_seconds_count", `status="5`)
	panics := w.metric(w.ingest, "postrider_ingest_panics_total")
	w.notef("%d bad requests, %.0f refused by its handlers, %.0f answers of 5xx; good requests' p99 %d ms beside them, %d ms without: %.2f times, %d and %d requests",
		sent, refused, broken, during.Milliseconds(), before.Milliseconds(), float64(during)/float64(max(before, 1)), n, many)
	if most := max(2*before, unfelt); during > most {
		w.latef("good requests' p99 is %v beside bad ones and %v without, want at most twice that, or %v", during, before, unfelt)
	}
	if broken > 0 || panics > 0 || len(good.others) > 0 {
		w.problemf("%.0f answers of 5xx and %.0f panics, want none; good requests got %v", broken, panics, good.others)
	}
	if many < 100 || n < 100 {
		w.problemf("%d and %d good requests, want a hundred at least", many, n)
	}
}

// probes are good requests of their own clients, by when they began.
type probes struct {
	w    *world
	load *load

	mu     sync.Mutex // guards the below
	began  []time.Time
	took   []time.Duration
	others map[string]int // what was not 202
}

// startProbes has so many clients each send so many good requests a second.
func (w *world) startProbes(clients, rate int) *probes {
	p := &probes{
		w: w, others: map[string]int{},
		load: &load{w: w, end: make(chan struct{}), http: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}},
	}
	for range clients {
		p.load.work.Go(func() { p.load.every(float64(rate), p.send) })
	}
	return p
}

func (p *probes) send() {
	n := p.load.numbers.Add(1)
	e := p.w.sends(fmt.Sprintf("probe-%d", n), p.w.organizations[int(n)%len(p.w.organizations)])
	began := time.Now()
	status, answer, err := p.w.try(p.w.t.Context(), p.load.http, http.MethodPost, "/v1/events", e.text)
	took := time.Since(began)
	if err == nil && status == http.StatusAccepted {
		p.w.ledger.Accepted(e.id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.began, p.took = append(p.began, began), append(p.took, took)
	if err != nil || status != http.StatusAccepted {
		p.others[fmt.Sprintf("%d %.100s %v", status, answer, err)]++
	}
}

func (p *probes) stop() {
	close(p.load.end)
	p.load.work.Wait()
	p.load.http.CloseIdleConnections()
}

// p99 is that of the requests that began in some phases.
func (p *probes) p99(phases ...phase) (p99 time.Duration, count int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []time.Duration
	for i, began := range p.began {
		for _, phase := range phases {
			if !began.Before(phase.from) && began.Before(phase.to) {
				all = append(all, p.took[i])
			}
		}
	}
	slices.Sort(all)
	return ledger.Quantile(all, 0.99), len(all)
}

// startBad sends the bad requests in turn, ten a second, until stop, which says how many
// were sent and what was wrong with the answers.
func (w *world) startBad() (stop func() (sent int, wrong []error)) {
	l := &load{w: w, end: make(chan struct{})}
	all := badRequests()
	n := 0
	found := map[string]error{}
	l.work.Go(func() {
		l.every(10, func() {
			b := &all[n%len(all)]
			n++
			if err := b.send(w.t.Context(), w.ingest.Listen); err != nil {
				found[b.what] = fmt.Errorf("%s: %w", b.what, err)
			}
		})
	})
	return func() (sent int, wrong []error) {
		close(l.end)
		l.work.Wait()
		return n, slices.Collect(maps.Values(found))
	}
}

// trickling are clients that send a byte a second.
type trickling struct {
	count, connected int
	conns            []net.Conn
	end              chan struct{}
	work             sync.WaitGroup
	cut              atomic.Int64 // by ingest
}

// startTrickling connects so many, of which half trickle their heads and half their bodies.
func (w *world) startTrickling(n int) *trickling {
	w.t.Helper()
	s := &trickling{count: n, end: make(chan struct{})}
	head := "POST /v1/events HTTP/1.1\r\nhost: ingest\r\nauthorization: Bearer " + adminKey + "\r\ncontent-type: application/json\r\n"
	for i := range n {
		conn, err := dial(w.t.Context(), w.ingest.Listen)
		if err != nil {
			continue
		}
		s.connected++
		s.conns = append(s.conns, conn)
		text := head[:30]
		if i%2 == 0 {
			text = head + "content-length: 100000\r\n\r\n{"
		}
		_, _ = io.WriteString(conn, text) // else it is cut off already
	}
	s.work.Go(func() { s.trickle() })
	return s
}

func (s *trickling) trickle() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.end:
			return
		case <-tick.C:
		}
		left := s.conns[:0:0]
		for _, conn := range s.conns {
			if _, err := io.WriteString(conn, "x"); err != nil {
				s.cut.Add(1)
				_ = conn.Close()
				continue
			}
			left = append(left, conn)
		}
		s.conns = left
	}
}

// stop closes all and says how many ingest had closed before.
func (s *trickling) stop() (cut int64) {
	close(s.end)
	s.work.Wait()
	for _, conn := range s.conns {
		_ = conn.Close()
	}
	return s.cut.Load()
}
