package faults

import (
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/loadtest/pipeline"
)

// brokers are scenarios of Kafka itself.
func brokers() []scenario {
	three := options{brokers: 3, rate: pick(200, 600)}
	return []scenario{
		{id: "F06a", fault: "one of three brokers killed", world: three, run: func(w *world) { w.brokersAway(1) }},
		{id: "F06b", fault: "two of three brokers down", world: three, run: func(w *world) { w.brokersAway(2) }},
		{id: "F06c", fault: "all three brokers down", world: three, run: func(w *world) { w.brokersAway(3) }},
		{id: "F06d", fault: "three brokers stopped and started, one after another", world: three, run: rollingRestart},
		{id: "F06e", fault: "two of three brokers frozen, then the third killed: what only it had is gone", world: three, run: aloneThenGone},
		{id: "F07", fault: "acknowledgements lost after the append (kfake)", world: options{cluster: startKfake}, run: acknowledgementsLost},
		{id: "F08a", fault: "leaders and coordinators move again and again", world: three, run: leaderStorm},
		{id: "F08b", fault: "coordinators move, EndTxn errs (kfake)", world: options{cluster: startKfake, unverified: true}, run: coordinatorStorm},
		{id: "F09a", fault: "a router's transaction hangs, with another router at work", run: ownTransactionHangs},
		{id: "F09b", fault: "a foreign producer's transaction on events hangs", run: foreignTransactionHangs},
	}
}

// brokersAway kills so many of three brokers, the leader of the events among them,
// and starts them again.
func (w *world) brokersAway(n int) {
	w.progress(200)
	from := time.Now()
	away := w.kafka.Brokers[:n]
	for _, b := range away {
		b.Kill9(w.t)
	}
	if n > 1 {
		w.wantUnavailable()
	}
	w.pass(pick(15*time.Second, time.Minute))
	started := time.Now()
	for _, b := range away {
		b.Restart(w.t)
	}
	w.kafka.WaitLed(w.t, 2*soon)
	w.faultEnded()
	w.notef("every partition had a leader %.1f s after the brokers' start", time.Since(started).Seconds())
	w.progress(500)
	w.bound("the first request after the brokers' return", w.ledger.RequestAfter(w.ends[0]).Sub(w.ends[0]), 10*time.Second+slack)
	if n == 1 {
		w.noGap(from)
	}
	w.kafka.WaitReady(w.t, soon)
	w.mayRepeat = unansweredTransactions
}

// aloneThenGone leaves one broker with what it is sent, and takes it away: what was
// acknowledged must be with the others by then.
func aloneThenGone(w *world) {
	w.progress(200)
	alone, others := w.kafka.Brokers[0], w.kafka.Brokers[1:]
	for _, b := range others {
		b.Suspend(w.t)
	}
	w.pass(pick(6*time.Second, 20*time.Second)) // within what brokers need to give a replica up
	alone.Kill9(w.t)
	for _, b := range others {
		b.Continue(w.t)
	}
	w.faultEnded()
	w.progress(300)
	alone.Restart(w.t)
	w.kafka.WaitReady(w.t, 2*soon)
	w.progress(300)
	w.mayRepeat = unansweredTransactions
}

// unansweredTransactions bounds the requests of senders that never learned what
// became of their last transaction before the brokers went: each has at most so
// many attempts in one, and makes those again that it did not commit.
const unansweredTransactions = 5000

// noGap bounds the time without an accepted event, by REST, since a moment.
func (w *world) noGap(from time.Time) {
	w.t.Helper()
	gap := w.ledger.AcceptanceGap(byREST, from, time.Now())
	w.notef("longest time without a 202: %.1f s", gap.Seconds())
	w.bound("the longest time without a 202", gap, 10*time.Second+slack)
}

// wantUnavailable is I9: an event that cannot be durable is answered 503 in time.
// While a broker's death is new to the others one may be accepted still.
func (w *world) wantUnavailable() {
	w.t.Helper()
	pipeline.Wait(w.t, soon, "a 503", func() error {
		begun := time.Now()
		e := w.sends(fmt.Sprintf("unavailable-%d", begun.UnixNano()), w.organizations[0])
		status, answer, err := w.try(w.t.Context(), http.DefaultClient, http.MethodPost, "/v1/events", e.text)
		w.bound("an answer without brokers", time.Since(begun), 5*time.Second+slack)
		switch {
		case err == nil && status == http.StatusAccepted:
			w.ledger.Accepted(e.id)
			return fmt.Errorf("accepted")
		case err != nil || status != http.StatusServiceUnavailable:
			return fmt.Errorf("got %d %s %w, want 503", status, answer, err)
		}
		return nil
	})
}

func rollingRestart(w *world) {
	w.progress(200)
	from := time.Now()
	for _, b := range w.kafka.Brokers {
		b.Terminate(w.t, soon)
		b.Restart(w.t)
		w.kafka.WaitReady(w.t, soon)
		w.faultEnded()
	}
	w.progress(500)
	w.noGap(from)
}

func startKfake(w *world) {
	cluster, addrs := pipeline.StartKfake(w.t, kfake.NumBrokers(3))
	w.kfake, w.cfg.Brokers = cluster, addrs
}

// acknowledgementsLost has every seventh produce request written and then answered
// as if it might not be.
func acknowledgementsLost(w *world) {
	w.progress(200)
	every := func(nth int64) func(kmsg.Request) bool {
		var asked atomic.Int64
		return func(kmsg.Request) bool { return asked.Add(1)%nth == 0 }
	}
	timedOut := w.kfake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: -1, When: every(13)})
	tooFew := w.kfake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicasAfterAppend, Count: -1, When: every(13)})
	w.pass(pick(15*time.Second, time.Minute))
	timedOut.Remove()
	tooFew.Remove()
	w.faultEnded()
	w.notef("%d acknowledgements lost", timedOut.Hits()+tooFew.Hits())
	if timedOut.Hits() < 50 || tooFew.Hits() < 50 {
		w.problemf("the faults were met %d and %d times only", timedOut.Hits(), tooFew.Hits())
	}
	w.progress(500)
	w.mayRepeat = w.ledger.Count().Requests
}

// leaderStorm has each partition led by another broker again and again: those of
// offsets and transactions too, with which their coordinators move.
func leaderStorm(w *world) {
	w.progress(200)
	admin := kadm.NewClient(w.client())
	moves := 0
	for from := time.Now(); time.Since(from) < pick(15*time.Second, time.Minute); moves++ {
		meta, err := admin.Metadata(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		var wanted kadm.AlterPartitionAssignmentsReq
		meta.Topics.EachPartition(func(p kadm.PartitionDetail) {
			wanted.Assign(p.Topic, p.Partition, append(slices.Clone(p.Replicas[1:]), p.Replicas[0]))
		})
		if _, err := admin.AlterPartitionAssignments(w.t.Context(), wanted); err != nil {
			w.t.Fatalf("assigning partitions: %v", err)
		}
		if _, err := admin.ElectLeaders(w.t.Context(), kadm.ElectPreferredReplica, nil); err != nil {
			w.t.Fatalf("electing leaders: %v", err)
		}
		w.pass(time.Second)
	}
	w.faultEnded()
	w.notef("all leaders moved %d times", moves)
	w.progress(500)
	w.mayRepeat = unansweredTransactions
}

// coordinatorStorm moves all coordinators now and then, and has every tenth end of a
// transaction err, before it is done or after. Leaders stay where they are: when
// kfake moves one, it tells clients of records lost that are there.
func coordinatorStorm(w *world) {
	w.progress(200)
	var handles []*kfake.FaultHandle
	var asked atomic.Int64
	for _, err := range []*kerr.Error{kerr.RequestTimedOut, kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.UnknownServerError} {
		handles = append(handles, w.kfake.Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.EndTxn}, TopLevel: true, Err: err, Count: -1,
			When: func(kmsg.Request) bool { return asked.Add(1)%10 == 0 },
		}))
	}
	moves := 0
	for from := time.Now(); time.Since(from) < pick(15*time.Second, time.Minute); moves++ {
		w.kfake.RehashCoordinators()
		w.pass(time.Second)
	}
	hits := 0
	for _, h := range handles {
		hits += h.Hits()
		h.Remove()
	}
	w.faultEnded()
	w.notef("%d moves, %d EndTxn errors", moves, hits)
	if hits < 10 {
		w.problemf("EndTxn erred %d times only", hits)
	}
	w.progress(500)
	w.mayRepeat = w.ledger.Count().Requests
}

// ownTransactionHangs freezes one of two routers in mid transaction: what the
// other writes behind its open records waits until the broker ends it.
func ownTransactionHangs(w *world) {
	w.start("router", "router-2").WaitReady(w.t)
	w.progress(200)
	w.suspendMidTransaction(w.router, w.topics.Deliveries)
	from := time.Now()
	w.pass(pick(25*time.Second, time.Minute))
	w.progress(200)
	_, silence := w.ledger.Silence(from, time.Now(), nil)
	w.notef("longest silence %.1f s", silence.Seconds())
	w.bound("the readers' longest stall", silence, transactionTimeout+10*time.Second+slack)
	w.router.Continue(w.t)
	w.faultEnded()
	w.backOrGone(w.router)
	w.progress(500)
}

// transactionTimeout is that of Postrider's own producers.
const transactionTimeout = 10 * time.Second

// foreignTransactionHangs has a producer begin a transaction on each partition of
// events and freeze: a process of its own, killed, so that no heartbeat helps it.
func foreignTransactionHangs(w *world) {
	w.progress(200)
	foreign := w.client(kgo.TransactionalID("foreign"), kgo.TransactionTimeout(transactionTimeout), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := foreign.BeginTransaction(); err != nil {
		w.t.Fatal(err)
	}
	for p := range int32(partitions) {
		text := fmt.Sprintf(`{"event":"never.seen","organization":%q,"id":"foreign-%d"}`, w.organizations[0], p)
		record := &kgo.Record{Topic: w.topics.Events, Partition: p, Key: []byte(w.organizations[0]), Value: []byte(text)}
		if err := foreign.ProduceSync(w.t.Context(), record).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
	from := time.Now()
	w.waitMetric(w.router, "postrider_events_blocked_seconds", func(v float64) bool { return v >= 2 })
	w.waitMetric(w.router, "postrider_events_blocked_seconds", func(v float64) bool { return v == 0 })
	w.faultEnded()
	w.progress(500)
	_, silence := w.ledger.Silence(from, time.Now(), nil)
	w.notef("longest silence %.1f s", silence.Seconds())
	w.bound("the readers' longest stall", silence, transactionTimeout+10*time.Second+slack)
}

// starved are scenarios of a machine that runs out of something.
func starved() []scenario {
	return []scenario{
		{id: "F23a", fault: "ingest and sender out of descriptors", run: noDescriptors},
		{id: "F23b", fault: "sender out of memory", run: noMemory},
		{id: "F23c", fault: "Kafka's disk full", world: options{cluster: startOnTmpfs}, run: brokerDiskFull},
	}
}

// cutOff bounds the requests that were under way on connections that the targets
// closed: an attempt makes one more where nothing came back on a connection that was kept.
const cutOff = 500

func noDescriptors(w *world) {
	w.progress(200)
	services := []*pipeline.Service{w.ingest, w.sender}
	for _, s := range services {
		w.limit(s.PID(), syscall.RLIMIT_NOFILE, uint64(s.Descriptors(w.t))-5) //nolint:gosec // dozens
	}
	// New connections find no room; every target's are closed meanwhile, so that new ones are needed.
	w.targets.CloseConnections()
	w.pass(pick(12*time.Second, 30*time.Second))
	for _, s := range services {
		if !s.Running() {
			w.problemf("a service ended without descriptors: %s", s.Output(w.t))
		}
		w.limit(s.PID(), syscall.RLIMIT_NOFILE, 4096)
	}
	w.faultEnded()
	w.progress(500)
	w.mayRepeat = cutOff
}

func noMemory(w *world) {
	w.progress(200)
	w.limit(w.sender.PID(), syscall.RLIMIT_AS, 64<<20) // far below what it has: the next page is refused
	pipeline.Wait(w.t, soon, "the sender's end", func() error {
		if w.sender.Running() {
			return fmt.Errorf("it runs on with 64 MB")
		}
		return nil
	})
	w.noteKill()
	w.sender.Restart(w.t)
	w.faultEnded()
	w.sender.WaitReady(w.t)
	w.progress(500)
}
