package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

const (
	// An API key is tokenPrefix, the id of its record without its own prefix, "_"
	// and 256 random bits. The prefix lets scanners find keys where they should
	// not be; the id finds the record, so that no hash is ever looked up.
	tokenPrefix  = "postrider_"
	keyIDPrefix  = "key_"
	keyIDLength  = 26
	secretLength = 43 // 32 bytes in base64 without padding

	adminID = "admin"
)

// principal is who asks.
type principal struct {
	id           string // the key's, or "admin"
	organization string // empty: all
	scopes       []string
	limit        *schemas.RateLimit // its own; nil: the default
}

func (p principal) may(scope string) bool { return slices.Contains(p.scopes, scope) }

// sees reports whether what belongs to organization is there at all for p.
func (p principal) sees(organization string) bool {
	return p.organization == "" || p.organization == organization
}

// organizationFor returns the organization that a request is about, given what
// it says of it: a key of one organization may leave it out, and may name no other.
func (p principal) organizationFor(given string) (string, error) {
	if given == "" || p.organization == given {
		return p.organization, nil
	}
	if p.organization != "" {
		return "", foreignOrganization()
	}
	return given, nil
}

func (c *call) actor() registry.Actor {
	return registry.Actor{ID: c.who.id, Organization: c.who.organization, RequestID: c.requestID()}
}

func unauthorized(detail string) *requestError {
	return &requestError{status: fasthttp.StatusUnauthorized, code: codeUnauthorized, detail: detail}
}

// authenticate finds out who asks. It does not say whether a key is unknown, wrong or revoked.
func (s *Server) authenticate(ctx context.Context, c *call) (principal, error) {
	scheme, token, _ := strings.Cut(string(c.http.Request.Header.Peek(fasthttp.HeaderAuthorization)), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return principal{}, unauthorized("this needs an API key: Authorization: Bearer <key>")
	}
	sum := sha256.Sum256([]byte(token))
	if s.admin != nil && subtle.ConstantTimeCompare(sum[:], s.admin[:]) == 1 {
		return principal{id: adminID, scopes: schemas.Scopes()}, nil
	}
	unknown := unauthorized("this API key is not in force")
	id, ok := keyIDOf(token)
	if !ok {
		return principal{}, unknown
	}
	if err := s.Registry.Fresh(ctx); err != nil {
		return principal{}, err
	}
	key, err := s.Registry.Key(ctx, id)
	if errors.Is(err, registry.ErrNotFound) {
		return principal{}, unknown
	}
	if err != nil {
		return principal{}, err
	}
	if subtle.ConstantTimeCompare([]byte(hashOf(sum)), []byte(key.Hash)) != 1 || !key.RevokedAt.IsZero() {
		return principal{}, unknown
	}
	s.Registry.Used(key.ID)
	return principal{id: key.ID, organization: key.Organization, scopes: key.Scopes, limit: key.RateLimit}, nil
}

// newToken returns a fresh API key for the record with this id, and its hash.
func newToken(id string) (token, hash string) {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails since Go 1.24
	token = tokenPrefix + strings.TrimPrefix(id, keyIDPrefix) + "_" + base64.RawURLEncoding.EncodeToString(secret[:])
	return token, hashOf(sha256.Sum256([]byte(token)))
}

// keyIDOf returns the id that is part of an API key.
func keyIDOf(token string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok || len(rest) != keyIDLength+1+secretLength || rest[keyIDLength] != '_' {
		return "", false
	}
	return keyIDPrefix + rest[:keyIDLength], true
}

func hashOf(sum [sha256.Size]byte) string { return hex.EncodeToString(sum[:]) }
