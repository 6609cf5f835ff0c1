package consume

import (
	"crypto/ed25519"
	"log/slog"
	"testing"
	"time"

	"github.com/postrider/postrider/schemas"
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
