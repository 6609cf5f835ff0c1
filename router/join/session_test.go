package join

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/router/dedup"
	"github.com/postrider/postrider/schemas/process"
)

// startSession opens a session, with a table beside it, that the test steps.
func (h *harness) startSession() *session {
	h.t.Helper()
	j, follower := h.newJoiner("a", nil)
	j.client = h.client
	ctx, cancel := context.WithCancel(h.t.Context())
	followed := make(chan error, 1)
	go func() { followed <- follower.Run(ctx) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-followed; err != nil {
			h.t.Error(err)
		}
	})
	if err := follower.Barrier(h.within()); err != nil {
		h.t.Fatal(err)
	}
	s, err := j.open(h.within(), "a", j.members[0])
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(s.close)
	return s
}

// stepUntil steps until so many deliveries are committed.
func (s *session) stepUntil(h *harness, deliveries float64) {
	h.t.Helper()
	for end := time.Now().Add(30 * time.Second); testutil.ToFloat64(s.joiner.metrics.deliveries) < deliveries; {
		if err := s.step(h.within()); err != nil {
			h.t.Fatal(err)
		}
		if time.Now().After(end) {
			h.t.Fatalf("waiting for %v deliveries", deliveries)
		}
	}
}

func (s *session) owned() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ownership
}

// loseMembership makes the session join again, and returns when its partitions were assigned anew.
func (s *session) loseMembership(h *harness) {
	h.t.Helper()
	before := s.owned()
	h.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.UnknownMemberID, TopLevel: true})
	h.eventually("the partitions are lost and assigned", func() bool { return s.owned() >= before+2 })
}

// TestPollBeforePositions polls between an assignment and the positions committed for it: those of the assignment before are not taken for it.
func TestPollBeforePositions(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 2)
	h.put(h.webhooks(3, "*")...)
	h.put(h.spread(ids("e", 10), 1)...)
	s := h.startSession()
	s.stepUntil(h, 30)
	adopted := s.adopted

	open := h.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Err: kerr.UnstableOffsetCommit, Count: -1})
	s.loseMembership(h)
	if err := s.step(h.within()); err != nil { // it brings the group's error
		t.Fatal(err)
	}
	if s.adopted != adopted {
		t.Error("partitions were adopted before their positions were fetched")
	}
	open.Remove()
	h.put(h.spread(ids("f", 10), 1)...)
	s.stepUntil(h, 60)
	if s.adopted != s.owned() {
		t.Errorf("adopted %d, own %d", s.adopted, s.owned())
	}
	want := slices.Concat(product(ids("e", 10), ids("wh_", 3)), product(ids("f", 10), ids("wh_", 3)))
	if got := h.deliveries(); !slices.Equal(got, want) {
		t.Errorf("got %d deliveries, want %d: %s", len(got), len(want), firstDifference(got, want))
	}
}

// TestErrorBeforePositions: the client gives a partition up whose position is refused, and tells so but once.
func TestErrorBeforePositions(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 2)
	h.put(h.webhooks(1, "*")...)
	h.put(h.spread(ids("e", 10), 1)...)
	s := h.startSession()
	s.stepUntil(h, 10)

	h.cluster.Fault(
		kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Partitions: []int32{0}, Err: kerr.TopicAuthorizationFailed, Count: -1},
		kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Partitions: []int32{1}, Err: kerr.UnstableOffsetCommit, Count: -1},
	)
	s.loseMembership(h)
	var err error
	for end := time.Now().Add(30 * time.Second); err == nil && time.Now().Before(end); {
		err = s.step(h.within())
	}
	if !errors.Is(err, errNotOwned) || !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("got %v, want %v and %v", err, errNotOwned, kerr.TopicAuthorizationFailed)
	}
}

// TestNoPartitionsAreAdopted: what a session no longer owns takes no room from the windows of others.
func TestNoPartitionsAreAdopted(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 2)
	h.put(h.webhooks(1, "*")...)
	h.put(h.spread(ids("e", 10), 1)...)
	s := h.startSession()
	s.stepUntil(h, 10)
	if got := s.joiner.owned.Load(); got != 2 {
		t.Fatalf("%d partitions are owned, want 2", got)
	}
	s.assigned(t.Context(), nil, nil)
	if err := s.step(h.within()); err != nil {
		t.Fatal(err)
	}
	if got := s.joiner.owned.Load(); got != 0 || len(s.partitions) != 0 {
		t.Errorf("%d partitions are owned, %d windows held, want none", got, len(s.partitions))
	}
}

// The memory of all windows together is bounded: with more partitions each holds
// fewer ids, which shows.
func TestDedupMemoryBoundsAllWindows(t *testing.T) {
	h := startHarness(t, 1)
	registry := prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	p := &process.Process{Log: log, Health: process.NewHealth(log), Metrics: registry}
	j := New(Config{Kafka: h.cfg, Instance: "test", Sessions: 1, DedupMemory: 256 << 20}, nil, nil, p)
	for _, c := range []struct{ partitions, want int64 }{
		{0, dedup.MaxIDs}, {1, dedup.MaxIDs}, {6, dedup.MaxIDs}, {12, (256 << 20) / dedup.BytesPerID / 12}, {1 << 40, 1},
	} {
		j.owned.Store(c.partitions)
		got, err := testutil.GatherAndCount(registry, "postrider_router_dedup_window_ids")
		if limit := int64(j.windowLimit()); err != nil || got != 1 || limit != c.want {
			t.Errorf("%d partitions: got %d ids in %d metrics, %v, want %d", c.partitions, limit, got, err, c.want)
		}
	}
}
