package router

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

// watch looks at Kafka from the outside of the sessions: whether it answers, and whether a producer that hangs in a transaction holds up events.
type watch struct {
	client *kgo.Client
	topics schemas.Topics
	log    *slog.Logger
	kafka  *process.Dependency
	ready  *process.Dependency // the topics and the group's commits
	gauge  prometheus.Gauge
}

func newWatch(cfg Config, client *kgo.Client, p *process.Process) *watch {
	w := &watch{
		client: client, topics: cfg.Kafka.Topics(), log: p.Log,
		kafka: p.Health.Dependency("kafka", process.Required),
		ready: p.Health.Dependency("topics", process.Required),
		gauge: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postrider_events_blocked_seconds",
			Help: "For how long readers of a partition of events have stood before a transaction that does not end; the longest of all partitions.",
		}),
	}
	p.Metrics.MustRegister(w.gauge)
	return w
}

func (w *watch) run(ctx context.Context) error {
	var b blocked
	for {
		if err := w.look(ctx, &b); err == nil {
			w.kafka.Up()
		} else if ctx.Err() == nil {
			w.kafka.Down(err)
		}
		if !process.Pause(ctx, checkEvery) {
			return nil
		}
	}
}

func (w *watch) look(ctx context.Context, b *blocked) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	admin := kadm.NewClient(w.client)
	now := time.Now()
	stable, err := admin.ListCommittedOffsets(ctx, w.topics.Events)
	if err == nil {
		err = stable.Error()
	}
	if err != nil {
		return fmt.Errorf("asking for stable offsets of %s: %w", w.topics.Events, err)
	}
	written, err := admin.ListEndOffsets(ctx, w.topics.Events)
	if err == nil {
		err = written.Error()
	}
	if err != nil {
		return fmt.Errorf("asking for end offsets of %s: %w", w.topics.Events, err)
	}
	w.gauge.Set(b.seen(now, offsets(stable, w.topics.Events), offsets(written, w.topics.Events)).Seconds())
	return nil
}

func offsets(listed kadm.ListedOffsets, topic string) map[int32]int64 {
	found := make(map[int32]int64)
	for partition, o := range listed[topic] {
		found[partition] = o.Offset
	}
	return found
}

// blocked knows since when each partition's last stable offset stands below its end.
type blocked struct {
	since map[int32]standstill
}

type standstill struct {
	offset int64
	at     time.Time
}

// seen takes the last stable offsets and the ends of partitions, the ends asked for later, and returns the longest standstill.
func (b *blocked) seen(now time.Time, stable, written map[int32]int64) time.Duration {
	var longest time.Duration
	still := make(map[int32]standstill)
	for partition, offset := range stable {
		if offset >= written[partition] {
			continue
		}
		s, known := b.since[partition]
		if !known || s.offset != offset {
			s = standstill{offset, now}
		}
		still[partition] = s
		longest = max(longest, now.Sub(s.at))
	}
	b.since = still
	return longest
}
