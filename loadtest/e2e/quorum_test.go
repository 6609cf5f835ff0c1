package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// TestAcceptedByAMajority is P1 on three brokers: what only one of them can keep is
// answered 503, and what was accepted is in the topic when that one has gone and the
// others are back.
func TestAcceptedByAMajority(t *testing.T) {
	cluster := pipeline.StartKafka(t, 3, "broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500")
	s := prepare(t, cluster, "quorum.", pipeline.SharedClickHouse(t))
	s.startIngest(t, "ingest-1")
	s.ingest.WaitReady(t)
	accepted := map[string]bool{}
	for i := range 10 {
		accepted[s.postOne(t, fmt.Sprintf("whole-%d", i), http.StatusAccepted)] = true
	}

	// The last one keeps the partition: a write with acks=1 would succeed there.
	leader := s.eventsLeader(t, cluster)
	var others []*pipeline.Broker
	for _, b := range cluster.Brokers {
		if b != leader {
			others = append(others, b)
			b.Suspend(t) // one that was killed would have to fetch from the leader before it may lead
		}
	}
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() { s.postOne(t, fmt.Sprintf("alone-%d", i), http.StatusServiceUnavailable) })
	}
	group.Wait()

	leader.Kill9(t)
	for _, b := range others {
		b.Continue(t)
	}
	pipeline.Wait(t, 2*soon, "two brokers to take events", func() error {
		if a := s.call(t, http.MethodPost, "/v1/events", majorityEvent("two")); a.Status != http.StatusAccepted {
			return fmt.Errorf("%w: %d %s", errNotYet, a.Status, a.Body)
		}
		return nil
	})
	accepted["two"] = true
	for _, r := range s.readAll(t, s.topics.Events) {
		e, err := schemas.DecodeEvent(r)
		if err != nil {
			t.Fatal(err)
		}
		delete(accepted, e.ID)
	}
	if len(accepted) > 0 {
		t.Errorf("accepted and not in the topic: %v", accepted)
	}
}

func majorityEvent(id string) string {
	return fmt.Sprintf(`{"event":"a.b","organization":"acme","id":%q}`, id)
}

// postOne posts an event that must get an answer, and returns its id.
func (s *system) postOne(t *testing.T, id string, status int) string {
	t.Helper()
	a, err := s.try(t, http.MethodPost, "/v1/events", majorityEvent(id))
	if err != nil || a.Status != status {
		t.Errorf("posting %s: got %d %s, %v, want %d", id, a.Status, a.Body, err, status)
	}
	return id
}

// eventsLeader is the broker that leads the partition of acme's events.
func (s *system) eventsLeader(t *testing.T, cluster *pipeline.Kafka) *pipeline.Broker {
	t.Helper()
	partition := s.readAll(t, s.topics.Events)[0].Partition
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	meta, err := kadm.NewClient(s.client(t)).Metadata(ctx, s.topics.Events)
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Brokers[meta.Topics[s.topics.Events].Partitions[partition].Leader-1] // node 1 is the first
}
