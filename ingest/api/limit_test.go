package api

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
)

// ask counts a request of a key, and returns the status it is refused with (0: it is not) and its headers.
func ask(t *testing.T, s *Server, who principal) (status int, left, policy, retryAfter string) {
	t.Helper()
	c := &call{http: &fasthttp.RequestCtx{}, who: who}
	err := s.limit(c)
	if refused, ok := errors.AsType[*requestError](err); ok {
		status = refused.status
	} else if err != nil {
		t.Fatal(err)
	}
	h := &c.http.Response.Header
	return status, string(h.Peek("RateLimit")), string(h.Peek("RateLimit-Policy")), string(h.Peek("Retry-After"))
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{limiters: newLimiters(&schemas.RateLimit{Count: 2, Per: "second"})}
		own := principal{id: "key_1", limit: &schemas.RateLimit{Count: 6, Per: "minute"}}
		other := principal{id: "key_2"}
		want := func(who principal, status int, left, policy, retryAfter string) {
			t.Helper()
			gotStatus, gotLeft, gotPolicy, gotAfter := ask(t, s, who)
			if gotStatus != status || gotLeft != left || gotPolicy != policy || gotAfter != retryAfter {
				t.Errorf("got %d %s %s %q, want %d %s %s %q", gotStatus, gotLeft, gotPolicy, gotAfter, status, left, policy, retryAfter)
			}
		}
		const slow, quick = `"key";q=6;w=60`, `"key";q=2;w=1`
		for i := range 6 {
			want(own, 0, fmt.Sprintf(`"key";r=%d;t=%d`, 5-i, 10*(i+1)), slow, "")
		}
		want(own, 429, `"key";r=0;t=60`, slow, "10")
		want(other, 0, `"key";r=1;t=1`, quick, "") // one key's requests are not another's
		want(other, 0, `"key";r=0;t=1`, quick, "")
		want(other, 429, `"key";r=0;t=1`, quick, "1")
		time.Sleep(10 * time.Second) // of the bubble's clock
		want(own, 0, `"key";r=0;t=60`, slow, "")
		want(own, 429, `"key";r=0;t=60`, slow, "10")
		own.limit = &schemas.RateLimit{Count: 1, Per: "second"}
		want(own, 0, `"key";r=0;t=1`, `"key";q=1;w=1`, "")
		want(principal{id: adminID}, 0, "", "", "")
	})
}

func TestNoLimit(t *testing.T) {
	s := &Server{limiters: newLimiters(nil)}
	for range 100 {
		if status, left, _, _ := ask(t, s, principal{id: "key_1"}); status != 0 || left != "" {
			t.Fatalf("got %d %s without a limit", status, left)
		}
	}
}

func TestIdleLimitersAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{limiters: newLimiters(&schemas.RateLimit{Count: 1, Per: "second"})}
		for i := range maxIdleLimiters {
			ask(t, s, principal{id: fmt.Sprint(i)})
		}
		time.Sleep(time.Second) // of the bubble's clock
		ask(t, s, principal{id: "busy"})
		ask(t, s, principal{id: "new"})
		if n := len(s.limiters.byKey); n != 2 {
			t.Errorf("%d limiters are kept, want those of the busy and the new key", n)
		}
		if status, _, _, _ := ask(t, s, principal{id: "busy"}); status != 429 {
			t.Errorf("got %d, want the busy key still held to its rate", status)
		}
	})
}
