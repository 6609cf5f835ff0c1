package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/account"
)

// books is an account of a log that a test writes by hand, as senders would.
type books struct {
	*system

	process *process.Process
	client  *kgo.Client
	id      [16]byte // of deliveries
}

func openBooks(t *testing.T) *books {
	t.Helper()
	cluster, prefix := pipeline.SharedKafka(t)
	b := &books{system: prepare(t, cluster, prefix, pipeline.SharedClickHouse(t)), process: process.New(slog.New(slog.NewTextHandler(t.Output(), nil)))}
	b.client = b.system.client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	topics, err := kadm.NewClient(b.client).ListTopics(t.Context(), b.topics.Deliveries)
	if err != nil {
		t.Fatal(err)
	}
	b.id = topics[b.topics.Deliveries].ID
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		cfg := account.Config{Kafka: b.kafka, Instance: "test", Every: 50 * time.Millisecond, Share: 1}
		done <- account.Run(ctx, cfg, b.process, func() []int32 { return []int32{0, 1, 2, 3} })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

// metric is one of the process's, by name.
func (b *books) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := b.process.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

// wantUnaccounted waits for a balance of now, and for what it comes to.
func (b *books) wantUnaccounted(t *testing.T, what string, want float64) {
	t.Helper()
	from := float64(time.Now().UnixMilli()) / 1000
	pipeline.Wait(t, soon, what, func() error {
		if got := b.metric(t, "postrider_unaccounted"); got != want || b.metric(t, "postrider_accounted_timestamp_seconds") < from {
			return fmt.Errorf("%w: %v unaccounted, want %v", errNotYet, got, want)
		}
		return nil
	})
}

// deliver writes a delivery to partition 1.
func (b *books) deliver(t *testing.T) schemas.Delivery {
	t.Helper()
	d := schemas.Delivery{
		WebhookID: "wh_1", EventID: "e", Event: "a.b", Organization: "acme", Cause: schemas.CauseRetry, RoutedAt: time.Now(), Body: []byte("{}"),
	}
	r := b.put(t, d.Record(b.topics.Deliveries))
	d.ID = schemas.DeliveryID{Topic: b.id, Partition: r.Partition, Offset: r.Offset}
	return d
}

func (b *books) put(t *testing.T, r *kgo.Record) *kgo.Record {
	t.Helper()
	r.Partition = 1
	if err := b.client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (b *books) end(t *testing.T, d *schemas.Delivery, result schemas.Result) {
	t.Helper()
	o := schemas.Outcome{WebhookID: d.WebhookID, Organization: d.Organization, DeliveryID: d.ID, Result: result, StartedAt: time.Now()}
	r, err := o.Record(b.topics.Outcomes)
	if err != nil {
		t.Fatal(err)
	}
	b.put(t, r)
}

// commit says up to where senders are; unfinished are left below.
func (b *books) commit(t *testing.T, topic string, next int64, unfinished ...int64) {
	t.Helper()
	m := schemas.Mark{Unfinished: unfinished, Next: next}
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: topic, Partition: 1, At: m.Low(), LeaderEpoch: -1, Metadata: m.Text()})
	if err := kadm.NewClient(b.client).CommitAllOffsets(t.Context(), b.topics.SenderGroup, offsets); err != nil {
		t.Fatal(err)
	}
}

// TestUnaccounted is the metric of P11: it is 0 whatever deliveries go through, and
// counts those that were lost, on their way or where they waited.
func TestUnaccounted(t *testing.T) {
	b := openBooks(t)
	b.wantUnaccounted(t, "an empty log", 0)
	first, second, third := b.deliver(t), b.deliver(t), b.deliver(t)
	b.wantUnaccounted(t, "deliveries nobody came to", 0)
	b.end(t, &second, schemas.ResultDelivered)
	b.commit(t, b.topics.Deliveries, third.ID.Offset, first.ID.Offset)
	b.wantUnaccounted(t, "one that ended between two that have not", 0)
	waiting := first
	waiting.Attempt = 1
	tier := b.put(t, waiting.Record(b.topics.Retry[3]))
	b.end(t, &first, schemas.ResultRetry)
	b.commit(t, b.topics.Deliveries, third.ID.Offset)
	b.wantUnaccounted(t, "one that waits", 0)
	again := b.put(t, waiting.Record(b.topics.Retry[1]))
	b.commit(t, b.topics.Retry[3], tier.Offset+1)
	b.wantUnaccounted(t, "one that went on to another tier", 0)
	bad := b.put(t, &kgo.Record{Topic: b.topics.Deliveries, Value: []byte("x")})
	set := schemas.RejectedRecord(b.topics.Rejected, bad, errNotYet)
	if err := b.client.ProduceSync(t.Context(), set).FirstErr(); err != nil {
		t.Fatal(err)
	}
	b.commit(t, b.topics.Deliveries, bad.Offset+1, third.ID.Offset)
	b.wantUnaccounted(t, "one that was set aside", 0)

	b.commit(t, b.topics.Deliveries, bad.Offset+1)
	b.wantUnaccounted(t, "one that was passed", 1)
	b.commit(t, b.topics.Retry[1], again.Offset+1)
	b.wantUnaccounted(t, "one that was passed where it waited", 2)
	b.end(t, &third, schemas.ResultDead)
	b.wantUnaccounted(t, "an end that came to light", 1)
}
