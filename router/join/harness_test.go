package join

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/router/table"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// harness is a Kafka with topics and a client that plays ingest, producers and readers.
type harness struct {
	t       *testing.T
	cluster *kfake.Cluster
	cfg     kafka.Config
	topics  schemas.Topics
	client  *kgo.Client
}

func startHarness(t *testing.T, partitions int) *harness {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
	if err != nil {
		t.Fatalf("starting kfake: %v", err)
	}
	t.Cleanup(cluster.Close)
	cfg := kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: schemas.DefaultPrefix}
	client, err := cfg.NewClient("test", kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	h := &harness{t: t, cluster: cluster, cfg: cfg, topics: cfg.Topics(), client: client}
	if err := kafka.CreateTopics(h.within(), client, h.topics, schemas.Partitions{Events: partitions, Deliveries: 4}, 1); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *harness) within() context.Context {
	ctx, cancel := context.WithTimeout(h.t.Context(), 60*time.Second)
	h.t.Cleanup(cancel)
	return ctx
}

// router is a joiner with its table, in this process.
type router struct {
	*Joiner

	cancel context.CancelFunc
	ended  chan error
}

// newJoiner makes one with its table's follower; change may change its configuration.
func (h *harness) newJoiner(instance string, change func(*Config)) (*Joiner, *kafka.Follower) {
	h.t.Helper()
	cfg := Config{
		Kafka: h.cfg, Instance: instance, Sessions: 1, DedupMemory: 1 << 20,
		MaxEvents: MaxEvents, MaxRecords: MaxRecords, MaxBytes: MaxBytes,
	}
	if change != nil {
		change(&cfg)
	}
	log := slog.New(slog.NewTextHandler(h.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	p := &process.Process{Log: log.With("instance", instance), Health: process.NewHealth(log), Metrics: prometheus.NewRegistry()}
	webhooks := table.New(h.topics, log, p.Metrics)
	follower, err := kafka.NewFollower(h.cfg, "test-table", log, webhooks.Topics(), webhooks.Apply)
	if err != nil {
		h.t.Fatal(err)
	}
	follower.OnRebuild(webhooks.Begin, webhooks.Done)
	return New(cfg, webhooks, follower, p), follower
}

// startRouter starts one; change may change its configuration.
func (h *harness) startRouter(instance string, change func(*Config)) *router {
	h.t.Helper()
	joiner, follower := h.newJoiner(instance, change)
	ctx, cancel := context.WithCancel(h.t.Context())
	r := &router{Joiner: joiner, cancel: cancel, ended: make(chan error, 1)}
	go func() {
		r.ended <- process.Run(ctx,
			process.Stage{Name: "table", Run: follower.Run},
			process.Stage{Name: "sessions", Run: r.Run},
		)
	}()
	h.t.Cleanup(func() { cancel() })
	return r
}

// stop ends it as SIGTERM does.
func (r *router) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	select {
	case err := <-r.ended:
		if err != nil {
			t.Errorf("stopping router: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the router does not stop")
	}
}

// put writes records and waits until they are there.
func (h *harness) put(records ...*kgo.Record) {
	h.t.Helper()
	if err := h.client.ProduceSync(h.within(), records...).FirstErr(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) webhook(id, account string, events ...string) *kgo.Record {
	h.t.Helper()
	w := schemas.Webhook{
		ID: id, Organization: "org", Account: account, Active: true, URL: "https://example.com/", Events: events, Generation: 1, Revision: 3,
	}
	r, err := w.Record(h.topics.Webhooks)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *harness) webhooks(n int, events ...string) (records []*kgo.Record) {
	for i := range n {
		records = append(records, h.webhook(fmt.Sprintf("wh_%05d", i), "", events...))
	}
	return records
}

func (h *harness) event(id, name string, payload string) *kgo.Record {
	e := schemas.Event{ID: id, Name: name, Organization: "org", Source: "test"}
	if payload != "" {
		e.Payload = []byte(payload)
	}
	return e.Record(h.topics.Events)
}

// spread returns each event as often as copies says, over all partitions.
func (h *harness) spread(ids []string, copies int) (records []*kgo.Record) {
	for _, id := range ids {
		e := schemas.Event{ID: id, Name: "labs.created", Organization: "org", Source: "test"}
		e.Extensions = []schemas.Attribute{{Name: "partitionkey", Value: id}}
		for range copies {
			records = append(records, e.Record(h.topics.Events))
		}
	}
	return records
}

// eventually waits for a condition.
func (h *harness) eventually(what string, condition func() bool) {
	h.t.Helper()
	ctx := h.within()
	for !condition() {
		if !process.Pause(ctx, 25*time.Millisecond) {
			h.t.Fatalf("waiting until %s", what)
		}
	}
}

// routed waits until every event has been routed.
func (h *harness) routed() {
	h.t.Helper()
	admin := kadm.NewClient(h.client)
	h.eventually("all events are routed", func() bool {
		ends, err := admin.ListEndOffsets(h.within(), h.topics.Events)
		if err != nil {
			h.t.Fatal(err)
		}
		committed, err := admin.FetchOffsets(h.within(), h.topics.RouterGroup)
		if err != nil {
			h.t.Fatal(err)
		}
		done := true
		ends.Each(func(end kadm.ListedOffset) {
			at, _ := committed.Lookup(end.Topic, end.Partition)
			done = done && at.At == end.Offset
		})
		return done
	})
}

// read returns every committed record of a topic, by partition.
func (h *harness) read(topic string) (records []*kgo.Record) {
	h.t.Helper()
	admin := kadm.NewClient(h.client)
	ends, err := admin.ListCommittedOffsets(h.within(), topic)
	if err != nil {
		h.t.Fatal(err)
	}
	open := make(map[int32]int64)
	from := make(map[int32]kgo.Offset)
	ends.Each(func(end kadm.ListedOffset) {
		if end.Offset > 0 {
			open[end.Partition], from[end.Partition] = end.Offset, kgo.NewOffset().AtStart()
		}
	})
	cl, err := h.cfg.NewClient("test-reader", kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}), kgo.KeepControlRecords())
	if err != nil {
		h.t.Fatal(err)
	}
	defer cl.Close()
	ctx := h.within()
	for len(open) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			h.t.Fatalf("reading %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				records = append(records, r)
			}
			if r.Offset+1 >= open[r.Partition] {
				delete(open, r.Partition)
			}
		})
	}
	return records
}

// deliveries returns the deliveries as "<event id> <webhook id>", sorted.
func (h *harness) deliveries() (found []string) {
	h.t.Helper()
	for _, r := range h.read(h.topics.Deliveries) {
		d, err := schemas.DecodeDelivery(r, [16]byte{1})
		if err != nil {
			h.t.Fatal(err)
		}
		found = append(found, d.EventID+" "+d.WebhookID)
	}
	slices.Sort(found)
	return found
}

// entries returns what routed says, by partition and offset, and checks that no event is missing or there twice.
func (h *harness) entries() (all []schemas.RoutedEntry) {
	h.t.Helper()
	next := make(map[int32]int64)
	for _, r := range h.read(h.topics.Routed) {
		routed, err := schemas.DecodeRouted(r)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range routed.Entries {
			if e.Offset != next[r.Partition] {
				h.t.Errorf("routed %d: got offset %d, want %d", r.Partition, e.Offset, next[r.Partition])
			}
			next[r.Partition] = e.Offset + 1
		}
		all = append(all, routed.Entries...)
	}
	return all
}

// product returns "<event> <webhook>" of all pairs, sorted.
func product(events, webhooks []string) (pairs []string) {
	for _, e := range events {
		for _, w := range webhooks {
			pairs = append(pairs, e+" "+w)
		}
	}
	slices.Sort(pairs)
	return pairs
}

func ids(prefix string, n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("%s%05d", prefix, i))
	}
	return list
}
