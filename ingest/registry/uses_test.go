package registry

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

// startRegistry runs one against a Kafka of its own.
func startRegistry(t *testing.T) *Registry {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	cfg := kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: schemas.DefaultPrefix}
	client, err := cfg.NewClient("test")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := kafka.CreateTopics(t.Context(), client, cfg.Topics(), schemas.Partitions{Events: 1, Deliveries: 1}, 1); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	r, err := New(cfg, Process{
		ClientID: "test", Log: log, Metrics: prometheus.NewRegistry(), Health: process.NewHealth(log).Dependency("registry", process.Required),
	})
	if err != nil {
		t.Fatal(err)
	}
	loops, ctx := errgroup.WithContext(t.Context())
	loops.Go(func() error { return r.Follow(ctx) })
	loops.Go(func() error { return r.Write(ctx) })
	t.Cleanup(func() {
		if err := loops.Wait(); err != nil {
			t.Error(err)
		}
	})
	<-r.Ready()
	return r
}

func TestNoteUses(t *testing.T) {
	r := startRegistry(t)
	made := func(id string) {
		k := schemas.Key{ID: id, Organization: "acme", Scopes: []string{schemas.ScopeEventsWrite}, Hash: strings.Repeat("0", 64)}
		if _, err := r.ChangeKey(t.Context(), Actor{ID: "admin"}, "created", id, func(*schemas.Key) (*schemas.Key, error) { return &k, nil }); err != nil {
			t.Fatal(err)
		}
	}
	last := func(id string) time.Time {
		k, err := r.Key(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return k.LastUsedAt
	}
	made("key_used")
	made("key_idle")
	before := time.Now().Truncate(time.Millisecond)
	r.Used("key_used")
	r.Used("key_gone") // deleted meanwhile
	r.noteUses(t.Context())
	first := last("key_used")
	if first.Before(before) || !last("key_idle").IsZero() {
		t.Errorf("the used key was last used at %v, the idle one at %v", first, last("key_idle"))
	}
	r.Used("key_used")
	r.noteUses(t.Context())
	if again := last("key_used"); !again.Equal(first) {
		t.Errorf("a key used again at once was written again: %v, then %v", first, again)
	}
	if err := r.noteUse(t.Context(), "key_used", first.Add(maxUseAge)); err != nil {
		t.Fatal(err)
	}
	if again := last("key_used"); !again.Equal(first.Add(maxUseAge)) {
		t.Errorf("used five minutes later, it stands at %v", again)
	}
	revoke := func(old *schemas.Key) (*schemas.Key, error) {
		k := *old
		k.RevokedAt = time.Now()
		return &k, nil
	}
	if k, err := r.ChangeKey(t.Context(), Actor{ID: "admin"}, "revoked", "key_used", revoke); err != nil || !k.LastUsedAt.Equal(first.Add(maxUseAge)) {
		t.Errorf("revoked, it was last used at %v, %v", k.LastUsedAt, err)
	}
	if err := r.noteUse(t.Context(), "key_gone", time.Now()); err != nil && !errors.Is(err, ErrNotFound) {
		t.Errorf("noting the use of a key that is gone: %v", err)
	}
}
