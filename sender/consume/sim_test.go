package consume

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/deliver"
	"github.com/postrider/postrider/sender/retry"
)

// sim is a sender whose clock, logs and targets are the test's: everything but
// its clients is the real one.
type sim struct {
	*session

	now        time.Time
	logs       map[place][]*kgo.Record
	polled     map[place]int      // of logs, given to the board
	behind     map[place]struct{} // those of which there is more to give
	committed  map[place]mark
	flights    []flight // attempts that run, by their end
	nextCommit time.Time
	// target answers a request that begins now.
	target func(it *item) (took time.Duration, v deliver.Verdict)

	requests map[string][]time.Time // when each webhook's began
	outcomes map[string][]schemas.Outcome
	waiting  map[string]int // records written to retry tiers, by webhook
}

type flight struct {
	it      *item
	ends    time.Time
	verdict deliver.Verdict
}

var (
	well       = deliver.Verdict{Action: deliver.Delivered, Health: deliver.Well}                                      //nolint:gochecknoglobals // a constant
	overloaded = deliver.Verdict{Action: deliver.Retry, Reason: deliver.ReasonTimeout, Health: deliver.Overloaded}     //nolint:gochecknoglobals // a constant
	failing    = deliver.Verdict{Action: deliver.Retry, Reason: deliver.ReasonConnectRefused, Health: deliver.Failing} //nolint:gochecknoglobals // a constant
)

func startSim(t *testing.T, partitions int) *sim {
	t.Helper()
	topics := schemas.NewTopics("")
	quiet := slog.New(slog.DiscardHandler)
	c := &Consumer{cfg: Config{Instance: "a", Schedule: retry.DefaultSchedule(), Concurrency: 32}, topics: topics, log: quiet}
	c.metrics = newMetrics(prometheus.NewRegistry(), c)
	c.webhooks = newWebhooks(topics, quiet, func() {}, process.NewHealth(quiet).Dependency("webhooks", process.Required))
	c.webhooks.stale = func() time.Duration { return 0 }
	c.webhooks.barrier = func(context.Context) error { return nil }
	s := &sim{
		session: &session{Consumer: c, partitions: partitions}, now: time.Unix(1_700_000_000, 0).UTC(),
		logs: make(map[place][]*kgo.Record), committed: make(map[place]mark),
		requests: make(map[string][]time.Time), outcomes: make(map[string][]schemas.Outcome), waiting: make(map[string]int),
	}
	s.clock = func() time.Time { return s.now }
	c.webhooks.onResume = s.resumed
	s.join()
	return s
}

// join is a new member with all partitions.
func (s *sim) join() {
	s.board = newBoard(&effects{
		topics: s.topics, topicID: [16]byte{1}, schedule: s.cfg.Schedule, instance: "a", disableAfter: s.cfg.DisableAfter,
	}, table{
		bounds: func(id string) laneBounds { return s.webhooks.bounds(id, s.cfg.Concurrency, len(s.cfg.Schedule)) },
		state:  s.webhooks.state,
	}, 64<<20)
	s.assign()
}

// assign gives the member all partitions, from what was committed.
func (s *sim) assign() {
	var places []place
	for _, topic := range s.topics.Sources() {
		for p := range s.partitions {
			places = append(places, place{topic, int32(p)})
		}
	}
	s.board.assign(places, "member", 1)
	s.polled, s.behind = make(map[place]int), make(map[place]struct{})
	for _, p := range places {
		at := s.committed[p]
		if err := s.board.restore(p, at.offset, at.text); err != nil {
			panic(err)
		}
		s.polled[p] = int(at.offset)
		s.behind[p] = struct{}{}
	}
	s.board.stated(s.board.assignment(), s.webhooks.resumed(s.partitions), s.clock())
}

// rebalance takes all partitions away and gives them back; what runs then comes to nothing.
func (s *sim) rebalance() {
	s.board.stop(nil)
	s.commit()
	s.board.giveUp(nil)
	s.assign()
}

// webhook puts a webhook in force.
func (s *sim) webhook(t *testing.T, id string, change func(*schemas.Webhook)) {
	t.Helper()
	w := schemas.Webhook{ID: id, Organization: "org", Active: true, URL: "https://example.com/", Events: []string{"*"}, Generation: 1, Revision: 1}
	if before, _ := s.webhooks.get(id); before != nil {
		w = before.Webhook
		w.Revision++
	}
	if change != nil {
		change(&w)
	}
	r, err := w.Record(s.topics.Webhooks)
	if err != nil {
		t.Fatal(err)
	}
	s.webhooks.apply(r)
}

// deliver writes n deliveries of a webhook.
func (s *sim) deliver(id string, n int) {
	for range n {
		d := schemas.Delivery{
			WebhookID: id, WebhookRevision: 1, EventID: "e", Event: "labs.created", Organization: "org", Cause: schemas.CauseEvent, Body: []byte("{}"),
		}
		r := d.Record(s.topics.Deliveries)
		r.Partition = kafka.PartitionOf(id, s.partitions)
		s.write(r)
	}
}

func (s *sim) write(r *kgo.Record) {
	switch r.Topic {
	case s.topics.Webhooks, s.topics.WebhookStates:
		s.webhooks.apply(r)
	case s.topics.Outcomes:
		if o, err := schemas.DecodeOutcome(r); err == nil {
			id := o.DeliveryID.String()
			s.outcomes[id] = append(s.outcomes[id], o)
		}
	}
	if slices.Contains(s.topics.Retry, r.Topic) {
		s.waiting[string(r.Key)]++
	}
	p := place{r.Topic, r.Partition}
	r.Offset = int64(len(s.logs[p]))
	if r.Timestamp.IsZero() {
		r.Timestamp = s.now
	}
	r.Timestamp = r.Timestamp.Truncate(time.Millisecond)
	s.logs[p] = append(s.logs[p], r)
	if _, worked := s.polled[p]; worked {
		s.behind[p] = struct{}{}
	}
}

// commit commits what is finished, as session.commitLocked does.
func (s *sim) commit() {
	b := s.board.take()
	for _, r := range b.results {
		for _, record := range r.records {
			s.write(record)
		}
	}
	for _, record := range b.records {
		s.write(record)
	}
	for _, m := range b.marks {
		s.committed[m.place] = m
	}
	s.board.wrote(b, s.now)
	s.board.release(b)
	s.nextCommit = s.now.Add(transactionEvery)
}

func (s *sim) poll() {
	for p := range s.behind {
		records, from := s.logs[p], s.polled[p]
		if from == len(records) {
			delete(s.behind, p)
		} else if !s.board.sources[p].paused {
			to := min(len(records), from+500)
			s.board.push(p, records[from:to])
			s.polled[p] = to
		}
	}
}

// begin makes attempts; those aside are at an end at once.
func (s *sim) begin(t *testing.T, items []*item) {
	t.Helper()
	for len(items) > 0 {
		it := items[0]
		items = items[1:]
		id := it.delivery.WebhookID
		if w, _ := s.webhooks.get(id); it.aside || w == nil || !w.Active || w.Paused || w.Generation == it.disabled {
			items = append(items, s.board.finish(it, s.attempt(t.Context(), it), s.now).begin...)
			continue
		}
		s.requests[id] = append(s.requests[id], s.now)
		took, v := s.target(it)
		f := flight{it, s.now.Add(took), v}
		at, _ := slices.BinarySearchFunc(s.flights, f, func(a, b flight) int { return cmp.Or(a.ends.Compare(b.ends), -1) })
		s.flights = slices.Insert(s.flights, at, f)
	}
}

// land ends attempts whose time has come.
func (s *sim) land(t *testing.T) {
	t.Helper()
	for len(s.flights) > 0 && !s.flights[0].ends.After(s.now) {
		f := s.flights[0]
		s.flights = s.flights[1:]
		w, _ := s.webhooks.get(f.it.delivery.WebhookID)
		a := deliver.Attempt{StartedAt: f.it.started}
		s.begin(t, s.board.finish(f.it, s.judged(f.it, w, &a, f.verdict), s.now).begin)
	}
}

// run lets time pass until a moment, or until nothing more is to happen; each
// is called before every look at the heads.
func (s *sim) run(t *testing.T, until time.Time, each func()) {
	t.Helper()
	for steps := 0; s.now.Before(until); steps++ {
		if steps > 5_000_000 {
			t.Fatal("no end")
		}
		if each != nil {
			each()
		}
		s.land(t)
		if !s.now.Before(s.nextCommit) {
			s.commit()
		}
		s.poll()
		r := s.board.admit(s.now)
		s.begin(t, r.begin)
		next := until
		earlier := func(at time.Time) {
			if !at.IsZero() && at.Before(next) {
				next = at
			}
		}
		earlier(r.wake)
		if len(s.flights) > 0 {
			earlier(s.flights[0].ends)
		}
		if len(s.board.results) > 0 || s.unread() {
			earlier(laterOf(s.nextCommit, s.now))
		}
		if each != nil {
			earlier(s.now.Add(5 * time.Millisecond))
		}
		s.now = s.now.Add(max(next.Sub(s.now), 100*time.Microsecond)) // the clock may have been set since next was fixed
	}
}

// unread reports whether the board would take more of a log.
func (s *sim) unread() bool {
	for p := range s.behind {
		if s.polled[p] < len(s.logs[p]) && !s.board.sources[p].paused {
			return true
		}
	}
	return false
}

// perSecond counts a webhook's requests of each second from a moment on.
func (s *sim) perSecond(id string, from time.Time, seconds int) []int {
	counts := make([]int, seconds)
	for _, at := range s.requests[id] {
		if i := int(at.Sub(from) / time.Second); !at.Before(from) && i < seconds {
			counts[i]++
		}
	}
	return counts
}
