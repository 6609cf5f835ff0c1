package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

// TestClickHouseAway is F11: killed, and answering after the client's timeout.
func TestClickHouseAway(t *testing.T) {
	_, brokers := pipeline.StartKfake(t)
	w := startWorld(t, brokers, "postrider.", pipeline.StartClickHouse(t))
	w.cfg.BufferBytes, w.cfg.InsertTimeout = 4<<20, time.Second
	p, _ := w.startWriter(t)
	w.produce(t, 1000)
	w.waitExact(t, 30*time.Second)

	w.store.Kill9(t)
	for range 10 {
		w.produce(t, 3000)
	}
	waitDependency(t, p, "clickhouse", "down", "")
	if held := metric(t, p, "postrider_audit_buffered_bytes", "", ""); held > 12<<20 {
		t.Errorf("%v bytes are held of a buffer of 4 MiB and one poll", held)
	}
	w.store.Restart(t)
	w.waitExact(t, 3*time.Minute)
	waitDependency(t, p, "clickhouse", "up", "")

	w.store.Suspend(t)
	w.produce(t, 3000)
	waitDependency(t, p, "clickhouse", "down", "")
	w.store.Continue(t)
	w.waitExact(t, 3*time.Minute)
}

func TestOldSchemaHoldsTheAudit(t *testing.T) {
	_, brokers := pipeline.StartKfake(t)
	w := startWorld(t, brokers, "postrider.", pipeline.SharedClickHouse(t))
	w.query(t, "TRUNCATE TABLE {db}.schema_migrations")
	p, _ := w.startWriter(t)
	w.produce(t, 100)
	waitDependency(t, p, "audit", "down", "postrider clickhouse migrate")
	w.wantQuery(t, "SELECT count() FROM {db}.outcomes", "0")
	migrate(t, w.cfg.ClickHouse)
	w.waitExact(t, 30*time.Second)
	waitDependency(t, p, "audit", "up", "")
}

// TestMigratedWhileRunning: a later version's columns come while rows go in, and a
// binary that knows nothing of them goes on, and starts anew.
func TestMigratedWhileRunning(t *testing.T) {
	_, brokers := pipeline.StartKfake(t)
	w := startWorld(t, brokers, "postrider.", pipeline.SharedClickHouse(t))
	_, stop := w.startWriter(t)
	w.produce(t, 1000)
	w.waitProgress(t)
	for _, table := range []string{"outcomes", "delivery_states", "event_log", "event_copies", "changes"} {
		w.produce(t, 1000)
		w.query(t, "ALTER TABLE {db}."+table+" ADD COLUMN later String DEFAULT 'unknown'")
	}
	w.query(t, "INSERT INTO {db}.schema_migrations (version, name) VALUES (1000, 'later')")
	w.produce(t, 1000)
	w.waitExact(t, time.Minute)
	stop()
	w.startWriter(t)
	w.produce(t, 1000)
	w.waitExact(t, time.Minute)
	w.wantQuery(t, "SELECT DISTINCT later FROM {db}.outcomes", "unknown")
}

func TestBadRecordGoesToRejected(t *testing.T) {
	_, brokers := pipeline.StartKfake(t)
	w := startWorld(t, brokers, "postrider.", pipeline.SharedClickHouse(t))
	w.startWriter(t)
	w.produce(t, 100)
	bad := []*kgo.Record{
		{Topic: w.topics.Outcomes, Key: []byte("k"), Value: []byte("{")},
		{Topic: w.topics.Deliveries, Key: []byte("k"), Value: nil},
		{Topic: w.topics.Changes, Value: []byte("\xff")},
		{Topic: w.topics.Events, Value: []byte("garbage")},
		{Topic: w.topics.Routed, Value: []byte("garbage"), Headers: []kgo.RecordHeader{{Key: "version", Value: []byte("1")}}},
	}
	if err := w.client.ProduceSync(t.Context(), bad...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if bad[3].Partition == 0 {
		w.next++ // it took an offset
	}
	w.produce(t, 100)
	w.waitExact(t, 30*time.Second)

	found := w.rejectedPlaces(t, 4) // not events: those are the router's to reject
	for i, r := range bad {
		if i != 3 && found[fmt.Sprint(r.Topic, r.Partition, r.Offset)] == "" {
			t.Errorf("%s/%d@%d is not in rejected", r.Topic, r.Partition, r.Offset)
		}
	}
}

// TestRefusedRowIsSetAside: what ClickHouse itself will not take goes to rejected
// with ClickHouse's reason, and everything beside it goes in once.
func TestRefusedRowIsSetAside(t *testing.T) {
	_, brokers := pipeline.StartKfake(t)
	w := startWorld(t, brokers, "postrider.", pipeline.SharedClickHouse(t))
	w.query(t, "ALTER TABLE {db}.outcomes ADD CONSTRAINT picky CHECK event_id != 'refused'")
	w.query(t, "ALTER TABLE {db}.delivery_states ADD CONSTRAINT picky CHECK event_id != 'refused'")
	w.produce(t, 500)
	var refused []*kgo.Record
	for i := range 3 {
		o := schemas.Outcome{
			Organization: "acme", WebhookID: "wh_1", MessageID: "m", EventID: "refused", Event: "a.b", Cause: schemas.CauseEvent,
			DeliveryID: schemas.DeliveryID{Topic: w.ids[w.topics.Deliveries], Partition: 1 << 20, Offset: 1<<30 + int64(i)},
			Attempt:    1, StatusCode: 200, Result: schemas.ResultDelivered, StartedAt: time.Now(), RoutedAt: time.Now(),
		}
		record, err := o.Record(w.topics.Outcomes)
		if err != nil {
			t.Fatal(err)
		}
		refused = append(refused, record)
	}
	w.send(t, refused)
	w.produce(t, 500) // in the same blocks, behind them
	w.startWriter(t)
	w.waitExact(t, 30*time.Second)

	found := w.rejectedPlaces(t, len(refused))
	for _, r := range refused {
		reason := found[fmt.Sprint(r.Topic, r.Partition, r.Offset)]
		if !strings.Contains(reason, "picky") {
			t.Errorf("%s/%d@%d was rejected with %q, want ClickHouse's reason", r.Topic, r.Partition, r.Offset, reason)
		}
	}
	w.produce(t, 100) // and it goes on
	w.waitExact(t, 30*time.Second)
}

// rejectedPlaces reads rejected until so many places are in it, and returns their details.
func (w *world) rejectedPlaces(t *testing.T, n int) map[string]string {
	t.Helper()
	reader, err := w.cfg.Kafka.NewClient("test-rejected", kgo.ConsumeTopics(w.topics.Rejected))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	found := make(map[string]string)
	for len(found) < n {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("reading rejected: %v: got %v, want %d", err, found, n)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			rejected, err := schemas.DecodeRejected(r)
			if err != nil {
				t.Fatal(err)
			}
			found[fmt.Sprint(rejected.Topic, rejected.Partition, rejected.Offset)] = rejected.Detail
		})
	}
	return found
}

func TestUnknownVersionStopsItsPartition(t *testing.T) {
	_, brokers := pipeline.StartKfake(t)
	w := startWorld(t, brokers, "postrider.", pipeline.SharedClickHouse(t))
	p, _ := w.startWriter(t)
	newer := &kgo.Record{Topic: w.topics.Changes, Value: []byte("?"), Headers: []kgo.RecordHeader{{Key: "version", Value: []byte("7")}}}
	if err := w.client.ProduceSync(t.Context(), newer).FirstErr(); err != nil {
		t.Fatal(err)
	}
	w.produce(t, 100)
	w.want["changes"], w.want["webhooks"] = 0, 0
	w.waitExact(t, 30*time.Second)
	waitDependency(t, p, "audit", "down", w.topics.Changes+"/0 stands at offset 0")
}

// query asks the store; {db} is the test's database.
func (w *world) query(t *testing.T, statement string) string {
	t.Helper()
	return w.store.Query(t, strings.ReplaceAll(statement, "{db}", w.store.Database))
}

func (w *world) wantQuery(t *testing.T, statement, want string) {
	t.Helper()
	if got := w.query(t, statement); got != want {
		t.Errorf("%s:\ngot  %q\nwant %q", statement, got, want)
	}
}

// waitDependency waits until /readyz shows a dependency in a state, with text in its error.
func waitDependency(t *testing.T, p *process.Process, name, state, text string) {
	t.Helper()
	pipeline.Wait(t, 30*time.Second, name+" "+state, func() error {
		answer := httptest.NewRecorder()
		p.Health.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), "GET", "/readyz", nil))
		var ready struct {
			Dependencies []struct{ Name, State, Error string }
		}
		if err := json.Unmarshal(answer.Body.Bytes(), &ready); err != nil {
			return err
		}
		for _, d := range ready.Dependencies {
			if d.Name == name && d.State == state && strings.Contains(d.Error, text) {
				return nil
			}
		}
		return errors.New(answer.Body.String())
	})
}

// metric sums a metric's values whose label has a value; an empty label: all.
func metric(t *testing.T, p *process.Process, name, label, value string) float64 {
	t.Helper()
	families, err := p.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			matches := label == ""
			for _, l := range m.GetLabel() {
				matches = matches || l.GetName() == label && l.GetValue() == value
			}
			if matches {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}
