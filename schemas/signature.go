package schemas

import (
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

// AppendSignature appends "v1," and the base64 of HMAC-SHA256 over
// "{messageID}.{unixSeconds}.{body}" (Standard Webhooks 1.0, "Signature scheme").
// Several signatures in one header stand apart by a space, which is the caller's.
func AppendSignature(dst, secret []byte, messageID string, unixSeconds int64, body []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	head := make([]byte, 0, 64)
	head = append(head, messageID...)
	head = append(head, '.')
	head = strconv.AppendInt(head, unixSeconds, 10)
	head = append(head, '.')
	mac.Write(head)
	mac.Write(body)
	var sum [sha256.Size]byte
	dst = append(dst, "v1,"...)
	return base64.StdEncoding.AppendEncode(dst, mac.Sum(sum[:0]))
}
