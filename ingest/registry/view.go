package registry

import (
	"time"

	"github.com/postrider/postrider/schemas"
)

// WebhookView is a webhook as the API shows it and as changes keep it: without its secrets.
type WebhookView struct {
	ID           string       `json:"id"`
	Organization string       `json:"organization"`
	Account      string       `json:"account,omitempty"`
	Active       bool         `json:"active"`
	State        WebhookState `json:"state"`
	DisabledAt   time.Time    `json:"disabled_at,omitzero"` // by the sender
	// DisabledReason is why it is disabled where its owner has not done it.
	DisabledReason string            `json:"disabled_reason,omitempty"`
	FailingSince   time.Time         `json:"failing_since,omitzero"`
	URL            string            `json:"url"`
	Events         []string          `json:"events"`
	Description    string            `json:"description,omitempty"`
	Metadata       map[string]string `json:"metadata,omitempty"`
	Filter         string            `json:"filter,omitempty"`
	Format         schemas.Format    `json:"format,omitempty"`
	schemas.Handling
	Headers    []HeaderView `json:"headers,omitempty"`
	Auth       *AuthView    `json:"auth,omitempty"`
	Signatures []string     `json:"signatures,omitempty"`
	PublicKeys []PublicKey  `json:"public_keys,omitempty"` // of v1a, newest first
	Generation int64        `json:"generation"`            // grows each time it is enabled
	Revision   int64        `json:"revision"`
	CreatedAt  time.Time    `json:"created_at"`
	UpdatedAt  time.Time    `json:"updated_at"`
}

// HeaderView is a header without its value where that is sensitive.
type HeaderView struct {
	Name      string `json:"name"`
	Value     string `json:"value,omitempty"`
	Sensitive bool   `json:"sensitive,omitempty"`
}

func viewHeaders(headers []schemas.Header) []HeaderView {
	var views []HeaderView
	for _, h := range headers {
		views = append(views, HeaderView{Name: h.Name, Value: h.Value, Sensitive: h.Sealed != nil})
	}
	return views
}

// AuthView is how requests authenticate, without password or token.
type AuthView struct {
	Type     string `json:"type"`
	Username string `json:"username,omitempty"`
}

func viewAuth(a *schemas.Auth) *AuthView {
	if a == nil {
		return nil
	}
	return &AuthView{Type: a.Type, Username: a.Username}
}

// PublicKey is what receivers verify signatures of the scheme v1a with.
type PublicKey struct {
	ID        string `json:"id"`
	PublicKey string `json:"public_key"` // whpk_…
	// ExpiresAt is when it ends to be used beside the one that took its place.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// PublicKeys returns those of a webhook that signs by v1a.
func PublicKeys(w *schemas.Webhook) []PublicKey {
	if !w.SignsBy(schemas.SchemeEd25519) {
		return nil
	}
	var keys []PublicKey
	for _, k := range w.SigningKeys {
		if k.Seed.Live(time.Now()) {
			keys = append(keys, PublicKey{ID: k.ID, PublicKey: k.PublicKey, ExpiresAt: k.Seed.ExpiresAt})
		}
	}
	return keys
}

// WebhookState is what becomes of a webhook's deliveries.
type WebhookState string

// The states, the weightiest last.
const (
	StateActive   WebhookState = "active"
	StatePaused   WebhookState = "paused"   // they are held
	StateDisabled WebhookState = "disabled" // they are discarded
)

// StateOf returns what becomes of a webhook's deliveries.
func (r *Registry) StateOf(w *schemas.Webhook) WebhookState {
	switch {
	case !r.Enabled(w):
		return StateDisabled
	case w.Paused:
		return StatePaused
	default:
		return StateActive
	}
}

// ViewWebhook returns what may be shown of a webhook, and of what the sender found out about it.
func (r *Registry) ViewWebhook(w *schemas.Webhook) WebhookView {
	found := r.stateOf(w)
	v := WebhookView{
		ID:             w.ID,
		Organization:   w.Organization,
		Account:        w.Account,
		Active:         w.Active,
		State:          r.StateOf(w),
		DisabledAt:     found.DisabledAt,
		DisabledReason: found.Reason,
		FailingSince:   found.FailingSince,
		URL:            w.URL,
		Events:         w.Events,
		Description:    w.Description,
		Metadata:       w.Metadata,
		Filter:         w.Filter,
		Format:         w.Format,
		Handling:       w.Handling,
		Headers:        viewHeaders(w.Headers),
		Auth:           viewAuth(w.Auth),
		Signatures:     w.Signatures,
		PublicKeys:     PublicKeys(w),
		Generation:     w.Generation,
		Revision:       w.Revision,
		CreatedAt:      w.CreatedAt,
		UpdatedAt:      w.UpdatedAt,
	}
	if w.Invalid != "" {
		v.DisabledReason = "invalid: " + w.Invalid
	}
	return v
}

// KeyView is an API key as the API shows it and as changes keep it: without its hash.
type KeyView struct {
	ID           string   `json:"id"`
	Organization string   `json:"organization,omitempty"`
	Name         string   `json:"name,omitempty"`
	Scopes       []string `json:"scopes"`
	// RateLimit is its own; nil: ingest's default.
	RateLimit  *schemas.RateLimit `json:"rate_limit,omitempty"`
	CreatedAt  time.Time          `json:"created_at"`
	LastUsedAt time.Time          `json:"last_used_at,omitzero"` // at most six minutes behind
	RevokedAt  time.Time          `json:"revoked_at,omitzero"`
}

// ViewKey returns what may be shown of an API key.
func ViewKey(k *schemas.Key) KeyView {
	return KeyView{
		ID:           k.ID,
		Organization: k.Organization,
		Name:         k.Name,
		Scopes:       k.Scopes,
		RateLimit:    k.RateLimit,
		CreatedAt:    k.CreatedAt,
		LastUsedAt:   k.LastUsedAt,
		RevokedAt:    k.RevokedAt,
	}
}

// JobView is a job as the API shows it and as changes keep it.
type JobView struct {
	ID           string           `json:"id"`
	Organization string           `json:"organization"`
	WebhookID    string           `json:"webhook_id"`
	State        schemas.JobState `json:"state"`
	Reason       string           `json:"reason,omitempty"`
	Since        time.Time        `json:"since"`
	Until        time.Time        `json:"until"`
	Rate         int              `json:"rate"`
	Total        int              `json:"total"`
	Done         int              `json:"done"`
	Skipped      int              `json:"skipped"`
	CreatedAt    time.Time        `json:"created_at"`
	UpdatedAt    time.Time        `json:"updated_at"`
	EndedAt      time.Time        `json:"ended_at,omitzero"`
}

// ViewJob returns what may be shown of a job.
func ViewJob(j *schemas.Job) JobView {
	return JobView{
		ID:           j.ID,
		Organization: j.Organization,
		WebhookID:    j.WebhookID,
		State:        j.State,
		Reason:       j.Reason,
		Since:        j.Since,
		Until:        j.Until,
		Rate:         j.Rate,
		Total:        j.Total,
		Done:         j.Done,
		Skipped:      j.Skipped,
		CreatedAt:    j.CreatedAt,
		UpdatedAt:    j.MovedAt,
		EndedAt:      j.EndedAt,
	}
}
