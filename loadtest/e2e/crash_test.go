package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// TestCrashes is P1, P2, P5 and P7 under SIGKILL: with events coming in by REST
// and Kafka, each service is killed and started again under its name, twice, and
// then stopped and started; nothing accepted is lost, and nothing counts twice.
func TestCrashes(t *testing.T) {
	// A writer that is killed in mid insert leaves its successor waiting as long as an insert may take.
	s := start(t, "--retry-schedule="+strings.Repeat("1s,", 10), "--audit-insert-timeout=2s")
	s.receiver.Answers("/crash/slow", receiver.Answer{Delay: 5 * time.Millisecond})
	s.receiver.Answers("/crash/flaky", flaky(1000)...)
	var hooks []webhook
	for _, path := range []string{"/crash/quick", "/crash/slow", "/crash/flaky"} {
		hooks = append(hooks, s.subscribe(t, "acme", "", path, "*"))
	}
	l := s.startLoad(t, "acme", 3)
	l.progress(t)

	var kills []kill
	for range 2 {
		for _, service := range []*pipeline.Service{s.ingest, s.router, s.sender} {
			service.Kill9(t)
			ends := s.ends(t, s.topics.Outcomes)
			service.Restart(t)
			if service == s.sender {
				kills = append(kills, kill{at: time.Now(), ends: ends})
			}
			service.WaitReady(t)
			l.progress(t)
		}
	}
	for _, service := range []*pipeline.Service{s.ingest, s.router, s.sender} {
		if code := service.Terminate(t, 30*time.Second); code != 0 {
			t.Errorf("got exit code %d after SIGTERM, want 0: %s", code, service.Output(t))
		}
		service.Restart(t)
		service.WaitReady(t)
		l.progress(t)
	}

	ids := l.stop()
	total := len(ids) * len(hooks)
	t.Logf("%d events, %d deliveries", len(ids), total)
	s.waitEnds(t, total)
	s.checkReceived(t, hooks, ids)
	s.checkDeliveries(t, sent{hooks, ids})
	outcomes := s.outcomes(t)
	s.checkRepeats(t, hooks, outcomes, kills)
	s.checkAudit(t, outcomes, len(ids), len(hooks))
}

// flaky is n times 503 and nine times 200, then 200 for good. That one delivery
// meets all its eleven attempts at a 503 is not to be expected.
func flaky(n int) []receiver.Answer {
	answers := make([]receiver.Answer, 10*n, 10*n+1)
	for i := range answers {
		if i%10 == 0 {
			answers[i] = receiver.Status(http.StatusServiceUnavailable)
		}
	}
	return append(answers, receiver.Status(http.StatusOK))
}

// load sends events of one organization without a pause, and knows which were accepted.
type load struct {
	s            *system
	organization string
	end          chan struct{}
	work         sync.WaitGroup

	mu  sync.Mutex
	ids []string // accepted; guarded by mu
}

// startLoad sends 50 events a second by each of some clients of REST and one of Kafka.
func (s *system) startLoad(t *testing.T, organization string, clients int) *load {
	t.Helper()
	l := &load{s: s, organization: organization, end: make(chan struct{})}
	producer := s.client(t, kgo.ProducerLinger(0))
	for client := range clients {
		l.work.Go(func() {
			l.send(t.Context(), fmt.Sprintf("rest-%d", client), func(event string) error {
				a, err := s.try(t, http.MethodPost, "/v1/events", event)
				if err == nil && a.Status != http.StatusAccepted {
					err = fmt.Errorf("%w: status %d: %s", errNotYet, a.Status, a.Body)
				}
				return err
			})
		})
	}
	l.work.Go(func() {
		l.send(t.Context(), "kafka", func(event string) error {
			record := &kgo.Record{Topic: s.topics.Events, Key: []byte(organization), Value: []byte(event)}
			return producer.ProduceSync(t.Context(), record).FirstErr()
		})
	})
	return l
}

// send has each event accepted, however often that takes, before it goes on to
// the next, so that those accepted are all there are.
func (l *load) send(ctx context.Context, name string, accept func(event string) error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-l.end:
			return
		case <-tick.C:
		}
		id := fmt.Sprintf("%s-%s-%d", l.organization, name, i)
		for accept(loadEvent(l.organization, id)) != nil {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		l.mu.Lock()
		l.ids = append(l.ids, id)
		l.mu.Unlock()
	}
}

func loadEvent(organization, id string) string {
	return fmt.Sprintf(`{"event":"a.b","organization":%q,"id":%q,"payload":%s}`, organization, id, loadPayload(id))
}

func loadPayload(id string) string { return fmt.Sprintf(`{"from": %q, "half": 0.50}`, id) }

func (l *load) accepted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ids)
}

// id is that of the nth accepted event, if there is one.
func (l *load) id(n int) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n >= len(l.ids) {
		return "", false
	}
	return l.ids[n], true
}

// progress waits until events go through everything again: at least 200 requests
// come while at least 50 events are accepted.
func (l *load) progress(t *testing.T) {
	t.Helper()
	requests, events := l.s.receiver.Total()+200, l.accepted()+50
	pipeline.Wait(t, 2*soon, "progress", func() error {
		if r, e := l.s.receiver.Total(), l.accepted(); r < requests || e < events {
			return fmt.Errorf("%w: %d requests of %d, %d events of %d", errNotYet, r, requests, e, events)
		}
		return nil
	})
}

// stop ends the load and returns the ids of the accepted events.
func (l *load) stop() []string {
	close(l.end)
	l.work.Wait()
	return l.ids
}

// waitEnds waits until n deliveries have ended. Those that found no room while the
// sender had much to catch up with may wait half a minute in a retry tier.
func (s *system) waitEnds(t *testing.T, n int) {
	t.Helper()
	const statement = `SELECT countIf(state = 'delivered'), count() FROM postrider.deliveries`
	pipeline.Wait(t, 4*soon, statement, func() error {
		if got, want := s.query(t, statement), fmt.Sprintf("%d\t%d", n, n); got != want {
			return fmt.Errorf("%w: got %q, want %q", errNotYet, got, want)
		}
		return nil
	})
}

// checkReceived is P1 and P5 at the receiver: each webhook got each accepted event
// and no other, with a signature, under one id and with the same bytes every time.
func (s *system) checkReceived(t *testing.T, hooks []webhook, ids []string) {
	t.Helper()
	for _, hook := range hooks {
		want := map[string]string{} // message id by body
		for _, id := range ids {
			body := fmt.Sprintf(`{"id":%q,"event":"a.b","payload":%s}`, id, loadPayload(id))
			want[body] = schemas.MessageID(hook.Organization, id, hook.ID)
		}
		seen := map[string]bool{}
		for _, r := range s.receiver.Requests(hook.Path) {
			seen[string(r.Body)] = true
			if r.MessageID != want[string(r.Body)] {
				t.Errorf("%s got %s under webhook-id %q, want %q", hook.Path, r.Body, r.MessageID, want[string(r.Body)])
			}
			if err := r.Verify(hook.Secret); err != nil {
				t.Error(err)
			}
		}
		if len(seen) != len(want) {
			t.Errorf("%s got %d different bodies, want %d", hook.Path, len(seen), len(want))
		}
	}
}

// sent are accepted events, each bound for each of the webhooks.
type sent struct {
	hooks []webhook
	ids   []string
}

// checkDeliveries is P2: one delivery for each accepted event and webhook.
func (s *system) checkDeliveries(t *testing.T, all ...sent) {
	t.Helper()
	type pair struct{ webhook, event string }
	count := map[pair]int{}
	for _, d := range s.delivered(t) {
		count[pair{d.WebhookID, d.EventID}]++
	}
	for _, sent := range all {
		for _, hook := range sent.hooks {
			for _, id := range sent.ids {
				key := pair{hook.ID, id}
				if count[key] != 1 {
					t.Errorf("event %s has %d deliveries to %s, want 1", id, count[key], hook.Path)
				}
				delete(count, key)
			}
		}
	}
	if len(count) > 0 {
		t.Errorf("deliveries of events that nobody sent: %v", count)
	}
}

// delivered are the deliveries of the topic, all that are committed.
func (s *system) delivered(t *testing.T) (all []schemas.Delivery) {
	t.Helper()
	topicIDs, err := kafka.TopicIDs(t.Context(), s.client(t), s.topics.Deliveries)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.readAll(t, s.topics.Deliveries) {
		d, err := schemas.DecodeDelivery(r, topicIDs[s.topics.Deliveries])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	return all
}

// outcome is an outcome and its place in the topic.
type outcome struct {
	schemas.Outcome

	place kafka.Place
	at    int64
}

// outcomes are all that are committed, in the order of their places.
func (s *system) outcomes(t *testing.T) []outcome {
	t.Helper()
	var all []outcome
	for _, r := range s.readAll(t, s.topics.Outcomes) {
		o, err := schemas.DecodeOutcome(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, outcome{o, kafka.Place{Topic: r.Topic, Partition: r.Partition}, r.Offset})
	}
	slices.SortFunc(all, func(a, b outcome) int {
		if a.place.Partition != b.place.Partition {
			return int(a.place.Partition - b.place.Partition)
		}
		return int(a.at - b.at)
	})
	return all
}

// kill is a moment at which the sender was dead: requests before at are the
// killed process's, and outcomes before ends, if committed, too.
type kill struct {
	at   time.Time
	ends map[kafka.Place]int64
}

// checkRepeats is P5's other half: a request was made again only if it was in
// flight at a kill, which is to say that it had come and its outcome was not
// written; and once a kill at most. An orderly stop repeats none.
func (s *system) checkRepeats(t *testing.T, hooks []webhook, outcomes []outcome, kills []kill) {
	t.Helper()
	times, written := map[string][]time.Time{}, map[string][]outcome{}
	for _, hook := range hooks {
		for _, r := range s.receiver.Requests(hook.Path) {
			times[r.MessageID] = append(times[r.MessageID], r.At)
		}
	}
	for _, o := range outcomes {
		written[o.MessageID] = append(written[o.MessageID], o)
	}
	repeats := 0
	for id, requests := range times {
		inFlight := 0 // at the kills so far
		for i, k := range kills {
			came := countIf(requests, func(at time.Time) bool { return at.Before(k.at) })
			told := countIf(written[id], func(o outcome) bool { return o.at < k.ends[o.place] })
			if now := came - told; now < inFlight || now > inFlight+1 {
				t.Errorf("%s: %d requests and %d outcomes at kill %d, after %d in flight before", id, came, told, i+1, inFlight)
			}
			inFlight = came - told
		}
		if extra := len(requests) - len(written[id]); extra != inFlight {
			t.Errorf("%s: %d requests for %d outcomes, with %d in flight at kills", id, len(requests), len(written[id]), inFlight)
		}
		repeats += inFlight
	}
	t.Logf("%d attempts were in flight at %d kills, and made again", repeats, len(kills))
	if repeats == 0 {
		t.Error("nothing was in flight at any kill: the test shows nothing")
	}
}

func countIf[T any](values []T, condition func(T) bool) (n int) {
	for _, v := range values {
		if condition(v) {
			n++
		}
	}
	return n
}

// checkAudit is P7: a row for each outcome of the topic and no other, one
// delivered for each delivery, each event once.
func (s *system) checkAudit(t *testing.T, outcomes []outcome, events, hooks int) {
	t.Helper()
	var lines []string
	for _, o := range outcomes {
		lines = append(lines, fmt.Sprintf("%d\t%d\t%s\t%d\t%s", o.place.Partition, o.at, o.DeliveryID, o.Attempt, o.Result))
	}
	total := fmt.Sprint(events * hooks)
	s.waitQuery(t, `SELECT partition, offset, delivery_id, attempt, result FROM postrider.outcomes ORDER BY partition, offset`, strings.Join(lines, "\n"))
	s.waitQuery(t, `SELECT result, count(), uniqExact(delivery_id) FROM postrider.outcomes WHERE result NOT IN ('retry') GROUP BY result`,
		"delivered\t"+total+"\t"+total)
	s.waitQuery(t, `SELECT state, count() FROM postrider.deliveries GROUP BY state`, "delivered\t"+total)
	s.waitQuery(t, `SELECT count(), uniqExact(event_id), countIf(matches != `+fmt.Sprint(hooks)+`), countIf(body = '') FROM postrider.events WHERE `+notOperational,
		fmt.Sprintf("%d\t%d\t0\t0", events, events))
}
