package api

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
)

func keyed(who principal, key, body string) *call {
	c := &call{http: &fasthttp.RequestCtx{}, who: who}
	c.http.Request.Header.SetMethod(fasthttp.MethodPost)
	c.http.Request.SetRequestURI("/v1/events")
	c.http.Request.Header.Set("Idempotency-Key", key)
	c.http.Request.SetBodyString(body)
	return c
}

// begun begins a request and returns the code it is refused with, if it is.
func begun(r *repeats, who principal, key, body string) (end func(bool), code schemas.Code) {
	run, err := r.begin(keyed(who, key, body), key, []byte(body))
	end = func(stored bool) {
		_ = run(func() error {
			if stored {
				return nil
			}
			return tooLarge()
		})
	}
	if refused, ok := errors.AsType[*requestError](err); ok {
		code = refused.code
	}
	return end, code
}

func TestRepeats(t *testing.T) {
	acme, other, all := principal{id: "key_1", organization: "acme"}, principal{id: "key_2", organization: "other"}, principal{id: "acme"}
	r := newRepeats()
	first, code := begun(r, acme, "k", "{}")
	if code != "" {
		t.Fatalf("the first request got %s", code)
	}
	for _, c := range []struct {
		who       principal
		key, body string
		want      schemas.Code
	}{
		{acme, "k", "{}", codeKeyRunning},
		{principal{id: "key_9", organization: "acme"}, "k", "{}", codeKeyRunning}, // another key of theirs
		{acme, "k", "{ }", codeKeyReused},
		{acme, "k2", "{}", ""},
		{other, "k", "{}", ""},
		{all, "k", "{}", ""}, // named as they are, and not theirs
		{acme, "", "{}", ""},
		{acme, "", "{}", ""},
	} {
		if _, got := begun(r, c.who, c.key, c.body); got != c.want {
			t.Errorf("%+v %q %q: got %q, want %q", c.who, c.key, c.body, got, c.want)
		}
	}
	first(true)
	again, code := begun(r, acme, "k", "{}")
	if code != "" {
		t.Fatalf("a repeat of what has ended got %s", code)
	}
	again(false) // the repeat was refused: the key is still that of the first
	if _, code := begun(r, acme, "k", "[]"); code != codeKeyReused {
		t.Errorf("another body got %q", code)
	}
	refused, _ := begun(r, acme, "k3", "{")
	refused(false)
	if _, code := begun(r, acme, "k3", "{}"); code != "" {
		t.Errorf("mended after it was refused, a request got %q", code)
	}
	// The same body means something else under other attributes.
	ce := keyed(acme, "k", "{}")
	ce.http.Request.Header.Set("Ce-Type", "a.b")
	if _, err := r.begin(ce, "k", []byte("{}")); err == nil {
		t.Error("other attributes were taken for the same request")
	}
}

func TestRepeatsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepeats()
		end, _ := begun(r, principal{organization: "acme"}, "k", "{}")
		end(true)
		time.Sleep(rememberFor + time.Second) // of the bubble's clock
		if _, code := begun(r, principal{organization: "acme"}, "k", "[]"); code != "" {
			t.Errorf("after ten minutes another body got %q", code)
		}
	})
}

func TestIdempotencyKey(t *testing.T) {
	for header, want := range map[string]string{
		"": "", "a": "a", `"a"`: "a", `"a\"b"`: `a"b`, strings.Repeat("x", 255): strings.Repeat("x", 255), `"` + strings.Repeat("x", 255) + `"`: strings.Repeat("x", 255),
	} {
		if got, err := keyed(principal{}, header, "").idempotencyKey(); got != want || err != nil {
			t.Errorf("%.20q: got %.20q, %v", header, got, err)
		}
	}
	for _, header := range []string{`""`, strings.Repeat("x", 256), "a\tb", "ä"} {
		if got, err := keyed(principal{}, header, "").idempotencyKey(); err == nil {
			t.Errorf("%.20q: got %.20q, want it refused", header, got)
		}
	}
}
