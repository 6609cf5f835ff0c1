package sender_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func parse(args ...string) (sender.Config, error) {
	var cfg sender.Config
	settings := process.NewSettings("sender")
	cfg.Register(settings)
	return cfg, settings.Parse(args, nil)
}

func TestBadSettingsAreToldAtOnce(t *testing.T) {
	_, err := parse("--key-ring=short", "--allow-targets=10.0.0.0/99", "--retry-schedule=0s,5m", "--instance=a b",
		"--webhook-concurrency=0", "--in-flight=1KiB", "--disable-after=0s", "--start-at=tomorrow")
	if _, bad := errors.AsType[*process.SettingsError](err); !bad {
		t.Fatalf("error %v, want a SettingsError", err)
	}
	for _, name := range []string{"key-ring", "allow-targets", "retry-schedule", "instance", "webhook-concurrency", "in-flight", "disable-after", "start-at"} {
		if !strings.Contains(err.Error(), "--"+name) {
			t.Errorf("%q is not told: %v", name, err)
		}
	}
	if _, err := parse(); err == nil || !strings.Contains(err.Error(), "--key-ring") {
		t.Errorf("without a key ring: error %v", err)
	}
	if _, err := parse("--key-ring=" + schemas.NewKeyRing("k")); err != nil {
		t.Errorf("with a key ring: %v", err)
	}
}

// TestDeliversWithoutClickHouse: the audit waits, deliveries do not.
func TestDeliversWithoutClickHouse(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	arrived := make(chan http.Header, 1)
	target := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { arrived <- r.Header }))
	t.Cleanup(target.Close)

	keys := schemas.NewKeyRing("k")
	cfg, err := parse("--brokers="+strings.Join(cluster.ListenAddrs(), ","), "--key-ring="+keys,
		"--allow-targets=127.0.0.0/8", "--instance=a", "--clickhouse=127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	install(t, cfg.Kafka, keys, target.URL)

	p := process.New(slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- sender.Run(ctx, cfg, p) }()
	select {
	case header := <-arrived:
		for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature", "postrider-sequence"} {
			if header.Get(name) == "" {
				t.Errorf("header %s is missing", name)
			}
		}
	case err := <-done:
		t.Fatalf("sender ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("nothing arrives while ClickHouse is away")
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("stopping: %v", err)
	}
}

// install creates the topics, a webhook at url, and a delivery to it.
func install(t *testing.T, cfg kafka.Config, keys, url string) {
	t.Helper()
	client, err := cfg.NewClient("test")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	topics := cfg.Topics()
	if err := kafka.CreateTopics(t.Context(), client, topics, schemas.Partitions{Events: 1, Deliveries: 1}, 1); err != nil {
		t.Fatal(err)
	}
	ring, err := schemas.ParseKeyRing(keys)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	w := schemas.Webhook{
		ID: schemas.NewWebhookID(), Organization: "org", Active: true, URL: url, Events: []string{"*"},
		Generation: 1, Revision: 1, CreatedAt: now, UpdatedAt: now,
	}
	sealed, err := ring.Seal(w.SecretIdentity(), schemas.NewSecret())
	if err != nil {
		t.Fatal(err)
	}
	w.Secrets = []schemas.SealedSecret{sealed}
	record, err := w.Record(topics.Webhooks)
	if err != nil {
		t.Fatal(err)
	}
	d := schemas.Delivery{
		WebhookID: w.ID, WebhookRevision: 1, EventID: "e", Event: "labs.created", Organization: "org", AcceptedAt: now, RoutedAt: now,
		Cause: schemas.CauseEvent, Body: []byte(`{"id":"e","event":"labs.created"}`),
	}
	if err := client.ProduceSync(t.Context(), record, d.Record(topics.Deliveries)).FirstErr(); err != nil {
		t.Fatal(err)
	}
}
