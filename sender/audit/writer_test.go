package audit

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// rig is a kfake cluster with topics and a service without ClickHouse.
type rig struct {
	cluster *kfake.Cluster
	cfg     Config
	p       *process.Process
	s       *service
	ids     map[string][16]byte
}

func startRig(t *testing.T) *rig {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	r := &rig{cluster: cluster, p: process.New(slog.New(slog.NewTextHandler(t.Output(), nil))), cfg: Config{
		Kafka:       kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: schemas.DefaultPrefix},
		ClickHouse:  clickhouse.Config{Address: "127.0.0.1:1", User: "default"}, // nobody listens on port 1
		BufferBytes: DefaultBufferBytes, InsertTimeout: time.Second, Instance: "test",
	}}
	cl, err := r.cfg.Kafka.NewClient("test")
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	topics := r.cfg.Kafka.Topics()
	if err := kafka.CreateTopics(t.Context(), cl, topics, schemas.Partitions{Events: 1, Deliveries: 1}, 1); err != nil {
		t.Fatal(err)
	}
	if r.ids, err = kafka.TopicIDs(t.Context(), cl, topics.Audited()...); err != nil {
		t.Fatal(err)
	}
	r.s = &service{cfg: r.cfg, log: r.p.Log}
	return r
}

// startWriter joins the group and polls until it has an outcome.
func (r *rig) startWriter(t *testing.T) *writer {
	t.Helper()
	r.s.metrics = newMetrics(process.New(r.p.Log).Metrics)
	w, err := r.s.newWriter(r.ids)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.client.CloseAllowingRebalance)
	o := schemas.Outcome{WebhookID: "wh_1", DeliveryID: schemas.DeliveryID{Offset: 1}}
	rec, err := o.Record(w.topics.Outcomes)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.client.ProduceSync(t.Context(), rec).FirstErr(); err != nil {
		t.Fatal(err)
	}
	w.pollUntil(t, "an outcome comes", func() bool { return w.outcomes() != nil })
	return w
}

func (w *writer) outcomes() *stream { return w.streams[partitionKey{sourceOutcomes, 0}] }

// TestCommitNamesTheBlock: the next owner knows its bounds and its deadline.
func TestCommitNamesTheBlock(t *testing.T) {
	r := startRig(t)
	w := r.startWriter(t)
	deadline := time.UnixMilli(1_760_000_000_123)
	if err := w.commit(t.Context(), deadline, w.ready()); err != nil {
		t.Fatal(err)
	}
	w.client.CloseAllowingRebalance()

	next := r.startWriter(t).outcomes()
	b := next.ready()
	if b == nil || b.begin != 0 || b.end != 1 || !b.unknown.has(0) || !b.fence.Equal(deadline) {
		t.Errorf("the next owner makes %+v", b)
	}
}

// TestInsertedIsCommittedOnLeaving: the next owner has nothing to look up.
func TestInsertedIsCommittedOnLeaving(t *testing.T) {
	r := startRig(t)
	w := r.startWriter(t)
	if err := w.commit(t.Context(), time.UnixMilli(1), w.ready()); err != nil {
		t.Fatal(err)
	}
	w.outcomes().inserted()
	w.client.CloseAllowingRebalance()

	if next := r.startWriter(t).outcomes(); next.next != 1 || next.ready().unknown != 0 {
		t.Errorf("the next owner begins at %d with %+v", next.next, next.ready())
	}
}

// TestRefusedCommit: nothing counts as committed, so nothing is inserted.
func TestRefusedCommit(t *testing.T) {
	r := startRig(t)
	w := r.startWriter(t)
	r.cluster.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		commit, ok := req.(*kmsg.OffsetCommitRequest)
		if !ok {
			return nil, nil, false
		}
		resp, ok := commit.ResponseKind().(*kmsg.OffsetCommitResponse)
		if !ok {
			return nil, nil, false
		}
		for _, topic := range commit.Topics {
			answer := kmsg.NewOffsetCommitResponseTopic()
			answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
			for _, p := range topic.Partitions {
				partition := kmsg.NewOffsetCommitResponseTopicPartition()
				partition.Partition, partition.ErrorCode = p.Partition, kerr.IllegalGeneration.Code
				answer.Partitions = append(answer.Partitions, partition)
			}
			resp.Topics = append(resp.Topics, answer)
		}
		return resp, nil, true
	})
	before := w.outcomes().committed
	err := w.commit(t.Context(), time.UnixMilli(1), w.ready())
	if !errors.Is(err, errCommit) || !errors.Is(err, kerr.IllegalGeneration) {
		t.Errorf("got %v, want %v of %v", err, errCommit, kerr.IllegalGeneration)
	}
	if w.outcomes().committed != before {
		t.Errorf("committed is %+v, was %+v", w.outcomes().committed, before)
	}
}

// bigOutcome is a record that fills a small buffer.
func bigOutcome(t *testing.T, topic string) *kgo.Record {
	t.Helper()
	o := schemas.Outcome{WebhookID: "wh_1", DeliveryID: schemas.DeliveryID{Offset: 1}, ResponseHead: strings.Repeat("x", 8<<10)}
	rec, err := o.Record(topic)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// poll takes one record, if one comes, and holds back as run does.
func (w *writer) poll(t *testing.T, limit time.Duration) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	w.client.AllowRebalance()
	fetches := w.client.PollRecords(ctx, 1)
	if err := w.take(fetches); err != nil {
		t.Fatal(err)
	}
	w.holdBack()
	return fetches.NumRecords()
}

// pollUntil polls until a condition holds.
func (w *writer) pollUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); w.poll(t, 100*time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting until %s", what)
		}
	}
}

func (w *writer) holds(topic string) bool {
	_, held := w.paused[topicPartition{topic, 0}]
	return held
}

// TestFullBufferHoldsBack: memory is bounded while ClickHouse is away, and what
// was held back comes when there is room.
func TestFullBufferHoldsBack(t *testing.T) {
	r := startRig(t)
	r.s.cfg.BufferBytes = 8 << 10
	w := r.startWriter(t)
	if err := w.client.ProduceSync(t.Context(), bigOutcome(t, w.topics.Outcomes)).FirstErr(); err != nil {
		t.Fatal(err)
	}
	w.pollUntil(t, "the buffer is full", func() bool { return w.holds(w.topics.Outcomes) })
	for _, topic := range w.topics.Audited() {
		if !w.holds(topic) {
			t.Errorf("%s is not held back", topic)
		}
	}
	if err := w.client.ProduceSync(t.Context(), bigOutcome(t, w.topics.Outcomes)).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if n := w.poll(t, time.Second); n != 0 {
		t.Errorf("%d records came while all is held back", n)
	}
	w.outcomes().ready()
	w.outcomes().inserted()
	w.holdBack()
	w.pollUntil(t, "what was held back comes", func() bool { return w.outcomes().rowCount() > 0 })
}

// TestRestoredBlocksAreReadThrough: blocks that together need more than the
// buffer are made whole all the same, and what is behind them waits.
func TestRestoredBlocksAreReadThrough(t *testing.T) {
	r := startRig(t)
	w := r.startWriter(t)
	d := schemas.Delivery{
		WebhookID: "wh_1", EventID: "e", Event: schemas.PingName, Organization: "acme", Cause: schemas.CausePing,
		Body: []byte(strings.Repeat("x", 8<<10)),
	}
	e := schemas.Event{ID: "e", Name: "a.b", Organization: "acme", Source: "test", Payload: []byte(`{"x":"` + strings.Repeat("x", 8<<10) + `"}`)}
	produce := func(routed schemas.Routed) {
		t.Helper()
		routed.EventsTopic = r.ids[w.topics.Events]
		err := w.client.ProduceSync(t.Context(),
			bigOutcome(t, w.topics.Outcomes), d.Record(w.topics.Deliveries), e.Record(w.topics.Events), routed.Record(w.topics.Routed)).FirstErr()
		if err != nil {
			t.Fatal(err)
		}
	}
	keys := []partitionKey{{sourceOutcomes, 0}, {sourceDeliveries, 0}, {sourceRouted, 0}}
	whole := func(w *writer, records int64) func() bool {
		return func() bool {
			for _, key := range keys {
				if s := w.streams[key]; s == nil || s.made < records {
					return false
				}
			}
			return true
		}
	}
	produce(schemas.Routed{Entries: []schemas.RoutedEntry{{Offset: 0}}})
	produce(schemas.Routed{Entries: []schemas.RoutedEntry{{Offset: 1}}})
	w.pollUntil(t, "all is read", whole(w, 2))
	if err := w.commit(t.Context(), time.UnixMilli(1), w.ready()); err != nil {
		t.Fatal(err)
	}
	w.client.CloseAllowingRebalance()

	r.s.cfg.BufferBytes = 8 << 10
	w = r.startWriter(t)
	w.pollUntil(t, "the blocks are whole", func() bool { return len(w.ready()) == len(keys) })
	w.pollUntil(t, "all is held back", func() bool { return w.holds(w.topics.Outcomes) })
	for _, topic := range w.topics.Audited() {
		if !w.holds(topic) {
			t.Errorf("%s is not held back", topic)
		}
	}
}

// TestKeepsTryingWithoutClickHouse: said in /readyz, no end, and an orderly stop.
func TestKeepsTryingWithoutClickHouse(t *testing.T) {
	r := startRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, r.cfg, r.p) }()
	deadline := time.After(20 * time.Second)
	for tick := time.Tick(10 * time.Millisecond); ; {
		answer := httptest.NewRecorder()
		r.p.Health.ServeHTTP(answer, httptest.NewRequestWithContext(ctx, "GET", "/readyz", nil))
		if answer.Code == 200 && strings.Contains(answer.Body.String(), "connection refused") {
			break
		}
		select {
		case <-tick:
		case err := <-done:
			t.Fatalf("ended with %v", err)
		case <-deadline:
			t.Fatalf("/readyz says %d %s", answer.Code, answer.Body)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// TestQuarantineIsTriedAgain: what Kafka did not take in time is produced again, and
// what it took is not.
func TestQuarantineIsTriedAgain(t *testing.T) {
	r := startRig(t)
	w := r.startWriter(t)
	bad := &kgo.Record{Topic: w.topics.Outcomes, Value: []byte("bad"), Offset: 7}
	w.reject(sourceOutcomes, bad, schemas.Invalid(schemas.CodeInvalidRecord, "#", "bad"))
	over, end := context.WithCancel(t.Context())
	end()
	if err := w.quarantine(over); err == nil || len(w.rejected) != 1 {
		t.Fatalf("got %v with %d records left, want an error and one", err, len(w.rejected))
	}
	if err := w.quarantine(t.Context()); err != nil || len(w.rejected) != 0 {
		t.Errorf("got %v with %d records left, want none", err, len(w.rejected))
	}
}

func TestPairs(t *testing.T) {
	for _, test := range []struct {
		events, routed []int32
		ok             bool
	}{
		{nil, nil, true},
		{[]int32{1, 0}, []int32{0, 1}, true},
		{[]int32{0, 1}, []int32{0}, false},
		{nil, []int32{0}, false},
	} {
		if err := checkPairs(test.events, test.routed); (err == nil) != test.ok {
			t.Errorf("%v and %v: got %v", test.events, test.routed, err)
		}
	}
}
