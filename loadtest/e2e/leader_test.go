package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas/process"
)

// TestFreshJoinLeaderStopped is P4 in its hardest case: the broker that leads
// webhooks is frozen, and killed, when Kafka has answered EndTxn and the commit
// markers have not reached it. Whatever change was acknowledged by then, or is
// later, is in force for every event accepted afterwards.
func TestFreshJoinLeaderStopped(t *testing.T) {
	cluster := pipeline.StartKafka(t, 3, "broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500")
	s := prepare(t, cluster, "leader.", pipeline.SharedClickHouse(t))
	s.launch(t) // before the topics move: the groups and transactional ids are there then
	s.ingest.WaitReady(t)
	s.router.WaitReady(t)
	s.sender.WaitReady(t)
	l := &leader{system: s, cluster: cluster, broker: cluster.Brokers[2], admin: kadm.NewClient(s.client(t)), written: make(chan struct{})}
	l.place(t)

	c := s.startChanges(t, 6)
	c.work.Go(func() { l.watch(t, c.end) })
	hits := map[string]int{}
	const most = 16 // rounds; about one in three hits
	for round := 0; round < most && (hits["frozen"] == 0 || hits["killed"] == 0); round++ {
		how := []string{"frozen", "killed"}[round%2]
		c.progress(t, 20)
		hit := l.stop(t, how)
		if hit {
			hits[how]++
		}
		t.Logf("round %d: %s, between EndTxn and marker: %v", round, how, hit)
		c.again(t)
		l.bringBack(t, how)
	}
	t.Logf("between EndTxn and marker: %v", hits)
	if len(hits) < 2 {
		t.Errorf("got rounds between EndTxn and marker %v, want of both kinds: the test shows too little", hits)
	}
	c.progress(t, 20)
	close(c.end)
	c.work.Wait()
	c.check(t)
}

// leader is the broker that leads webhooks, and nothing else: it holds no other
// topic, so that everything goes on without it, the transactions' log too.
type leader struct {
	*system

	cluster *pipeline.Kafka
	broker  *pipeline.Broker // node 3
	admin   *kadm.Client
	written chan struct{} // a change is in webhooks, and is not committed yet
}

// watch sees changes when they are written, which is when their writer asks for the commit.
func (l *leader) watch(t *testing.T, end <-chan struct{}) {
	t.Helper()
	cl := l.client(t, kgo.ConsumeTopics(l.topics.Webhooks), kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()), kgo.MetadataMinAge(100*time.Millisecond))
	for {
		select {
		case <-end:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
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
func (l *leader) place(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*soon)
	defer cancel()
	meta, err := l.admin.Metadata(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var wanted kadm.AlterPartitionAssignmentsReq
	meta.Topics.EachPartition(func(p kadm.PartitionDetail) {
		brokers := []int32{1, 2}
		if p.Topic == l.topics.Webhooks {
			brokers = []int32{3, 1, 2}
		}
		wanted.Assign(p.Topic, p.Partition, brokers)
	})
	moved, err := l.admin.AlterPartitionAssignments(ctx, wanted)
	if err == nil {
		err = moved.Error()
	}
	if err != nil {
		t.Fatalf("moving partitions: %v", err)
	}
	pipeline.Wait(t, 4*soon, "partitions to be where they should", func() error {
		left, err := l.admin.ListPartitionReassignments(ctx, nil)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%w: %d topics are moving", errNotYet, len(left))
		}
		return err
	})
	l.elect(t)
}

// elect gives webhooks its leader back.
func (l *leader) elect(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*soon)
	defer cancel()
	pipeline.Wait(t, 4*soon, "the leader of webhooks", func() error {
		if _, err := l.admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, kadm.TopicsSet{l.topics.Webhooks: {0: {}}}); err != nil {
			return fmt.Errorf("electing a leader: %w", err)
		}
		if now := l.leads(ctx); now != 3 {
			return fmt.Errorf("%w: broker %d leads", errNotYet, now)
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

// stop stops the broker shortly after a change was written, waits until another one
// leads, and says whether a transaction was committed whose marker the broker had not got.
func (l *leader) stop(t *testing.T, how string) (hit bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*soon)
	defer cancel()
	select {
	case <-l.written:
	case <-ctx.Done():
		t.Fatal("no change is written")
	}
	process.Pause(ctx, rand.N(4*time.Millisecond))
	if how == "killed" {
		l.broker.Kill9(t)
	} else {
		l.broker.Suspend(t)
	}
	id := l.topics.Prefix + "webhooks-writer"
	pipeline.Wait(t, 4*soon, "another leader of webhooks", func() error {
		now := l.leads(ctx) // which a frozen broker may be asked for, and not answer
		states, err := l.admin.DescribeTransactions(ctx, id)
		if err != nil {
			return fmt.Errorf("asking for the transaction: %w", err)
		}
		// Also when there is another leader: until the frozen one answers, the marker is on its way to it.
		hit = hit || states[id].State == "PrepareCommit"
		if now != 1 && now != 2 {
			return fmt.Errorf("%w: broker %d leads", errNotYet, now)
		}
		return nil
	})
	return hit
}

// bringBack starts the broker again, and makes it leader.
func (l *leader) bringBack(t *testing.T, how string) {
	t.Helper()
	if how == "killed" {
		l.broker.Restart(t)
	} else {
		l.broker.Continue(t)
	}
	l.cluster.WaitReady(t, 4*soon)
	l.elect(t)
}

// acknowledged is a change that was, and an event that was accepted after that.
type acknowledged struct {
	webhook, organization, event string
	revision                     int64
	kind                         string
	matches                      bool   // the webhook in force gets the event
	path, stale                  string // where it is called, and where it was called before
}

// changes are clients that change webhooks and send events, one after the other.
type changes struct {
	*system

	producer *kgo.Client
	end      chan struct{}
	work     sync.WaitGroup

	mu   sync.Mutex
	made []acknowledged // guarded by mu
}

func (s *system) startChanges(t *testing.T, clients int) *changes {
	t.Helper()
	c := &changes{system: s, producer: s.client(t, kgo.ProducerLinger(0)), end: make(chan struct{})}
	for client := range clients {
		c.work.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-c.end:
					return
				default:
					c.one(t, client, n)
				}
			}
		})
	}
	return c
}

// one makes a webhook, changes it, and sends an event. Where a change was not
// acknowledged it may be in force or not, and nothing is said of it.
func (c *changes) one(t *testing.T, client, n int) {
	t.Helper()
	organization := fmt.Sprintf("o%d-%d", client, n)
	a := acknowledged{organization: organization, event: organization, path: "/leader/" + organization}
	first := "a"
	kinds := []string{"made", "patterns", "patterns away", "url", "disabled", "deleted"}
	if a.kind = kinds[n%len(kinds)]; a.kind == "patterns" {
		first = "other"
	}
	made, ok := c.send(t, http.StatusCreated, http.MethodPost, "/webhook-events",
		fmt.Sprintf(`{"organization":%q,"active":true,"url":%q,"events":%q}`, organization, c.receiver.URL(a.path), first))
	if !ok {
		return
	}
	a.webhook = made.field(t, "id")
	method, body, status := http.MethodPatch, "", http.StatusOK
	switch a.kind {
	case "patterns":
		body, a.matches = `{"events":["a"]}`, true
	case "patterns away":
		body = `{"events":["other"]}`
	case "url":
		a.matches, a.stale, a.path = true, a.path, a.path+"/new"
		body = fmt.Sprintf(`{"url":%q}`, c.receiver.URL(a.path))
	case "disabled":
		body = `{"active":false}`
	case "deleted":
		method, status = http.MethodDelete, http.StatusNoContent
	default:
		a.matches = true
	}
	if a.kind != "made" {
		if made, ok = c.send(t, status, method, "/v1/webhooks/"+a.webhook, body); !ok {
			return
		}
	}
	if a.matches {
		_, _ = fmt.Sscan(made.field(t, "revision"), &a.revision)
	}
	c.accept(t, a, n%2 == 0)
}

// send makes a change, and says whether it was acknowledged.
func (c *changes) send(t *testing.T, status int, method, path, body string) (answer, bool) {
	t.Helper()
	a, err := c.try(t, method, path, body)
	if err == nil && a.Status != status && a.Status != http.StatusServiceUnavailable {
		t.Errorf("%s %s %s: got %d %s, want %d", method, path, body, a.Status, a.Body, status)
	}
	return a, err == nil && a.Status == status
}

// accept has the event accepted, by REST or straight by Kafka.
func (c *changes) accept(t *testing.T, a acknowledged, rest bool) {
	t.Helper()
	event := fmt.Sprintf(`{"event":"a.b","organization":%q,"id":%q}`, a.organization, a.event)
	ctx, cancel := context.WithTimeout(t.Context(), 4*soon)
	defer cancel()
	for {
		var err error
		if rest {
			var got answer
			if got, err = c.try(t, http.MethodPost, "/v1/events", event); err == nil && got.Status != http.StatusAccepted {
				err = fmt.Errorf("%w: %d %s", errNotYet, got.Status, got.Body)
			}
		} else {
			err = c.producer.ProduceSync(ctx, &kgo.Record{Topic: c.topics.Events, Key: []byte(a.organization), Value: []byte(event)}).FirstErr()
		}
		if err == nil {
			break
		}
		if !process.Pause(ctx, 10*time.Millisecond) {
			t.Errorf("event %s: %v", a.event, err)
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made = append(c.made, a)
}

// again sends an event more to the webhooks that were changed last.
func (c *changes) again(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	last := append([]acknowledged{}, c.made[max(0, len(c.made)-24):]...)
	c.mu.Unlock()
	for i, a := range last {
		a.event += fmt.Sprintf("-again-%d", rand.Uint32())
		c.accept(t, a, i%2 == 0)
	}
}

func (c *changes) progress(t *testing.T, more int) {
	t.Helper()
	count := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.made)
	}
	want := count() + more
	pipeline.Wait(t, 4*soon, "changes", func() error {
		if got := count(); got < want {
			return fmt.Errorf("%w: %d of %d", errNotYet, got, want)
		}
		return nil
	})
}

// check holds deliveries and requests against what was acknowledged.
func (c *changes) check(t *testing.T) {
	t.Helper()
	t.Logf("%d events after acknowledged changes", len(c.made))
	c.waitRouted(t)
	type pair struct{ webhook, event string }
	routed := map[pair][]int64{} // revisions
	for _, d := range c.delivered(t) {
		routed[pair{d.WebhookID, d.EventID}] = append(routed[pair{d.WebhookID, d.EventID}], d.WebhookRevision)
	}
	want := map[string]int{}
	for _, a := range c.made {
		got := routed[pair{a.webhook, a.event}]
		switch {
		case !a.matches && len(got) > 0:
			t.Errorf("%s, %s: event %s was routed to it", a.webhook, a.kind, a.event)
		case a.matches && (len(got) != 1 || got[0] < a.revision):
			t.Errorf("%s, %s at revision %d: event %s was routed to revisions %v of it", a.webhook, a.kind, a.revision, a.event, got)
		}
		if a.matches {
			want[a.path]++
		}
		if a.stale != "" {
			want[a.stale] += 0
		}
	}
	for path, n := range want {
		ids := map[string]bool{}
		pipeline.Wait(t, 4*soon, path, func() error {
			for _, r := range c.receiver.Requests(path) {
				ids[r.MessageID] = true
			}
			if len(ids) != n {
				return fmt.Errorf("%w: got %d different requests, want %d", errNotYet, len(ids), n)
			}
			return nil
		})
	}
}

// waitRouted waits until the router has committed all events that there are. It is
// asked for the last record of each partition, not for the end: that may be behind
// the marker of a transaction, which no commit reaches.
func (s *system) waitRouted(t *testing.T) {
	t.Helper()
	next := map[int32]int64{}
	for _, r := range s.readAll(t, s.topics.Events) {
		next[r.Partition] = max(next[r.Partition], r.Offset+1)
	}
	admin := kadm.NewClient(s.client(t))
	pipeline.Wait(t, 4*soon, "all events to be routed", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		committed, err := admin.FetchOffsets(ctx, s.topics.RouterGroup)
		if err != nil {
			return fmt.Errorf("asking for commits: %w", err)
		}
		for partition, offset := range next {
			if at, _ := committed.Lookup(s.topics.Events, partition); at.At < offset {
				return fmt.Errorf("%w: partition %d is at %d of %d", errNotYet, partition, at.At, offset)
			}
		}
		return nil
	})
}
