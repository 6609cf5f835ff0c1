package consume

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/deliver"
)

func TestSecretsSignUntilTheyExpire(t *testing.T) {
	ring, err := schemas.ParseKeyRing(schemas.NewKeyRing("k"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	seal := func(identity string, plain []byte, expiresAt time.Time) schemas.SealedSecret {
		sealed, err := ring.Seal(identity, plain)
		if err != nil {
			t.Fatal(err)
		}
		sealed.ExpiresAt = expiresAt
		return sealed
	}
	made := func(signatures ...string) *inForce {
		w := &inForce{Webhook: schemas.Webhook{ID: "wh_1", Signatures: signatures}}
		w.Secrets = []schemas.SealedSecret{seal(w.SecretIdentity(), []byte("new"), time.Time{}), seal(w.SecretIdentity(), []byte("old"), now)}
		w.SigningKeys = []schemas.SigningKey{{Seed: seal(w.KeyIdentity(), make([]byte, ed25519.SeedSize), now)}}
		return w
	}
	tests := []struct {
		name          string
		webhook       *inForce
		at            time.Time
		secrets, keys int
	}{
		{"by v1, during the overlap", made(), now.Add(-time.Second), 2, 0},
		{"by v1, after it", made(), now, 1, 0},
		{"by both", made("v1", "v1a"), now.Add(-time.Second), 2, 1},
		{"by v1a", made("v1a"), now.Add(-time.Second), 0, 1},
		{"by v1a whose key has expired", made("v1a"), now, 0, 0},
	}
	for _, test := range tests {
		secrets, keys := test.webhook.open(ring, slog.New(slog.DiscardHandler), test.at)
		if len(secrets) != test.secrets || len(keys) != test.keys {
			t.Errorf("%s: %d secrets and %d keys, want %d and %d", test.name, len(secrets), len(keys), test.secrets, test.keys)
		}
	}
	foreign := made()
	foreign.ID = "wh_2" // the record of another webhook, copied
	if secrets, _ := foreign.open(ring, slog.New(slog.DiscardHandler), now); len(secrets) != 0 {
		t.Error("secrets of another webhook open")
	}
}

func TestLookupAsksWhereTheTableMayBeBehind(t *testing.T) {
	ctx := t.Context()
	var asked int
	var stale time.Duration
	table := newWebhooks(schemas.NewTopics(""), slog.New(slog.DiscardHandler), func() {}, process.NewHealth(slog.New(slog.DiscardHandler)).Dependency("webhooks", process.Required))
	table.now.byID["wh_1"] = &inForce{Webhook: schemas.Webhook{ID: "wh_1", Revision: 3}}
	table.stale = func() time.Duration { return stale }
	table.barrier = func(context.Context) error {
		asked++
		return nil
	}
	for _, test := range []struct {
		name     string
		id       string
		revision int64
		stale    time.Duration
		asks     int
	}{
		{"known", "wh_1", 3, maxStale, 0},
		{"known at a lower revision", "wh_1", 4, 0, 1},
		{"not known", "wh_2", 1, 0, 1},
		{"known, from a table that is cut off", "wh_1", 3, maxStale + 1, 1},
	} {
		asked, stale = 0, test.stale
		w, err := table.lookup(ctx, &schemas.Delivery{WebhookID: test.id, WebhookRevision: test.revision})
		if err != nil || (w != nil) != (test.id == "wh_1") || asked != test.asks {
			t.Errorf("%s: %v, error %v, asked %d times, want %d", test.name, w, err, asked, test.asks)
		}
	}
}

func TestOwnHeadersAreOpened(t *testing.T) {
	ring, err := schemas.ParseKeyRing(schemas.NewKeyRing("k"))
	if err != nil {
		t.Fatal(err)
	}
	seal := func(identity, plain string) *schemas.SealedSecret {
		sealed, err := ring.Seal(identity, []byte(plain))
		if err != nil {
			t.Fatal(err)
		}
		return &sealed
	}
	made := func(value string, auth *schemas.Auth) *inForce {
		w := &inForce{Webhook: schemas.Webhook{ID: "wh_1", Auth: auth}}
		w.Secrets = []schemas.SealedSecret{*seal(w.SecretIdentity(), "secret")}
		w.Headers = []schemas.Header{{Name: "X-Team", Value: "blue"}, {Name: "X-Token", Sealed: seal(w.HeaderIdentity("x-token"), value)}}
		return w
	}
	auth := func(kind, username, secret string) *schemas.Auth {
		w := schemas.Webhook{ID: "wh_1"}
		return &schemas.Auth{Type: kind, Username: username, Sealed: *seal(w.AuthIdentity(), secret)}
	}
	tests := []struct {
		name    string
		webhook *inForce
		want    []deliver.Header // nil: attempts fail
	}{
		{"headers", made("t0ken", nil), []deliver.Header{{Name: "X-Team", Value: "blue"}, {Name: "X-Token", Value: "t0ken"}}},
		{"basic", made("t", auth("basic", "Aladdin", "open sesame")), []deliver.Header{
			{Name: "X-Team", Value: "blue"}, {Name: "X-Token", Value: "t"}, {Name: "authorization", Value: "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="},
		}},
		{"bearer", made("t", auth("bearer", "", "mF_9.B5f-4.1JqM")), []deliver.Header{
			{Name: "X-Team", Value: "blue"}, {Name: "X-Token", Value: "t"}, {Name: "authorization", Value: "Bearer mF_9.B5f-4.1JqM"},
		}},
		{"a line break in a sealed value", made("t\r\nHost: other", nil), nil},
		{"a line break in a token", made("t", auth("bearer", "", "a\nb")), nil},
	}
	for _, test := range tests {
		secrets, _ := test.webhook.open(ring, slog.New(slog.DiscardHandler), time.Now())
		if (len(secrets) == 0) != (test.want == nil) || test.want != nil && !slices.Equal(test.webhook.headers, test.want) {
			t.Errorf("%s: %d secrets, headers %v, want %v", test.name, len(secrets), test.webhook.headers, test.want)
		}
	}
}
