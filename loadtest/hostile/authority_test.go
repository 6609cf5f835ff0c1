package hostile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// authority is a certificate authority for a test. Its certificates have its own key.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	if a.cert, err = x509.ParseCertificate(a.sign(t, a.cert)); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(t testing.TB, template *x509.Certificate) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue makes a certificate for 127.0.0.1, or for other names if there are some.
func (a *authority) issue(t testing.TB, until time.Time, names ...string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(names) == 0 {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	return tls.Certificate{Certificate: [][]byte{a.sign(t, template)}, PrivateKey: a.key}
}

// padded gives each connection a certificate with n others after it that nothing
// asks for, no two alike: crypto/x509 keeps but one of equal ones. Each is about size
// bytes, at least 200.
func (a *authority) padded(t testing.TB, cert tls.Certificate, n, size int) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	t.Helper()
	var serial atomic.Int64
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		chain := slices.Clone(cert.Certificate)
		for range n {
			chain = append(chain, a.sign(t, &x509.Certificate{
				SerialNumber: big.NewInt(1000 + serial.Add(1)), Subject: pkix.Name{CommonName: strings.Repeat("x", size-min(size, 200))},
			}))
		}
		return &tls.Certificate{Certificate: chain, PrivateKey: cert.PrivateKey}, nil
	}
}
