package deliver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const (
	// maxAddresses of a name are tried: a name may have hundreds, and all lead to one target.
	maxAddresses = 4
	// minConnectTime is given to each address as long as the deadline lasts.
	minConnectTime = 2 * time.Second

	// maxBarren bytes of TLS may come in a handshake, and between two pieces of a
	// response: two records.
	maxBarren = 32 << 10
	// maxCertificates in a chain, and their bytes: those of public authorities have
	// two to five in 3 to 10 KiB.
	maxCertificates = 10
	maxChain        = 12 << 10
)

// Resolver turns names into addresses; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// dialError is an error of one step on the way to a connection.
type dialError struct {
	reason Reason
	cause  error
}

func (e *dialError) Error() string { return string(e.reason) + ": " + e.cause.Error() }
func (e *dialError) Unwrap() error { return e.cause }

var (
	errForbidden  = errors.New("the name resolves to a forbidden address")
	errTooMuchTLS = errors.New("the peer's certificates or tickets are over the limit")
)

// dial makes a connection to a target: the name is resolved once, every answer
// checked, and one of those very addresses dialled (P8).
func (c *Client) dial(ctx context.Context, to *endpoint, deadline time.Time, a *Attempt) (*conn, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	addrs, err := c.resolve(ctx, to, a)
	if err != nil {
		return nil, err
	}
	raw, err := c.connect(ctx, addrs, to.Port, a)
	if err != nil {
		return nil, err
	}
	if to.Scheme != "https" {
		return &conn{Conn: raw, raw: raw}, nil
	}
	began := time.Now()
	cfg := c.tls.Clone()
	cfg.ServerName = to.Host
	metered := &meteredConn{Conn: raw, left: maxBarren}
	secured := tls.Client(metered, cfg)
	err = secured.HandshakeContext(ctx)
	a.TLS = time.Since(began)
	if err != nil {
		_ = raw.Close()
		return nil, &dialError{orTimeout(ctx, err, ReasonTLSFailed, ReasonTLSTimeout), err}
	}
	metered.left = maxBarren
	return &conn{Conn: secured, raw: raw, metered: metered}, nil
}

// checkChain refuses what no authority's chain looks like: each certificate is
// kept as long as the connection, at six times its size or more.
func checkChain(s tls.ConnectionState) error {
	size := 0
	for _, cert := range s.PeerCertificates {
		size += len(cert.Raw)
	}
	if len(s.PeerCertificates) > maxCertificates || size > maxChain {
		return errTooMuchTLS
	}
	return nil
}

// meteredConn is below the TLS. crypto/tls would take in 256 KiB of certificates
// and 64 KiB of a ticket at any time, and copies of both: here it ends at what is left.
type meteredConn struct {
	net.Conn

	left int // of bytes until the next that are the response's; only who reads changes it
}

func (m *meteredConn) Read(p []byte) (int, error) {
	if m.left <= 0 {
		return 0, errTooMuchTLS
	}
	n, err := m.Conn.Read(p[:min(len(p), m.left)])
	m.left -= n
	return n, err
}

// resolve returns at most four addresses, all allowed.
func (c *Client) resolve(ctx context.Context, to *endpoint, a *Attempt) ([]netip.Addr, error) {
	addrs := []netip.Addr{to.Addr}
	if !to.Addr.IsValid() {
		name := to.Host
		if !c.policy.Lists(name) {
			// The final dot keeps the machine's search domains out: only names of
			// the operator's own list may mean something local.
			name += "."
		}
		began := time.Now()
		found, err := c.resolver.LookupNetIP(ctx, "ip", name)
		a.DNS = time.Since(began)
		if err != nil {
			return nil, &dialError{orTimeout(ctx, err, ReasonDNSFailed, ReasonDNSTimeout), err}
		}
		if len(found) == 0 {
			return nil, &dialError{ReasonDNSFailed, errors.New("the name has no address")}
		}
		addrs = found
	}
	for _, addr := range addrs {
		if !c.policy.Allows(addr, to.Host) {
			return nil, &dialError{ReasonEgressDenied, errForbidden}
		}
	}
	return addrs[:min(len(addrs), maxAddresses)], nil
}

// connect tries the addresses in turn, each with its share of what time is left.
func (c *Client) connect(ctx context.Context, addrs []netip.Addr, port uint16, a *Attempt) (net.Conn, error) {
	began := time.Now()
	defer func() { a.Connect = time.Since(began) }()
	var last error
	for i, addr := range addrs {
		raw, err := c.connectOne(ctx, netip.AddrPortFrom(addr.Unmap(), port), len(addrs)-i)
		if err == nil {
			return raw, nil
		}
		last = err
		if ctx.Err() != nil {
			break
		}
	}
	reason := ReasonConnectFailed
	switch {
	case exhausted(last):
		reason = ReasonNoResources
	case errors.Is(last, syscall.ECONNREFUSED):
		reason = ReasonConnectRefused
	case errors.Is(last, syscall.ECONNRESET):
		reason = ReasonReset // the connection was made, and reset before we could look
	}
	return nil, &dialError{orTimeout(ctx, last, reason, ReasonConnectTimeout), last}
}

func (c *Client) connectOne(ctx context.Context, addr netip.AddrPort, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		share := max(time.Until(deadline)/time.Duration(left), minConnectTime)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	raw, err := c.dialer.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", addr, err)
	}
	return raw, nil
}

// exhausted reports errors of this machine, for which the target can do nothing.
func exhausted(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// orTimeout is timeout where err came of the deadline, else reason.
func orTimeout(ctx context.Context, err error, reason, timeout Reason) Reason {
	if ctx.Err() != nil || isTimeout(err) {
		return timeout
	}
	return reason
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}
