package bench

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/deploy/verify"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
)

//nolint:gochecknoglobals // a flag
var verifyDeliveries = flag.Int("verify-deliveries", 2_000_000, "deliveries that verify checks")

// BenchmarkVerify measures postrider verify over deliveries that stand in the log
// and in ClickHouse as if they had been made: each of an event of its own, with one
// attempt that delivered it.
func BenchmarkVerify(b *testing.B) {
	bed := &bed{kafka: pipeline.StartKafka(b, 1), clickhouse: pipeline.StartClickHouse(b)}
	fillForVerify(b, bed, *verifyDeliveries, schemas.DefaultPartitions())
	var best verify.Report // the best of -benchtime 5x, say, where others use the machine too
	var peak, cpu float64
	for b.Loop() {
		r, used := runVerify(b, bed)
		if r.PerSecond > best.PerSecond {
			best, peak = r, float64(used.Maxrss)/1024
			cpu = time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
		}
	}
	b.ReportMetric(best.PerSecond, "deliveries/s")
	b.ReportMetric(peak, "peak-MiB")
	b.ReportMetric(cpu, "cpu-s")
	b.ReportMetric(0, "ns/op")
}

// TestVerifyBenchAtSmallSize keeps what is measured true: everything is checked, and nothing is missing.
func TestVerifyBenchAtSmallSize(t *testing.T) {
	bed := &bed{kafka: pipeline.StartKafka(t, 1), clickhouse: pipeline.StartClickHouse(t)}
	const n = 2000
	fillForVerify(t, bed, n, schemas.Partitions{Events: 2, Deliveries: 4})
	r, _ := runVerify(t, bed)
	if r.Deliveries.Total != n || r.Events.Routed != n || r.Rows.Outcomes != n || r.Rows.Deliveries != 2*n || r.Rows.Events != n || r.Rows.Lag != 0 {
		t.Errorf("checked %+v, want %d of each", r, n)
	}
}

// runVerify runs the command, which must find nothing.
func runVerify(t testing.TB, bed *bed) (r verify.Report, used *syscall.Rusage) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), pipeline.Binary(t, "postrider"), "verify", "--json", "--brokers="+strings.Join(bed.kafka.Addrs(), ","),
		"--clickhouse="+bed.clickhouse.Native, "--clickhouse-database="+bed.clickhouse.Database)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	used, _ = cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return r, used
}

// filler writes what a run of the pipeline would have written.
type filler struct {
	client     *kgo.Client
	topics     schemas.Topics
	ids        map[string][16]byte
	clickhouse clickhouse.Config
	payload    []byte
	at         time.Time
}

func fillForVerify(t testing.TB, bed *bed, n int, partitions schemas.Partitions) {
	t.Helper()
	bed.prepare(t, partitions)
	cfg := kafka.Config{Brokers: bed.kafka.Addrs(), TopicPrefix: prefix}
	client, err := cfg.NewClient("fill", kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(50_000))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	f := &filler{
		client: client, topics: schemas.NewTopics(prefix), at: time.Now().Truncate(time.Millisecond),
		clickhouse: clickhouse.Config{Address: bed.clickhouse.Native, Database: bed.clickhouse.Database},
		payload:    []byte(`{"filler":"` + strings.Repeat("0123456789", 49) + `"}`),
	}
	if f.ids, err = kafka.TopicIDs(t.Context(), client, f.topics.Events, f.topics.Deliveries, f.topics.Outcomes); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.events(t.Context(), n, partitions.Events), f.deliveries(t.Context(), n, partitions.Deliveries), f.commit(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// event is the i-th.
func (f *filler) event(i int) schemas.Event {
	return schemas.Event{ID: fmt.Sprintf("event-%010d", i), Name: "medical-encounters.created", Organization: organization(i % 100), Time: f.at, Payload: f.payload}
}

// produce writes records with nobody waiting for each.
func (f *filler) produce(ctx context.Context, records func(func(*kgo.Record)) error) error {
	var mu sync.Mutex
	var first error
	err := records(func(r *kgo.Record) {
		f.client.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				first = err
			}
		})
	})
	return errors.Join(err, f.client.Flush(ctx), first)
}

// events writes events and routed, and the events' rows. Offsets are the order of writing.
func (f *filler) events(ctx context.Context, n, partitions int) error {
	err := f.produce(ctx, func(write func(*kgo.Record)) error {
		routed := make([]schemas.Routed, partitions)
		for i := range n {
			p := i % partitions
			e := f.event(i)
			r := e.Record(f.topics.Events)
			r.Partition = in(i, partitions)
			write(r)
			routed[p].Entries = append(routed[p].Entries, schemas.RoutedEntry{
				Offset: int64(i / partitions), IDHash: schemas.DedupHash(e.Organization, e.ID), Result: schemas.RoutedMatched, Webhooks: 1,
			})
			if len(routed[p].Entries) == 500 || i >= n-partitions {
				routed[p].EventsTopic, routed[p].Partition = f.ids[f.topics.Events], in(i, partitions)
				write(routed[p].Record(f.topics.Routed))
				routed[p].Entries = nil
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.insert(ctx, "event_log", []string{"organization", "event_id", "event", "cause", "accepted_at", "matches", "topic_id", "partition", "offset"}, n, func(i int) []any {
		e := f.event(i)
		one := uint32(1)
		return []any{e.Organization, e.ID, e.Name, "event", f.at, &one, uuid.UUID(f.ids[f.topics.Events]), in(i, partitions), int64(i / partitions)}
	})
}

// deliveries writes deliveries and outcomes, and the rows of both.
func (f *filler) deliveries(ctx context.Context, n, partitions int) error {
	id := func(i int) schemas.DeliveryID {
		return schemas.DeliveryID{Topic: f.ids[f.topics.Deliveries], Partition: in(i, partitions), Offset: int64(i / partitions)}
	}
	webhook := func(i int) string { return fmt.Sprintf("wh_%026d", i%partitions) }
	err := f.produce(ctx, func(write func(*kgo.Record)) error {
		for i := range n {
			e := f.event(i)
			d := schemas.Delivery{
				WebhookID: webhook(i), WebhookRevision: 1, EventID: e.ID, Event: e.Name, Organization: e.Organization, EventTime: e.Time,
				AcceptedAt: f.at, RoutedAt: f.at, Cause: schemas.CauseEvent, Body: schemas.AppendBody(nil, &e),
			}
			r := d.Record(f.topics.Deliveries)
			r.Partition = in(i, partitions)
			write(r)
			d.ID = id(i)
			o := schemas.Outcome{
				Organization: d.Organization, WebhookID: d.WebhookID, WebhookRevision: 1, DeliveryID: d.ID, MessageID: d.MessageID(), EventID: d.EventID,
				Event: d.Event, Cause: d.Cause, Attempt: 1, StatusCode: 200, Result: schemas.ResultDelivered, URL: "https://example.com/hooks/12345",
				StartedAt: f.at, DurationMS: 12.345, FirstByteMS: 11.1, EventTime: f.at, AcceptedAt: f.at, RoutedAt: f.at,
				ResponseHead: "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 26 Nov 2026 10:00:00 GMT\r\nContent-Length: 0\r\n\r\n", Sender: "sender-1",
			}
			out, err := o.Record(f.topics.Outcomes)
			if err != nil {
				return err
			}
			out.Partition = in(i, partitions) // r is the client's by now
			write(out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	place := func(topic string, i int) []any {
		return []any{uuid.UUID(f.ids[topic]), in(i, partitions), int64(i / partitions)}
	}
	states := []string{"organization", "webhook_id", "delivery_id", "event_id", "event", "cause", "state", "accepted_at", "routed_at", "version", "topic_id", "partition", "offset"}
	state := func(topic, name string, version int) func(i int) []any {
		return func(i int) []any {
			e := f.event(i)
			return append([]any{
				e.Organization, webhook(i), id(i).String(), e.ID, e.Name, "event", name, f.at, f.at, uint64(version * (i/partitions + 1)), //nolint:gosec // not negative
			}, place(topic, i)...)
		}
	}
	return errors.Join(
		f.insert(ctx, "delivery_states", states, n, state(f.topics.Deliveries, "pending", 0)),
		f.insert(ctx, "delivery_states", states, n, state(f.topics.Outcomes, "delivered", 1)),
		f.insert(ctx, "outcomes", []string{"organization", "webhook_id", "delivery_id", "event_id", "event", "result", "started_at", "topic_id", "partition", "offset"}, n, func(i int) []any {
			e := f.event(i)
			return append([]any{e.Organization, webhook(i), id(i).String(), e.ID, e.Name, "delivered", f.at}, place(f.topics.Outcomes, i)...)
		}),
	)
}

// in is the partition of the i-th record.
func in(i, partitions int) int32 { return int32(i % partitions) } //nolint:gosec // below partitions

// insert adds n rows.
func (f *filler) insert(ctx context.Context, table string, columns []string, n int, row func(i int) []any) (err error) {
	conn, err := f.clickhouse.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	const block = 100_000
	for from := 0; from < n; from += block {
		batch, err := conn.PrepareBatch(ctx, "INSERT INTO "+f.clickhouse.DatabaseName()+"."+table+" ("+strings.Join(columns, ", ")+")")
		if err != nil {
			return err
		}
		for i := from; i < min(from+block, n); i++ {
			if err := batch.Append(row(i)...); err != nil {
				return errors.Join(err, batch.Close())
			}
		}
		if err := batch.Send(); err != nil {
			return err
		}
	}
	return nil
}

// commit puts all groups behind everything.
func (f *filler) commit(ctx context.Context) error {
	admin := kadm.NewClient(f.client)
	for group, topics := range f.topics.GroupTopics() {
		ends, err := admin.ListEndOffsets(ctx, topics...)
		if err == nil {
			err = admin.CommitAllOffsets(ctx, group, ends.Offsets())
		}
		if err != nil {
			return err
		}
	}
	return nil
}
