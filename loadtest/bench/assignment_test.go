package bench

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas/kafka"
)

// perPartition is how many webhooks there are for each partition of deliveries.
const perPartition = 10

// assignment measures transactions over all partitions, and a second sender that
// comes and goes under load.
func assignment(t testing.TB, o senderOptions) found {
	t.Helper()
	r := bringUpSender(t, o)
	hooks := r.quickOnes(t, "spread", perPartition*o.partitions)
	used := map[int32]bool{}
	for _, w := range hooks {
		used[kafka.PartitionOf(w.ID, o.partitions)] = true
	}
	if len(used) != o.partitions {
		t.Fatalf("partitions with a webhook: got %d, want %d", len(used), o.partitions)
	}
	r.warm(t, hooks, o.warmup)

	var full side
	fast := r.transactions(t, func() { r.flood(t, hooks, o.deliveries, &full) })
	steady := traffic{webhooks: hooks, rate: o.share * full.halfRate()}
	steady.count = int(steady.rate * float64(o.seconds))
	var calm arrivals
	slow := r.transactions(t, func() { calm = r.await(t, r.send(t, steady), false) })

	steady.count = 1 << 30
	w := r.newRun(steady)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	end := make(chan error, 1)
	go func() { end <- r.write(ctx, w) }()
	joined, left := r.comeAndGo(t)
	stop()
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	moved := r.await(t, w, true)
	return found{
		Setup: fmt.Sprintf("%d topics of %d partitions, %d webhooks; beside: at full speed, and one sender; steady %.0f/s (%.2f of full speed to half of a backlog)",
			len(r.topics.Sources()), o.partitions, len(hooks), steady.rate, o.share),
		Figures: []figure{
			newFigure("start of a second sender until both work", "s", joined.Seconds(), 0),
			newFigure("its end until the first works all", "s", left.Seconds(), 0),
			newFigure("routed to received meanwhile, p99", "ms", quantile(moved.waits, 0.99), quantile(calm.waits, 0.99)),
			newFigure("routed to received meanwhile, longest", "ms", slices.Max(moved.waits), slices.Max(calm.waits)),
			newFigure("transaction, p50", "ms", 1000*quantileOf(slow, 0.5), 1000*quantileOf(fast, 0.5)),
			newFigure("transaction, p99", "ms", 1000*quantileOf(slow, 0.99), 1000*quantileOf(fast, 0.99)),
			newFigure("partitions, over all topics", "partitions", float64(len(r.topics.Sources())*o.partitions), 0),
			newFigure("all partitions at full speed, to the last", "deliveries/s", full.rate(), 0),
			newFigure("  to half of them", "deliveries/s", full.halfRate(), 0),
		},
	}
}

// transactions are the times of those that a sender wrote while something was done.
func (r *rig) transactions(t testing.TB, do func()) []bucket {
	t.Helper()
	const name = "postrider_sender_transaction_seconds"
	before := histogram(r.sender.Metrics(t), name)
	do()
	return between(before, histogram(r.sender.Metrics(t), name))
}

// comeAndGo starts a second sender, which ends when both have worked, and returns
// how long each took.
func (r *rig) comeAndGo(t testing.TB) (joined, left time.Duration) {
	t.Helper()
	all := float64(len(r.topics.Sources()) * r.partitions)
	worked := func(s *pipeline.Service) float64 { return total(s.Metrics(t), "postrider_sender_partitions", "") }
	started := time.Now()
	second := r.startSender(t, "bench-2").WaitReady(t)
	poll(t, 2*time.Minute, func() error {
		mine, others := worked(r.sender), worked(second)
		if total(second.Metrics(t), "postrider_sender_attempts_total", `result="delivered"`) == 0 || mine == 0 || mine+others != all {
			return fmt.Errorf("partitions: the first works %v and the second %v of %v: %w", mine, others, all, errNotYet)
		}
		return nil
	})
	joined = time.Since(started)
	ended := time.Now()
	if code := second.Terminate(t, time.Minute); code != 0 {
		t.Errorf("second sender: exit code %d", code)
	}
	poll(t, 2*time.Minute, func() error {
		if mine := worked(r.sender); mine != all {
			return fmt.Errorf("partitions: the first works %v of %v: %w", mine, all, errNotYet)
		}
		return nil
	})
	return joined, time.Since(ended)
}
