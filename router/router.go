// Package router turns events into deliveries: it joins each event with the webhooks in force and writes one delivery for every match, exactly once. Its
// rooms: table (the webhooks in force), dedup (event ids seen), join (the transactions).
package router

import (
	"context"
	"errors"
	"time"

	"github.com/postrider/postrider/router/join"
	"github.com/postrider/postrider/router/table"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// checkEvery is how often Kafka is looked at.
	checkEvery   = 2 * time.Second
	checkTimeout = 5 * time.Second
	// commitsWait is how long the group's first commits may come after the topics: who creates them does one after the other.
	commitsWait = 10 * time.Second
)

// Run routes until ctx ends. While Kafka is away, or its topics are not as they must be, it keeps trying; /readyz says why.
func Run(ctx context.Context, cfg Config, p *process.Process) error {
	t := table.New(cfg.Kafka.Topics(), p.Log, p.Metrics)
	follower, err := kafka.NewFollower(cfg.Kafka, "router-table-"+cfg.Instance, p.Log, t.Topics(), t.Apply)
	if err != nil {
		return err
	}
	follower.OnRebuild(t.Begin, t.Done)
	follower.ReportTo(&reporter{table: t, dependency: p.Health.Dependency("table", process.Required)})

	client, err := cfg.Kafka.NewClient("router-watch-" + cfg.Instance)
	if err != nil {
		return err
	}
	defer client.Close()
	w := newWatch(cfg, client, p)
	joiner := join.New(cfg.join(), t, follower, p)
	return process.Run(ctx,
		process.Stage{Name: "table follower", Run: follower.Run},
		process.Stage{Name: "Kafka watch", Run: w.run},
		process.Stage{Name: "sessions", Run: func(ctx context.Context) error {
			if err := w.start(ctx, cfg.StartAt); err != nil || ctx.Err() != nil {
				return err
			}
			return joiner.Run(ctx)
		}},
	)
}

// reporter tells that the table cannot be used, also where it has been read but not understood.
type reporter struct {
	table      *table.Table
	dependency *process.Dependency
}

func (r *reporter) Up() {
	if err := r.table.Err(); err != nil {
		r.dependency.Down(err)
		return
	}
	r.dependency.Up()
}

func (r *reporter) Down(err error) { r.dependency.Down(err) }

// start waits until the topics are as they must be and the group knows where to begin.
func (w *watch) start(ctx context.Context, at kafka.StartAt) error {
	var checked time.Time // when the topics were first found as they must be
	for {
		err := w.check(ctx, at, &checked)
		if err == nil || ctx.Err() != nil {
			return nil //nolint:nilerr // it was told to stop, and its error is of that
		}
		if errors.Is(err, kafka.ErrNoCommits) && time.Since(checked) > commitsWait {
			return err
		}
		w.ready.Down(err)
		if !process.Pause(ctx, checkEvery/4) {
			return nil
		}
	}
}

func (w *watch) check(ctx context.Context, at kafka.StartAt, checked *time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if checked.IsZero() {
		found, err := kafka.CheckTopics(ctx, w.client, w.topics)
		if err != nil {
			return err
		}
		if err := kafka.Judge(w.log, found); err != nil {
			return err
		}
		if err := kafka.CheckTable(ctx, w.client, w.topics); err != nil {
			return err
		}
		*checked = time.Now()
	}
	if err := kafka.EnsureCommits(ctx, w.client, w.topics.RouterGroup, at, w.topics.Events); err != nil {
		return err
	}
	w.ready.Up()
	return nil
}
