package router_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/router"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		want []string // in the error
	}{
		{"defaults", nil, nil},
		{"all at once", []string{"--sessions=0", "--dedup-memory=1KiB", "--instance=a b", "--start-at=now"}, []string{"--sessions", "--dedup-memory", "--instance", "--start-at"}},
		{"no brokers", []string{"--brokers="}, []string{"--brokers"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var cfg router.Config
			settings := process.NewSettings("router")
			cfg.Register(settings)
			err := settings.Parse(append([]string{"--instance=test"}, c.args...), nil)
			if (err != nil) != (len(c.want) > 0) {
				t.Fatalf("got %v", err)
			}
			for _, name := range c.want {
				if !strings.Contains(err.Error(), name+" ") {
					t.Errorf("%s is missing in: %v", name, err)
				}
			}
		})
	}
}

// running is a router in this process.
type running struct {
	process *process.Process
	cancel  context.CancelFunc
	ended   chan error
}

func start(t *testing.T, cfg router.Config) *running {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{
		process: &process.Process{Log: log, Health: process.NewHealth(log), Metrics: prometheus.NewRegistry()},
		cancel:  cancel, ended: make(chan error, 1),
	}
	t.Cleanup(cancel)
	go func() { r.ended <- router.Run(ctx, cfg, r.process) }()
	return r
}

func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	if err := <-r.ended; err != nil {
		t.Errorf("stopping: %v", err)
	}
}

// waitReady waits until /readyz answers with a status, and each of the words stands in its body.
func (r *running) waitReady(t *testing.T, status int, words ...string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		w := httptest.NewRecorder()
		r.process.Health.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil))
		missing := 0
		for _, word := range words {
			if !strings.Contains(w.Body.String(), word) {
				missing++
			}
		}
		if w.Code == status && missing == 0 {
			return
		}
		select {
		case <-tick.C:
		case err := <-r.ended:
			t.Fatalf("ended: %v", err)
		case <-deadline:
			t.Fatalf("waiting for %d %q: got %d %s", status, words, w.Code, w.Body)
		}
	}
}

func startKafka(t *testing.T, opts ...kfake.Opt) router.Config {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatalf("starting kfake: %v", err)
	}
	t.Cleanup(cluster.Close)
	return router.Config{
		Kafka:    kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: schemas.DefaultPrefix},
		Instance: "test", Sessions: 1, DedupMemory: 1 << 20,
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func startClient(t *testing.T, cfg router.Config, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := cfg.Kafka.NewClient("test", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func TestRunWaitsForTopicsAndThenRoutes(t *testing.T) {
	t.Parallel()
	cfg := startKafka(t)
	topics := cfg.Kafka.Topics()
	cl := startClient(t, cfg, kgo.ConsumeTopics(topics.Deliveries))
	r := start(t, cfg)
	r.waitReady(t, http.StatusServiceUnavailable, "the topic does not exist", "postrider topics create")
	if err := kafka.CreateTopics(within(t), cl, topics, schemas.Partitions{Events: 2, Deliveries: 2}, 1); err != nil {
		t.Fatal(err)
	}
	r.waitReady(t, http.StatusOK)
	w := schemas.Webhook{ID: "wh_a", Organization: "org", Active: true, URL: "https://example.com/", Events: []string{"labs"}, Revision: 1}
	webhook, err := w.Record(topics.Webhooks)
	if err != nil {
		t.Fatal(err)
	}
	event := &kgo.Record{Topic: topics.Events, Value: []byte(`{"event":"labs.created","organization":"org","payload":{"n":0.10}}`)}
	for _, record := range []*kgo.Record{webhook, event} {
		if err := cl.ProduceSync(within(t), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	fetches := cl.PollRecords(within(t), 1)
	if err := fetches.Err(); err != nil {
		t.Fatal(err)
	}
	var body struct{ ID, Event string }
	if err := json.Unmarshal(fetches.Records()[0].Value, &body); err != nil || body.Event != "labs.created" || !strings.HasPrefix(body.ID, "evt_") {
		t.Errorf("got %+v, %v", body, err)
	}
	r.stop(t)
}

func TestRunSaysThatKafkaIsAway(t *testing.T) {
	t.Parallel()
	r := start(t, router.Config{
		Kafka:    kafka.Config{Brokers: []string{"127.0.0.1:1"}, TopicPrefix: schemas.DefaultPrefix},
		Instance: "test", Sessions: 1, DedupMemory: 1 << 20,
	})
	r.waitReady(t, http.StatusServiceUnavailable, "connection refused")
	r.stop(t)
}

func TestRunRefusesAGroupThatLostItsCommits(t *testing.T) {
	t.Parallel()
	cfg := startKafka(t)
	cl := startClient(t, cfg)
	topics := cfg.Kafka.Topics()
	if err := kafka.CreateTopics(within(t), cl, topics, schemas.Partitions{Events: 2, Deliveries: 2}, 1); err != nil {
		t.Fatal(err)
	}
	forget(t, cl, topics.RouterGroup)
	r := start(t, cfg)
	r.waitReady(t, http.StatusServiceUnavailable, "--start-at")
	if err := <-r.ended; !errors.Is(err, kafka.ErrNoCommits) {
		t.Errorf("got %v, want ErrNoCommits", err)
	}

	at, err := kafka.ParseStartAt("earliest")
	if err != nil {
		t.Fatal(err)
	}
	cfg.StartAt = at
	r = start(t, cfg)
	r.waitReady(t, http.StatusOK)
	r.stop(t)
}

// forget deletes a group's commits.
func forget(t *testing.T, cl *kgo.Client, group string) {
	t.Helper()
	if _, err := kadm.NewClient(cl).DeleteGroup(within(t), group); err != nil {
		t.Fatal(err)
	}
}
