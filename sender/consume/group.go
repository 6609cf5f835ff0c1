package consume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// revokeWait is how long a revoke waits for running attempts: meanwhile every member stands still.
const revokeWait = 2 * time.Second

// assigned begins to work partitions, all of them as range assignment is eager.
func (s *session) assigned(_ context.Context, cl *kgo.Client, assigned map[string][]int32) {
	s.txMu.Lock()
	defer s.txMu.Unlock()
	s.metrics.assignments.Inc()
	member, generation := cl.GroupMetadata()
	whole, broken := split(assigned, s.topics.Sources())
	s.log.Debug("partitions assigned", "count", len(whole), "member", member, "generation", generation)
	s.fetchMu.Lock()
	defer s.fetchMu.Unlock()
	if s.lost {
		return
	}
	s.board.assign(whole, member, generation)
	wake(s.reassigned)
	wake(s.restate)
	cl.ResumeFetchPartitions(assigned) // pauses outlive a rebalance
	if len(broken) > 0 {
		cl.PauseFetchPartitions(byTopic(broken))
		err := fmt.Errorf("working %s/%d: %w", broken[0].topic, broken[0].partition, errSplit)
		s.log.Error("partitions are not worked", "count", len(broken), "error", err)
		s.owned.Down(err)
		return
	}
	s.owned.Up()
	s.health.Up()
}

// offsetsFetched restores what the partitions' owners before committed.
func (s *session) offsetsFetched(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	for _, group := range resp.Groups {
		for _, topic := range group.Topics {
			for _, p := range topic.Partitions {
				text := ""
				if p.Metadata != nil {
					text = *p.Metadata
				}
				if err := s.board.restore(place{topic.Topic, p.Partition}, p.Offset, text); err != nil {
					// To guess would repeat or skip deliveries: it is not worked.
					err = fmt.Errorf("restoring %s/%d: %w", topic.Topic, p.Partition, err)
					s.log.Error("partition is not worked", "error", err)
					s.owned.Down(err)
				}
			}
		}
	}
	return nil
}

// revoked gives partitions up in order: nothing new is started, what runs is
// awaited for a moment, what has finished is committed, and is seen to be by the next owner.
func (s *session) revoked(ctx context.Context, _ *kgo.Client, revoked map[string][]int32) {
	places := placesOf(revoked)
	if len(places) == 0 {
		return
	}
	begun := time.Now()
	s.board.stop(places)
	s.awaitRunning(places)
	s.txMu.Lock()
	defer s.txMu.Unlock()
	s.commitLocked(ctx)
	s.board.giveUp(places)
	if !s.lost {
		s.writer.awaitStable(ctx, places)
	}
	s.log.Debug("partitions revoked", "count", len(places), "took", time.Since(begun))
}

func (s *session) awaitRunning(places []place) {
	deadline := time.After(revokeWait)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for s.board.runningOf(places) > 0 {
		select {
		case <-tick.C:
		case <-s.leaving:
			return
		case <-deadline:
			return
		}
	}
}

// gone forgets partitions that others may work by now.
func (s *session) gone(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	s.txMu.Lock()
	defer s.txMu.Unlock()
	s.board.giveUp(placesOf(lost))
	s.log.Debug("partitions lost", "topics", len(lost))
}

// errSplit says that a webhook's deliveries would be with several senders.
var errSplit = errors.New("this partition of the other topics of deliveries is another member's: " +
	"their numbers of partitions differ, or members of two versions run")

// split parts an assignment into partitions held of every topic and those that
// are not, which are not worked: all records of a webhook are to be with one sender.
func split(assigned map[string][]int32, topics []string) (whole, broken []place) {
	held := make(map[int32]int)
	for _, topic := range topics {
		for _, p := range assigned[topic] {
			held[p]++
		}
	}
	for topic, partitions := range assigned {
		for _, p := range partitions {
			if held[p] == len(topics) {
				whole = append(whole, place{topic, p})
			} else {
				broken = append(broken, place{topic, p})
			}
		}
	}
	return whole, broken
}

func placesOf(partitions map[string][]int32) []place {
	places := []place{} // not nil, which means all
	for topic, list := range partitions {
		for _, p := range list {
			places = append(places, place{topic, p})
		}
	}
	return places
}

func byTopic(places []place) map[string][]int32 {
	topics := make(map[string][]int32)
	for _, p := range places {
		topics[p.topic] = append(topics[p.topic], p.partition)
	}
	return topics
}
