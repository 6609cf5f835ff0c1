package api

import (
	"bufio"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
)

// startServer serves a server without a registry: for requests that are
// answered before anybody is asked.
func startServer(t *testing.T, set func(*fasthttp.Server), open func() bool) (address string, s *Server) {
	t.Helper()
	s = New(Options{
		Open: open, AdminKey: strings.Repeat("k", 32), OpenAPI: []byte("openapi: 3.1.0\n"),
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	server := s.httpServer(t.Context())
	set(server)
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(lingeringListener{ln}) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := server.ShutdownWithContext(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String(), s
}

// exchange sends raw bytes and reads one response, its body whole.
func exchange(t *testing.T, address, raw string) (status int, header http.Header, p schemas.Problem) {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("reading the answer to %.60q: %v", raw, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
		t.Fatalf("reading the problem of %d: %v", resp.StatusCode, err)
	}
	return resp.StatusCode, resp.Header, p
}

func TestRequestsThatDoNotComeIn(t *testing.T) {
	address, _ := startServer(t, func(s *fasthttp.Server) { s.ReadTimeout = 200 * time.Millisecond }, nil)
	for _, c := range []struct {
		name, raw string
		status    int
		code      schemas.Code
	}{
		{"slow head", "POST /v1/events HTTP/1.1\r\nHost: x\r\n", 408, codeTimeout},
		{"slow body", "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{", 408, codeTimeout},
		{"large head", "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 20<<10) + "\r\n\r\n", 431, schemas.CodeTooLarge},
		{"no HTTP", "HELO example.com\r\n\r\n", 400, codeMalformedRequest},
		{"large body", "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 5242881\r\n\r\n{", 413, schemas.CodeTooLarge},
		{"large webhook", "POST /v1/webhooks HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n{", 413, schemas.CodeTooLarge},
		{
			"large structured event",
			"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/cloudevents+json\r\nContent-Length: 1048577\r\n\r\n{",
			413, schemas.CodeTooLarge,
		},
		{"no such path", "GET /v2/events HTTP/1.1\r\nHost: x\r\n\r\n", 404, schemas.CodeNotFound},
		{"no such method", "PUT /v1/webhooks HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, codeMethodNotAllowed},
	} {
		status, header, p := exchange(t, address, c.raw)
		if status != c.status || p.Status != c.status || p.Errors[0].Code != c.code ||
			header.Get("Content-Type") != schemas.ProblemContentType || header.Get("Server") != "" || p.Instance == "" {
			t.Errorf("%s: got %d with %+v and headers %v, want %d with %s", c.name, status, p, header, c.status, c.code)
		}
		if c.status == http.StatusMethodNotAllowed && header.Get("Allow") != "GET, POST" {
			t.Errorf("got Allow %q", header.Get("Allow"))
		}
	}
}

func TestPanicEndsOneRequestOnly(t *testing.T) {
	address, s := startServer(t, func(*fasthttp.Server) {}, func() bool { panic("a bug") })
	for range 2 {
		status, _, p := exchange(t, address, "GET /v1/webhooks HTTP/1.1\r\nHost: x\r\n\r\n")
		if status != http.StatusInternalServerError || strings.Contains(p.Detail, "a bug") {
			t.Errorf("got %d with %+v, want 500 and nothing of the cause", status, p)
		}
	}
	s.Open = func() bool { return true }
	if status, _, _ := exchange(t, address, "GET /v1/webhooks HTTP/1.1\r\nHost: x\r\n\r\n"); status != http.StatusUnauthorized {
		t.Errorf("got %d, want the server to go on", status)
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		ifMatch string
		want    bool
	}{
		{``, true},
		{`*`, true},
		{`"3"`, true},
		{`"1", "3"`, true},
		{`"1","2"`, false},
		{`W/"3"`, false},
		{`3`, false},
		{`"33"`, false},
	} {
		if got := matches(c.ifMatch, 3); got != c.want {
			t.Errorf("matches(%s, 3) = %v, want %v", c.ifMatch, got, c.want)
		}
	}
}

func TestUnquote(t *testing.T) {
	for in, want := range map[string]string{
		`a`: `a`, `"a"`: `a`, `"a\"b\\c"`: `a"b\c`, `"`: `"`, `"a`: `"a`, `""`: ``, `"a\"`: `a\`, ``: ``,
	} {
		if got := unquote(in); got != want {
			t.Errorf("unquote(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestKeyIDOf(t *testing.T) {
	id := schemas.NewKeyID()
	token, hash := newToken(id)
	if got, ok := keyIDOf(token); !ok || got != id || len(hash) != 64 {
		t.Errorf("keyIDOf(newToken(%s)) = %s, %v with hash %s", id, got, ok, hash)
	}
	for _, bad := range []string{"", "postrider_", token + "x", token[1:], strings.Replace(token, token[36:37], ".", 1)} {
		if got, ok := keyIDOf(bad); ok {
			t.Errorf("keyIDOf(%q) = %s, want none", bad, got)
		}
	}
}
