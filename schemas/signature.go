package schemas

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strconv"
)

// Headers of a request to a target (Standard Webhooks 1.0, "Webhook headers").
const (
	HeaderWebhookID        = "webhook-id"
	HeaderWebhookTimestamp = "webhook-timestamp"
	HeaderWebhookSignature = "webhook-signature"
	// HeaderSequence grows with each delivery to one webhook, with gaps.
	HeaderSequence = "postrider-sequence"
)

// Schemes of signatures (Standard Webhooks 1.0, "Signature scheme").
const (
	SchemeHMAC    = "v1"  // HMAC-SHA256 under a secret that both sides hold
	SchemeEd25519 = "v1a" // Ed25519; whoever has the public key can verify
)

const publicKeyPrefix = "whpk_"

// AppendSignature appends "v1," and the base64 of HMAC-SHA256 over
// "{messageID}.{unixSeconds}.{body}" (Standard Webhooks 1.0, "Signature scheme").
// Several signatures in one header stand apart by a space, which is the caller's.
func AppendSignature(dst, secret []byte, messageID string, unixSeconds int64, body []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write(appendSigned(make([]byte, 0, 64), messageID, unixSeconds))
	mac.Write(body)
	var sum [sha256.Size]byte
	dst = append(dst, SchemeHMAC+","...)
	return base64.StdEncoding.AppendEncode(dst, mac.Sum(sum[:0]))
}

// AppendSignatureV1a appends "v1a," and the base64 of the Ed25519 signature over the same.
func AppendSignatureV1a(dst []byte, key ed25519.PrivateKey, messageID string, unixSeconds int64, body []byte) []byte {
	signed := appendSigned(make([]byte, 0, len(messageID)+len(body)+24), messageID, unixSeconds)
	dst = append(dst, SchemeEd25519+","...)
	return base64.StdEncoding.AppendEncode(dst, ed25519.Sign(key, append(signed, body...)))
}

// appendSigned appends what is signed before the body.
func appendSigned(dst []byte, messageID string, unixSeconds int64) []byte {
	dst = append(dst, messageID...)
	dst = append(dst, '.')
	dst = strconv.AppendInt(dst, unixSeconds, 10)
	return append(dst, '.')
}

// FormatPublicKey returns a public key as receivers take it: whpk_ and base64.
func FormatPublicKey(key ed25519.PublicKey) string {
	return publicKeyPrefix + base64.StdEncoding.EncodeToString(key)
}
