package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
)

const (
	// floorGrowth is from one second to the next. The receiver's seconds are cut a few
	// milliseconds off the sender's, which is a request or two in a hundred.
	floorGrowth = 2.05
	// rampSeconds of a return are told of: five doublings from a tenth carry beyond the rate.
	rampSeconds = 12
)

// outage measures how a target that was away is called again.
func outage(t testing.TB, o senderOptions) found {
	t.Helper()
	r := bringUpSender(t, o)
	r.warm(t, r.quickOnes(t, "warm", 1), o.warmup)
	addr := pipeline.FreeAddr(t)
	hooks := r.webhooks(t, "away", 1, func(int) string { return "http://" + addr + "/away" }, func(w *schemas.Webhook) {
		// Whoever is refused comes back a few times, with all who were, and none dies.
		w.RetrySchedule = slices.Repeat([]string{strconv.Itoa(max(1, o.outage/3)) + "s"}, 30)
	})
	first := listen(t, addr)

	w := r.newRun(traffic{webhooks: hooks, count: 1 << 30, rate: float64(o.outageRate)})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	end := make(chan error, 1)
	go func() { end <- r.write(ctx, w) }()
	poll(t, time.Minute, called(first, o.outageRate*min(20, o.outage)))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	leftAt := time.Now()
	poll(t, 2*time.Minute, func() error { return until(leftAt.Add(time.Duration(o.outage) * time.Second)) })
	second := listen(t, addr)
	returnedAt := time.Now().UnixMicro()
	poll(t, 2*time.Minute, called(second, 1)) // a breaker waits for half a minute at most
	probedAt := time.Now()
	poll(t, time.Minute, func() error { return until(probedAt.Add(rampSeconds * time.Second)) })
	stop()
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	arrived := r.awaitGathered(t, w, time.Duration(o.outage)*time.Second, first, second)
	waited := time.Since(probedAt)
	if err := second.Close(); err != nil {
		t.Error(err)
	}

	times := arrivalTimes(second)
	seconds := perSecond(times, rampSeconds)
	ramp := upTo(seconds, o.outageRate)
	return found{
		Setup: fmt.Sprintf("one target at %d/s, which refuses connections for %d s", o.outageRate, o.outage),
		Figures: []figure{
			newFigure("growth from second to second until its rate", "times", growth(ramp), 0).held(floorGrowth, atMost),
			newFigure("requests of the first second", "requests", float64(seconds[0]), float64(o.outageRate)),
			newFigure("from its return to the first request", "s", float64(times[0]-returnedAt)/1e6, 0),
			newFigure("  from then until all had come, or was given up", "s", waited.Seconds(), 0),
			newFigure("  arrived by then of all", "share", float64(arrived)/float64(len(w.at)), 0),
		},
		Seconds: seconds,
	}
}

func listen(t testing.TB, addr string) *receiver.Receiver {
	t.Helper()
	r, err := receiver.Listen(t.Context(), receiver.Config{Addr: addr, Light: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var (
	errNotYet     = errors.New("not yet")
	errIncomplete = errors.New("not all deliveries have arrived")
)

func until(at time.Time) error {
	if time.Now().Before(at) {
		return errNotYet
	}
	return nil
}

func called(r *receiver.Receiver, times int) func() error {
	return func() error {
		if got := r.Total(); got < times {
			return fmt.Errorf("requests: got %d, want %d: %w", got, times, errNotYet)
		}
		return nil
	}
}

// awaitGathered waits for a time until every delivery has come to one of the
// receivers, and returns how many have. The others must wait in a retry tier.
func (r *rig) awaitGathered(t testing.TB, w *written, limit time.Duration, receivers ...*receiver.Receiver) (arrived int) {
	t.Helper()
	deadline := time.Now().Add(limit)
	poll(t, limit+time.Minute, func() error {
		// First, as what has arrived meanwhile would be counted nowhere.
		waiting := r.metric(t, "postrider_sender_waiting_deliveries", "")
		arrived = w.arrived(receivers)
		if arrived < len(w.at) && (time.Now().Before(deadline) || arrived+int(waiting) < len(w.at)) {
			return fmt.Errorf("%w: %d of %d, and %v wait", errIncomplete, arrived, len(w.at), waiting)
		}
		return nil
	})
	return arrived
}

// arrived is how many of the deliveries have come to one of the receivers. Some
// came twice, when the end of a receiver cut off its answer.
func (w *written) arrived(receivers []*receiver.Receiver) (count int) {
	had := map[string]bool{}
	for _, r := range receivers {
		for _, request := range r.Requests("/away") {
			had[request.MessageID] = true
		}
	}
	for number := range w.at {
		if had[w.message(number)] {
			count++
		}
	}
	return count
}

func arrivalTimes(r *receiver.Receiver) (times []int64) {
	for _, request := range r.Requests("/away") {
		times = append(times, request.At.UnixMicro())
	}
	slices.Sort(times)
	return times
}
