package registry

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

// startRegistry runs one whose patience is longer than the test.
func startRegistry(t *testing.T, cfg kafka.Config) *Registry {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	r, err := New(cfg, Process{ClientID: "test", Log: log, Metrics: prometheus.NewRegistry(), Health: process.NewHealth(log).Dependency("registry", process.Required)})
	if err != nil {
		t.Fatal(err)
	}
	r.patience = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- r.Follow(ctx) }()
	go func() { ended <- r.Write(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	<-r.Ready()
	return r
}

func startKafka(t *testing.T) kafka.Config {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	cfg := kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: schemas.DefaultPrefix}
	cl, err := cfg.NewClient("topics")
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := kafka.CreateTopics(t.Context(), cl, cfg.Topics(), schemas.Partitions{Events: 1, Deliveries: 1}, 1); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A replica with a change to make lets another's transaction come to its end.
func TestTransactionsOfOthersAreWaitedFor(t *testing.T) {
	cfg := startKafka(t)
	topics := cfg.Topics()
	r := startRegistry(t, cfg)
	change := func(id string) error {
		job := jobOf(id, id, 1)
		_, err := r.StartJob(t.Context(), Actor{ID: "admin"}, job)
		return err
	}
	if err := change("job_1"); err != nil { // it holds the id
		t.Fatal(err)
	}
	other, err := cfg.NewClient("other", kgo.TransactionalID(topics.Prefix+TransactionalID))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	job := jobOf("job_2", "job_2", 1)
	record, err := job.Record(topics.Jobs)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.ProduceSync(ctx, record).FirstErr(); err != nil {
		t.Fatal(err)
	}
	changed := make(chan error, 1)
	go func() { changed <- change("job_3") }()
	select {
	case err := <-changed:
		t.Fatalf("a change was made in the middle of another's transaction: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := other.EndTransaction(ctx, kgo.TryCommit); err != nil {
		t.Errorf("the other's transaction: %v", err)
	}
	if err := <-changed; err != nil {
		t.Error(err)
	}
	rows, err := r.Jobs()
	if err != nil || len(rows) != 3 {
		t.Errorf("got %d jobs, %v, want 3", len(rows), err)
	}
}
