package kafka

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// startCertificate makes a certificate that signs itself, for both ends, and
// returns the files of it and of its key.
func startCertificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestTLSWithClientCertificateAndSASL(t *testing.T) {
	certFile, keyFile := startCertificate(t)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(pair.Leaf)
	_, cfg := startCluster(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "postrider", "secret"), kfake.TLS(&tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
	}))
	good := cfg
	good.TLS, good.TLSCA, good.TLSCert, good.TLSKey = true, certFile, certFile, keyFile
	good.SASLUser, good.SASLPassword = "postrider", "secret"
	tests := []struct {
		name   string
		change func(*Config)
		ok     bool
	}{
		{"as it should be", func(*Config) {}, true},
		{"wrong password", func(c *Config) { c.SASLPassword = "guess" }, false},
		{"no client certificate", func(c *Config) { c.TLSCert, c.TLSKey = "", "" }, false},
		{"unknown authority", func(c *Config) { c.TLSCA = "" }, false},
		{"no TLS", func(c *Config) { c.TLS = false }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			err := startClient(t, cfg, kgo.RequestRetries(0)).Ping(within(t))
			if (err == nil) != tt.ok {
				t.Errorf("Ping = %v, want success: %v", err, tt.ok)
			}
		})
	}
}

// TestSCRAM: the password is proven, by the mechanism that the user has.
func TestSCRAM(t *testing.T) {
	_, cfg := startCluster(t, kfake.EnableSASL(),
		kfake.Superuser(mechanismSCRAM256, "of-256", "secret"), kfake.Superuser(mechanismSCRAM512, "of-512", "secret"))
	tests := []struct {
		user, password, mechanism string
		ok                        bool
	}{
		{"of-256", "secret", mechanismSCRAM256, true},
		{"of-512", "secret", mechanismSCRAM512, true},
		{"of-512", "guess", mechanismSCRAM512, false},
		{"of-512", "secret", mechanismSCRAM256, false},
		{"of-256", "secret", mechanismPlain, false},
		{"nobody", "secret", mechanismSCRAM512, false},
	}
	for _, tt := range tests {
		cfg := cfg
		cfg.SASLUser, cfg.SASLPassword, cfg.SASLMechanism = tt.user, tt.password, tt.mechanism
		if err := startClient(t, cfg, kgo.RequestRetries(0)).Ping(within(t)); (err == nil) != tt.ok {
			t.Errorf("%s of %s by %s: %v, want success: %v", tt.password, tt.user, tt.mechanism, err, tt.ok)
		}
	}
}

func TestNewClientRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no brokers":   {},
		"no mechanism": {Brokers: []string{"127.0.0.1:1"}, SASLUser: "u", SASLPassword: "p", SASLMechanism: "GSSAPI"},
		"no such file": {Brokers: []string{"127.0.0.1:1"}, TLS: true, TLSCA: "/nowhere"},
		"no PEM":       {Brokers: []string{"127.0.0.1:1"}, TLS: true, TLSCA: os.Args[0]},
	} {
		if cl, err := cfg.NewClient("test"); err == nil {
			cl.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// A record as large as its topic takes must not be refused by the client.
func TestLargestRecordsAreWritten(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	topics := cfg.Topics()
	if err := CreateTopics(within(t), cl, topics, schemas.Partitions{Events: 1, Deliveries: 1}, 1); err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte{'x'}, schemas.MaxPayloadBytes)
	for _, topic := range []string{topics.Events, topics.Deliveries} {
		if err := cl.ProduceSync(within(t), &kgo.Record{Topic: topic, Key: []byte("k"), Value: payload}).FirstErr(); err != nil {
			t.Errorf("writing %d bytes to %s: %v", len(payload), topic, err)
		}
	}
}
