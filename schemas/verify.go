package schemas

import (
	"crypto/ed25519"
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// SignatureTolerance is how far a request's webhook-timestamp may be from the
// receiver's clock, either way (Standard Webhooks 1.0, "Verifying signatures").
const SignatureTolerance = 5 * time.Minute

// Bounds of a request's headers, beyond which nothing is computed. A webhook has at
// most 8 secrets in force, and signs by two schemes.
const (
	maxSignedID   = 256 // bytes
	maxSignatures = 32
)

// Errors of a Verifier. They quote nothing of the request.
var (
	// ErrSignatureHeaders says that the headers are not those of a signed request.
	ErrSignatureHeaders = errors.New("no well-formed webhook-id, webhook-timestamp and webhook-signature")
	// ErrSignatureTime says that the request is older or newer than the tolerance.
	ErrSignatureTime = errors.New("webhook-timestamp is more than 5 minutes off")
	// ErrSignatureUnknown says that no key has made any of the signatures.
	ErrSignatureUnknown = errors.New("no webhook-signature is of a known key")
)

// ErrInvalidPublicKey is returned for text that is no public key.
var ErrInvalidPublicKey = errors.New("not a public key (whpk_ and the base64 of 32 bytes)")

// ParsePublicKey reads what FormatPublicKey wrote.
func ParsePublicKey(text string) (ed25519.PublicKey, error) {
	encoded, ok := strings.CutPrefix(text, publicKeyPrefix)
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !ok || err != nil || len(key) != ed25519.PublicKeySize {
		return nil, ErrInvalidPublicKey
	}
	return key, nil
}

// Verifier tells whether a request to a target was signed by one of its keys. It is
// safe for concurrent use.
type Verifier struct {
	secrets    [][]byte
	publicKeys []ed25519.PublicKey
}

// NewVerifier takes keys as their owner sees them: secrets (whsec_…) and public keys
// (whpk_…), in any order, at least one; several while they are rotated. No error quotes a secret.
func NewVerifier(keys ...string) (*Verifier, error) {
	v := &Verifier{}
	for i, text := range keys {
		if strings.HasPrefix(text, publicKeyPrefix) {
			key, err := ParsePublicKey(text)
			if err != nil {
				return nil, fmt.Errorf("reading key %d of %d: %w", i+1, len(keys), err)
			}
			v.publicKeys = append(v.publicKeys, key)
			continue
		}
		secret, err := ParseSecret(text)
		if err != nil {
			return nil, fmt.Errorf("reading key %d of %d: %w", i+1, len(keys), err)
		}
		v.secrets = append(v.secrets, secret)
	}
	if len(keys) == 0 {
		return nil, errors.New("reading keys to verify with: there is none")
	}
	return v, nil
}

// Verify returns the webhook-id of a request that one of the keys has signed, now or
// within SignatureTolerance of it (Standard Webhooks 1.0). The errors are
// ErrSignatureHeaders, ErrSignatureTime and ErrSignatureUnknown.
func (v *Verifier) Verify(header http.Header, body []byte, now time.Time) (messageID string, err error) {
	r, err := readSigned(header)
	if err != nil {
		return "", err
	}
	const tolerance = int64(SignatureTolerance / time.Second)
	if off := now.Unix() - r.unixSeconds; off > tolerance || off < -tolerance {
		return "", ErrSignatureTime
	}
	if !v.verifyHMAC(r, body) && !v.verifyEd25519(r, body) {
		return "", ErrSignatureUnknown
	}
	return r.messageID, nil
}

// signed is what a request's headers claim.
type signed struct {
	messageID   string
	unixSeconds int64
	signatures  []string // "v1,…", "v1a,…" and others
}

func readSigned(header http.Header) (signed, error) {
	id, okID := only(header, HeaderWebhookID)
	at, okAt := only(header, HeaderWebhookTimestamp)
	list, okList := only(header, HeaderWebhookSignature)
	// The id ends at the first point of what is signed, so it holds none: "a" at 1 with
	// the body "2.x" would else be "a.1" at 2 with the body "x".
	if !okID || !okAt || !okList || strings.ContainsRune(id, '.') || !isShortASCII(id, maxSignedID) {
		return signed{}, ErrSignatureHeaders
	}
	// As it stands in the header it is signed: 07 and +7 are not 7.
	unixSeconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil || unixSeconds < 0 || strconv.FormatInt(unixSeconds, 10) != at {
		return signed{}, ErrSignatureHeaders
	}
	signatures := strings.SplitN(list, " ", maxSignatures+1)
	if len(signatures) > maxSignatures {
		return signed{}, ErrSignatureHeaders
	}
	return signed{id, unixSeconds, signatures}, nil
}

// only returns a header that is there once. Of two, proxies and handlers may each
// take another one.
func only(header http.Header, name string) (string, bool) {
	values := header.Values(name)
	if len(values) != 1 || values[0] == "" {
		return "", false
	}
	return values[0], true
}

// verifyHMAC makes the signature that each secret would have made, and compares in constant time.
func (v *Verifier) verifyHMAC(r signed, body []byte) bool {
	known := false
	var buffer [64]byte
	for _, secret := range v.secrets {
		want := AppendSignature(buffer[:0], secret, r.messageID, r.unixSeconds, body)
		for _, signature := range r.signatures {
			known = hmac.Equal([]byte(signature), want) || known
		}
	}
	return known
}

func (v *Verifier) verifyEd25519(r signed, body []byte) bool {
	if len(v.publicKeys) == 0 {
		return false
	}
	content := append(appendSigned(make([]byte, 0, len(r.messageID)+len(body)+24), r.messageID, r.unixSeconds), body...)
	for _, text := range r.signatures {
		encoded, ok := strings.CutPrefix(text, SchemeEd25519+",")
		signature, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if !ok || err != nil {
			continue
		}
		for _, key := range v.publicKeys {
			if ed25519.Verify(key, content, signature) {
				return true
			}
		}
	}
	return false
}
