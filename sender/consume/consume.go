// Package consume works the deliveries of the partitions that this sender owns:
// it reads deliveries, every retry tier and held, hands each delivery to its
// webhook's lane, has it attempted, and writes what came of it, with the offsets
// that are thereby finished, in Kafka transactions. An attempt may be repeated
// after a crash, its effects never (P5). One HTTP attempt is deliver's, when to
// try again is retry's.
//
// Consumer.Follow runs the follower of webhooks. Consumer.Run runs, for as long
// as one membership of the group lasts, a poll loop, a loop that starts what is
// due, a loop that commits, and a goroutine for each running attempt.
package consume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/deliver"
	"github.com/postrider/postrider/sender/retry"
)

// Pauses between sessions, after an error.
const (
	minPause = 250 * time.Millisecond
	maxPause = 5 * time.Second
)

// Config is what a Consumer needs to know.
type Config struct {
	Kafka    kafka.Config
	Instance string // names the sender; stable over restarts
	StartAt  kafka.StartAt
	Schedule retry.Schedule
	KeyRing  schemas.KeyRing
	// Concurrency is how many attempts of one webhook may run at once.
	Concurrency int
	// InFlight bounds the memory of deliveries that are started and not committed, in bytes.
	InFlight int64
	// DisableAfter is how long a webhook's attempts may all have failed until it is disabled; 0: for ever.
	DisableAfter time.Duration
	// Drain is how long a stopping sender waits for what it has started.
	Drain time.Duration
}

// Consumer works deliveries. Follow and Run are called once each.
type Consumer struct {
	cfg      Config
	topics   schemas.Topics
	client   *deliver.Client
	log      *slog.Logger
	health   *process.Dependency // Kafka: writing, and being of the group
	reading  *process.Dependency // Kafka: reading
	owned    *process.Dependency // partitions that can be worked
	metrics  *metrics
	webhooks *webhooks
	follower *kafka.Follower
	fence    fence
	checked  bool // the topics; Run's alone

	mu      sync.Mutex // guards running
	running *session   // nil between two
}

// New returns a consumer that makes its attempts with client.
func New(cfg Config, client *deliver.Client, p *process.Process) (*Consumer, error) {
	c := &Consumer{
		cfg:     cfg,
		topics:  cfg.Kafka.Topics(),
		client:  client,
		log:     p.Log,
		health:  p.Health.Dependency("kafka", process.Required),
		reading: p.Health.Dependency("kafka", process.Required),
		owned:   p.Health.Dependency("partitions", process.Required),
	}
	c.metrics = newMetrics(p.Metrics, c)

	table := p.Health.Dependency("webhooks", process.Required)
	readable := p.Health.Dependency("webhooks", process.Required)
	readable.Up()
	c.webhooks = newWebhooks(c.topics, p.Log, c.metrics.badWebhooks.Inc, readable)
	c.webhooks.onResume = func(id string) {
		if s := c.session(); s != nil {
			s.resumed(id)
		}
	}
	follower, err := kafka.NewFollower(cfg.Kafka, c.clientID("webhooks"), p.Log, []string{c.topics.Webhooks, c.topics.WebhookStates}, c.webhooks.apply)
	if err != nil {
		return nil, fmt.Errorf("making sender's consumer: %w", err)
	}
	follower.OnRebuild(c.webhooks.beginRebuild, c.webhooks.endRebuild)
	follower.ReportTo(table)
	c.follower, c.webhooks.barrier, c.webhooks.stale = follower, follower.Barrier, follower.Staleness
	return c, nil
}

func (c *Consumer) clientID(part string) string {
	return "postrider-sender-" + c.cfg.Instance + "-" + part
}

// Follow reads the webhooks and follows them until ctx ends. Run needs it, and it must outlive Run.
func (c *Consumer) Follow(ctx context.Context) error { return c.follower.Run(ctx) }

// Run works deliveries until ctx ends; then it lets what was started come to its
// end, commits it, leaves the group and returns nil. While Kafka is away it
// keeps trying. It returns process.ErrFenced when another process has its name.
func (c *Consumer) Run(ctx context.Context) error {
	if !c.waitForTable(ctx) {
		return nil
	}
	for wait := minPause; ctx.Err() == nil; wait = min(2*wait, maxPause) {
		began, err := c.work(ctx)
		if fatal := c.ended(ctx, err); fatal != nil {
			return fatal
		}
		if began {
			wait = minPause
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return nil
}

// waitForTable blocks until the webhooks have been read whole, and says
// meanwhile why they have not. It is false if ctx ends first.
func (c *Consumer) waitForTable(ctx context.Context) bool {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-c.follower.Ready():
			return true
		case <-ctx.Done():
			return false
		case <-tick.C:
			if err := c.follower.Err(); err != nil {
				c.health.Down(cmp.Or(c.topicsFault(ctx), err))
			}
		}
	}
}

// topicsFault is what is wrong with the topics while they cannot be read: it says
// more, and what to do. It is nil if nothing is, or Kafka cannot be asked.
func (c *Consumer) topicsFault(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cl, err := c.cfg.Kafka.NewClient(c.clientID("topics"))
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := c.checkTopics(ctx, cl); errors.Is(err, kafka.ErrTopics) {
		return err
	}
	return nil
}

// ended tells of a session's end, and returns an error if there is to be no other.
func (c *Consumer) ended(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	c.health.Down(err)
	c.log.Warn("sender's session ended: what it had not committed is repeated", "error", err)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it was to end
	}
	return c.fence.check(err, time.Now())
}

// work works deliveries under one producer and one consumer client, until ctx
// ends or an error after which all must be taken anew. began says whether it got
// as far as joining the group.
func (c *Consumer) work(ctx context.Context) (began bool, err error) {
	s, err := c.open(ctx)
	if err != nil {
		return false, err
	}
	c.show(s)
	defer c.show(nil)
	return true, s.run(ctx)
}

func (c *Consumer) show(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = s
}

// session is the one that runs, nil if none does.
func (c *Consumer) session() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// snapshot is what metrics show of the session that runs.
func (c *Consumer) snapshot() snapshot {
	if s := c.session(); s != nil {
		return s.board.snapshot()
	}
	return snapshot{}
}
