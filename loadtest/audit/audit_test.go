// Package audit_test holds the audit's promise (P7) against a real ClickHouse:
// exactly one row per record, whatever is killed, cut or stopped.
package audit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/audit"
)

// childEnv makes the test binary an audit writer: the JSON of its audit.Config.
const childEnv = "POSTRIDER_TEST_AUDIT"

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		os.Exit(child(text))
	}
	pipeline.Main(m, func() error { return goleak.Find() })
}

func child(text string) int {
	var cfg audit.Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return process.ExitSettings
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	p := process.New(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	return process.ExitCode(audit.Run(ctx, cfg, p))
}

// world is a Kafka with topics, a migrated ClickHouse, and what was written.
type world struct {
	cfg    audit.Config
	store  *pipeline.ClickHouse
	client *kgo.Client
	topics schemas.Topics
	ids    map[string][16]byte
	want   map[string]int // rows by table
	next   int64          // the next event's offset; all are in partition 0
	made   int64          // deliveries, each with an own id
}

const partitions = 4

func startWorld(t *testing.T, brokers []string, prefix string, store *pipeline.ClickHouse) *world {
	t.Helper()
	w := &world{
		cfg: audit.Config{
			Kafka:      kafka.Config{Brokers: brokers, TopicPrefix: prefix},
			ClickHouse: clickhouse.Config{Address: store.Native, User: "default", Database: store.Database},
			Instance:   "test", InsertTimeout: 2 * time.Second,
		},
		store: store, topics: schemas.NewTopics(prefix), want: make(map[string]int),
	}
	migrate(t, w.cfg.ClickHouse)
	client, err := w.cfg.Kafka.NewClient("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	w.client = client
	if err := kafka.CreateTopics(t.Context(), client, w.topics, schemas.Partitions{Events: partitions, Deliveries: partitions}, 1); err != nil {
		t.Fatal(err)
	}
	if w.ids, err = kafka.TopicIDs(t.Context(), client, w.topics.Audited()...); err != nil {
		t.Fatal(err)
	}
	return w
}

func migrate(t *testing.T, cfg clickhouse.Config) {
	t.Helper()
	conn, err := cfg.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing to lose
	if err := clickhouse.Migrate(t.Context(), conn, cfg.DatabaseName()); err != nil {
		t.Fatal(err)
	}
}

// startWriter runs an audit writer in this process, until stop is called.
func (w *world) startWriter(t *testing.T) (p *process.Process, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p = process.New(slog.New(slog.NewTextHandler(t.Output(), nil)))
	done := make(chan error, 1)
	go func() { done <- audit.Run(ctx, w.cfg, p) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("audit ended with %v", err)
		}
	}
	t.Cleanup(stop)
	return p, stop
}

// produce writes n of everything: events with their routed entries (every tenth
// a duplicate, every eleventh refused for its id), pings, deliveries, an outcome
// for each, and a change.
func (w *world) produce(t *testing.T, n int) {
	t.Helper()
	var records []*kgo.Record
	routed := schemas.Routed{EventsTopic: w.ids[w.topics.Events]}
	add := func(r *kgo.Record, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	events := make([]*kgo.Record, n)
	for i := range n {
		id := "e" + strconv.FormatInt(w.next, 10)
		event := schemas.Event{ID: id, Name: "a.b", Organization: "acme", Source: "test", Payload: []byte(`{"n": 1.10}`)}
		events[i] = event.Record(w.topics.Events)
		entry := schemas.RoutedEntry{Offset: w.next, Result: schemas.RoutedMatched, Webhooks: 1}
		switch {
		case w.next%10 == 9:
			entry.Result = schemas.RoutedDuplicate
			w.want["event_copies"]++
		case w.next%11 == 10:
			entry.Result = schemas.RoutedRejected
			w.want["event_copies"]++
		default:
			w.want["event_log"]++
		}
		routed.Entries = append(routed.Entries, entry)
		w.next++
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	for i := range n {
		d := schemas.Delivery{
			WebhookID: "wh_" + strconv.Itoa(i%7), EventID: "e", Event: "a.b", Organization: "acme",
			AcceptedAt: now, RoutedAt: now, Cause: schemas.CauseEvent, Body: []byte("{}"),
		}
		if i%20 == 0 {
			d.Cause = schemas.CausePing
			w.want["event_log"]++
		}
		add(d.Record(w.topics.Deliveries), nil)
		o := schemas.Outcome{
			Organization: "acme", WebhookID: d.WebhookID, MessageID: "m", EventID: "e", Event: "a.b", Cause: d.Cause,
			DeliveryID: schemas.DeliveryID{Topic: w.ids[w.topics.Deliveries], Partition: 1 << 20, Offset: w.made},
			Attempt:    1, StatusCode: 200, Result: schemas.ResultDelivered, StartedAt: now, DurationMS: 1.5, RoutedAt: now,
		}
		add(o.Record(w.topics.Outcomes))
		w.want["outcomes"]++
		w.made++
	}
	c := schemas.Change{At: now, Actor: "admin", Action: "created", Object: "webhook", ObjectID: "wh_1", Organization: "acme", After: json.RawMessage(`{"id":"wh_1"}`)}
	add(c.Record(w.topics.Changes))
	w.want["changes"]++
	w.want["webhooks"]++
	w.send(t, events)
	w.send(t, append(records, routed.Record(w.topics.Routed)))
}

// send produces records; events to partition 0, where routed says they are.
func (w *world) send(t *testing.T, records []*kgo.Record) {
	t.Helper()
	client := w.client
	if records[0].Topic == w.topics.Events {
		c, err := w.cfg.Kafka.NewClient("test-events", kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		client = c
	}
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// waitExact waits until every table has as many rows as it must, and fails at
// once where one has more, or the same place twice.
func (w *world) waitExact(t *testing.T, limit time.Duration) {
	t.Helper()
	pipeline.Wait(t, limit, "all rows", func() error { return w.compare(t) })
}

func (w *world) compare(t *testing.T) error {
	t.Helper()
	for table, want := range w.want {
		answer := strings.Fields(w.query(t, "SELECT count(), uniqExact(topic_id, partition, offset) FROM {db}."+table))
		rows, _ := strconv.Atoi(answer[0])
		places, _ := strconv.Atoi(answer[1])
		if rows != places || rows > want {
			t.Fatalf("%s has %d rows of %d places, want %d", table, rows, places, want)
		}
		if rows < want {
			return fmt.Errorf("%s has %d rows, want %d", table, rows, want)
		}
	}
	return nil
}
