package schemas

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Webhook is the subscription of one URL to event patterns, as it stands in the
// compacted topic webhooks under its id. A tombstone deletes it.
type Webhook struct {
	ID           string `json:"id" validate:"required,max=64,text"`
	Organization string `json:"organization" validate:"required,max=128,text"`
	// Account narrows the webhook to one account of the organization; empty: all of it.
	Account string `json:"account,omitempty" validate:"max=128,text"`
	// Active is false while its owner has disabled it.
	Active bool `json:"active"`
	// Paused is true while its owner wants its deliveries held.
	Paused bool `json:"paused,omitempty"`
	// ResumedAt is when it was paused no longer: what was held until then is released.
	ResumedAt   time.Time         `json:"resumed_at,omitzero"`
	URL         string            `json:"url" validate:"required,max=2048"`
	Events      []string          `json:"events" validate:"min=1,max=100,unique,dive,pattern"`
	Description string            `json:"description,omitempty" validate:"max=1000,text"`
	Metadata    map[string]string `json:"metadata,omitempty" validate:"max=50,dive,keys,min=1,max=64,text,endkeys,max=512,text"`
	// Filter is an expression that events must pass (package filter); empty: all do.
	// Whether it can be compiled is looked at when it is made, and when the first event comes to it.
	Filter string `json:"filter,omitempty" validate:"max=4096"` // MaxFilterLength
	// Format is that of its requests' bodies; empty: FormatPlain.
	Format Format `json:"format,omitempty" validate:"format"`
	Handling
	// Headers and Auth go with each of its requests.
	Headers []Header `json:"headers,omitempty" validate:"max=20,headers,dive"`
	Auth    *Auth    `json:"auth,omitempty"`
	// Signatures are the schemes that its requests are signed with; empty: v1.
	Signatures []string `json:"signatures,omitempty" validate:"unique,dive,oneof=v1 v1a"`
	// Secrets sign by v1, newest first. They are sealed (P9) under SecretIdentity.
	Secrets []SealedSecret `json:"secrets"`
	// SigningKeys sign by v1a, newest first.
	SigningKeys []SigningKey `json:"signing_keys,omitempty"`
	// Generation grows each time the owner enables it, so that enabling wins
	// over a disable that the sender decided for an earlier one.
	Generation int64 `json:"generation"`
	// Revision grows with each change and is its ETag.
	Revision  int64     `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`

	// Invalid is set where the record's settings break a rule: which one, and at
	// which pointer. Then Active is false, whatever the record says, and nothing of
	// the settings may be applied.
	Invalid string `json:"-"`
}

// MaxFilterLength is how many characters a filter may have.
const MaxFilterLength = 4096

// SigningKey is a key pair of one webhook. Its private half, the seed of RFC 8032
// (32 bytes), is sealed under KeyIdentity.
type SigningKey struct {
	ID        string       `json:"id"`
	PublicKey string       `json:"public_key"` // whpk_…
	Seed      SealedSecret `json:"seed"`
}

// KeyIdentity is the associated data that the seed of a signing key is sealed with.
func (w *Webhook) KeyIdentity() string { return "webhook/" + w.ID + "/signing-key" }

// SignsBy reports whether its requests carry signatures of a scheme.
func (w *Webhook) SignsBy(scheme string) bool {
	if len(w.Signatures) == 0 {
		return scheme == SchemeHMAC
	}
	return slices.Contains(w.Signatures, scheme)
}

// Reseal returns the webhook with its secrets sealed under the ring's first key,
// and whether that changed any.
func (w *Webhook) Reseal(ring KeyRing) (resealed Webhook, changed bool, err error) {
	resealed = *w
	resealed.Secrets, resealed.SigningKeys, resealed.Headers = slices.Clone(w.Secrets), slices.Clone(w.SigningKeys), slices.Clone(w.Headers)
	reseal := func(identity string, sealed *SealedSecret) {
		fresh, failed := ring.Reseal(identity, *sealed)
		changed = changed || fresh.KeyID != sealed.KeyID
		err = cmp.Or(err, failed)
		*sealed = fresh
	}
	for i := range resealed.Secrets {
		reseal(w.SecretIdentity(), &resealed.Secrets[i])
	}
	for i := range resealed.SigningKeys {
		reseal(w.KeyIdentity(), &resealed.SigningKeys[i].Seed)
	}
	for i, h := range w.Headers {
		if h.Sealed != nil {
			resealed.Headers[i].Sealed = new(*h.Sealed)
			reseal(w.HeaderIdentity(h.Name), resealed.Headers[i].Sealed)
		}
	}
	if w.Auth != nil {
		resealed.Auth = new(*w.Auth)
		reseal(w.AuthIdentity(), &resealed.Auth.Sealed)
	}
	return resealed, changed, err
}

// SecretIdentity is the associated data its secrets are sealed with: a secret
// copied into another webhook's record does not open.
func (w *Webhook) SecretIdentity() string { return "webhook/" + w.ID + "/secret" }

// Record returns the webhook's record. It fails only on what JSON cannot say.
func (w *Webhook) Record(topic string) (*kgo.Record, error) { return jsonRecord(topic, w.ID, w) }

// maxInvalidBytes bounds the record of a webhook that is shown although its
// settings make no sense: what is told of one change of it, before and after, must
// fit into a record, and JSON may make six bytes of one.
const maxInvalidBytes = 64 << 10

// DecodeWebhook reads a record of webhooks. ErrTombstone says that the key is
// deleted. Settings that make no sense are no error: the webhook is Invalid.
func DecodeWebhook(r *kgo.Record) (Webhook, error) {
	var w Webhook
	if err := decodeCompacted(r, &w); err != nil {
		return Webhook{}, err
	}
	if w.ID != string(r.Key) {
		return Webhook{}, fmt.Errorf("decoding webhook %.64q: %w", r.Key, Invalid(CodeInvalidRecord, "#/id", "differs from the record's key"))
	}
	if fields := fieldErrors(&w); len(fields) > 0 {
		if w.Organization == "" || len(r.Value) > maxInvalidBytes {
			return Webhook{}, fmt.Errorf("decoding webhook %.64q: %w", r.Key, &ValidationError{Fields: fields})
		}
		w.Active, w.Invalid = false, fmt.Sprintf("%.200s: %s", fields[0].Pointer, fields[0].Detail)
	}
	return w, nil
}

// WebhookState is what the sender found out about a webhook, in the compacted
// topic webhook-states. It counts for one generation of the webhook only.
type WebhookState struct {
	WebhookID  string `json:"webhook_id" validate:"required,max=64"`
	Generation int64  `json:"generation"`
	// FailingSince is the first failure with no success after it; zero: not failing.
	FailingSince time.Time `json:"failing_since,omitzero"`
	// Attempts counts those failures.
	Attempts int `json:"attempts,omitempty"`
	// DisabledAt is when the sender disabled it; zero: it did not.
	DisabledAt time.Time `json:"disabled_at,omitzero"`
	// Reason is why it was disabled.
	Reason string `json:"reason,omitempty"`
}

// Record returns the state's record.
func (s *WebhookState) Record(topic string) (*kgo.Record, error) {
	return jsonRecord(topic, s.WebhookID, s)
}

// DecodeWebhookState reads a record of webhook-states. ErrTombstone says that the key is deleted.
func DecodeWebhookState(r *kgo.Record) (WebhookState, error) {
	var s WebhookState
	if err := decodeCompacted(r, &s); err != nil {
		return WebhookState{}, err
	}
	if s.WebhookID != string(r.Key) {
		return WebhookState{}, fmt.Errorf("decoding state of webhook %.64q: %w", r.Key,
			Invalid(CodeInvalidRecord, "#/webhook_id", "differs from the record's key"))
	}
	return s, nil
}

// Tombstone returns the record that deletes key from a compacted topic.
func Tombstone(topic, key string) *kgo.Record {
	return &kgo.Record{Topic: topic, Key: []byte(key), Headers: []kgo.RecordHeader{versionHeader()}}
}

func jsonRecord(topic, key string, v any) (*kgo.Record, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %q for %s: %w", key, topic, err)
	}
	return &kgo.Record{Topic: topic, Key: []byte(key), Value: value, Headers: []kgo.RecordHeader{versionHeader()}}, nil
}

// decodeCompacted reads the value of a record of a compacted topic. Members it
// does not know are a newer minor form's and are left alone.
func decodeCompacted(r *kgo.Record, v any) error {
	if len(r.Key) == 0 {
		return fmt.Errorf("decoding record of %s: %w", r.Topic, Invalid(CodeInvalidRecord, "#", "no key"))
	}
	if r.Value == nil {
		return ErrTombstone // of any version: compaction takes them all
	}
	if err := checkVersion(r); err != nil {
		return err
	}
	if err := json.Unmarshal(r.Value, v); err != nil {
		return fmt.Errorf("decoding record of %s under %.64q: %w", r.Topic, r.Key,
			Invalid(CodeInvalidJSON, "#", "not this record's JSON: "+err.Error()))
	}
	return nil
}
