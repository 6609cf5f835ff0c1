package deliver

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postrider/postrider/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver is a raw target: a function per connection.
type receiver struct {
	addr     string // host:port
	url      string
	conns    atomic.Int64
	requests atomic.Int64
}

// peer is the receiver's side of one connection.
type peer struct {
	net.Conn

	r        *bufio.Reader
	receiver *receiver
	number   int64 // of the connection, from 1
}

// startReceiver serves until the test ends; then it closes what is open and
// waits for every connection's function.
func startReceiver(t testing.TB, serve func(p *peer)) *receiver {
	t.Helper()
	return serveOn(t, listen(t), serve)
}

// listen opens a port; serveOn closes it.
func listen(t testing.TB) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func serveOn(t testing.TB, l net.Listener, serve func(p *peer)) *receiver {
	t.Helper()
	rcv := &receiver{addr: l.Addr().String(), url: "http://" + l.Addr().String() + "/hook?a=%2e"}
	var mu sync.Mutex
	var open []net.Conn
	closed := false
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			if closed {
				_ = c.Close()
			}
			mu.Unlock()
			n := rcv.conns.Add(1)
			wg.Go(func() {
				defer func() { _ = c.Close() }() // the test's end may have closed it
				serve(&peer{Conn: c, r: bufio.NewReader(c), receiver: rcv, number: n})
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		closed = true
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return rcv
}

// request reads one request and its body; nil at the connection's end.
func (p *peer) request() (*http.Request, []byte) {
	r, err := http.ReadRequest(p.r)
	if err != nil {
		return nil, nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, nil
	}
	p.receiver.requests.Add(1)
	return r, body
}

func (p *peer) send(text string) error {
	_, err := io.WriteString(p, text)
	return err
}

// hang blocks until the other side or the test's end closes the connection.
func (p *peer) hang() { _, _ = io.Copy(io.Discard, p.r) }

// reset closes with RST.
func (p *peer) reset() {
	if tcp, ok := p.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = p.Close()
}

// answer serves every request of a connection with the same bytes.
func answer(text string) func(p *peer) {
	return func(p *peer) {
		for {
			if r, _ := p.request(); r == nil {
				return
			}
			if p.send(text) != nil {
				return
			}
		}
	}
}

const ok200 = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

func startClient(t testing.TB, change func(cfg *Config)) *Client {
	t.Helper()
	cfg := Config{Version: "1.2.3", Policy: policy(t, "127.0.0.0/8"), IdleTimeout: time.Minute}
	if change != nil {
		change(&cfg)
	}
	c := New(cfg)
	t.Cleanup(c.Close)
	return c
}

func policy(t testing.TB, allow ...string) schemas.TargetPolicy {
	t.Helper()
	p, err := schemas.ParseTargetPolicy(allow)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// slack is what a loaded machine may need to schedule the end of an attempt. It
// is below the 5 s for which a TLS farewell would block.
const slack = 4 * time.Second

// short is the timeout of an attempt that is to run into it: long enough for a
// loaded machine to come to the stage before.
const short = time.Second

func testSecret() []byte { return []byte("0123456789abcdef0123456789abcdef") }

func request(url string) Request {
	return Request{URL: url, MessageID: "msg_1", Sequence: 7, Secrets: [][]byte{testSecret()}, Body: []byte(`{"id":"evt_1","event":"ping"}`), Timeout: 15 * time.Second}
}

// fakeDNS answers from a table, the next list at each question for the name.
type fakeDNS struct {
	mu      sync.Mutex // guards answers
	answers map[string][][]netip.Addr
	asked   atomic.Int64
}

func newDNS(name string, answers ...string) *fakeDNS {
	d := &fakeDNS{answers: map[string][][]netip.Addr{}}
	for _, text := range answers {
		var addrs []netip.Addr
		for a := range strings.FieldsSeq(text) {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		d.answers[name] = append(d.answers[name], addrs)
	}
	return d
}

func (d *fakeDNS) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	d.asked.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	name := strings.TrimSuffix(host, ".")
	lists := d.answers[name]
	if len(lists) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	if len(lists) > 1 {
		d.answers[name] = lists[1:]
	}
	return append([]netip.Addr(nil), lists[0]...), nil
}

// authority is a certificate authority for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

func (a *authority) issue(t testing.TB, name string, until time.Time) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
}
