package receive

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/postrider/postrider/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func secretBytes() []byte { return bytes.Repeat([]byte{1}, 32) }

// request is signed now, with the secret of startHandler.
func request(t *testing.T, id, body string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
	now := time.Now().Unix()
	r.Header.Set(schemas.HeaderWebhookID, id)
	r.Header.Set(schemas.HeaderWebhookTimestamp, strconv.FormatInt(now, 10))
	r.Header.Set(schemas.HeaderWebhookSignature, string(schemas.AppendSignature(nil, secretBytes(), id, now, []byte(body))))
	return r
}

func startHandler(t *testing.T, cfg Config, next http.HandlerFunc) http.Handler {
	t.Helper()
	cfg.Keys = append(cfg.Keys, schemas.FormatSecret(secretBytes()))
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	h, err := New(cfg, next)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// counter is a handler that counts its calls and answers with each status in turn, the last for ever.
func counter(calls *atomic.Int32, statuses ...int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		n := int(calls.Add(1))
		w.WriteHeader(statuses[min(n, len(statuses))-1])
	}
}

func TestRefusals(t *testing.T) {
	var log strings.Builder
	var calls atomic.Int32
	h := startHandler(t, Config{MaxBody: 10, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, counter(&calls, http.StatusOK))
	change := func(change func(*http.Request)) *http.Request {
		r := request(t, "msg_1", "{}")
		change(r)
		return r
	}
	tests := []struct {
		name string
		r    *http.Request
		want int
	}{
		{"method", change(func(r *http.Request) { r.Method = http.MethodGet }), http.StatusMethodNotAllowed},
		{"no id", change(func(r *http.Request) { r.Header.Del(schemas.HeaderWebhookID) }), http.StatusBadRequest},
		{"no time", change(func(r *http.Request) { r.Header.Del(schemas.HeaderWebhookTimestamp) }), http.StatusBadRequest},
		{"no signature", change(func(r *http.Request) { r.Header.Del(schemas.HeaderWebhookSignature) }), http.StatusBadRequest},
		{"another id", change(func(r *http.Request) { r.Header.Set(schemas.HeaderWebhookID, "msg_2") }), http.StatusUnauthorized},
		{"old", change(func(r *http.Request) { r.Header.Set(schemas.HeaderWebhookTimestamp, "1614265330") }), http.StatusUnauthorized},
		{"another body", change(func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("[]")) }), http.StatusUnauthorized},
		{"body as long as may be", request(t, "msg_3", strings.Repeat("x", 10)), http.StatusOK},
		{"body a byte too long", request(t, "msg_4", strings.Repeat("x", 11)), http.StatusRequestEntityTooLarge},
		{"body of unknown length", change(func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat("x", 11))), -1
		}), http.StatusRequestEntityTooLarge},
		{"body that breaks off", change(func(r *http.Request) {
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("{"), iotestErr{}))
		}), http.StatusBadRequest},
	}
	for _, tt := range tests {
		w := serve(h, tt.r)
		if w.Code != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, w.Code, tt.want)
		}
		if got, bare := w.Body.String(), http.StatusText(tt.want)+"\n"; tt.want != http.StatusOK && got != bare {
			t.Errorf("%s: the answer tells %q, want %q and no more", tt.name, got, bare)
		}
	}
	if got := calls.Load(); got != 1 {
		t.Errorf("the handler was called %d times, want once", got)
	}
	for _, why := range []error{schemas.ErrSignatureHeaders, schemas.ErrSignatureTime, schemas.ErrSignatureUnknown} {
		if !strings.Contains(log.String(), why.Error()) {
			t.Errorf("the log does not say %q:\n%s", why, log.String())
		}
	}
}

type iotestErr struct{}

func (iotestErr) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestNewRefuses(t *testing.T) {
	_, err := New(Config{Keys: []string{"whsec_AAAA"}, Timeout: 31 * time.Second, MaxBody: -1, Remembered: -1}, http.NotFoundHandler())
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{schemas.ErrInvalidSecret.Error(), "31s", "-1 bytes", "-1 ids"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to tell %q", err, want)
		}
	}
	if _, err := New(Config{}, http.NotFoundHandler()); err == nil {
		t.Error("without keys: no error")
	}
}

// TestHandlerSeesTheRequest: the body as it was signed, with a key of either kind.
func TestHandlerSeesTheRequest(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	public := schemas.FormatPublicKey(key.Public().(ed25519.PublicKey))
	const body = `{"id": "e", "n": 1e400, "text":"é"}`
	h := startHandler(t, Config{Keys: []string{public}}, func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || string(got) != body {
			t.Errorf("got body %q, %v", got, err)
		}
		if _, ok := r.Context().Deadline(); !ok {
			t.Error("the handler's context has no deadline")
		}
		w.Header().Set("X-Own", "yes")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "thanks")
	})
	r := request(t, "msg_a", body)
	v1a := schemas.AppendSignatureV1a(nil, key, "msg_a", time.Now().Unix(), []byte(body))
	r.Header.Set(schemas.HeaderWebhookSignature, string(v1a))
	for _, r := range []*http.Request{r, request(t, "msg_b", body)} {
		w := serve(h, r)
		if w.Code != http.StatusOK || w.Body.String() != "thanks" || w.Header().Get("X-Own") != "yes" {
			t.Errorf("got %d %q %v, want 200 with the handler's own body and header", w.Code, w.Body, w.Header())
		}
	}
}

// TestOnce has a handler fail, be good, and be spared what it was good for.
func TestOnce(t *testing.T) {
	var calls atomic.Int32
	h := startHandler(t, Config{}, counter(&calls, http.StatusInternalServerError, http.StatusFound, http.StatusGone, http.StatusNoContent))
	for i, want := range []struct{ status, calls int }{{500, 1}, {302, 2}, {410, 3}, {200, 4}, {200, 4}, {200, 4}} {
		if w := serve(h, request(t, "msg_1", "{}")); w.Code != want.status || int(calls.Load()) != want.calls {
			t.Errorf("request %d: got %d after %d calls, want %d after %d", i+1, w.Code, calls.Load(), want.status, want.calls)
		}
	}
	serve(h, request(t, "msg_2", "{}"))
	if got := calls.Load(); got != 5 {
		t.Errorf("another message: the handler was called %d times, want 5", got)
	}
}

// TestPanics: a message whose handler has panicked was not handled.
func TestPanics(t *testing.T) {
	calls := 0
	h := startHandler(t, Config{}, func(http.ResponseWriter, *http.Request) {
		if calls++; calls == 1 {
			panic("at first")
		}
	})
	func() {
		defer func() {
			if got := recover(); got != "at first" {
				t.Errorf("got panic %v, want the handler's own", got)
			}
		}()
		serve(h, request(t, "msg_1", "{}"))
	}()
	if w := serve(h, request(t, "msg_1", "{}")); w.Code != http.StatusOK || calls != 2 {
		t.Errorf("got %d after %d calls, want 200 after 2", w.Code, calls)
	}
}

// TestForgets: the oldest is forgotten first, and no more than need be.
func TestForgets(t *testing.T) {
	var calls atomic.Int32
	h := startHandler(t, Config{Remembered: 2}, counter(&calls, http.StatusOK))
	for i, want := range []struct {
		id    string
		calls int32
	}{{"a", 1}, {"b", 2}, {"a", 2}, {"c", 3}, {"b", 3}, {"c", 3}, {"a", 4}, {"c", 4}, {"b", 5}, {"c", 6}} {
		if serve(h, request(t, want.id, "{}")); calls.Load() != want.calls {
			t.Errorf("request %d, of %s: the handler was called %d times, want %d", i+1, want.id, calls.Load(), want.calls)
		}
	}
}

// TestCopyWaits has a copy come while the first is handled: it is answered when that
// has ended well, and handled itself when it has not.
func TestCopyWaits(t *testing.T) {
	for name, tt := range map[string]struct {
		first   int
		calls   int32
		answers string
	}{
		"first is good": {http.StatusOK, 1, "200 200"},
		"first fails":   {http.StatusInternalServerError, 2, "500 200"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int32
				proceed := make(chan struct{})
				h := startHandler(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
					if calls.Add(1) == 1 {
						<-proceed
						w.WriteHeader(tt.first)
					}
				})
				var answers [2]*httptest.ResponseRecorder
				var wg sync.WaitGroup
				for i := range answers {
					wg.Go(func() { answers[i] = serve(h, request(t, "msg_1", "{}")) })
					synctest.Wait()
				}
				if answers[0] != nil || answers[1] != nil || calls.Load() != 1 {
					t.Errorf("while the first is handled: %v, %d calls, want no answer and one call", answers, calls.Load())
				}
				close(proceed)
				wg.Wait()
				if got := fmt.Sprint(answers[0].Code, answers[1].Code); got != tt.answers || calls.Load() != tt.calls {
					t.Errorf("got %s after %d calls, want %s after %d", got, calls.Load(), tt.answers, tt.calls)
				}
			})
		})
	}
}

// TestOverruns has handlers take longer than they may. All requests are answered in
// time, and the message is handled again unless its handler has said that it was.
func TestOverruns(t *testing.T) {
	const timeout = 5 * time.Second
	for name, tt := range map[string]struct {
		handle func(w http.ResponseWriter, r *http.Request)
		calls  int32 // once it came again, after all have returned
	}{
		"gives up with its context": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 2},
		"is done later, and says so": {func(w http.ResponseWriter, _ *http.Request) {
			<-time.After(3 * timeout)
			w.WriteHeader(http.StatusOK)
		}, 1},
		"fails later": {func(w http.ResponseWriter, _ *http.Request) {
			<-time.After(3 * timeout)
			w.WriteHeader(http.StatusInternalServerError)
		}, 2},
		"panics later": {func(http.ResponseWriter, *http.Request) {
			<-time.After(3 * timeout)
			panic("later")
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int32
				h := startHandler(t, Config{Timeout: timeout}, func(w http.ResponseWriter, r *http.Request) {
					if calls.Add(1) == 1 {
						tt.handle(w, r)
					}
				})
				begun := time.Now() // of the bubble: it stands still but while all wait
				if w := serve(h, request(t, "msg_1", "{}")); w.Code != http.StatusServiceUnavailable || time.Since(begun) != timeout {
					t.Errorf("got %d after %v, want 503 after %v", w.Code, time.Since(begun), timeout)
				}
				<-time.After(3 * timeout)
				synctest.Wait()
				if w := serve(h, request(t, "msg_1", "{}")); w.Code != http.StatusOK || calls.Load() != tt.calls {
					t.Errorf("again: got %d after %d calls, want 200 after %d", w.Code, calls.Load(), tt.calls)
				}
			})
		})
	}
}

// TestCopyOverruns: a copy is not acknowledged before the first has ended, and not handled beside it.
func TestCopyOverruns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		h := startHandler(t, Config{Timeout: time.Second}, func(w http.ResponseWriter, _ *http.Request) {
			calls.Add(1)
			<-time.After(10 * time.Second)
			w.WriteHeader(http.StatusOK)
		})
		for range 3 {
			if w := serve(h, request(t, "msg_1", "{}")); w.Code != http.StatusServiceUnavailable || calls.Load() != 1 {
				t.Errorf("got %d after %d calls, want 503 after one", w.Code, calls.Load())
			}
		}
		<-time.After(10 * time.Second)
	})
}

// TestManyCopies has a hundred connections send copies of ten messages over a real server.
func TestManyCopies(t *testing.T) {
	var handling, calls [10]atomic.Int32
	h := startHandler(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		n, convErr := strconv.Atoi(string(body))
		if err != nil || convErr != nil {
			t.Errorf("got body %q, %v", body, err)
			return
		}
		if handling[n].Add(1) != 1 {
			t.Errorf("message %d is handled twice at once", n)
		}
		defer handling[n].Add(-1)
		if calls[n].Add(1) == 1 {
			w.WriteHeader(http.StatusInternalServerError) // each is sent again
		}
	})
	server := httptest.NewServer(h)
	defer server.Close()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			for range 2 {
				r := request(t, fmt.Sprintf("msg_%d", i%10), strconv.Itoa(i%10))
				out, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, r.Body)
				if err != nil {
					t.Error(err)
					return
				}
				out.Header = r.Header
				resp, err := server.Client().Do(out)
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
			}
		})
	}
	wg.Wait()
	for n := range calls {
		if got := calls[n].Load(); got != 2 {
			t.Errorf("message %d was handled %d times, want twice: it failed, and then did not", n, got)
		}
	}
}

// TestSlowBody: a body that does not come is not waited for longer than for the handler.
func TestSlowBody(t *testing.T) {
	h := startHandler(t, Config{Timeout: 50 * time.Millisecond}, func(http.ResponseWriter, *http.Request) {
		t.Error("the handler was called")
	})
	server := httptest.NewServer(h)
	defer server.Close()
	body, never := io.Pipe()
	defer never.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = 10
	resp, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("got %d, want 400", resp.StatusCode)
	}
}

// TestLongAnswer: what is too long of an answer is left out.
func TestLongAnswer(t *testing.T) {
	h := startHandler(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "40000")
		for range 4 {
			if n, err := w.Write(make([]byte, 10_000)); n != 10_000 || err != nil {
				t.Errorf("writing: %d, %v", n, err)
			}
		}
	})
	if w := serve(h, request(t, "msg_1", "{}")); w.Code != http.StatusOK || w.Body.Len() != maxAnswer || w.Header().Get("Content-Length") != "" {
		t.Errorf("got %d with %d bytes, %v, want 200 with %d", w.Code, w.Body.Len(), w.Header(), maxAnswer)
	}
}
