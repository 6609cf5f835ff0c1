// Package audit writes what the log says into ClickHouse: every outcome once,
// every event's body once, the latest state of each delivery, every change (P7).
// The tables are package schemas/clickhouse's; querying them is the users'.
//
// It consumes events, routed, deliveries, outcomes and changes as a plain group.
// The bounds of what is inserted together stand in Kafka, as commit metadata,
// before the first row is sent, together with a deadline that ClickHouse itself
// enforces. So whoever holds the partition next knows which rows may be in the
// table, and from when on a look at it is the last word.
//
// Run is one loop on the goroutine that calls it; a tick's inserts run beside
// each other, one goroutine a table, and end before the tick does. Kafka's
// callbacks run while the loop polls, and at no other time.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

// DefaultBufferBytes bounds what the writer holds of records and rows that
// ClickHouse does not have yet: half for rows, half for events and routed entries
// that wait for each other. With what the Kafka client has fetched ahead (two
// answers of 1 MiB, unpacked) and the columns of an insert under way the whole
// stays within 64 MiB. It is more for as long as a writer makes the blocks again
// that several writers before it had under way.
const DefaultBufferBytes = 32 << 20

// defaultInsertTimeout is long for an insert of 5,000 rows (20 ms) and short
// for a successor, who waits until it has passed before it looks.
const defaultInsertTimeout = 10 * time.Second

// Config says where the audit reads and writes.
type Config struct {
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	// Instance names the process in Kafka's client id.
	Instance string
	// BufferBytes bounds memory; 0 stands for DefaultBufferBytes.
	BufferBytes int64
	// InsertTimeout is how long an insert may take, and how long a successor
	// waits for one whose writer died; 0 stands for 10 s.
	InsertTimeout time.Duration
}

// Register adds the settings of the audit, but for Kafka's, which the process shares.
func (c *Config) Register(s *process.Settings) {
	c.ClickHouse.Register(s)
	s.Bytes(&c.BufferBytes, "audit-buffer", "32MiB", "memory for rows that ClickHouse does not have yet")
	process.Between(s, &c.BufferBytes, "audit-buffer", 4<<20, 16<<30)
	s.Duration(&c.InsertTimeout, "audit-insert-timeout", defaultInsertTimeout,
		"how long an insert into ClickHouse may take; also how long the next writer waits after a crash in one")
	process.Between(s, &c.InsertTimeout, "audit-insert-timeout", time.Second, 5*time.Minute)
}

// retryDelay is between attempts to begin: every service says so and keeps trying.
const retryDelay = time.Second

// Run writes until ctx ends. It keeps trying while Kafka or ClickHouse is away,
// or its schema too old, and says so in /readyz: the dependencies "clickhouse"
// and "audit", which only degrade. It returns an error only for a bad Config.
func Run(ctx context.Context, cfg Config, p *process.Process) error {
	if cfg.BufferBytes == 0 {
		cfg.BufferBytes = DefaultBufferBytes
	}
	if cfg.InsertTimeout == 0 {
		cfg.InsertTimeout = defaultInsertTimeout
	}
	conn, err := cfg.ClickHouse.Open()
	if err != nil {
		return fmt.Errorf("starting audit: %w", err)
	}
	m := newMetrics(p.Metrics)
	s := &service{
		cfg: cfg, log: p.Log.With("part", "audit"), metrics: m,
		store:      &store{conn: conn, database: cfg.ClickHouse.DatabaseName(), timeout: cfg.InsertTimeout, metrics: m},
		clickhouse: p.Health.Dependency("clickhouse", process.Degradable),
		audit:      p.Health.Dependency("audit", process.Degradable),
	}
	defer func() {
		if err := conn.Close(); err != nil {
			s.log.Debug("closing ClickHouse connections", "error", err)
		}
	}()
	s.run(ctx)
	return nil
}

// service makes writers: a new one whenever one ended.
type service struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	store   *store
	// clickhouse is ClickHouse itself; audit is what else the audit needs.
	clickhouse, audit *process.Dependency
	// entered says that what a killed process of this name had left is out of the
	// group. Later that is not asked again: two of one name would keep each other out.
	entered bool
}

func (s *service) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.waitForSchema(ctx)
		if err == nil {
			err = s.consume(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.audit.Down(err) // which logs it
			process.Pause(ctx, retryDelay)
		}
	}
}

// waitForSchema returns when ClickHouse has the tables this binary writes to.
func (s *service) waitForSchema(ctx context.Context) error {
	for {
		asking, cancel := context.WithTimeout(ctx, s.cfg.InsertTimeout)
		err := s.store.checkSchema(asking)
		cancel()
		var old *oldSchemaError
		switch {
		case err == nil:
			s.clickhouse.Up()
			return nil
		case errors.As(err, &old):
			s.clickhouse.Up()
			s.audit.Down(err)
		default:
			s.clickhouse.Down(err)
		}
		if !process.Pause(ctx, retryDelay) {
			return ctx.Err()
		}
	}
}

// consume runs one writer to its end: ctx's, or an error that a new one may not meet.
func (s *service) consume(ctx context.Context) error {
	ids, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	w, err := s.newWriter(ids)
	if err != nil {
		return err
	}
	defer w.client.CloseAllowingRebalance()
	return w.run(ctx)
}

// prepare asks for the topics' ids, and takes what a killed process of this name left out
// of the group, with a client of its own: the group's begins to join when it is made.
func (s *service) prepare(ctx context.Context) (map[string][16]byte, error) {
	client, err := s.cfg.Kafka.NewClient(s.clientID())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.InsertTimeout)
	defer cancel()
	ids, err := kafka.TopicIDs(ctx, client, s.cfg.Kafka.Topics().Audited()...)
	if err != nil {
		return nil, fmt.Errorf("asking for topic ids: %w", err)
	}
	if !s.entered {
		err = kafka.Evict(ctx, client, s.log, s.cfg.Kafka.Topics().AuditGroup, s.clientID())
		s.entered = err == nil
	}
	return ids, err
}

func (s *service) clientID() string {
	return "postrider-audit-" + s.cfg.Instance
}

// sourcesOf maps the topics to their sources.
func sourcesOf(t schemas.Topics) map[string]source {
	return map[string]source{
		t.Events: sourceEvents, t.Routed: sourceRouted, t.Deliveries: sourceDeliveries, t.Outcomes: sourceOutcomes, t.Changes: sourceChanges,
	}
}
