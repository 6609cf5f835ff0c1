package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas/process"
)

// table is an owner's: what is in force, and aside of it a new one while the
// topics are read again.
type table struct {
	mu      sync.Mutex
	inForce map[string]string
	aside   map[string]string
	begun   int
}

func newTable() *table {
	tb := &table{inForce: make(map[string]string)}
	tb.aside = tb.inForce
	return tb
}

func (tb *table) apply(r *kgo.Record) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	key := r.Topic + "/" + string(r.Key)
	if r.Value == nil {
		delete(tb.aside, key)
		return
	}
	tb.aside[key] = string(r.Value)
}

func (tb *table) begin() {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.begun++
	tb.aside = make(map[string]string)
}

func (tb *table) done() {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.inForce = tb.aside
}

func (tb *table) content() map[string]string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return maps.Clone(tb.inForce)
}

// startFollower runs a follower into a table until the test ends.
func startFollower(t scope, cfg Config, topics ...string) (*Follower, *table) {
	t.Helper()
	tb := newTable()
	f, err := NewFollower(cfg, "follower", quiet(), topics, tb.apply)
	if err != nil {
		t.Fatal(err)
	}
	f.OnRebuild(tb.begin, tb.done)
	runFollower(t, f)
	return f, tb
}

// scope is a test, or one round of a property.
type scope interface {
	Helper()
	Fatal(args ...any)
	Errorf(format string, args ...any)
	Cleanup(f func())
	Context() context.Context
}

func runFollower(t scope, f *Follower) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func waitReady(t *testing.T, f *Follower) {
	t.Helper()
	select {
	case <-f.Ready():
	case <-within(t).Done():
		t.Fatalf("not ready: %v", f.Err())
	}
}

func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx := within(t)
	for !condition() {
		if !process.Pause(ctx, 2*time.Millisecond) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

func createCompacted(t *testing.T, cl *kgo.Client, partitions int32, topics ...string) {
	t.Helper()
	answers, err := kadm.NewClient(cl).CreateTopics(t.Context(), partitions, 1, map[string]*string{
		"cleanup.policy":      new("compact"),
		"delete.retention.ms": new("0"),
		"max.message.bytes":   new("100000000"),
	}, topics...)
	if err == nil {
		err = answers.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// write produces records in one transaction each call, or plainly where the
// client has no transactional id.
func write(t *testing.T, cl *kgo.Client, commit bool, records ...*kgo.Record) {
	t.Helper()
	if cl.OptValue(kgo.TransactionalID) == "" {
		if err := cl.ProduceSync(within(t), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(within(t), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(within(t), kgo.TransactionEndTry(commit)); err != nil {
		t.Fatal(err)
	}
}

func put(topic, key, value string) *kgo.Record {
	return &kgo.Record{Topic: topic, Key: []byte(key), Value: []byte(value)}
}

func remove(topic, key string) *kgo.Record { return &kgo.Record{Topic: topic, Key: []byte(key)} }

func mustBarrier(t *testing.T, f *Follower) {
	t.Helper()
	if err := f.Barrier(within(t)); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t *testing.T, tb *table, want map[string]string) {
	t.Helper()
	if got := tb.content(); !maps.Equal(got, want) {
		t.Errorf("table = %v, want %v", got, want)
	}
}

func TestBarrierPassesMarkersAtTheTail(t *testing.T) {
	_, cfg := startCluster(t)
	plain, writer := startClient(t, cfg), startClient(t, cfg, kgo.TransactionalID("w"))
	createCompacted(t, plain, 1, "a", "b")
	f, tb := startFollower(t, cfg, "a", "b")
	waitReady(t, f) // of empty topics

	write(t, writer, true, put("a", "k", "1"))
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"a/k": "1"})

	write(t, writer, false, put("a", "k", "2"), put("b", "x", "3")) // the tail is aborted, then a marker
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"a/k": "1"})

	write(t, plain, true, put("b", "x", "4"), remove("a", "k"))
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"b/x": "4"})
	if f.Records() != 3 || f.Staleness() > 2*time.Second || f.Err() != nil {
		t.Errorf("records %d, staleness %v, error %v", f.Records(), f.Staleness(), f.Err())
	}

	late, lateTable := startFollower(t, cfg, "a", "b") // reads the same from the start
	waitReady(t, late)
	wantContent(t, lateTable, map[string]string{"b/x": "4"})
}

func TestWaitForLetsManyWaitAndEndsWithItsContext(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	createCompacted(t, cl, 1, "a")
	f, _ := startFollower(t, cfg, "a")
	waitReady(t, f)

	var waiters sync.WaitGroup
	for range 20 {
		waiters.Go(func() {
			if err := f.WaitFor(within(t), Through(&kgo.Record{Topic: "a", Offset: 2})); err != nil {
				t.Error(err)
			}
		})
	}
	write(t, cl, true, put("a", "k", "1"), put("a", "k", "2"), put("a", "k", "3"))
	waiters.Wait()

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := f.WaitFor(ctx, Through(&kgo.Record{Topic: "a", Offset: 1000})); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitFor past the end = %v", err)
	}
}

func TestWaitForCostsLittleWhereTheFollowerIsThere(t *testing.T) {
	_, cfg := startCluster(t)
	createCompacted(t, startClient(t, cfg), 1, "a", "b")
	f, _ := startFollower(t, cfg, "a", "b")
	waitReady(t, f)
	ends, err := f.EndOffsets(within(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t)
	if allocs := testing.AllocsPerRun(100, func() { _ = f.WaitFor(ctx, ends) }); allocs > 0 {
		t.Errorf("WaitFor allocates %v times", allocs)
	}
}

func TestStoppedFollowerLetsNobodyHang(t *testing.T) {
	_, cfg := startCluster(t)
	createCompacted(t, startClient(t, cfg), 1, "a")
	f, err := NewFollower(cfg, "follower", quiet(), []string{"a"}, newTable().apply)
	if err != nil {
		t.Fatal(err)
	}
	if f.Staleness() != math.MaxInt64 {
		t.Errorf("staleness before the first load = %v", f.Staleness())
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.Run(ctx) }()
	waitReady(t, f)
	waited := make(chan error)
	go func() { waited <- f.WaitFor(t.Context(), Through(&kgo.Record{Topic: "a", Offset: 9})) }()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v", err)
	}
	if err := <-waited; !errors.Is(err, ErrStopped) {
		t.Errorf("WaitFor = %v, want ErrStopped", err)
	}
}

// kfake keeps the last batch of a log, so that its tail is never compacted away.
// What Apache Kafka answers then is put in its place: from an offset on, fetches
// find nothing, though the log ends further on.
func TestTailCompactedAway(t *testing.T) {
	cluster, cfg := startCluster(t)
	cl := startClient(t, cfg)
	createCompacted(t, cl, 1, "a")
	write(t, cl, true, put("a", "k", "1"), put("a", "x", "2"), put("a", "x", "3"))

	const gone, end = 1, 3 // offsets 1 and 2 are no more
	cluster.ControlKey(int16(kmsg.Fetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		req, ok := kreq.(*kmsg.FetchRequest)
		if !ok || len(req.Topics) == 0 || req.Topics[0].Partitions[0].FetchOffset < gone || req.Topics[0].Partitions[0].FetchOffset >= end {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.FetchResponse)
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.TopicID = req.Topics[0].Topic, req.Topics[0].TopicID
		partition := kmsg.NewFetchResponseTopicPartition()
		partition.HighWatermark, partition.LastStableOffset, partition.RecordBatches = end, end, []byte{}
		topic.Partitions = append(topic.Partitions, partition)
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	// The whole log is one batch; so that it ends where it is cut, a follower
	// begins there.
	if _, err := kadm.NewClient(cl).DeleteRecords(t.Context(), offsetsAt("a", gone)); err != nil {
		t.Fatal(err)
	}
	f, tb := startFollower(t, cfg, "a")
	waitUntil(t, "position at the end", func() bool { next, _ := f.Positions().At("a", 0); return next == end })

	write(t, cl, true, put("a", "y", "4")) // and the consumer goes on from there
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"a/y": "4"})
}

func offsetsAt(topic string, at int64) kadm.Offsets {
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, at, -1)
	return offsets
}

// Batches of an aborted transaction stand at the read-committed end without
// their marker while another transaction, older than the marker, is open.
func TestTailOfAbortedBatchesWithoutTheirMarker(t *testing.T) {
	_, cfg := startCluster(t)
	plain := startClient(t, cfg)
	createCompacted(t, plain, 1, "a")
	aborting, open := startClient(t, cfg, kgo.TransactionalID("aborting")), startClient(t, cfg, kgo.TransactionalID("open"))
	write(t, plain, true, put("a", "k", "1")) // 0
	if err := aborting.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := aborting.ProduceSync(within(t), put("a", "k", "2")).FirstErr(); err != nil { // 1
		t.Fatal(err)
	}
	if err := open.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := open.ProduceSync(within(t), put("a", "k", "3")).FirstErr(); err != nil { // 2
		t.Fatal(err)
	}
	if err := aborting.EndTransaction(within(t), kgo.TryAbort); err != nil { // marker at 3
		t.Fatal(err)
	}

	f, tb := startFollower(t, cfg, "a")
	waitReady(t, f)
	mustBarrier(t, f)
	if next, _ := f.Positions().At("a", 0); next != 2 {
		t.Errorf("position = %d, want 2, before the open transaction", next)
	}
	wantContent(t, tb, map[string]string{"a/k": "1"})
	if err := open.EndTransaction(within(t), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"a/k": "3"})
}

func TestCompactedUnderTheFollower(t *testing.T) {
	cluster, cfg := startCluster(t)
	writer := startClient(t, cfg, kgo.TransactionalID("w"))
	createCompacted(t, writer, 1, "a")
	f, tb := startFollower(t, cfg, "a")
	for i := range 50 {
		write(t, writer, i%5 != 4, put("a", fmt.Sprint("k", i%3), fmt.Sprint(i)), remove("a", "gone"))
		if i%10 == 9 {
			cluster.Compact()
		}
	}
	mustBarrier(t, f)
	want := map[string]string{"a/k0": "48", "a/k1": "46", "a/k2": "47"}
	wantContent(t, tb, want)
	cluster.Compact()
	late, lateTable := startFollower(t, cfg, "a")
	waitReady(t, late)
	mustBarrier(t, late)
	wantContent(t, lateTable, want)
}
