package bench

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/postrider/postrider/schemas"
)

const (
	floorMany   = 0.8    // of the throughput to one target
	floorSender = 500.0  // megabytes
	floorOne    = 5000.0 // deliveries a second
)

// manyTargets measures a backlog of many targets beside one of a single target.
func manyTargets(t testing.TB, o senderOptions) found {
	t.Helper()
	r := bringUpSender(t, o)
	one := r.quickOnes(t, "one", 1)
	many := r.quickOnes(t, "many", o.targets)
	r.warm(t, one, o.warmup)
	var single, all side
	for range o.rounds {
		r.flood(t, one, o.deliveries, &single)
		r.flood(t, many, max(o.deliveries, o.targets), &all)
	}
	return found{
		Setup: fmt.Sprintf("%d targets, each with an address, connections and a lane of its own; beside: one target; %d rounds, backlogs of %d",
			o.targets, o.rounds, o.deliveries),
		Figures: []figure{
			newFigure("many targets at full speed, to the last", "deliveries/s", all.rate(), single.rate()).heldRatio(floorMany, atLeast),
			newFigure("  to half of them", "deliveries/s", all.halfRate(), single.halfRate()),
			newFigure("sender's memory, peak", "MB", megabytes(peakMemory(t, r.sender.PID())), 0).held(floorSender, atMost),
		},
	}
}

// flood sends a backlog to quick targets and adds it to a side.
func (r *rig) flood(t testing.TB, webhooks []*schemas.Webhook, count int, on *side) {
	t.Helper()
	on.add(r.await(t, r.send(t, traffic{webhooks: webhooks, count: count}), false))
}

// oneTarget measures a backlog of one target, as the sender is shipped and with
// more requests at once, each beside a bare loop with as many connections.
func oneTarget(t testing.TB, o senderOptions) found {
	t.Helper()
	r := bringUpSender(t, o)
	shipped := r.quickOnes(t, "shipped", 1)
	raised := r.webhooks(t, "raised", 1, r.quickURL, func(w *schemas.Webhook) { w.MaxConcurrency = &o.concurrency })
	r.warm(t, shipped, o.warmup)
	var few, more, bareFew, bareMore side
	for range o.rounds {
		r.flood(t, shipped, o.deliveries, &few)
		r.bare(t, atOnce, o.deliveries, &bareFew)
		r.flood(t, raised, o.deliveries, &more)
		r.bare(t, o.concurrency, o.deliveries, &bareMore)
	}
	return found{
		Setup: fmt.Sprintf("one webhook; beside: a bare fasthttp loop with as many connections; %d rounds, backlogs of %d", o.rounds, o.deliveries),
		Figures: []figure{
			newFigure(fmt.Sprintf("one target, %d at once as shipped", atOnce), "deliveries/s", few.rate(), bareFew.rate()).held(floorOne, atLeast),
			newFigure("  to half of them", "deliveries/s", few.halfRate(), 0),
			newFigure(fmt.Sprintf("one target, max_concurrency %d", o.concurrency), "deliveries/s", more.rate(), bareMore.rate()),
			newFigure("  to half of them", "deliveries/s", more.halfRate(), 0),
		},
	}
}

// bare posts straight to the receiver.
func (r *rig) bare(t testing.TB, connections, count int, on *side) {
	t.Helper()
	s, _ := runClient(t, load{
		Addr: fmt.Sprintf("127.0.0.1:%d", r.port), Path: "/bare", Want: http.StatusOK, Run: "bare", Organizations: 1,
		Connections: connections, Events: count,
	})
	r.arrived += count
	r.forget(t)
	on.count += float64(count)
	on.took += float64(s.EndedAt - s.StartedAt)
}
