package receiver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// Authority is a certificate authority for a test. All its certificates have its own key.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority that lasts an hour.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("making the authority's key: %v", err)
	}
	a := &Authority{key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := a.sign(a.cert)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatalf("reading the authority's certificate: %v", err)
	}
	return a
}

func (a *Authority) sign(template *x509.Certificate) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("signing certificate: %w", err)
	}
	return der, nil
}

// PEM is what is to be trusted.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Issue makes a certificate for names and addresses.
func (a *Authority) Issue(until time.Time, names ...string) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := a.sign(template)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}, err
}

// Padded is a certificate with n others after it that nothing asks for. Each has
// about size bytes, at least 200, and a serial number from first on: crypto/x509
// keeps but one of equal ones.
func (a *Authority) Padded(cert tls.Certificate, n, size int, first int64) (tls.Certificate, error) {
	cert.Certificate = slices.Clone(cert.Certificate)
	for i := range n {
		der, err := a.sign(&x509.Certificate{
			SerialNumber: big.NewInt(first + int64(i)), Subject: pkix.Name{CommonName: strings.Repeat("x", size-min(size, 200))},
		})
		if err != nil {
			return cert, err
		}
		cert.Certificate = append(cert.Certificate, der)
	}
	return cert, nil
}
