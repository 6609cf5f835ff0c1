// Package ingest takes events over HTTP and makes them durable in Kafka, keeps
// webhooks and API keys, and shows deliveries and sends them again. Its rooms: api
// (REST), publish (events to Kafka), registry (webhooks, keys and jobs: as they
// stand, and their one writer), audit (what ClickHouse knows), deliveries (those
// made again, and jobs).
package ingest

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/ingest/api"
	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/ingest/deliveries"
	"github.com/postrider/postrider/ingest/publish"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// checkEvery is how often Kafka is asked whether it can be written to.
	checkEvery   = 2 * time.Second
	checkTimeout = 5 * time.Second
)

// Run serves REST until ctx ends. While Kafka is away, or its topics are not as
// they must be, it answers 503 and keeps trying; /readyz says why.
func Run(ctx context.Context, cfg Config, p *process.Process) error {
	ring, err := schemas.ParseKeyRing(cfg.KeyRing)
	if err != nil {
		return err
	}
	targets, err := schemas.ParseTargetPolicy(cfg.AllowTargets)
	if err != nil {
		return err
	}
	ln := cfg.Listener
	if ln == nil {
		if ln, err = process.Listen(ctx, "listen", cfg.Listen); err != nil {
			return err
		}
	}
	keyRate, err := schemas.ParseRateLimit(cfg.KeyRateLimit)
	if err != nil {
		return err
	}
	clientID := "ingest-" + cfg.Instance
	rows, err := registry.New(cfg.Kafka, registry.Process{
		ClientID: clientID, Log: p.Log, Metrics: p.Metrics, Health: p.Health.Dependency("registry", process.Required),
		MaxWebhooks: cfg.MaxWebhooks,
	})
	if err != nil {
		return err
	}
	publisher, err := publish.New(cfg.Kafka, clientID, p.Metrics)
	if err != nil {
		return err
	}
	asked, auditRun := cfg.Audit, func(ctx context.Context) error { <-ctx.Done(); return nil }
	if asked == nil {
		opened, err := audit.Open(cfg.ClickHouse, p.Health.Dependency("clickhouse", process.Degradable), p.Metrics)
		if err != nil {
			return err
		}
		asked, auditRun = opened, opened.Run
	}
	jobs := deliveries.NewJobs(rows, asked, cfg.Instance, p.Log, p.Metrics)
	watch := &watch{cfg: cfg.Kafka, clientID: clientID, log: p.Log, kafka: p.Health.Dependency("kafka", process.Required)}
	server := api.New(api.Options{
		Topics: cfg.Kafka.Topics(), Registry: rows, Publisher: publisher, Audit: asked, Instance: cfg.Instance,
		Open: watch.open.Load, DeliveriesID: func() [16]byte { return *watch.deliveriesID.Load() },
		Targets: targets, KeyRing: ring, AdminKey: cfg.AdminKey, KeyRate: keyRate, OpenAPI: schemas.OpenAPI(),
		Log: p.Log, Metrics: p.Metrics,
	})
	p.Log.Info("serving REST", "address", ln.Addr().String())
	return process.Run(ctx,
		process.Stage{Name: "registry follower", Run: rows.Follow},
		process.Stage{Name: "registry writer", Run: rows.Write},
		process.Stage{Name: "uses of keys", Run: rows.NoteUses},
		process.Stage{Name: "publisher", Run: publisher.Run},
		process.Stage{Name: "Kafka watch", Run: watch.run},
		process.Stage{Name: "audit", Run: auditRun},
		process.Stage{Name: "jobs", Run: jobs.Run},
		process.Stage{Name: "REST", Run: func(ctx context.Context) error { return server.Serve(ctx, ln) }},
	)
}

// watch asks whether Kafka can be written to.
type watch struct {
	cfg      kafka.Config
	clientID string
	log      *slog.Logger
	kafka    *process.Dependency
	open     atomic.Bool // the topics have been found to be as they must
	// deliveriesID is of the topic deliveries; set once open.
	deliveriesID atomic.Pointer[[16]byte]
}

func (w *watch) run(ctx context.Context) error {
	cl, err := w.cfg.NewClient(w.clientID + "-watch")
	if err != nil {
		return err
	}
	defer cl.Close()
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		err := w.check(ctx, cl)
		if err == nil {
			w.kafka.Up()
		} else if ctx.Err() == nil {
			w.kafka.Down(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// check asks once. The first time that all is well opens the doors.
func (w *watch) check(ctx context.Context, cl *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	topics := w.cfg.Topics()
	if !w.open.Load() {
		found, err := kafka.CheckTopics(ctx, cl, topics)
		if err == nil {
			err = kafka.Judge(w.log, found)
		}
		if err != nil {
			return err
		}
	}
	ids, err := kafka.TopicIDs(ctx, cl, topics.Events, topics.Deliveries)
	if err != nil {
		return err
	}
	id := ids[topics.Deliveries]
	w.deliveriesID.Store(&id)
	w.open.Store(true)
	return nil
}
