package schemas

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// The specification's example, and the time of it.
const (
	exampleSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" //nolint:gosec // the specification's
	exampleID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	exampleSeconds   = 1614265330
	exampleBody      = `{"test": 2432232314}`
	exampleSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

func signedHeader(id, at, signatures string) http.Header {
	header := http.Header{}
	for name, value := range map[string]string{HeaderWebhookID: id, HeaderWebhookTimestamp: at, HeaderWebhookSignature: signatures} {
		header.Set(name, value)
	}
	return header
}

func exampleHeader(signatures string) http.Header {
	return signedHeader(exampleID, strconv.Itoa(exampleSeconds), signatures)
}

func startVerifier(t testing.TB, keys ...string) *Verifier {
	t.Helper()
	v, err := NewVerifier(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVerify(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	public := FormatPublicKey(key.Public().(ed25519.PublicKey))
	v1a := string(AppendSignatureV1a(nil, key, exampleID, exampleSeconds, []byte(exampleBody)))
	another := FormatSecret(bytes.Repeat([]byte{1}, 32))
	tests := []struct {
		name   string
		keys   []string
		header http.Header
		body   string
		at     int64 // after the timestamp
		want   error
	}{
		{"v1", []string{exampleSecret}, exampleHeader(exampleSignature), exampleBody, 0, nil},
		{"v1a", []string{public}, exampleHeader(v1a), exampleBody, 0, nil},
		{"second of the signatures", []string{exampleSecret}, exampleHeader("v1,AAAA " + exampleSignature), exampleBody, 0, nil},
		{"second of the secrets", []string{another, exampleSecret}, exampleHeader(exampleSignature), exampleBody, 0, nil},
		{"both schemes, one key known", []string{public, another}, exampleHeader(exampleSignature + " " + v1a), exampleBody, 0, nil},
		{"scheme of the future beside", []string{exampleSecret}, exampleHeader("v2,x y " + exampleSignature), exampleBody, 0, nil},
		{"as old as may be", []string{exampleSecret}, exampleHeader(exampleSignature), exampleBody, 300, nil},
		{"as new as may be", []string{exampleSecret}, exampleHeader(exampleSignature), exampleBody, -300, nil},
		{"too old", []string{exampleSecret}, exampleHeader(exampleSignature), exampleBody, 301, ErrSignatureTime},
		{"too new", []string{exampleSecret}, exampleHeader(exampleSignature), exampleBody, -301, ErrSignatureTime},
		{"another secret", []string{another}, exampleHeader(exampleSignature), exampleBody, 0, ErrSignatureUnknown},
		{"another body", []string{exampleSecret}, exampleHeader(exampleSignature), exampleBody + " ", 0, ErrSignatureUnknown},
		{"another id", []string{exampleSecret}, signedHeader("msg_1", "1614265330", exampleSignature), exampleBody, 0, ErrSignatureUnknown},
		{"another time", []string{exampleSecret}, signedHeader(exampleID, "1614265331", exampleSignature), exampleBody, 0, ErrSignatureUnknown},
		{"v1a with another body", []string{public}, exampleHeader(v1a), exampleBody + " ", 0, ErrSignatureUnknown},
		{"v1 called v1a", []string{public}, exampleHeader("v1a" + strings.TrimPrefix(exampleSignature, "v1")), exampleBody, 0, ErrSignatureUnknown},
		{"v1a for who has the secret only", []string{exampleSecret}, exampleHeader(v1a), exampleBody, 0, ErrSignatureUnknown},
		{"no scheme", []string{exampleSecret}, exampleHeader(strings.TrimPrefix(exampleSignature, "v1,")), exampleBody, 0, ErrSignatureUnknown},
		{"as many signatures as may be", []string{exampleSecret}, exampleHeader(strings.Repeat("v1,A ", 31) + exampleSignature), exampleBody, 0, nil},
		{"one signature more", []string{exampleSecret}, exampleHeader(strings.Repeat("v1,A ", 32) + exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"no id", []string{exampleSecret}, signedHeader("", "1614265330", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"no time", []string{exampleSecret}, signedHeader(exampleID, "", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"no signature", []string{exampleSecret}, exampleHeader(""), exampleBody, 0, ErrSignatureHeaders},
		{"no header", []string{exampleSecret}, http.Header{}, exampleBody, 0, ErrSignatureHeaders},
		{"id with a point", []string{exampleSecret}, signedHeader("a.b", "1614265330", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"id too long", []string{exampleSecret}, signedHeader(strings.Repeat("a", 257), "1614265330", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"id as long as may be", []string{exampleSecret}, signedHeader(strings.Repeat("a", 256), "1614265330", exampleSignature), exampleBody, 0, ErrSignatureUnknown},
		{"id with a control character", []string{exampleSecret}, signedHeader("a\x01", "1614265330", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"time with a sign", []string{exampleSecret}, signedHeader(exampleID, "+1614265330", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"time with a zero before", []string{exampleSecret}, signedHeader(exampleID, "01614265330", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"time before 1970", []string{exampleSecret}, signedHeader(exampleID, "-1", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"time with a fraction", []string{exampleSecret}, signedHeader(exampleID, "1614265330.5", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"time beyond 64 bits", []string{exampleSecret}, signedHeader(exampleID, "9223372036854775808", exampleSignature), exampleBody, 0, ErrSignatureHeaders},
		{"time at the end of 64 bits", []string{exampleSecret}, signedHeader(exampleID, "9223372036854775807", exampleSignature), exampleBody, 0, ErrSignatureTime},
	}
	for _, tt := range tests {
		id, err := startVerifier(t, tt.keys...).Verify(tt.header, []byte(tt.body), time.Unix(exampleSeconds+tt.at, 0))
		if !errors.Is(err, tt.want) || (err == nil) != (id == exampleID) {
			t.Errorf("%s: got %q, %v, want %v", tt.name, id, err, tt.want)
		}
	}
}

func TestVerifyRefusesHeadersThatAreThereTwice(t *testing.T) {
	for _, name := range []string{HeaderWebhookID, HeaderWebhookTimestamp, HeaderWebhookSignature} {
		header := exampleHeader(exampleSignature)
		header.Add(name, header.Get(name))
		if _, err := startVerifier(t, exampleSecret).Verify(header, []byte(exampleBody), time.Unix(exampleSeconds, 0)); !errors.Is(err, ErrSignatureHeaders) {
			t.Errorf("%s twice: got %v, want ErrSignatureHeaders", name, err)
		}
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	tests := map[string]struct {
		keys []string
		want error
	}{
		"nothing":                  {nil, nil},
		"no secret":                {[]string{""}, ErrInvalidSecret},
		"empty secret":             {[]string{"whsec_"}, ErrInvalidSecret},
		"short secret":             {[]string{"whsec_AAAA"}, ErrInvalidSecret},
		"private key":              {[]string{"whsk_" + strings.Repeat("A", 43) + "="}, ErrInvalidSecret},
		"empty public key":         {[]string{"whpk_"}, ErrInvalidPublicKey},
		"short public key":         {[]string{"whpk_" + strings.Repeat("A", 40)}, ErrInvalidPublicKey},
		"long public key":          {[]string{"whpk_" + strings.Repeat("A", 44)}, ErrInvalidPublicKey},
		"public key with odd bits": {[]string{"whpk_" + strings.Repeat("A", 42) + "B="}, ErrInvalidPublicKey},
		"second one":               {[]string{exampleSecret, "whpk_x"}, ErrInvalidPublicKey},
	}
	for name, tt := range tests {
		v, err := NewVerifier(tt.keys...)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, %v, want %v", name, v, err, tt.want)
		}
		for _, key := range tt.keys {
			if err != nil && len(key) > len("whsec_") && strings.Contains(err.Error(), key) {
				t.Errorf("%s: the error quotes the key: %v", name, err)
			}
		}
	}
}

// TestVerifyAgreesWithReference has the reference library sign for us, and verify
// what we sign.
func TestVerifyAgreesWithReference(t *testing.T) {
	for _, size := range []int{24, 32, 64} {
		secret := FormatSecret(bytes.Repeat([]byte{9}, size))
		reference, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		body := []byte("{\"text\":\"é😀\x00\"}")
		signature, err := reference.Sign("msg_1", now, body)
		if err != nil {
			t.Fatal(err)
		}
		header := signedHeader("msg_1", strconv.FormatInt(now.Unix(), 10), signature)
		if _, err := startVerifier(t, secret).Verify(header, body, now); err != nil {
			t.Errorf("signed by the reference library, %d bytes: %v", size, err)
		}
		raw, err := ParseSecret(secret)
		if err != nil {
			t.Fatal(err)
		}
		header.Set(HeaderWebhookSignature, string(AppendSignature(nil, raw, "msg_1", now.Unix(), body)))
		if err := reference.Verify(body, header); err != nil {
			t.Errorf("signed by us, %d bytes: %v", size, err)
		}
	}
}

// FuzzVerify: whatever the headers are, nothing is verified that the reference
// library does not verify too.
func FuzzVerify(f *testing.F) {
	f.Add(exampleID, strconv.Itoa(exampleSeconds), exampleSignature, []byte(exampleBody))
	f.Add(exampleID, "1614265330", "v1,AAAA v1a,AAAA "+exampleSignature, []byte(exampleBody))
	f.Add("a.b", "+7", "v1, ,v1 v1,,", []byte{0xff})
	reference, err := standardwebhooks.NewWebhook(exampleSecret)
	if err != nil {
		f.Fatal(err)
	}
	public := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	v := startVerifier(f, exampleSecret, FormatPublicKey(public))
	f.Fuzz(func(t *testing.T, id, at, signatures string, body []byte) {
		header := signedHeader(id, at, signatures)
		got, err := v.Verify(header, body, time.Unix(exampleSeconds, 0))
		if err != nil {
			return
		}
		if got != id {
			t.Errorf("got id %q of %q", got, id)
		}
		if err := reference.VerifyIgnoringTimestamp(body, header); err != nil {
			t.Errorf("%q, %q, %q: verified, but not by the reference library: %v", id, at, signatures, err)
		}
	})
}
