package schemas

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Prefixes of the ids Postrider makes.
const (
	eventPrefix    = "evt_"
	webhookPrefix  = "wh_"
	deliveryPrefix = "dlv_"
	messagePrefix  = "msg_"
	keyPrefix      = "key_"
	signingPrefix  = "whk_"
	jobPrefix      = "job_"
)

// idEncoding is base32 with the digits before the letters (RFC 4648, section 7),
// in lower case: encoded ids sort as their bytes do, and hold no '.', which a
// Standard Webhooks message id may not.
//
//nolint:gochecknoglobals // a constant table
var idEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// NewEventID returns a fresh event id: evt_ and 26 characters, ordered by the time it was made.
func NewEventID() string { return newID(eventPrefix) }

// NewWebhookID returns a fresh webhook id: wh_ and 26 characters.
func NewWebhookID() string { return newID(webhookPrefix) }

// NewKeyID returns a fresh API key id: key_ and 26 characters.
func NewKeyID() string { return newID(keyPrefix) }

// NewSigningKeyID returns a fresh id of a webhook's signing key: whk_ and 26 characters.
func NewSigningKeyID() string { return newID(signingPrefix) }

// NewJobID returns a fresh id of a job: job_ and 26 characters.
func NewJobID() string { return newID(jobPrefix) }

// newID encodes 6 bytes of milliseconds since 1970 and 10 random ones, so that
// ids made later sort later (as UUID version 7 does, RFC 9562 section 5.7).
func newID(prefix string) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(time.Now().UnixMilli())<<16)
	_, _ = rand.Read(b[6:]) // never fails since Go 1.24
	return prefix + idEncoding.EncodeToString(b[:])
}

// EventIDAt returns the id of an event that came without one: a function of its
// place in the log, so that a second reading gives the same.
func EventIDAt(topicID [16]byte, partition int32, offset int64) string {
	place := DeliveryID{Topic: topicID, Partition: partition, Offset: offset}.bytes()
	sum := sha256.Sum256(place[:])
	return eventPrefix + idEncoding.EncodeToString(sum[:16])
}

// EventIDOf returns the id of an event that came without one under an idempotency
// key: a function of its organization, the key and its number in the batch, so that
// a repeat is known by it (P3).
func EventIDOf(organization, key string, item int) string {
	return eventPrefix + idOf("event", organization, key, strconv.Itoa(item))
}

// WebhookIDOf returns the id of a webhook that was made under an idempotency key.
func WebhookIDOf(organization, key string) string {
	return webhookPrefix + idOf("webhook", organization, key)
}

// MessageID returns what a receiver sees as webhook-id: a function of the
// organization, event and webhook, so the same over attempts, crashes and replays.
func MessageID(organization, eventID, webhookID string) string {
	return messagePrefix + idOf(organization, eventID, webhookID)
}

// idOf returns 26 characters that are a function of texts.
func idOf(texts ...string) string {
	sum := Digest(texts...)
	return idEncoding.EncodeToString(sum[:16])
}

// Digest returns the SHA-256 of texts, each behind its length: ("ab", "c") and
// ("a", "bc") do not meet.
func Digest(texts ...string) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, s := range texts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	h.Sum(sum[:0])
	return sum
}

// DeliveryID names a delivery by its place in the deliveries topic. Writing
// exactly once makes it unique.
type DeliveryID struct {
	Topic     [16]byte // the topic's id, which a topic made again under the same name does not share
	Partition int32
	Offset    int64
}

func (d DeliveryID) bytes() [28]byte {
	var b [28]byte
	copy(b[:16], d.Topic[:])
	binary.BigEndian.PutUint32(b[16:], uint32(d.Partition)) //nolint:gosec // bit pattern, read back below
	binary.BigEndian.PutUint64(b[20:], uint64(d.Offset))    //nolint:gosec // bit pattern, read back below
	return b
}

// String returns dlv_ and 45 characters, ordered by partition and offset within a topic.
func (d DeliveryID) String() string {
	b := d.bytes()
	return deliveryPrefix + idEncoding.EncodeToString(b[:])
}

// ErrInvalidDeliveryID is returned for text that is no delivery id.
var ErrInvalidDeliveryID = errors.New("not a delivery id (dlv_ and 45 characters 0-9a-v)")

// ParseDeliveryID reads what String wrote.
func ParseDeliveryID(s string) (DeliveryID, error) {
	d, ok := parseDeliveryID([]byte(s))
	if !ok {
		return DeliveryID{}, fmt.Errorf("parsing delivery id %.64q: %w", s, ErrInvalidDeliveryID)
	}
	return d, nil
}

// parseDeliveryID makes no text and no error: a delivery is counted in less time than these take.
func parseDeliveryID(text []byte) (DeliveryID, bool) {
	const characters = 45 // of 5 bits, the last of which is spare
	rest, ok := bytes.CutPrefix(text, []byte(deliveryPrefix))
	if !ok || len(rest) != characters {
		return DeliveryID{}, false
	}
	var b [28]byte
	var bits uint64
	held, n := 0, 0
	for _, c := range rest {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'v':
			c -= 'a' - 10
		default:
			return DeliveryID{}, false
		}
		bits = bits<<5 | uint64(c)
		if held += 5; held >= 8 {
			held -= 8
			b[n] = byte(bits >> held) //nolint:gosec // the low byte is meant
			n++
		}
	}
	if bits&1 != 0 { // one id, one text
		return DeliveryID{}, false
	}
	d := DeliveryID{
		Partition: int32(binary.BigEndian.Uint32(b[16:])), //nolint:gosec // bit pattern
		Offset:    int64(binary.BigEndian.Uint64(b[20:])), //nolint:gosec // bit pattern
	}
	copy(d.Topic[:], b[:])
	return d, true
}

// MarshalText makes a delivery id its text in JSON.
func (d DeliveryID) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads it back.
func (d *DeliveryID) UnmarshalText(b []byte) error {
	parsed, err := ParseDeliveryID(string(b))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}
