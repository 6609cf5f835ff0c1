package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestOutOfRangeRebuildsFromTheStart(t *testing.T) {
	cluster, cfg := startCluster(t)
	cl := startClient(t, cfg)
	createCompacted(t, cl, 1, "a")
	write(t, cl, true, put("a", "k", "1"), put("a", "gone", "2"))
	f, tb := startFollower(t, cfg, "a")
	waitReady(t, f)
	old, err := f.EndOffsets(within(t))
	if err != nil {
		t.Fatal(err)
	}

	// Reading stands still while the log goes on and its start passes the position.
	var held atomic.Bool
	held.Store(true)
	cluster.ControlKey(int16(kmsg.Fetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if !held.Load() {
			return nil, nil, false
		}
		return kreq.ResponseKind(), nil, true
	})
	write(t, cl, true, put("a", "x", "3"), put("a", "y", "4"), put("a", "y", "5"))
	if _, err := kadm.NewClient(cl).DeleteRecords(t.Context(), offsetsAt("a", 4)); err != nil {
		t.Fatal(err)
	}
	held.Store(false)
	waitUntil(t, "rebuilt", func() bool { _, ok := tb.content()["a/k"]; return !ok })
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"a/y": "5"})
	if err := f.WaitFor(within(t), old); !errors.Is(err, ErrRebuilt) {
		t.Errorf("WaitFor of offsets from before = %v, want ErrRebuilt", err)
	}
}

func TestTopicMadeAnewRebuilds(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	createCompacted(t, cl, 1, "a")
	write(t, cl, true, put("a", "k", "1"), put("a", "k", "2"))
	f, tb := startFollower(t, cfg, "a")
	waitReady(t, f)
	if _, err := kadm.NewClient(cl).DeleteTopic(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	createCompacted(t, cl, 1, "a")
	// Nobody is let through to an empty table: the topic held records.
	waitUntil(t, "the loss is told", func() bool { return f.Err() != nil && tb.rebuilds() > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := f.Barrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Barrier on an emptied topic = %v, want that it blocks", err)
	}
	wantContent(t, tb, map[string]string{"a/k": "2"}) // what was in force is, until there is better

	write(t, startClient(t, cfg), true, put("a", "new", "3"))
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"a/new": "3"})
}

func (tb *table) rebuilds() int {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return tb.begun
}

func TestEmptiedTopicIsNotReady(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	createCompacted(t, cl, 1, "a")
	write(t, cl, true, put("a", "k", "1"))
	if _, err := kadm.NewClient(cl).DeleteRecords(t.Context(), offsetsAt("a", 1)); err != nil {
		t.Fatal(err)
	}
	f, tb := startFollower(t, cfg, "a")
	waitUntil(t, "the loss is told", func() bool { return f.Err() != nil })
	select {
	case <-f.Ready():
		t.Fatal("ready with an emptied topic")
	default:
	}
	write(t, cl, true, remove("a", "any")) // the operator's word
	waitReady(t, f)
	wantContent(t, tb, map[string]string{})
}

func TestRebuildWithoutOwnerEndsRun(t *testing.T) {
	cluster, cfg := startCluster(t)
	cl := startClient(t, cfg)
	createCompacted(t, cl, 1, "a")
	f, err := NewFollower(cfg, "follower", quiet(), []string{"a"}, newTable().apply)
	if err != nil {
		t.Fatal(err)
	}
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.OffsetOutOfRange})
	if err := f.Run(within(t)); !errors.Is(err, kerr.OffsetOutOfRange) {
		t.Errorf("Run = %v, want the reason", err)
	}
}

func TestFetchErrorsAreSlowedDownToldAndOutlived(t *testing.T) {
	for _, fault := range []*kerr.Error{kerr.UnknownServerError, kerr.NotLeaderForPartition, kerr.TopicAuthorizationFailed, kerr.KafkaStorageError} {
		t.Run(fault.Message, func(t *testing.T) {
			t.Parallel()
			cluster, cfg := startCluster(t)
			cl := startClient(t, cfg)
			createCompacted(t, cl, 1, "a")
			f, tb := startFollower(t, cfg, "a")
			waitReady(t, f)
			handle := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: fault, Count: -1})
			write(t, cl, true, put("a", "k", "1"))
			if !fault.Retriable {
				waitUntil(t, "the error is told", func() bool { return errors.Is(f.Err(), fault) })
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := f.Barrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Barrier = %v, want that it blocks", err)
			}
			if hits := handle.Hits(); hits > 200 {
				t.Errorf("%d fetches in about a second", hits)
			}
			if f.Staleness() < 500*time.Millisecond {
				t.Errorf("staleness = %v, though nothing was read", f.Staleness())
			}
			handle.Remove()
			mustBarrier(t, f)
			wantContent(t, tb, map[string]string{"a/k": "1"})
			waitUntil(t, "well again", func() bool { return f.Err() == nil && f.Staleness() < time.Second })
		})
	}
}

func TestEndOffsetsAreAskedAgainAndNeverTakenForZero(t *testing.T) {
	for _, fault := range []*kerr.Error{kerr.OffsetNotAvailable, kerr.LeaderNotAvailable, kerr.NotLeaderForPartition, kerr.UnknownTopicOrPartition} {
		t.Run(fault.Message, func(t *testing.T) {
			cluster, cfg := startCluster(t, kfake.NumBrokers(2))
			cl := startClient(t, cfg)
			createCompacted(t, cl, 2, "a", "b")
			write(t, cl, true, put("a", "k", "1"), put("b", "k", "2"))
			f, _ := startFollower(t, cfg, "a", "b")
			waitReady(t, f)
			want, err := f.EndOffsets(within(t))
			if err != nil {
				t.Fatal(err)
			}
			handle := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "b", Partitions: []int32{1}, Err: fault, Count: 4})
			got, err := f.EndOffsets(within(t))
			if err != nil || !maps.Equal(got.next, want.next) || len(got.next) != 4 {
				t.Errorf("EndOffsets = %v, %v; want %v", got.next, err, want.next)
			}
			if handle.Hits() == 0 {
				t.Error("the fault was not met")
			}
		})
	}
}

func TestStalenessGrowsWhileCutOff(t *testing.T) {
	cluster, cfg := startCluster(t)
	createCompacted(t, startClient(t, cfg), 1, "a")
	f, _ := startFollower(t, cfg, "a")
	waitReady(t, f)
	handle := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Err: kerr.OffsetNotAvailable, Count: -1})
	waitUntil(t, "stale", func() bool { return f.Staleness() > time.Second })
	waitUntil(t, "told", func() bool { return errors.Is(f.Err(), kerr.OffsetNotAvailable) })
	handle.Remove()
	waitUntil(t, "fresh again", func() bool { return f.Staleness() < 500*time.Millisecond && f.Err() == nil })
}

// What is deleted while a follower is cut off for longer than tombstones are kept is
// not seen by it: it reads the topic anew.
func TestTombstonesMissedWhileCutOff(t *testing.T) {
	cluster, cfg := startCluster(t)
	cl := startClient(t, cfg)
	createCompacted(t, cl, 1, "a")
	if _, err := kadm.NewClient(cl).AlterTopicConfigs(within(t), []kadm.AlterConfig{{Name: "delete.retention.ms", Value: new("700")}}, "a"); err != nil {
		t.Fatal(err)
	}
	write(t, cl, true, put("a", "kept", "1"), put("a", "gone", "2"))
	f, tb := startFollower(t, cfg, "a")
	waitReady(t, f)
	handle := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets, kmsg.Fetch}, Err: kerr.OffsetNotAvailable, Count: -1})
	waitUntil(t, "the follower is cut off", func() bool { return f.Err() != nil })
	write(t, cl, true, remove("a", "gone"), put("a", "new", "3"))
	waitUntil(t, "the tombstone is past its time", func() bool { return f.Staleness() > time.Second })
	cluster.Compact()
	handle.Remove()
	waitUntil(t, "the topic is read anew", func() bool { return tb.rebuilds() > 0 && f.Err() == nil })
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"a/kept": "1", "a/new": "3"})
}

// report is a Reporter that remembers.
type report struct {
	mu    sync.Mutex
	state []string
}

func (r *report) Up()        { r.note("up") }
func (r *report) Down(error) { r.note("down") }

func (r *report) note(state string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.state); n == 0 || r.state[n-1] != state {
		r.state = append(r.state, state)
	}
}

func (r *report) changes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.state)
}

func TestBrokersAndTopicsMayComeLater(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Brokers: []string{fmt.Sprint("127.0.0.1:", port)}}
	tb := newTable()
	f, err := NewFollower(cfg, "follower", quiet(), []string{"a"}, tb.apply)
	if err != nil {
		t.Fatal(err)
	}
	told := &report{}
	f.OnRebuild(tb.begin, tb.done)
	f.ReportTo(told)
	runFollower(t, f)
	waitUntil(t, "brokers away are told", func() bool { return slices.Equal(told.changes(), []string{"down"}) })

	startCluster(t, kfake.Ports(port))
	waitUntil(t, "the missing topic is told", func() bool { return errors.Is(f.Err(), kerr.UnknownTopicOrPartition) })
	cl := startClient(t, cfg)
	createCompacted(t, cl, 1, "a")
	write(t, cl, true, put("a", "k", "1"))
	waitReady(t, f)
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"a/k": "1"})
	waitUntil(t, "up", func() bool { return slices.Equal(told.changes(), []string{"down", "up"}) })
}

func TestLeadersMove(t *testing.T) {
	cluster, cfg := startCluster(t, kfake.NumBrokers(3))
	writer := startClient(t, cfg, kgo.TransactionalID("w"))
	createCompacted(t, writer, 1, "a", "b")
	f, tb := startFollower(t, cfg, "a", "b")
	want := make(map[string]string)
	for i := range 12 {
		value := fmt.Sprint(i)
		write(t, writer, true, put("a", "k", value), put("b", "k", value))
		want["a/k"], want["b/k"] = value, value
		if err := cluster.MoveTopicPartition("a", 0, int32(i%3)); err != nil {
			t.Fatal(err)
		}
		if err := cluster.MoveTopicPartition("b", 0, int32((i+1)%3)); err != nil {
			t.Fatal(err)
		}
		mustBarrier(t, f)
		wantContent(t, tb, want)
	}
}

func TestBombIsSkipped(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	createCompacted(t, cl, 1, "a")
	bomber := startClient(t, cfg, kgo.ProducerBatchMaxBytes(90<<20), kgo.ProducerBatchCompression(kgo.ZstdCompression()))
	write(t, cl, true, put("a", "k", "1"))
	write(t, bomber, true, &kgo.Record{Topic: "a", Key: []byte("k"), Value: make([]byte, maxDecompressedBatch+1)})
	f, tb := startFollower(t, cfg, "a")
	waitReady(t, f)
	write(t, cl, true, put("a", "x", "2"))
	mustBarrier(t, f)
	wantContent(t, tb, map[string]string{"a/k": "1", "a/x": "2"})
}
