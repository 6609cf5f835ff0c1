package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
)

// leader is the broker that leads webhooks, and nothing else: it holds no other
// topic, so that everything goes on without it, the transactions' log too.
type leader struct {
	*world

	broker  *pipeline.Broker // node 3
	admin   *kadm.Client
	written chan struct{} // a change is in webhooks, and is not committed yet
}

// leaderStopped is P4 in its hardest case: the broker that leads webhooks is frozen,
// or killed, when Kafka has answered EndTxn and the commit markers have not reached it.
func leaderStopped(w *world) {
	l := &leader{world: w, broker: w.kafka.Brokers[2], admin: kadm.NewClient(w.client()), written: make(chan struct{})}
	l.place()
	c := w.startChanges()
	c.work.Go(func() { l.watchChanges(c.end) })
	hits := map[string]int{}
	rounds := 0
	for ; rounds < pick(3, 24) && (hits["frozen"] == 0 || hits["killed"] == 0); rounds++ {
		how := []string{"frozen", "killed"}[rounds%2]
		c.progress(20)
		if l.stopLeader(how) {
			hits[how]++
		}
		c.again()
		l.bringBack(how)
		w.faultEnded()
	}
	c.progress(20)
	c.finish()
	w.notef("%d times, of those between EndTxn and marker: %d frozen, %d killed", rounds, hits["frozen"], hits["killed"])
	if *full && len(hits) < 2 {
		w.problemf("the leader was stopped between EndTxn and marker %v times, want once each at least", hits)
	}
	w.progress(100)
	w.mayRepeat = unansweredTransactions
}

// watchChanges sees changes when they are written, which is when their writer asks for the commit.
func (l *leader) watchChanges(end <-chan struct{}) {
	cl := l.client(kgo.ConsumeTopics(l.topics.Webhooks), kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()), kgo.MetadataMinAge(100*time.Millisecond))
	for {
		select {
		case <-end:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(l.t.Context(), time.Second)
		fetches := cl.PollFetches(ctx)
		cancel()
		if fetches.NumRecords() == 0 {
			continue
		}
		select {
		case l.written <- struct{}{}:
		default: // nobody waits for it
		}
	}
}

// place gives each partition its brokers.
func (l *leader) place() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*soon)
	defer cancel()
	meta, err := l.admin.Metadata(ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	var wanted kadm.AlterPartitionAssignmentsReq
	meta.Topics.EachPartition(func(p kadm.PartitionDetail) {
		nodes := []int32{1, 2}
		if p.Topic == l.topics.Webhooks {
			nodes = []int32{3, 1, 2}
		}
		wanted.Assign(p.Topic, p.Partition, nodes)
	})
	moved, err := l.admin.AlterPartitionAssignments(ctx, wanted)
	if err == nil {
		err = moved.Error()
	}
	if err != nil {
		l.t.Fatalf("moving partitions: %v", err)
	}
	pipeline.Wait(l.t, 2*soon, "partitions to be where they should", func() error {
		left, err := l.admin.ListPartitionReassignments(ctx, nil)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d topics are moving", len(left))
		}
		return err
	})
	l.elect()
}

// elect gives webhooks its leader back.
func (l *leader) elect() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*soon)
	defer cancel()
	pipeline.Wait(l.t, 2*soon, "the leader of webhooks", func() error {
		if _, err := l.admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, kadm.TopicsSet{l.topics.Webhooks: {0: {}}}); err != nil {
			return fmt.Errorf("electing a leader: %w", err)
		}
		if now := l.leads(ctx); now != 3 {
			return fmt.Errorf("broker %d leads", now)
		}
		return nil
	})
}

// leads is the node that leads webhooks, or -1.
func (l *leader) leads(ctx context.Context) int32 {
	meta, err := l.admin.Metadata(ctx, l.topics.Webhooks)
	if err != nil {
		return -1
	}
	return meta.Topics[l.topics.Webhooks].Partitions[0].Leader
}

// stopLeader stops the broker shortly after a change was written, waits until another
// one leads, and says whether a transaction was committed whose marker the broker had not got.
func (l *leader) stopLeader(how string) (hit bool) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*soon)
	defer cancel()
	select {
	case <-l.written:
	case <-ctx.Done():
		l.t.Fatal("no change is written")
	}
	l.pass(rand.N(4 * time.Millisecond))
	if how == "killed" {
		l.broker.Kill9(l.t)
	} else {
		l.broker.Suspend(l.t)
	}
	id := l.topics.WebhooksWriter
	pipeline.Wait(l.t, 2*soon, "another leader of webhooks", func() error {
		now := l.leads(ctx) // which a frozen broker may be asked for, and not answer
		states, err := l.admin.DescribeTransactions(ctx, id)
		if err != nil {
			return fmt.Errorf("asking for the transaction: %w", err)
		}
		// Also when there is another leader: until the frozen one answers, the marker is on its way to it.
		hit = hit || states[id].State == "PrepareCommit"
		if now != 1 && now != 2 {
			return fmt.Errorf("broker %d leads", now)
		}
		return nil
	})
	return hit
}

// bringBack starts the broker again, and makes it leader.
func (l *leader) bringBack(how string) {
	l.t.Helper()
	if how == "killed" {
		l.broker.Restart(l.t)
	} else {
		l.broker.Continue(l.t)
	}
	l.kafka.WaitReady(l.t, 2*soon)
	l.elect()
}
