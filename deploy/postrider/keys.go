package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

func keysCommand() *cobra.Command {
	return group("keys", "Create, list and revoke API keys",
		leaf("create", "Create an API key; it is shown this once", &createKey{}),
		leaf("list", "List API keys", &listKeys{}),
		leaf("revoke", "Revoke an API key", &revokeKey{}),
	)
}

// keyView is a key as the API shows it.
type keyView struct {
	registry.KeyView

	Key string `json:"key,omitempty"` // only in the answer to its creation
}

type createKey struct {
	api          api
	organization string
	name         string
	scopes       []string
	rate         string
}

// Register implements process.Registrar.
func (c *createKey) Register(s *process.Settings) {
	c.api.Register(s)
	s.String(&c.organization, "organization", "", "whose key it is; empty: one for all organizations")
	s.String(&c.name, "name", "", "what people call it")
	s.Strings(&c.scopes, "scopes", []string{schemas.ScopeEventsWrite}, "what it may do: "+strings.Join(schemas.Scopes(), ", "))
	s.String(&c.rate, "rate-limit", "", "requests it may make at each ingest, such as 100/second or 600/minute; empty: ingest's default")
	s.Required("scopes")
	s.CheckText(&c.rate, "rate-limit", func(text string) error {
		_, err := schemas.ParseRateLimit(text)
		return err
	})
}

func (c *createKey) run(ctx context.Context, t *terminal) error {
	rate, err := schemas.ParseRateLimit(c.rate)
	if err != nil {
		return err //nolint:wrapcheck // told with the settings before
	}
	body, err := json.Marshal(struct {
		Organization string             `json:"organization,omitempty"`
		Name         string             `json:"name,omitempty"`
		Scopes       []string           `json:"scopes"`
		RateLimit    *schemas.RateLimit `json:"rate_limit,omitempty"`
	}{c.organization, c.name, c.scopes, rate})
	if err != nil {
		return fmt.Errorf("encoding key: %w", err)
	}
	var made keyView
	if err := c.api.call(ctx, t, "creating key", http.MethodPost, "/v1/keys", body, &made); err != nil {
		return err
	}
	if t.asJSON {
		return t.showJSON(made)
	}
	return t.showTable([]string{"ID", made.ID}, [][]string{
		{"ORGANIZATION", orAll(made.Organization)},
		{"SCOPES", strings.Join(made.Scopes, ",")},
		{"KEY", made.Key},
	})
}

type listKeys struct {
	api          api
	organization string
}

// Register implements process.Registrar.
func (l *listKeys) Register(s *process.Settings) {
	l.api.Register(s)
	s.String(&l.organization, "organization", "", "only this one's keys")
}

func (l *listKeys) run(ctx context.Context, t *terminal) error {
	query := url.Values{}
	if l.organization != "" {
		query.Set("organization", l.organization)
	}
	keys, err := list[keyView](ctx, &l.api, t, "listing keys", "/v1/keys", query)
	if err != nil {
		return err
	}
	if t.asJSON {
		return t.showJSON(page[keyView]{Data: keys})
	}
	rows := make([][]string, 0, len(keys))
	for _, k := range keys {
		rows = append(rows, []string{
			k.ID, orAll(k.Organization), k.Name, strings.Join(k.Scopes, ","), rateText(k.RateLimit), moment(k.CreatedAt), moment(k.LastUsedAt), moment(k.RevokedAt),
		})
	}
	return t.showTable([]string{"ID", "ORGANIZATION", "NAME", "SCOPES", "RATE LIMIT", "CREATED", "LAST USED", "REVOKED"}, rows)
}

type revokeKey struct {
	api api
	ids []string
}

// Register implements process.Registrar.
func (r *revokeKey) Register(s *process.Settings) {
	r.api.Register(s)
	s.Arguments(&r.ids, "ID")
	s.Check(func() error {
		if len(r.ids) != 1 {
			return &usageError{command: "postrider keys revoke", problem: fmt.Sprintf("%d arguments: must be one, the key's id", len(r.ids))}
		}
		return nil
	})
}

func (r *revokeKey) run(ctx context.Context, t *terminal) error {
	id := r.ids[0]
	if err := r.api.call(ctx, t, "revoking key "+id, http.MethodDelete, "/v1/keys/"+url.PathEscape(id), nil, nil); err != nil {
		return err
	}
	if t.asJSON {
		return t.showJSON(map[string]string{"id": id})
	}
	return t.showLine("Key %s is revoked.", id)
}

func rateText(limit *schemas.RateLimit) string {
	if limit == nil {
		return ""
	}
	return fmt.Sprintf("%d/%s", limit.Count, limit.Per)
}

// moment is a time for people; nothing where there is none.
func moment(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.Format(time.RFC3339)
}

func orAll(organization string) string {
	if organization == "" {
		return "(all)"
	}
	return organization
}
