// Package sender makes the HTTP calls: it consumes deliveries, attempts each
// until it comes to its end, and writes every outcome; and it runs the audit,
// which copies the logs to ClickHouse. Its rooms: consume (the loop around
// Kafka), deliver (one HTTP attempt), retry (when and where a delivery waits),
// audit, account (whether a delivery was lost).
package sender

import (
	"context"
	"fmt"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/account"
	"github.com/postrider/postrider/sender/audit"
	"github.com/postrider/postrider/sender/consume"
	"github.com/postrider/postrider/sender/deliver"
)

// Run works deliveries and writes the audit until ctx ends; then it lets what it
// has started come to its end, commits it and returns nil. While Kafka or
// ClickHouse is away it keeps trying, and says so in /readyz; without ClickHouse
// deliveries go on. It returns process.ErrFenced where another process has its name.
func Run(ctx context.Context, cfg Config, p *process.Process) error {
	cfg.setDefaults()
	ring, err := schemas.ParseKeyRing(cfg.KeyRing)
	if err != nil {
		return fmt.Errorf("starting sender: %w", err)
	}
	targets, err := schemas.ParseTargetPolicy(cfg.AllowTargets)
	if err != nil {
		return fmt.Errorf("starting sender: %w", err)
	}
	client := deliver.New(deliver.Config{
		Version: process.Version(), Policy: targets,
		// It is the webhooks' lanes that bound attempts; many webhooks may share a host.
		MaxConnsPerHost: 8 * maxConcurrency,
	})
	defer client.Close()
	consumer, err := consume.New(consume.Config{
		Kafka: cfg.Kafka, Instance: cfg.Instance, StartAt: cfg.StartAt,
		Schedule: cfg.RetrySchedule, KeyRing: ring,
		Concurrency: cfg.Concurrency, InFlight: cfg.InFlight, Drain: cfg.Drain, DisableAfter: cfg.DisableAfter,
	}, client, p)
	if err != nil {
		return fmt.Errorf("starting sender: %w", err)
	}
	return process.Run(ctx,
		process.Stage{Name: "webhooks", Run: consumer.Follow},
		process.Stage{Name: "audit", Run: func(ctx context.Context) error { return audit.Run(ctx, cfg.Audit, p) }},
		process.Stage{Name: "account", Run: func(ctx context.Context) error {
			return account.Run(ctx, account.Config{Kafka: cfg.Kafka, Instance: cfg.Instance}, p, consumer.Partitions)
		}},
		process.Stage{Name: "consume", Run: consumer.Run},
	)
}
