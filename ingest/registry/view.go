package registry

import (
	"time"

	"github.com/postrider/postrider/schemas"
)

// WebhookView is a webhook as the API shows it and as changes keep it: without its secrets.
type WebhookView struct {
	ID           string            `json:"id"`
	Organization string            `json:"organization"`
	Account      string            `json:"account,omitempty"`
	Active       bool              `json:"active"`
	URL          string            `json:"url"`
	Events       []string          `json:"events"`
	Description  string            `json:"description,omitempty"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	schemas.Handling
	Revision  int64     `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// ViewWebhook returns what may be shown of a webhook.
func ViewWebhook(w *schemas.Webhook) WebhookView {
	return WebhookView{
		ID:           w.ID,
		Organization: w.Organization,
		Account:      w.Account,
		Active:       w.Active,
		URL:          w.URL,
		Events:       w.Events,
		Description:  w.Description,
		Metadata:     w.Metadata,
		Handling:     w.Handling,
		Revision:     w.Revision,
		CreatedAt:    w.CreatedAt,
		UpdatedAt:    w.UpdatedAt,
	}
}

// KeyView is an API key as the API shows it and as changes keep it: without its hash.
type KeyView struct {
	ID           string    `json:"id"`
	Organization string    `json:"organization,omitempty"`
	Name         string    `json:"name,omitempty"`
	Scopes       []string  `json:"scopes"`
	CreatedAt    time.Time `json:"created_at"`
	RevokedAt    time.Time `json:"revoked_at,omitzero"`
}

// ViewKey returns what may be shown of an API key.
func ViewKey(k *schemas.Key) KeyView {
	return KeyView{
		ID:           k.ID,
		Organization: k.Organization,
		Name:         k.Name,
		Scopes:       k.Scopes,
		CreatedAt:    k.CreatedAt,
		RevokedAt:    k.RevokedAt,
	}
}
