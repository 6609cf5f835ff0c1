package api

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

const (
	defaultOverlap = 24 * time.Hour
	maxOverlap     = 7 * 24 * time.Hour
	// maxSecrets bounds the signatures of one request, and so its head.
	maxSecrets = 8
)

// rotation is the body that gives a webhook a new secret.
type rotation struct {
	Secret         *string `json:"secret"`
	OverlapSeconds *int    `json:"overlap_seconds" validate:"omitnil,min=0,max=604800"`
}

// overlap is how long the secrets before sign beside the new one.
func (r rotation) overlap() time.Duration {
	if r.OverlapSeconds == nil {
		return defaultOverlap
	}
	return min(time.Duration(*r.OverlapSeconds)*time.Second, maxOverlap)
}

// secretOf returns the secret that a body brings, or a fresh one where it brings none.
func secretOf(text *string) ([]byte, error) {
	if text == nil {
		return schemas.NewSecret(), nil
	}
	secret, err := schemas.ParseSecret(*text)
	if err != nil {
		return nil, schemas.Invalid(schemas.CodeInvalidValue, "#/secret", err.Error())
	}
	return secret, nil
}

// postSecrets rotates a webhook's secret, and its key pair where it has one. The
// answer shows the new secret, this once.
func (s *Server) postSecrets(ctx context.Context, c *call) error {
	var asked rotation
	body, err := c.jsonBody()
	if err != nil {
		return err
	}
	if len(body) > 0 {
		if err := schemas.DecodeStrict(body, &asked, "secret", "overlap_seconds"); err != nil {
			return err
		}
	}
	secret, err := secretOf(asked.Secret)
	if err := joinFields(err, schemas.Validate(&asked)); err != nil {
		return err
	}
	changed, err := s.changeWebhook(ctx, c, "rotated", func(w *schemas.Webhook) error { return s.addSecret(w, secret, asked.overlap()) })
	if err != nil {
		return err
	}
	c.setETag(changed.Revision)
	return c.answer(fasthttp.StatusCreated, webhookCreated{s.Registry.ViewWebhook(&changed), schemas.FormatSecret(secret)})
}

// addSecret gives a webhook a new secret, and a new key pair where it signs by
// one. Those before sign beside it for overlap and no longer.
func (s *Server) addSecret(w *schemas.Webhook, secret []byte, overlap time.Duration) error {
	until := now().Add(overlap)
	sealed, err := s.KeyRing.Seal(w.SecretIdentity(), secret)
	if err != nil {
		return err
	}
	secrets := []schemas.SealedSecret{sealed}
	for _, old := range w.Secrets {
		if retire(&old, until) {
			secrets = append(secrets, old)
		}
	}
	var keys []schemas.SigningKey
	for _, old := range w.SigningKeys {
		if retire(&old.Seed, until) {
			keys = append(keys, old)
		}
	}
	if len(secrets) > maxSecrets {
		return &requestError{
			status: fasthttp.StatusConflict, code: codeTooManySecrets,
			detail: "there are " + strconv.Itoa(maxSecrets) + " secrets in force: wait until one has ended, or rotate with a shorter overlap",
		}
	}
	w.Secrets, w.SigningKeys = secrets, keys
	return s.pairKey(w, true)
}

// retire lets a secret end at a time, if it does not end before, and reports whether it still signs.
func retire(sealed *schemas.SealedSecret, until time.Time) bool {
	if sealed.ExpiresAt.IsZero() || until.Before(sealed.ExpiresAt) {
		sealed.ExpiresAt = until
	}
	return sealed.Live(now())
}

// pairKey gives a webhook that signs by v1a a key pair, if it has none or is to have another.
func (s *Server) pairKey(w *schemas.Webhook, another bool) error {
	newest := len(w.SigningKeys) > 0 && w.SigningKeys[0].Seed.ExpiresAt.IsZero()
	if !w.SignsBy(schemas.SchemeEd25519) || newest && !another {
		return nil
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("making a key pair: %w", err)
	}
	seed, err := s.KeyRing.Seal(w.KeyIdentity(), private.Seed())
	if err != nil {
		return err
	}
	key := schemas.SigningKey{ID: schemas.NewSigningKeyID(), PublicKey: schemas.FormatPublicKey(public), Seed: seed}
	w.SigningKeys = slices.Insert(slices.Clone(w.SigningKeys), 0, key)
	return nil
}

// webhookKeys is the answer of /.well-known/webhook-keys.
type webhookKeys struct {
	Keys []registry.PublicKey `json:"keys"`
	Next *string              `json:"next"`
}

// getWebhookKeys lists public keys: of one webhook (?webhook=), or of all, limit webhooks a page.
func (s *Server) getWebhookKeys(ctx context.Context, c *call) error {
	p, _, after := c.page("webhook")
	id := p.text("webhook", maxID)
	if p.err != nil {
		return p.err
	}
	if err := s.Registry.Fresh(ctx); err != nil {
		return err
	}
	answer := webhookKeys{Keys: []registry.PublicKey{}}
	if id != "" {
		w, err := s.Registry.Webhook(ctx, id)
		if err != nil {
			return err
		}
		answer.Keys = append(answer.Keys, registry.PublicKeys(w)...)
		return c.answer(fasthttp.StatusOK, answer)
	}
	rows, more, err := s.Registry.Webhooks("", after, p.limit, nil)
	if err != nil {
		return err
	}
	for i := range rows {
		answer.Keys = append(answer.Keys, registry.PublicKeys(&rows[i])...)
	}
	if more {
		answer.Next = p.next(c, rows[len(rows)-1].ID)
	}
	return c.answer(fasthttp.StatusOK, answer)
}
