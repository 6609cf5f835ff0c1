package deliver

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/schemas"
)

// gzipped is a bomb: 10 MiB of zeros in 10 KiB.
func gzipped(t testing.TB) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(make([]byte, 10<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// endless sends text once and then more until the connection ends.
func endless(text, more string) func(p *peer) {
	return func(p *peer) {
		p.request()
		if p.send(text) != nil {
			return
		}
		block := strings.Repeat(more, 1+8<<10/len(more))
		for {
			if p.send(block) != nil {
				return
			}
		}
	}
}

// trickle sends text and then one byte of more every 10 ms.
func trickle(text, more string) func(p *peer) {
	return func(p *peer) {
		p.request()
		if p.send(text) != nil {
			return
		}
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			<-tick.C
			if p.send(more[i%len(more):i%len(more)+1]) != nil {
				return
			}
		}
	}
}

// once answers one request and then does what it is told.
func once(text string, then func(p *peer)) func(p *peer) {
	return func(p *peer) {
		p.request()
		if p.send(text) == nil {
			then(p)
		}
	}
}

func closeIt(*peer)     {}
func hangOn(p *peer)    { p.hang() }
func resetIt(p *peer)   { p.reset() }
func headReset(p *peer) { _, _ = p.r.Peek(1); p.reset() }

type hostileCase struct {
	name       string
	serve      func(p *peer)
	status     int
	reason     Reason
	bodyReason Reason
	bytes      int64 // of the body; -1 where it is a matter of time
}

// wholeAnswers are strange and right.
func wholeAnswers(t testing.TB) []hostileCase {
	t.Helper()
	bomb := gzipped(t)
	big := strings.Repeat("x", 100<<10)
	return []hostileCase{
		{"empty 200", answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), 200, "", "", 0},
		{"no reason phrase", answer("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n"), 200, "", "", 0},
		{"chunked", answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), 200, "", "", 5},
		{"trailer of many fields", answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + strings.Repeat("a:\r\n", 4000) + "\r\n"), 200, "", "", 1},
		{"head of 128 fields", answer("HTTP/1.1 200 OK\r\n" + strings.Repeat("a:\r\n", 127) + "content-length: 0\r\n\r\n"), 200, "", "", 0},
		{"until the end of the connection", once("HTTP/1.1 200 OK\r\n\r\nhello", closeIt), 200, "", "", 5},
		{"204", answer("HTTP/1.1 204 No Content\r\n\r\n"), 204, "", "", 0},
		{"304", answer("HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n"), 304, "", "", 0},
		{"301 to a forbidden place", answer("HTTP/1.1 301 Moved\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"), 301, "", "", 0},
		{"410", answer("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"), 410, "", "", 0},
		{"500 with a long body", answer(fmt.Sprintf("HTTP/1.1 500 No\r\ncontent-length: %d\r\n\r\n%s", len(big), big)), 500, "", "", int64(len(big))},
		{"100 continue first", answer("HTTP/1.1 100 Continue\r\n\r\n" + ok200), 200, "", "", 2},
		{"103 first", answer("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + ok200), 200, "", "", 2},
		{"gzip bomb", answer(fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%s", len(bomb), bomb)), 200, "", "", int64(len(bomb))},
	}
}

// brokenBodies follow a whole head, so the status is known.
func brokenBodies() []hostileCase {
	big := strings.Repeat("x", 100<<10)
	return []hostileCase{
		{"endless body", endless("HTTP/1.1 200 OK\r\n\r\n", big), 200, "", ReasonResponseTooLarge, -1},
		{"endless chunks", endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\nx\r\n"), 200, "", ReasonResponseTooLarge, -1},
		{"endless chunk extension", endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", big), 200, "", ReasonProtocol, 0},
		{"endless trailer", endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", "a: b\r\n"), 200, "", ReasonResponseTooLarge, 0},
		{"endless line of a trailer", endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\na:", big), 200, "", ReasonProtocol, 0},
		{"petabyte declared", endless("HTTP/1.1 200 OK\r\ncontent-length: 1000000000000000\r\n\r\n", big), 200, "", ReasonResponseTooLarge, 1000000000000000},
		{"petabyte chunk", endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n38d7ea4c68000\r\n", big), 200, "", ReasonResponseTooLarge, -1},
		{"trickled body", trickle("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", "x"), 200, "", ReasonTimeout, -1},
		{"hanging body", once("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", hangOn), 200, "", ReasonTimeout, 4},
		{"body cut short", once("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", closeIt), 200, "", ReasonReset, 4},
		{"chunks cut short", once("HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf", closeIt), 500, "", ReasonReset, 4},
		{"bad chunk size", once("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", hangOn), 200, "", ReasonProtocol, 0},
	}
}

// brokenHeads leave no status to trust.
func brokenHeads() []hostileCase {
	return []hostileCase{
		{"103 storm", endless("", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"), 0, ReasonProtocol, "", 0},
		{"bare line feeds", answer("HTTP/1.1 200 OK\ncontent-length: 2\n\nok"), 0, ReasonProtocol, "", 0},
		{"hanging", hangOn, 0, ReasonTimeout, "", 0},
		{"trickled head", trickle("HTTP/1.1 200 OK\r\n", "x-a: b\r\n"), 0, ReasonTimeout, "", 0},
		{"hanging head", once("HTTP/1.1 200 OK\r\n", hangOn), 0, ReasonTimeout, "", 0},
		{"endless head", endless("HTTP/1.1 200 OK\r\n", "x-a: b\r\n"), 0, ReasonHeadTooLarge, "", 0},
		{"head of 129 fields", once("HTTP/1.1 200 OK\r\n"+strings.Repeat("a:\r\n", 128)+"content-length: 0\r\n\r\n", hangOn), 0, ReasonHeadTooLarge, "", 0},
		{"endless status line", endless("HTTP/1.1 200 ", "OK"), 0, ReasonHeadTooLarge, "", 0},
		{"endless empty lines", endless("", "\r\n"), 0, ReasonHeadTooLarge, "", 0},
		{"closed at once", closeIt, 0, ReasonReset, "", 0},
		{"reset at once", resetIt, 0, ReasonReset, "", 0},
		{"reset in mid request", headReset, 0, ReasonReset, "", 0},
		{"closed after the request", once("", closeIt), 0, ReasonReset, "", 0},
		{"reset after the request", once("", resetIt), 0, ReasonReset, "", 0},
		{"closed in the status line", once("HTTP/1.1 20", closeIt), 0, ReasonReset, "", 0},
		{"closed in the head", once("HTTP/1.1 200 OK\r\ncontent-le", closeIt), 0, ReasonReset, "", 0},
		{"garbage", once("SSH-2.0-OpenSSH_9.9\r\n", hangOn), 0, ReasonProtocol, "", 0},
		{"binary garbage", once("\x15\x03\x01\x00\x02\x02\x16", hangOn), 0, ReasonProtocol, "", 0},
		{"HTTP/2", once("HTTP/2 200\r\n\r\n", hangOn), 0, ReasonProtocol, "", 0},
		{"HTTP/1.2 garbage", once("HTTP/1.x 200 OK\r\n\r\n", hangOn), 0, ReasonProtocol, "", 0},
		{"status 000", once("HTTP/1.1 000 OK\r\n\r\n", hangOn), 0, ReasonProtocol, "", 0},
		{"status of two digits", once("HTTP/1.1 20 OK\r\n\r\n", hangOn), 0, ReasonProtocol, "", 0},
		{"status of four digits", once("HTTP/1.1 2000 OK\r\n\r\n", hangOn), 0, ReasonProtocol, "", 0},
		{"status +20", once("HTTP/1.1 +20 OK\r\n\r\n", hangOn), 0, ReasonProtocol, "", 0},
		{"two lengths", once("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc", hangOn), 0, ReasonProtocol, "", 0},
		{"negative length", once("HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nabc", hangOn), 0, ReasonProtocol, "", 0},
		{"length of thirty digits", once("HTTP/1.1 200 OK\r\ncontent-length: 999999999999999999999999999999\r\n\r\nabc", hangOn), 0, ReasonProtocol, "", 0},
		{"unknown transfer encoding", once("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc", hangOn), 0, ReasonProtocol, "", 0},
		{"NUL in a header", once("HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n", hangOn), 0, ReasonProtocol, "", 0},
		{"no colon in a header", once("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", hangOn), 0, ReasonProtocol, "", 0},
	}
}

func TestHostileReceivers(t *testing.T) {
	for _, tt := range slices.Concat(wholeAnswers(t), brokenBodies(), brokenHeads()) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rcv := startReceiver(t, tt.serve)
			r := request(rcv.url)
			timesOut := tt.reason == ReasonTimeout || tt.bodyReason == ReasonTimeout
			if timesOut {
				r.Timeout = 2 * short // all cases run at once
			}
			a := startClient(t, nil).Do(t.Context(), r)
			if a.StatusCode != tt.status || a.Reason != tt.reason || a.BodyReason != tt.bodyReason {
				t.Errorf("got status %d, reason %q, body reason %q, want %d, %q, %q", a.StatusCode, a.Reason, a.BodyReason, tt.status, tt.reason, tt.bodyReason)
			}
			if tt.bytes >= 0 && a.ResponseBytes != tt.bytes {
				t.Errorf("body of %d bytes, want %d", a.ResponseBytes, tt.bytes)
			}
			if len(a.ResponseBody) > maxKept || len(a.ResponseHead) > maxHead || int64(len(a.ResponseBody)) > a.ResponseBytes {
				t.Errorf("kept %d + %d bytes of %d", len(a.ResponseHead), len(a.ResponseBody), a.ResponseBytes)
			}
			if a.Reason != "" && len(a.ResponseHead) > 0 {
				t.Errorf("a head %q without a status", a.ResponseHead)
			}
			if !timesOut && a.Duration > r.Timeout/2 {
				t.Errorf("took %s to see what was clear at once", a.Duration)
			}
			// The deadline + 10 %, and what a loaded machine needs to schedule it.
			if limit := r.Timeout + r.Timeout/10 + slack; a.Duration > limit {
				t.Errorf("took %s, want at most %s", a.Duration, limit)
			}
		})
	}
}

// TestBodyThatIsNotRead hangs in the middle of writing a request that no socket buffer holds.
func TestBodyThatIsNotRead(t *testing.T) {
	stop := make(chan struct{})
	rcv := startReceiver(t, func(*peer) { <-stop })
	defer close(stop)
	r := request(rcv.url)
	r.Body = make([]byte, 32<<20)
	r.Timeout = short
	a := startClient(t, nil).Do(t.Context(), r)
	if a.Reason != ReasonTimeout || a.Duration > r.Timeout+slack {
		t.Errorf("reason %q after %s, want %q", a.Reason, a.Duration, ReasonTimeout)
	}
}

func TestAnswerBeforeTheWholeRequestIsRead(t *testing.T) {
	rcv := startReceiver(t, func(p *peer) {
		if _, err := p.r.Peek(1); err != nil {
			return
		}
		_ = p.send("HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
		p.hang()
	})
	r := request(rcv.url)
	r.Body = make([]byte, 8<<20)
	if a := startClient(t, nil).Do(t.Context(), r); a.StatusCode != 413 {
		t.Errorf("status %d, reason %q, want 413", a.StatusCode, a.Reason)
	}
}

func TestKeptResponseIsACopy(t *testing.T) {
	rcv := startReceiver(t, func(p *peer) {
		for i := 0; ; i++ {
			if r, _ := p.request(); r == nil {
				return
			}
			if p.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nn: %d\r\ncontent-length: 4\r\n\r\n%04d", i, i)) != nil {
				return
			}
		}
	})
	c := startClient(t, nil)
	first := c.Do(t.Context(), request(rcv.url))
	for range 5 {
		wantDelivered(t, c.Do(t.Context(), request(rcv.url)))
	}
	if got, want := string(first.ResponseHead)+string(first.ResponseBody), "HTTP/1.1 200 OK\r\nn: 0\r\ncontent-length: 4\r\n\r\n0000"; got != want {
		t.Errorf("the first response is now %q, want %q", got, want)
	}
}

func TestProxyVariablesAreIgnored(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	rcv := startReceiver(t, answer(ok200))
	wantDelivered(t, startClient(t, nil).Do(t.Context(), request(rcv.url)))
}

// TestMemoryOfAnAttempt allocates everything anew for each attempt, as the
// first ones do, and counts it all.
func TestMemoryOfAnAttempt(t *testing.T) {
	page := []byte("HTTP/1.1 200 OK\r\nx: " + strings.Repeat("h", 15<<10) + "\r\n\r\n" + strings.Repeat("x", 1<<20))
	rcv := startReceiver(t, func(p *peer) {
		if r, err := http.ReadRequest(p.r); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = p.Write(page)
		}
	})
	perAttempt := func(n uint64) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n {
			c := startClient(t, nil)
			a := c.Do(t.Context(), request(rcv.url))
			if a.StatusCode != 200 || a.BodyReason != ReasonResponseTooLarge {
				t.Fatalf("attempt: %+v", a.Reason)
			}
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / n
	}
	perAttempt(1)
	// The receiver's share is in it, a small one: reader, request and goroutine.
	if got := perAttempt(20); got > 128<<10 {
		t.Errorf("%d KiB an attempt and its receiver, want at most 128", got>>10)
	}
}

// wire is a connection that plays a recorded answer.
type wire struct {
	net.Conn

	answer bytes.Reader
}

func (w *wire) Read(p []byte) (int, error)  { return w.answer.Read(p) }
func (w *wire) Write(p []byte) (int, error) { return len(p), nil }
func (w *wire) SetDeadline(time.Time) error { return nil }

// FuzzResponse reads anything as a response.
func FuzzResponse(f *testing.F) {
	for _, answer := range []string{
		ok200, "HTTP/1.1 000 OK\r\n\r\n", "\r\n\nHTTP/1.0 200\r\nretry-after: 5\r\n\r\nbody", "HTTP/1.1 103 E\r\n\r\n" + ok200, "HTTP/1.1 204 \r\n\r\nmore",
		"HTTP/1.1 500 x\r\ntransfer-encoding: chunked\r\ntrailer: a\r\n\r\n3\r\nabc\r\n0\r\na: b\r\n\r\n", "HTTP/1.1  101  Up\r\nconnection: upgrade\r\n\r\n", "HTTP/1.1 200 OK\r\n folded\r\n\r\n",
	} {
		f.Add([]byte(answer))
	}
	x := newExchange()
	f.Fuzz(func(t *testing.T, answer []byte) {
		defer x.reset()
		w := &wire{}
		w.answer.Reset(answer)
		r := request("")
		x.prepare(&endpoint{Target: schemas.Target{Authority: "example.com", Path: "/"}}, &r, "Postrider/dev", time.Now())
		var a Attempt
		again, err := x.run(t.Context(), &conn{Conn: w, raw: w}, time.Now().Add(time.Second), &a)
		switch {
		case err != nil && (a.StatusCode != 0 || a.ResponseHead != nil || again):
			t.Fatalf("%v beside %+v", err, a)
		case err == nil && (a.StatusCode < 100 || a.StatusCode > 999 || !bytes.Contains(answer, a.ResponseHead) || len(a.ResponseBody) > maxKept || a.RetryAfter > MaxRetryAfter):
			t.Fatalf("%+v", a)
		case err == nil && !bytes.Contains(a.ResponseHead, fmt.Append(nil, a.StatusCode)):
			t.Fatalf("status %d of head %q", a.StatusCode, a.ResponseHead)
		}
	})
}
