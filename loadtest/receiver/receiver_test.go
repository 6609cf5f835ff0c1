package receiver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/loadtest/pipeline"
)

func TestMain(m *testing.M) {
	// fasthttp keeps the Date header up to date with one goroutine a process, for ever.
	pipeline.Main(m, pipeline.NoLeaks(goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1")))
}

func TestAnswersInSequence(t *testing.T) {
	r := Start(t, Config{})
	r.Answers("/a", Status(500), RetryAfter(429, 7), Answer{Body: []byte("fine")})
	want := []struct {
		status           int
		retryAfter, body string
	}{{500, "", ""}, {429, "7", ""}, {200, "", "fine"}, {200, "", "fine"}}
	for i, w := range want {
		resp, body := post(t, http.DefaultClient, r.URL("/a?x=1"), "body")
		if resp.StatusCode != w.status || resp.Header.Get("Retry-After") != w.retryAfter || body != w.body {
			t.Errorf("answer %d: got %d %q %q, want %+v", i, resp.StatusCode, resp.Header.Get("Retry-After"), body, w)
		}
	}
	if resp, _ := post(t, http.DefaultClient, r.URL("/other"), ""); resp.StatusCode != 200 {
		t.Errorf("a path that was told nothing: got %d, want 200", resp.StatusCode)
	}
	got := r.WaitFor(t, "/a", 4, time.Second)[1]
	if got.Method != http.MethodPost || got.Query != "x=1" || got.Host != r.Addr() || string(got.Body) != "body" ||
		got.BodySHA256 != sha256.Sum256([]byte("body")) || got.Answer.Status != 429 || got.Header.Get("x-test") != "yes" {
		t.Errorf("second request: got %+v", got)
	}
	r.WaitForTotal(t, 5, time.Second)
	if paths := r.Paths(); len(paths) != 2 || paths[0] != "/a" {
		t.Errorf("paths: got %q", paths)
	}
}

func TestHangUntilReleased(t *testing.T) {
	r := Start(t, Config{})
	r.Answers("/a", Answer{Hang: true, Status: 503}, Status(200))
	answered := make(chan int, 1)
	go func() {
		resp, _ := post(t, http.DefaultClient, r.URL("/a"), "")
		answered <- resp.StatusCode
	}()
	r.WaitFor(t, "/a", 1, 5*time.Second)
	post(t, http.DefaultClient, r.URL("/a"), "") // does not wait for the first
	select {
	case got := <-answered:
		t.Errorf("a hanging request: got answer %d before its release", got)
	default:
	}
	r.Release("/a")
	if got := <-answered; got != 503 {
		t.Errorf("after the release: got %d, want 503", got)
	}
}

func TestCloseReleases(t *testing.T) {
	r, err := Listen(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	r.Answers("/a", Answer{Hang: true})
	var wg sync.WaitGroup
	wg.Go(func() { post(t, http.DefaultClient, r.URL("/a"), "") })
	r.WaitFor(t, "/a", 1, 5*time.Second)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestDropAndDelay(t *testing.T) {
	r := Start(t, Config{})
	r.Answers("/drop", Answer{Drop: true})
	if err := tryPost(t.Context(), r.URL("/drop")); !errors.Is(err, io.EOF) {
		t.Errorf("a dropped connection: got %v, want EOF", err)
	}
	r.Answers("/slow", Answer{Delay: time.Minute})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := tryPost(ctx, r.URL("/slow")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a slow answer: got %v, want the client's deadline", err)
	}
}

func TestTLS(t *testing.T) {
	r := Start(t, Config{TLS: true, Names: []string{"hooks.example.com"}})
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(r.CertificatePEM()) {
		t.Fatal("the certificate's PEM holds none")
	}
	for _, name := range []string{"", "hooks.example.com", "localhost"} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12}}
		resp, _ := post(t, &http.Client{Transport: transport}, r.URL("/"), "x")
		transport.CloseIdleConnections()
		if resp.StatusCode != 200 {
			t.Errorf("name %q: got %d", name, resp.StatusCode)
		}
	}
	if err := tryPost(t.Context(), r.URL("/")); err == nil {
		t.Error("a client that does not trust the certificate: got no error")
	}
}

func TestLightKeepsHashes(t *testing.T) {
	r := Start(t, Config{Light: true})
	post(t, http.DefaultClient, r.URL("/"), "x")
	got := r.Requests("/")[0]
	if got.Body != nil || got.Header != nil || got.BodySHA256 != sha256.Sum256([]byte("x")) || got.At.IsZero() {
		t.Errorf("got %+v, want a hash and a time only", got)
	}
}

func TestVerify(t *testing.T) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" //nolint:gosec // the specification's example
	wh, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	body, now := []byte(`{"id":"1"}`), time.Now()
	signature, err := wh.Sign("msg_1", now, body)
	if err != nil {
		t.Fatal(err)
	}
	req := Request{Body: body, Header: http.Header{}, At: now.Add(time.Second)}
	req.Header.Set("webhook-id", "msg_1")
	req.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("webhook-signature", signature)
	if err := req.Verify(secret); err != nil {
		t.Error(err)
	}
	req.At = now.Add(tolerance + 2*time.Second)
	if err := req.Verify(secret); err == nil {
		t.Error("a request that came long after it was signed is verified")
	}
	req.At = now
	req.Body = bytes.ReplaceAll(body, []byte("1"), []byte("2"))
	if err := req.Verify(secret); err == nil {
		t.Error("another body: got no error")
	}
}

type answer struct {
	StatusCode int
	Header     http.Header
}

func post(t *testing.T, client *http.Client, url, body string) (answer, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return answer{}, ""
	}
	req.Header.Set("X-Test", "yes")
	resp, err := client.Do(req)
	if err != nil {
		t.Error(err)
		return answer{}, ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return answer{resp.StatusCode, resp.Header}, string(text)
}

func tryPost(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("x"))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
