package bench

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// neighbours measures quick targets beside others: while those are quick too, and
// while they are not. Each time the others are new ones, to the sender too.
type neighbours struct {
	setup           string
	healthy, others int
	each            int  // deliveries to the others for each to a healthy one; 0: all take turns
	refuses         bool // connections; else they hang
	full            bool // at full speed too
	slower          float64

	schedule []string // of those that refuse
	names    int      // given so far

	// What was found.
	calm, beside   mixed
	rate           float64 // steady
	written, ended int     // deliveries to targets that refuse
	retries        float64 // records in retry tiers
	attempts       float64 // outcomes of them, and those with a request
	requests       float64
}

// mixed is what was found of the healthy in one of the two, at full speed and steady.
type mixed struct {
	side

	waits []float64
}

const (
	floorNeighbours = 0.9 // of the throughput, at full speed
	floorRetries    = 5.0 // retry records an attempt
)

func (n neighbours) measure(t testing.TB, o senderOptions) found {
	t.Helper()
	r := bringUpSender(t, o)
	healthy := r.quickOnes(t, "healthy", n.healthy)
	r.warm(t, healthy, o.warmup)
	// Short, so that all come to their end soon.
	n.schedule = []string{"1s", strconv.Itoa(max(1, o.seconds/4)) + "s"}
	for round := range o.rounds {
		if n.full || round == 0 {
			n.phase(t, r, healthy, &n.calm, traffic{count: o.deliveries})
		}
		if round == 0 {
			n.rate *= o.share
		}
		steady := traffic{count: int(n.rate * float64(o.seconds)), rate: n.rate}
		if n.full {
			n.phase(t, r, healthy, &n.beside, traffic{count: o.deliveries})
		}
		n.phase(t, r, healthy, &n.calm, steady)
		n.phase(t, r, healthy, &n.beside, steady)
	}
	return n.found(o)
}

// turns is who gets a delivery after whom.
func (n *neighbours) turns(healthy, others []*schemas.Webhook) (turns []*schemas.Webhook) {
	if n.each == 0 {
		return append(append(turns, healthy...), others[:n.others]...)
	}
	for _, w := range healthy {
		turns = append(turns, w)
		for range n.each {
			turns = append(turns, others[0])
		}
	}
	return turns
}

// phase sends one traffic, and notes what the healthy got of it on its side.
func (n *neighbours) phase(t testing.TB, r *rig, healthy []*schemas.Webhook, on *mixed, l traffic) {
	t.Helper()
	name := n.name(r, healthy)
	var others []*schemas.Webhook
	var end func(*written)
	switch {
	case on == &n.calm:
		others = r.quickOnes(t, name, n.others)
		end = func(*written) {}
	case n.refuses:
		others, end = n.refusing(t, r, name)
	default:
		others, end = n.hanging(t, r, name)
	}
	l.webhooks = n.turns(healthy, others)
	w := r.send(t, l)
	all := r.await(t, w, false)
	got := all.of("wh_healthy_")
	if n.rate == 0 { // the first: all are quick
		var full side
		full.add(all)
		n.rate = full.halfRate()
	}
	if l.rate == 0 {
		on.add(got)
	} else {
		on.waits = append(on.waits, got.waits...)
	}
	if n.refuses && on == &n.beside {
		n.written += len(w.at) - len(got.waits)
	}
	end(w)
}

// name is a new one for others, of whom the first has its deliveries in one partition with a healthy one's.
func (n *neighbours) name(r *rig, healthy []*schemas.Webhook) string {
	for {
		n.names++
		name := fmt.Sprintf("other%d", n.names)
		if kafka.PartitionOf("wh_"+name+"_0", r.partitions) == kafka.PartitionOf(healthy[0].ID, r.partitions) {
			return name
		}
	}
}

// hanging makes others that hang until their end, when they are deleted: what is left
// would else be called in what is measured next.
func (n *neighbours) hanging(t testing.TB, r *rig, name string) (others []*schemas.Webhook, end func(*written)) {
	t.Helper()
	hangs, err := receiver.Listen(t.Context(), receiver.Config{Light: true})
	if err != nil {
		t.Fatal(err)
	}
	others = r.webhooks(t, name, n.others, func(i int) string {
		path := fmt.Sprintf("/%d", i)
		hangs.Answers(path, receiver.Answer{Hang: true})
		return hangs.URL(path)
	}, nil)
	return others, func(w *written) {
		want := min(n.others, len(w.at)-n.healthy) // of a small run not all have deliveries
		poll(t, time.Minute, func() error {
			if hung := len(hangs.Paths()); hung < want {
				return fmt.Errorf("targets that were called and hang: got %d, want %d: %w", hung, want, errNotYet)
			}
			return nil
		})
		r.remove(t, others)
		if err := hangs.Close(); err != nil {
			t.Error(err)
		}
	}
}

// refusing makes others that nobody is at home at. Their end is that of each delivery.
func (n *neighbours) refusing(t testing.TB, r *rig, name string) (others []*schemas.Webhook, end func(*written)) {
	t.Helper()
	nobody := pipeline.FreeAddr(t)
	others = r.webhooks(t, name, n.others, func(int) string { return "http://" + nobody }, func(w *schemas.Webhook) {
		w.RetrySchedule = n.schedule
	})
	return others, func(*written) {
		poll(t, 5*time.Minute, func() error {
			if n.ended = int(r.metric(t, "postrider_sender_attempts_total", `result="dead"`)); n.ended != n.written {
				return fmt.Errorf("dead deliveries: got %d, want %d: %w", n.ended, n.written, errNotOnce)
			}
			return nil
		})
		n.count(t, r, others[0].ID)
	}
}

// count adds what a webhook's deliveries came to.
func (n *neighbours) count(t testing.TB, r *rig, id string) {
	t.Helper()
	r.records(t, append([]string{r.topics.Outcomes}, r.topics.Retry...), func(record *kgo.Record) {
		switch {
		case string(record.Key) != id:
		case record.Topic != r.topics.Outcomes:
			n.retries++
		default:
			o, err := schemas.DecodeOutcome(record)
			if err != nil {
				t.Fatal(err)
			}
			n.attempts++
			if o.Reason != "breaker_open" {
				n.requests++
			}
		}
	})
}

func (n *neighbours) found(o senderOptions) found {
	f := found{Setup: fmt.Sprintf("%s; beside: all are quick; %d rounds, backlogs of %d, steady %.0f/s (%.2f of full speed to half of a backlog) for %d s each",
		n.setup, o.rounds, o.deliveries, n.rate, o.share, o.seconds)}
	if n.full {
		f.Figures = append(f.Figures,
			newFigure("healthy at full speed, to the last", "deliveries/s", n.beside.rate(), n.calm.rate()).heldRatio(floorNeighbours, atLeast),
			newFigure("  to half of them", "deliveries/s", n.beside.halfRate(), n.calm.halfRate()).heldRatio(floorNeighbours, atLeast),
		)
	}
	f.Figures = append(f.Figures,
		newFigure("healthy, routed to received, p50", "ms", quantile(n.beside.waits, 0.5), quantile(n.calm.waits, 0.5)),
		newFigure("healthy, routed to received, p99", "ms", quantile(n.beside.waits, 0.99), quantile(n.calm.waits, 0.99)).heldRatio(n.slower, atMost),
	)
	if n.refuses {
		f.Figures = append(f.Figures,
			newFigure("retry records per attempt of the dead", "records", n.retries/n.attempts, 0).held(floorRetries, atMost),
			newFigure("  attempts that were requests", "share", n.requests/n.attempts, 0),
		)
	}
	return f
}
