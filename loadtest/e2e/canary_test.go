package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// canary listens on all addresses, and remembers which of them were called. It
// answers with the status that the path ends in, or 200.
type canary struct {
	authority string // file of the certificate that signs its own, one for each name or address

	mu     sync.Mutex // guards called
	called map[netip.Addr]int
}

func startCanary(t *testing.T) *canary {
	t.Helper()
	ca := receiver.NewAuthority(t)
	c := &canary{authority: filepath.Join(t.TempDir(), "authority.pem"), called: map[netip.Addr]int{}}
	if err := os.WriteFile(c.authority, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: c, ReadHeaderTimeout: soon, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			name := hello.ServerName
			if name == "" {
				name = local(hello.Conn).String()
			}
			cert, err := ca.Issue(time.Now().Add(time.Hour), name)
			return &cert, err
		}},
	}
	var all sync.WaitGroup
	for _, port := range canaryPorts() {
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":"+port)
		if err != nil {
			t.Fatal(err)
		}
		serve := server.Serve
		if port == "443" || port == "8443" {
			serve = func(ln net.Listener) error { return server.ServeTLS(ln, "", "") }
		}
		all.Go(func() {
			if err := serve(&noting{ln, c}); !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("serving port %s: %v", port, err)
			}
		})
	}
	t.Cleanup(func() {
		_ = server.Close() // the listeners' errors
		all.Wait()
	})
	return c
}

func canaryPorts() []string { return []string{"22", "25", "80", "443", "8080", "8443"} }

// noting notes who is called.
type noting struct {
	net.Listener

	canary *canary
}

func (l *noting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, fmt.Errorf("accepting: %w", err)
	}
	l.canary.mu.Lock()
	defer l.canary.mu.Unlock()
	l.canary.called[local(conn)]++
	return conn, nil
}

// local is the address that was called.
func local(conn net.Conn) netip.Addr {
	addr, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return addr.AddrPort().Addr().Unmap()
}

func (c *canary) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // the caller's loss
	w.Header().Set("Connection", "close")
	w.Header().Set("Location", "https://169.254.169.254/")
	if status, err := strconv.Atoi(path.Base(r.URL.Path)); err == nil {
		w.WriteHeader(status)
	}
}

func (c *canary) calls() map[netip.Addr]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.called)
}

// check compares the addresses that were called with those to be called, and then
// calls some itself: that nobody came shows something only if the door is open there.
func (c *canary) check(t *testing.T, want []string) {
	t.Helper()
	calls := c.calls()
	for _, text := range want {
		addr := netip.MustParseAddr(text)
		if calls[addr] == 0 {
			t.Errorf("%s was not called", addr)
		}
		delete(calls, addr)
	}
	for addr, n := range calls {
		t.Errorf("%d connections to %s, want none", n, addr)
	}
	for _, text := range []string{"10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "240.0.0.1", "::1", "fd00::1", "64:ff9b::7f00:1", "2002:7f00:1::1", stray} {
		before := c.calls()[netip.MustParseAddr(text)]
		for _, port := range canaryPorts() {
			conn, err := (&net.Dialer{Timeout: soon}).DialContext(t.Context(), "tcp", net.JoinHostPort(text, port))
			if err != nil {
				t.Fatalf("the canary is not at %s: %v", text, err)
			}
			_ = conn.Close()
		}
		pipeline.Wait(t, soon, "the test's own connections to "+text, func() error {
			if n := c.calls()[netip.MustParseAddr(text)] - before; n != len(canaryPorts()) {
				return fmt.Errorf("%w: %d connections", errNotYet, n)
			}
			return nil
		})
	}
}
