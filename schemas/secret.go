package schemas

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Signing secrets (Standard Webhooks 1.0, "Signature scheme").
const (
	secretPrefix   = "whsec_"
	minSecretBytes = 24
	maxSecretBytes = 64
)

// NewSecret returns 32 random bytes to sign with.
func NewSecret() []byte {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails since Go 1.24
	return secret
}

// FormatSecret returns a signing secret as its owner sees it: whsec_ and base64.
func FormatSecret(secret []byte) string {
	return secretPrefix + base64.StdEncoding.EncodeToString(secret)
}

// ErrInvalidSecret is returned for text that is no signing secret. It quotes nothing of it.
var ErrInvalidSecret = errors.New("not a signing secret (whsec_ and the base64 of 24 to 64 bytes)")

// ParseSecret reads what FormatSecret wrote.
func ParseSecret(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	secret, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(secret) < minSecretBytes || len(secret) > maxSecretBytes {
		return nil, ErrInvalidSecret
	}
	return secret, nil
}

// SealedSecret is a secret as it stands in a record: AES-256-GCM under a key of
// the ring, bound to the record's identity.
type SealedSecret struct {
	// KeyID names the key of the ring.
	KeyID string `json:"key_id"`
	// Nonce and Ciphertext are GCM's; base64 in JSON.
	Nonce      []byte    `json:"nonce"`
	Ciphertext []byte    `json:"ciphertext"`
	CreatedAt  time.Time `json:"created_at"`
	// ExpiresAt is when it ends to sign beside the one that took its place; zero: none has.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// Live reports whether it still signs at now.
func (s *SealedSecret) Live(now time.Time) bool {
	return s.ExpiresAt.IsZero() || now.Before(s.ExpiresAt)
}

// Reseal seals a secret anew under the ring's first key; it is the same where it
// was sealed under that. The errors are Open's.
func (k KeyRing) Reseal(identity string, s SealedSecret) (SealedSecret, error) {
	if s.KeyID == k.first {
		return s, nil
	}
	plain, err := k.Open(identity, s)
	if err != nil {
		return s, err
	}
	sealed, err := k.Seal(identity, plain)
	if err != nil {
		return s, err
	}
	sealed.CreatedAt, sealed.ExpiresAt = s.CreatedAt, s.ExpiresAt
	return sealed, nil
}

// KeyRing holds the keys that seal secrets: the first seals, all open. Its zero
// value is empty. It is safe for concurrent use.
type KeyRing struct {
	first string
	keys  map[string]cipher.AEAD
}

// Errors of key rings.
var (
	ErrInvalidKeyRing = errors.New("a key ring has one <id>:<base64 of 32 bytes> per line, the first seals")
	ErrUnknownKey     = errors.New("sealed under a key that is not in the key ring")
	ErrNotOpened      = errors.New("sealed secret does not open: another record's, or altered")
)

// ParseKeyRing reads a key ring: one "<id>:<base64 of 32 bytes>" per line or
// between commas; empty lines and lines behind # are left out. No error quotes a key.
func ParseKeyRing(text string) (KeyRing, error) {
	ring := KeyRing{keys: make(map[string]cipher.AEAD)}
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == ',' || r == '\r' })
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, encoded, _ := strings.Cut(line, ":")
		key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
		if err != nil || len(key) != 32 || id == "" || len(id) > 32 || !isText(id) {
			return KeyRing{}, fmt.Errorf("reading key ring, entry %d: %w", i+1, ErrInvalidKeyRing)
		}
		if _, twice := ring.keys[id]; twice {
			return KeyRing{}, fmt.Errorf("reading key ring: id %q twice: %w", id, ErrInvalidKeyRing)
		}
		if ring.keys[id], err = newAEAD(key); err != nil {
			return KeyRing{}, fmt.Errorf("reading key ring, entry %d: %w", i+1, err)
		}
		if ring.first == "" {
			ring.first = id
		}
	}
	if ring.first == "" {
		return KeyRing{}, fmt.Errorf("reading key ring: it is empty: %w", ErrInvalidKeyRing)
	}
	return ring, nil
}

// CheckKeyRing says what is wrong with the text of a key ring.
func CheckKeyRing(text string) error {
	_, err := ParseKeyRing(text)
	return err
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("making AES-256: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("making GCM: %w", err)
	}
	return aead, nil
}

// NewKeyRing returns the text of a key ring with one new random key, for ParseKeyRing.
func NewKeyRing(id string) string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails since Go 1.24
	return id + ":" + base64.StdEncoding.EncodeToString(key) + "\n"
}

// Seal encrypts plain under the first key. What it seals opens under the same identity only.
func (k KeyRing) Seal(identity string, plain []byte) (SealedSecret, error) {
	aead, ok := k.keys[k.first]
	if !ok {
		return SealedSecret{}, fmt.Errorf("sealing for %q: %w", identity, ErrUnknownKey)
	}
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails since Go 1.24
	return SealedSecret{
		KeyID:      k.first,
		Nonce:      nonce,
		Ciphertext: aead.Seal(nil, nonce, plain, []byte(identity)),
		CreatedAt:  time.Now().UTC().Truncate(time.Millisecond),
	}, nil
}

// Open decrypts a sealed secret. The errors are ErrUnknownKey and ErrNotOpened.
func (k KeyRing) Open(identity string, s SealedSecret) ([]byte, error) {
	aead, ok := k.keys[s.KeyID]
	if !ok {
		return nil, fmt.Errorf("opening for %q: key %.32q: %w", identity, s.KeyID, ErrUnknownKey)
	}
	if len(s.Nonce) != aead.NonceSize() {
		return nil, fmt.Errorf("opening for %q: %w", identity, ErrNotOpened)
	}
	plain, err := aead.Open(nil, s.Nonce, s.Ciphertext, []byte(identity))
	if err != nil {
		return nil, fmt.Errorf("opening for %q: %w", identity, ErrNotOpened)
	}
	return plain, nil
}
