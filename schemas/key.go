package schemas

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Scopes of API keys.
const (
	ScopeEventsWrite     = "events:write"
	ScopeWebhooksRead    = "webhooks:read"
	ScopeWebhooksWrite   = "webhooks:write"
	ScopeDeliveriesRead  = "deliveries:read"
	ScopePayloadsRead    = "payloads:read"
	ScopeDeliveriesRetry = "deliveries:retry"
	ScopeKeysWrite       = "keys:write"
)

// Scopes returns all scopes; the admin key has every one.
func Scopes() []string {
	return []string{
		ScopeEventsWrite, ScopeWebhooksRead, ScopeWebhooksWrite,
		ScopeDeliveriesRead, ScopePayloadsRead, ScopeDeliveriesRetry, ScopeKeysWrite,
	}
}

// ValidScope reports whether scope exists.
func ValidScope(scope string) bool { return slices.Contains(Scopes(), scope) }

// Key is an API key as it stands in the compacted topic keys: its hash, never itself (P9).
type Key struct {
	ID string `json:"id" validate:"required,max=64,text"`
	// Organization is whose key it is; empty: all organizations (admin).
	Organization string   `json:"organization,omitempty" validate:"max=128,text"`
	Name         string   `json:"name,omitempty" validate:"max=200,text"`
	Scopes       []string `json:"scopes" validate:"min=1,unique,dive,scope"`
	// Hash is SHA-256 of the whole key in hexadecimal.
	Hash string `json:"hash" validate:"len=64,hexadecimal"`
	// RateLimit bounds its requests, at each ingest; nil: ingest's default.
	RateLimit *RateLimit `json:"rate_limit,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	// LastUsedAt is at most six minutes behind; zero while it was never used.
	LastUsedAt time.Time `json:"last_used_at,omitzero"`
	// RevokedAt is zero while the key is good.
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// Record returns the key's record.
func (k *Key) Record(topic string) (*kgo.Record, error) { return jsonRecord(topic, k.ID, k) }

// DecodeKey reads a record of keys. ErrTombstone says that the key is deleted.
func DecodeKey(r *kgo.Record) (Key, error) {
	var k Key
	if err := decodeCompacted(r, &k); err != nil {
		return Key{}, err
	}
	if k.ID != string(r.Key) {
		return Key{}, fmt.Errorf("decoding API key %.64q: %w", r.Key, Invalid(CodeInvalidRecord, "#/id", "differs from the record's key"))
	}
	if err := Validate(&k); err != nil {
		return Key{}, fmt.Errorf("decoding API key %.64q: %w", r.Key, err)
	}
	return k, nil
}

// Change is one action of an operator or of Postrider itself on what stands in
// a compacted topic: who, what, before and after, without secrets.
type Change struct {
	At time.Time `json:"at"`
	// Actor is the API key's id, "admin" for the bootstrap key, or the service's instance.
	Actor string `json:"actor"`
	// Action is "created", "updated", "deleted", "revoked" and the like.
	Action string `json:"action"`
	// Object is "webhook" or "key".
	Object       string `json:"object"`
	ObjectID     string `json:"object_id"`
	Organization string `json:"organization,omitempty"`
	RequestID    string `json:"request_id,omitempty"`
	// Before and After are the object as the API shows it.
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
	// Error is why the action was refused; empty: it was done.
	Error string `json:"error,omitempty"`
}

// Record returns the change's record, keyed by organization.
func (c *Change) Record(topic string) (*kgo.Record, error) {
	return jsonRecord(topic, c.Organization, c)
}

// DecodeChange reads a record of changes. The error is *UnknownVersionError or holds a *ValidationError.
func DecodeChange(r *kgo.Record) (Change, error) {
	var c Change
	if err := decodeValue(r, &c); err != nil {
		return Change{}, err
	}
	if c.Action == "" || c.Object == "" {
		return Change{}, fmt.Errorf("decoding change: %w", Invalid(CodeInvalidRecord, "#/action", "missing"))
	}
	return c, nil
}
