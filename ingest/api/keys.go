package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

// keyCreated is the answer to a key's creation.
type keyCreated struct {
	registry.KeyView
	Key string `json:"key"` // shown this once
}

func (s *Server) listKeys(ctx context.Context, c *call) error {
	p, organization, after := c.page()
	if p.err != nil {
		return p.err
	}
	if err := s.Registry.Fresh(ctx); err != nil {
		return err
	}
	rows, more, err := s.Registry.Keys(organization, after, p.limit)
	if err != nil {
		return err
	}
	page := list[registry.KeyView]{Data: make([]registry.KeyView, len(rows))}
	for i := range rows {
		page.Data[i] = registry.ViewKey(&rows[i])
	}
	if more {
		page.Next = p.next(c, rows[len(rows)-1].ID)
	}
	return c.answer(fasthttp.StatusOK, page)
}

func (s *Server) postKeys(ctx context.Context, c *call) error {
	body, err := c.jsonBody()
	if err != nil {
		return err
	}
	k, token, err := newKey(c.who, body)
	if err != nil {
		return err
	}
	made, err := s.Registry.ChangeKey(ctx, c.actor(), "created", k.ID, func(old *schemas.Key) (*schemas.Key, error) {
		if old != nil {
			return nil, errors.New("BUG: a new key's id is taken")
		}
		return &k, nil
	})
	if err != nil {
		return err
	}
	return c.answer(fasthttp.StatusCreated, keyCreated{registry.ViewKey(&made), token})
}

// newKey reads the body that creates a key. Nobody can give what they do not have:
// neither another organization, nor a scope beyond their own.
func newKey(who principal, body []byte) (k schemas.Key, token string, err error) {
	var create struct {
		Organization *string            `json:"organization"`
		Name         string             `json:"name"`
		Scopes       []string           `json:"scopes"`
		RateLimit    *schemas.RateLimit `json:"rate_limit"`
	}
	if err := schemas.DecodeStrict(body, &create, "organization", "name", "scopes", "rate_limit"); err != nil {
		return schemas.Key{}, "", err
	}
	if o := create.Organization; o != nil && *o == "" { // a mistake, of which a key for all would come
		return schemas.Key{}, "", schemas.Invalid(schemas.CodeRequired, pointerOrganization, "empty: leave it out, or say whose key it is")
	}
	organization, err := who.organizationFor(*cmp.Or(create.Organization, new("")))
	if err != nil {
		return schemas.Key{}, "", err
	}
	k = schemas.Key{
		ID:           schemas.NewKeyID(),
		Organization: organization,
		Name:         create.Name,
		Scopes:       create.Scopes,
		RateLimit:    create.RateLimit,
		CreatedAt:    now(),
	}
	token, k.Hash = newToken(k.ID)
	if err := schemas.Validate(&k); err != nil {
		return schemas.Key{}, "", err
	}
	for i, scope := range k.Scopes {
		if !who.may(scope) {
			return schemas.Key{}, "", &requestError{
				status: fasthttp.StatusForbidden, code: codeScopeMissing, pointer: schemas.PointerAt("#/scopes", i),
				detail: fmt.Sprintf("this key has no scope %s to give", scope),
			}
		}
	}
	return k, token, nil
}

func (s *Server) getKey(ctx context.Context, c *call) error {
	if err := s.Registry.Fresh(ctx); err != nil {
		return err
	}
	k, err := s.Registry.Key(ctx, c.id)
	if err != nil {
		return err
	}
	if !c.who.sees(k.Organization) {
		return registry.ErrNotFound
	}
	return c.answer(fasthttp.StatusOK, registry.ViewKey(k))
}

// deleteKey revokes a key. Its record stays, so that changes can be read.
func (s *Server) deleteKey(ctx context.Context, c *call) error {
	who := c.who
	_, err := s.Registry.ChangeKey(ctx, c.actor(), "revoked", c.id, func(old *schemas.Key) (*schemas.Key, error) {
		if old == nil || !who.sees(old.Organization) {
			return nil, registry.ErrNotFound
		}
		k := *old
		if k.RevokedAt.IsZero() {
			k.RevokedAt = now()
		}
		return &k, nil
	})
	if err != nil {
		return err
	}
	c.http.SetStatusCode(fasthttp.StatusNoContent)
	return nil
}
