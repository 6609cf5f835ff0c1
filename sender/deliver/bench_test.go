package deliver

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"
)

// startQuietReceiver answers requests of a fixed size without allocating, so
// that what is counted is the client's.
func startQuietReceiver(t testing.TB, c *Client, r *Request) {
	t.Helper()
	size := make(chan int, 1)
	quiet := startReceiver(t, func(p *peer) {
		answer := []byte(ok200)
		buf := make([]byte, <-size)
		for {
			if _, err := io.ReadFull(p, buf); err != nil {
				return
			}
			if _, err := p.Write(answer); err != nil {
				return
			}
		}
	})
	r.URL = quiet.url
	// All requests have this length: the timestamp's and the sequence's digits do not change.
	to, err := c.targets.lookup(c.policy, r.URL)
	if err != nil {
		t.Fatal(err)
	}
	x := newExchange()
	a := Attempt{StartedAt: time.Now()}
	x.prepare(to, r, c.userAgent, a.StartedAt)
	var wire bytes.Buffer
	if _, err := x.req.WriteTo(&wire); err != nil {
		t.Fatal(err)
	}
	size <- wire.Len()
}

// TestAllocationsOfAnAttempt holds the hot path to its budget: a warm
// connection, one secret, a body of 500 bytes.
func TestAllocationsOfAnAttempt(t *testing.T) {
	if raceEnabled {
		return // the race detector allocates, and empties sync.Pools at random
	}
	c := startClient(t, nil)
	r := request("")
	r.Body = bytes.Repeat([]byte("x"), 500)
	startQuietReceiver(t, c, &r)
	ctx, cancel := context.WithCancel(t.Context()) // as the sender's is
	defer cancel()
	wantDelivered(t, c.Do(ctx, r))
	got := testing.AllocsPerRun(1000, func() {
		if a := c.Do(ctx, r); a.StatusCode != 200 {
			t.Fatalf("reason %q", a.Reason)
		}
	})
	// The copy of the response, the watched context, the signature.
	if want := 12.0; got > want {
		t.Errorf("%.0f allocations an attempt, want at most %.0f", got, want)
	}
}

func BenchmarkDo(b *testing.B) {
	c := startClient(b, nil)
	r := request("")
	r.Body = bytes.Repeat([]byte("x"), 500)
	startQuietReceiver(b, c, &r)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		if a := c.Do(ctx, r); a.StatusCode != 200 {
			b.Fatalf("reason %q", a.Reason)
		}
	}
}
