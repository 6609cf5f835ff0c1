package deliver

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// named gives a receiver's URL with a name in place of its address.
func named(t testing.TB, scheme, name string, rcv *receiver) string {
	t.Helper()
	_, port, err := net.SplitHostPort(rcv.addr)
	if err != nil {
		t.Fatal(err)
	}
	return scheme + "://" + name + ":" + port + "/hook"
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	now := time.Now()
	good := ca.issue(t, "hooks.example.com", now.Add(time.Hour))
	long, large := good, good
	long.Certificate = slices.Repeat(good.Certificate, maxCertificates+1)
	large.Certificate = append(slices.Clone(good.Certificate), ca.issue(t, strings.Repeat("x", maxChain), now).Certificate...)
	tests := []struct {
		name   string
		server *tls.Config
		status int
		reason Reason
	}{
		{"valid", &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS13}, 200, ""},
		{"TLS 1.2", &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}, 200, ""},            //nolint:gosec // the oldest that is good enough
		{"TLS 1.1", &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, 0, ReasonTLSFailed}, //nolint:gosec // a server too old is the case
		{"expired", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ca.issue(t, "hooks.example.com", now.Add(-time.Hour))}}, 0, ReasonTLSFailed},
		{"wrong name", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ca.issue(t, "example.com", now.Add(time.Hour))}}, 0, ReasonTLSFailed},
		{"unknown authority", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{other.issue(t, "hooks.example.com", now.Add(time.Hour))}}, 0, ReasonTLSFailed},
		{"more certificates than a chain has", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{long}}, 0, ReasonTLSFailed},
		{"larger certificates than a chain has", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{large}}, 0, ReasonTLSFailed},
		{"wants a client's certificate", &tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}, 0, ReasonTLSFailed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := listen(t)
			rcv := serveOn(t, tls.NewListener(l, tt.server), answer(ok200))
			c := startClient(t, func(cfg *Config) {
				cfg.RootCAs, cfg.Resolver = ca.pool, newDNS("hooks.example.com", "127.0.0.1")
			})
			for range 2 {
				a := c.Do(t.Context(), request(named(t, "https", "hooks.example.com", rcv)))
				if a.StatusCode != tt.status || a.Reason != tt.reason {
					t.Errorf("status %d, reason %q, want %d, %q", a.StatusCode, a.Reason, tt.status, tt.reason)
				}
			}
			if n := rcv.requests.Load(); tt.status == 0 && n > 0 {
				t.Errorf("%d requests came through", n)
			}
		})
	}
}

func TestTLSServerName(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, "hooks.example.com", time.Now().Add(time.Hour))
	asked := make(chan string, 1)
	l := listen(t)
	server := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		asked <- hello.ServerName
		return &cert, nil
	}}
	rcv := serveOn(t, tls.NewListener(l, server), answer(ok200))
	c := startClient(t, func(cfg *Config) {
		cfg.RootCAs, cfg.Resolver = ca.pool, newDNS("hooks.example.com", "127.0.0.1")
	})
	a := c.Do(t.Context(), request(named(t, "https", "HOOKS.Example.com.", rcv)))
	wantDelivered(t, a)
	if got := <-asked; got != "hooks.example.com" {
		t.Errorf("server name %q, want hooks.example.com", got)
	}
	if a.DNS <= 0 || a.Connect <= 0 || a.TLS <= 0 {
		t.Errorf("dns %s, connect %s, tls %s, want all above 0", a.DNS, a.Connect, a.TLS)
	}
}

func TestTLSThatDoesNotCome(t *testing.T) {
	for name, tt := range map[string]struct {
		serve  func(p *peer)
		reason Reason
	}{
		"stalled":     {func(p *peer) { p.hang() }, ReasonTLSTimeout},
		"plain http":  {func(p *peer) { _ = p.send("HTTP/1.1 400 Bad Request\r\n\r\n"); p.hang() }, ReasonTLSFailed},
		"reset":       {func(p *peer) { _, _ = p.r.Peek(5); p.reset() }, ReasonTLSFailed},
		"trickled":    {trickleHello, ReasonTLSTimeout},
		"after bytes": {func(p *peer) { _, _ = p.r.Peek(5); _ = p.Close() }, ReasonTLSFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := startReceiver(t, tt.serve)
			c := startClient(t, func(cfg *Config) { cfg.Resolver = newDNS("hooks.example.com", "127.0.0.1") })
			r := request(named(t, "https", "hooks.example.com", rcv))
			if tt.reason == ReasonTLSTimeout {
				r.Timeout = short
			}
			if a := c.Do(t.Context(), r); a.Reason != tt.reason || a.Duration > r.Timeout+slack {
				t.Errorf("reason %q after %s, want %q", a.Reason, a.Duration, tt.reason)
			}
		})
	}
}

// trickleHello sends a TLS record's head and then its bytes one by one.
func trickleHello(p *peer) {
	if p.send("\x16\x03\x03\x3f\xff") != nil {
		return
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for p.send("\x02") == nil {
		<-tick.C
	}
}

func TestTLSIsNotClosedInEarnest(t *testing.T) {
	// A peer that stops reading after the handshake: the farewell must not hold up the attempt's end.
	ca := newAuthority(t)
	l := listen(t)
	stop := make(chan struct{})
	cert := ca.issue(t, "hooks.example.com", time.Now().Add(time.Hour))
	rcv := serveOn(t, tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}), func(p *peer) {
		_, _ = p.r.Peek(1)
		<-stop
	})
	defer close(stop)
	c := startClient(t, func(cfg *Config) {
		cfg.RootCAs, cfg.Resolver = ca.pool, newDNS("hooks.example.com", "127.0.0.1")
	})
	r := request(named(t, "https", "hooks.example.com", rcv))
	r.Body, r.Timeout = make([]byte, 32<<20), short
	if a := c.Do(t.Context(), r); a.Reason != ReasonTimeout || a.Duration > r.Timeout+slack {
		t.Errorf("reason %q after %s, want %q", a.Reason, a.Duration, ReasonTimeout)
	}
}

func TestEgressDenied(t *testing.T) {
	rcv := startReceiver(t, answer(ok200))
	tests := []struct {
		name, answers string
		allow         []string
		reason        Reason
	}{
		{"loopback", "127.0.0.1", nil, ReasonEgressDenied},
		{"loopback, mapped", "::ffff:127.0.0.1", nil, ReasonEgressDenied},
		{"loopback behind NAT64", "64:ff9b::7f00:1", nil, ReasonEgressDenied},
		{"metadata", "169.254.169.254", nil, ReasonEgressDenied},
		{"metadata for a listed name", "169.254.169.254", []string{"hooks.example.com"}, ReasonEgressDenied},
		{"one forbidden answer of many", "93.184.216.34 2606:2800:220:1::1 10.0.0.1", nil, ReasonEgressDenied},
		{"one forbidden answer beyond the fourth", "127.0.0.1 127.0.0.1 127.0.0.1 127.0.0.1 10.0.0.1", []string{"127.0.0.0/8"}, ReasonEgressDenied},
		{"unspecified", "0.0.0.0", []string{"127.0.0.0/8"}, ReasonEgressDenied},
		{"zone", "fe80::1%lo", []string{"fe80::/10"}, ReasonEgressDenied},
		{"no address", "", nil, ReasonDNSFailed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := startClient(t, func(cfg *Config) {
				cfg.Policy, cfg.Resolver = policy(t, tt.allow...), newDNS("hooks.example.com", tt.answers)
			})
			a := c.Do(t.Context(), request(named(t, "https", "hooks.example.com", rcv)))
			if a.Reason != tt.reason {
				t.Errorf("reason %q, want %q", a.Reason, tt.reason)
			}
			if n := rcv.conns.Load(); n != 0 {
				t.Errorf("%d connections, want none", n)
			}
		})
	}
}

func TestForbiddenTextIsNeverResolved(t *testing.T) {
	dns := newDNS("localhost", "127.0.0.1")
	c := startClient(t, func(cfg *Config) { cfg.Policy, cfg.Resolver = policy(t), dns })
	for _, raw := range []string{"https://localhost/", "https://127.0.0.1/", "http://example.com/", "https://2130706433/", "https://metadata.google.internal/", "https://user@example.com/", "//example.com/", ""} {
		if a := c.Do(t.Context(), request(raw)); a.Reason != ReasonInvalidTarget {
			t.Errorf("%q: reason %q, want %q", raw, a.Reason, ReasonInvalidTarget)
		}
	}
	if n := dns.asked.Load(); n != 0 {
		t.Errorf("%d names were resolved, want none", n)
	}
}

// TestRebinding has a name that is fine when first asked and loopback after:
// a connection is made only to what was checked, and every dial checks anew.
func TestRebinding(t *testing.T) {
	secret := startReceiver(t, answer(ok200))
	dns := newDNS("rebind.example.com", "127.0.0.2", "127.0.0.1")
	c := startClient(t, func(cfg *Config) { cfg.Policy, cfg.Resolver = policy(t, "127.0.0.2/32"), dns })
	r := request(named(t, "https", "rebind.example.com", secret))
	if a := c.Do(t.Context(), r); a.Reason != ReasonConnectRefused || dns.asked.Load() != 1 {
		t.Errorf("reason %q after %d questions, want %q after 1", a.Reason, dns.asked.Load(), ReasonConnectRefused)
	}
	if a := c.Do(t.Context(), r); a.Reason != ReasonEgressDenied || dns.asked.Load() != 2 {
		t.Errorf("reason %q after %d questions, want %q after 2", a.Reason, dns.asked.Load(), ReasonEgressDenied)
	}
	if n := secret.conns.Load(); n != 0 {
		t.Errorf("%d connections to the forbidden address, want none", n)
	}
}

func TestListedNameOverPlainHTTP(t *testing.T) {
	rcv := startReceiver(t, answer(ok200))
	dns := newDNS("receiver", "127.0.0.1")
	c := startClient(t, func(cfg *Config) { cfg.Policy, cfg.Resolver = policy(t, "receiver"), dns })
	wantDelivered(t, c.Do(t.Context(), request(named(t, "http", "receiver", rcv))))
}

// askedNames keeps the texts that it was asked for.
type askedNames struct{ names []string }

func (d *askedNames) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	d.names = append(d.names, host)
	return nil, errors.New("no answer")
}

func TestSearchDomainsStayOut(t *testing.T) {
	dns := &askedNames{}
	c := startClient(t, func(cfg *Config) { cfg.Policy, cfg.Resolver = policy(t, "receiver"), dns })
	for _, raw := range []string{"https://hooks.example.com/", "https://receiver/"} {
		if a := c.Do(t.Context(), request(raw)); a.Reason != ReasonDNSFailed {
			t.Errorf("reason %q, want %q", a.Reason, ReasonDNSFailed)
		}
	}
	if got := strings.Join(dns.names, " "); got != "hooks.example.com. receiver" {
		t.Errorf("asked for %q", got)
	}
}

// stalledDNS answers when the question's context ends.
type stalledDNS struct{}

func (stalledDNS) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestDNSTimeout(t *testing.T) {
	c := startClient(t, func(cfg *Config) { cfg.Resolver = stalledDNS{} })
	r := request("https://hooks.example.com/")
	r.Timeout = 100 * time.Millisecond
	a := c.Do(t.Context(), r)
	if a.Reason != ReasonDNSTimeout || a.DNS == 0 || a.Duration > r.Timeout+slack {
		t.Errorf("reason %q after %s (dns %s), want %q", a.Reason, a.Duration, a.DNS, ReasonDNSTimeout)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if a := c.Do(ctx, request("https://hooks.example.com/")); a.Reason != ReasonCanceled {
		t.Errorf("reason %q, want %q", a.Reason, ReasonCanceled)
	}
}

func TestNextAddressIsTried(t *testing.T) {
	rcv := startReceiver(t, answer(ok200))
	for answers, reason := range map[string]Reason{
		"127.0.0.3 127.0.0.4 127.0.0.5 127.0.0.1":           "",
		"127.0.0.3 127.0.0.4 127.0.0.5 127.0.0.6 127.0.0.1": ReasonConnectRefused,
	} {
		c := startClient(t, func(cfg *Config) {
			cfg.Policy, cfg.Resolver = policy(t, "127.0.0.0/8", "receiver"), newDNS("receiver", answers)
		})
		if a := c.Do(t.Context(), request(named(t, "http", "receiver", rcv))); a.Reason != reason {
			t.Errorf("answers %s: reason %q, want %q", answers, a.Reason, reason)
		}
	}
}

// TestConnectTimeout fills the backlog of a socket that nobody accepts from:
// Linux then leaves further connections without an answer.
func TestConnectTimeout(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	t.Cleanup(func() { _ = f.Close() })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	bound, isIPv4 := name.(*syscall.SockaddrInet4)
	if !isIPv4 {
		t.Fatalf("bound to %T", name)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4(bound.Addr), uint16(bound.Port)).String() //nolint:gosec // a port
	dialer := net.Dialer{Timeout: short}
	for full := false; !full; {
		filler, err := dialer.DialContext(t.Context(), "tcp", addr)
		if full = err != nil; !full {
			t.Cleanup(func() { _ = filler.Close() })
		}
	}
	r := request("http://" + addr + "/")
	r.Timeout = 200 * time.Millisecond
	if a := startClient(t, nil).Do(t.Context(), r); a.Reason != ReasonConnectTimeout || a.Duration > r.Timeout+slack {
		t.Errorf("reason %q after %s, want %q", a.Reason, a.Duration, ReasonConnectTimeout)
	}
}

func TestRefusedConnection(t *testing.T) {
	l := listen(t)
	_ = l.Close()
	c := startClient(t, nil)
	if a := c.Do(t.Context(), request("http://"+l.Addr().String()+"/")); a.Reason != ReasonConnectRefused || a.Connect <= 0 {
		t.Errorf("reason %q, connect %s, want %q", a.Reason, a.Connect, ReasonConnectRefused)
	}
	c.conns.mu.Lock()
	defer c.conns.mu.Unlock()
	if len(c.conns.hosts) != 0 {
		t.Errorf("%d hosts kept, want 0", len(c.conns.hosts))
	}
}

func TestReasonsOfErrno(t *testing.T) {
	for err, want := range map[error]Reason{
		syscall.EMFILE: ReasonNoResources,
		&net.OpError{Op: "read", Err: syscall.EPIPE}:     ReasonReset,
		&net.OpError{Op: "read", Err: syscall.EHOSTDOWN}: ReasonNetwork,
		io.ErrUnexpectedEOF:                              ReasonReset,
		errors.New("anything else"):                      ReasonProtocol,
	} {
		if got := reasonOf(t.Context(), err); got != want {
			t.Errorf("%v: reason %q, want %q", err, got, want)
		}
	}
	if got := reasonOf(t.Context(), &dialError{ReasonNoResources, syscall.EMFILE}); got != ReasonNoResources {
		t.Errorf("reason %q, want %q", got, ReasonNoResources)
	}
}
