package deliver

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func wantDelivered(t *testing.T, a Attempt) {
	t.Helper()
	if a.StatusCode != 200 || a.Reason != "" || a.BodyReason != "" {
		t.Fatalf("got status %d, reason %q, body reason %q, want a whole 200", a.StatusCode, a.Reason, a.BodyReason)
	}
}

type sent struct {
	request *http.Request
	body    []byte
}

// startRecorder answers 200 and passes on what it got.
func startRecorder(t *testing.T) (*receiver, <-chan sent) {
	t.Helper()
	got := make(chan sent, 16)
	return startReceiver(t, func(p *peer) {
		for {
			r, body := p.request()
			if r == nil {
				return
			}
			got <- sent{r, body}
			if p.send(ok200) != nil {
				return
			}
		}
	}), got
}

func TestRequestOnTheWire(t *testing.T) {
	rcv, got := startRecorder(t)
	c := startClient(t, nil)
	old := []byte("another secret of twenty-four bytes")
	r := request(rcv.url)
	r.Secrets = append(r.Secrets, old)
	r.Body = []byte("{\"id\":\"evt_1\",\"event\":\"a.b\",\"payload\":{\"n\":1e400,\"m\":0.1000,\"m\":\"\\u00e4\xc3\xa4\"}}")
	r.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	before := time.Now()
	a := c.Do(t.Context(), r)
	wantDelivered(t, a)
	s := <-got

	if s.request.Method != http.MethodPost || s.request.RequestURI != "/hook?a=%2e" || s.request.Proto != "HTTP/1.1" || s.request.Host != rcv.addr {
		t.Errorf("request line or host: %s %s %s, host %s", s.request.Method, s.request.RequestURI, s.request.Proto, s.request.Host)
	}
	if !bytes.Equal(s.body, r.Body) {
		t.Errorf("body %q, want %q", s.body, r.Body)
	}
	want := map[string]string{
		"Content-Type": "application/json", "User-Agent": "Postrider/1.2.3", "Webhook-Id": "msg_1", "Postrider-Sequence": "7",
		"Traceparent": r.Traceparent, "Content-Length": fmt.Sprint(len(r.Body)),
		"Webhook-Timestamp": s.request.Header.Get("webhook-timestamp"), "Webhook-Signature": s.request.Header.Get("webhook-signature"),
	}
	for name, values := range s.request.Header {
		if len(values) != 1 || values[0] != want[name] {
			t.Errorf("header %s: %q, want %q", name, values, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("missing headers: %v", want)
	}
	for _, secret := range r.Secrets {
		verifier, err := standardwebhooks.NewWebhookRaw(secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := verifier.Verify(s.body, s.request.Header); err != nil {
			t.Errorf("reference library: %v", err)
		}
	}
	if got, want := string(a.ResponseHead)+string(a.ResponseBody), ok200; got != want {
		t.Errorf("response %q, want %q", got, want)
	}
	if a.ResponseBytes != 2 || a.StartedAt.Before(before) || a.Duration <= 0 || a.Connect <= 0 || a.FirstByte <= 0 || a.DNS != 0 || a.TLS != 0 {
		t.Errorf("attempt: %+v", a)
	}
}

func TestHeaderNamesAreLowerCase(t *testing.T) {
	head := make(chan string, 1)
	rcv := startReceiver(t, func(p *peer) {
		b := make([]byte, 4096)
		n, _ := p.Read(b)
		head <- string(b[:n])
		_ = p.send(ok200)
		p.hang()
	})
	r := request(rcv.url)
	r.Traceparent = "x\r\nevil: 1"
	wantDelivered(t, startClient(t, nil).Do(t.Context(), r))
	got := <-head
	for _, name := range []string{"webhook-id: msg_1\r\n", "webhook-timestamp: ", "webhook-signature: v1,", "postrider-sequence: 7\r\n"} {
		if !strings.Contains(got, "\r\n"+name) {
			t.Errorf("no %q in %q", name, got)
		}
	}
	if strings.Contains(got, "evil") || strings.Contains(got, "traceparent") {
		t.Errorf("an invalid traceparent was sent: %q", got)
	}
}

func TestConnectionIsKeptAlive(t *testing.T) {
	rcv, got := startRecorder(t)
	c := startClient(t, nil)
	for range 5 {
		wantDelivered(t, c.Do(t.Context(), request(rcv.url)))
		<-got
	}
	a := c.Do(t.Context(), request(rcv.url))
	if n := rcv.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	if a.Connect != 0 {
		t.Errorf("connect took %s on a connection that was there", a.Connect)
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	ended := make(chan struct{})
	rcv := startReceiver(t, func(p *peer) {
		answer(ok200)(p) // returns when the client closes
		close(ended)
	})
	c := startClient(t, func(cfg *Config) { cfg.IdleTimeout = 20 * time.Millisecond })
	wantDelivered(t, c.Do(t.Context(), request(rcv.url)))
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the idle connection was not closed")
	}
	c.conns.mu.Lock()
	defer c.conns.mu.Unlock()
	if len(c.conns.hosts) != 0 {
		t.Errorf("%d hosts kept, want 0", len(c.conns.hosts))
	}
}

func TestConnectionNotReused(t *testing.T) {
	for name, text := range map[string]string{
		"connection: close":        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
		"HTTP/1.0":                 "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
		"bytes after the response": ok200 + "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
		"switching protocols":      "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			rcv := startReceiver(t, answer(text))
			c := startClient(t, nil)
			for range 2 {
				if a := c.Do(t.Context(), request(rcv.url)); a.Reason != "" || string(a.ResponseBody) == "evil" {
					t.Fatalf("attempt: %+v", a)
				}
			}
			if n := rcv.conns.Load(); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
		})
	}
}

func TestStaleConnectionIsReplacedOnce(t *testing.T) {
	tests := []struct {
		name   string
		second func(p *peer) // what the first connection does after its first answer
	}{
		{"closed while idle", func(*peer) {}},
		{"reset while idle", func(p *peer) { p.reset() }},
		{"closed as the request came", func(p *peer) { p.request() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rcv := startReceiver(t, func(p *peer) {
				if p.number > 1 {
					answer(ok200)(p)
					return
				}
				p.request()
				_ = p.send(ok200)
				tt.second(p)
			})
			c := startClient(t, nil)
			for range 3 {
				wantDelivered(t, c.Do(t.Context(), request(rcv.url)))
			}
			if n := rcv.conns.Load(); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
		})
	}
}

func TestNothingElseIsTriedTwice(t *testing.T) {
	t.Run("fresh connection closed", func(t *testing.T) {
		rcv := startReceiver(t, func(p *peer) { p.request() })
		a := startClient(t, nil).Do(t.Context(), request(rcv.url))
		if a.Reason != ReasonReset || rcv.requests.Load() != 1 {
			t.Errorf("reason %q after %d requests, want %q after 1", a.Reason, rcv.requests.Load(), ReasonReset)
		}
	})
	t.Run("kept connection closed in mid head", func(t *testing.T) {
		rcv := startReceiver(t, func(p *peer) {
			p.request()
			_ = p.send(ok200)
			p.request()
			_ = p.send("HTTP/1.1 2")
		})
		c := startClient(t, nil)
		wantDelivered(t, c.Do(t.Context(), request(rcv.url)))
		a := c.Do(t.Context(), request(rcv.url))
		if a.Reason != ReasonReset || a.StatusCode != 0 || rcv.requests.Load() != 2 {
			t.Errorf("reason %q, status %d after %d requests, want %q after 2", a.Reason, a.StatusCode, rcv.requests.Load(), ReasonReset)
		}
	})
	t.Run("kept connection hangs", func(t *testing.T) {
		rcv := startReceiver(t, func(p *peer) {
			p.request()
			_ = p.send(ok200)
			p.request()
			p.hang()
		})
		c := startClient(t, nil)
		wantDelivered(t, c.Do(t.Context(), request(rcv.url)))
		r := request(rcv.url)
		r.Timeout = short
		if a := c.Do(t.Context(), r); a.Reason != ReasonTimeout || rcv.requests.Load() != 2 {
			t.Errorf("reason %q after %d requests, want %q after 2", a.Reason, rcv.requests.Load(), ReasonTimeout)
		}
	})
}

func TestConnectionsPerHostAreBounded(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	rcv := startReceiver(t, func(p *peer) {
		p.request()
		arrived <- struct{}{}
		<-release
		_ = p.send(ok200)
		answer(ok200)(p)
	})
	c := startClient(t, func(cfg *Config) { cfg.MaxConnsPerHost = 1 })
	first := make(chan Attempt)
	go func() { first <- c.Do(context.WithoutCancel(t.Context()), request(rcv.url)) }()
	<-arrived
	a := c.Do(t.Context(), request(rcv.url))
	if a.Reason != ReasonNoFreeConns || Judge(&a, Answers{}).Action != Park {
		t.Errorf("reason %q, action %v, want %q and Park", a.Reason, Judge(&a, Answers{}).Action, ReasonNoFreeConns)
	}
	close(release)
	wantDelivered(t, <-first)
	wantDelivered(t, c.Do(t.Context(), request(rcv.url)))
}

func TestAttemptEndsWithItsContext(t *testing.T) {
	arrived := make(chan struct{})
	rcv := startReceiver(t, func(p *peer) {
		p.request()
		close(arrived)
		p.hang()
	})
	c := startClient(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	r := request(rcv.url)
	a := c.Do(ctx, r)
	if a.Reason != ReasonCanceled || Judge(&a, Answers{}).Action != Forget || a.Duration > r.Timeout/2 {
		t.Errorf("reason %q after %s, want %q at once", a.Reason, a.Duration, ReasonCanceled)
	}
	if a = c.Do(ctx, request(rcv.url)); a.Reason != ReasonCanceled || rcv.requests.Load() != 1 {
		t.Errorf("reason %q after %d requests, want %q and no new request", a.Reason, rcv.requests.Load(), ReasonCanceled)
	}
}

func TestClosedClientStartsNothing(t *testing.T) {
	rcv := startReceiver(t, answer(ok200))
	c := New(Config{Policy: policy(t, "127.0.0.0/8")})
	wantDelivered(t, c.Do(t.Context(), request(rcv.url)))
	c.Close()
	if a := c.Do(t.Context(), request(rcv.url)); a.Reason != ReasonCanceled {
		t.Errorf("reason %q, want %q", a.Reason, ReasonCanceled)
	}
}

func TestNothingIsSentUnsigned(t *testing.T) {
	rcv := startReceiver(t, answer(ok200))
	c := startClient(t, nil)
	for _, secrets := range [][][]byte{nil, {}, {nil}, {testSecret(), {}}} {
		r := request(rcv.url)
		r.Secrets = secrets
		if a := c.Do(t.Context(), r); a.Reason != ReasonNoSecret {
			t.Errorf("secrets %q: reason %q, want %q", secrets, a.Reason, ReasonNoSecret)
		}
	}
	if n := rcv.conns.Load(); n != 0 {
		t.Errorf("%d connections, want none", n)
	}
}

// TestNoMixing runs attempts of many webhooks at once over shared connections
// and memory: each receiver's answer names the request that it got (I5).
func TestNoMixing(t *testing.T) {
	echo := func(p *peer) {
		for {
			r, body := p.request()
			if r == nil {
				return
			}
			verifier, err := standardwebhooks.NewWebhookRaw(fmt.Appendf(nil, "secret of %s", r.Header.Get("webhook-id")))
			if err != nil || verifier.Verify(body, r.Header) != nil {
				body = []byte("signature does not verify")
			}
			text := fmt.Sprintf("HTTP/1.1 200 OK\r\nx-id: %s\r\ncontent-length: %d\r\n\r\n%s", r.Header.Get("webhook-id"), len(body), body)
			if p.send(text) != nil {
				return
			}
		}
	}
	receivers := []*receiver{startReceiver(t, echo), startReceiver(t, echo)}
	c := startClient(t, nil)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 100 {
				r := request(receivers[(w+i)%2].url)
				r.MessageID = fmt.Sprintf("msg_%d_%d", w, i)
				r.Secrets = [][]byte{fmt.Appendf(nil, "secret of %s", r.MessageID)}
				r.Body = bytes.Repeat([]byte(r.MessageID+" "), 1+i*20)
				a := c.Do(t.Context(), r)
				want := r.Body[:min(len(r.Body), maxKept)]
				if a.StatusCode != 200 || !bytes.Equal(a.ResponseBody, want) || !bytes.Contains(a.ResponseHead, []byte("x-id: "+r.MessageID+"\r\n")) {
					t.Errorf("attempt %s: status %d, reason %q, head %q, %d bytes of body", r.MessageID, a.StatusCode, a.Reason, a.ResponseHead, len(a.ResponseBody))
					return
				}
			}
		})
	}
	wg.Wait()
}
