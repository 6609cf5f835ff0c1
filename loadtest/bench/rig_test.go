package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
)

// rig is a sender alone, with topics of its own, and quick targets: one process
// that answers 200 at once, whatever it is called.
type rig struct {
	brokers    []string
	topics     schemas.Topics
	partitions int
	clickhouse *pipeline.ClickHouse // nil: the audit is off
	producer   *kgo.Client
	ring       schemas.KeyRing

	receiver, sender *pipeline.Service
	port             int
	quick            map[string]bool // ids of webhooks that call the receiver
	arrived          int             // requests at the receiver so far
	delivered        int             // deliveries to it so far
	runs             int
}

// bringUpSender starts all processes. The brokers are all cases'.
func bringUpSender(t testing.TB, o senderOptions) *rig {
	t.Helper()
	k, prefix := pipeline.SharedKafka(t)
	r := &rig{
		brokers: k.Addrs(), topics: schemas.NewTopics(prefix), partitions: o.partitions,
		port: pipeline.FreePort(t), quick: map[string]bool{},
	}
	var err error
	if r.ring, err = schemas.ParseKeyRing(keyRing); err != nil {
		t.Fatal(err)
	}
	// No linger: it would be part of what is measured.
	r.producer, err = kafka.Config{Brokers: r.brokers, TopicPrefix: prefix}.NewClient("bench", kgo.ProducerLinger(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.producer.Close)
	partitions := schemas.Partitions{Events: 1, Deliveries: o.partitions}
	if err := kafka.CreateTopics(t.Context(), r.producer, r.topics, partitions, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.dropTopics(t) })
	if o.audit {
		r.clickhouse = pipeline.SharedClickHouse(t)
		r.migrate(t)
	}
	// All of loopback: each target may have an address of its own.
	r.receiver = pipeline.Start(t, "receiver", "--listen=0.0.0.0:"+strconv.Itoa(r.port), "--light").WaitReady(t)
	r.sender = r.startSender(t, "bench-1").WaitReady(t)
	return r
}

func (r *rig) migrate(t testing.TB) {
	t.Helper()
	conn, err := clickhouse.Config{Address: r.clickhouse.Native, Database: r.clickhouse.Database}.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := clickhouse.Migrate(t.Context(), conn, r.clickhouse.Database); err != nil {
		t.Fatal(err)
	}
}

// dropTopics leaves the brokers to the next case as they were.
func (r *rig) dropTopics(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var names []string
	for _, spec := range r.topics.Specs(schemas.Partitions{}) {
		names = append(names, spec.Name)
	}
	if _, err := kadm.NewClient(r.producer).DeleteTopics(ctx, names...); err != nil {
		t.Log(err) // they go with the brokers
	}
}

func (r *rig) startSender(t testing.TB, instance string) *pipeline.Service {
	t.Helper()
	args := []string{
		"--brokers=" + strings.Join(r.brokers, ","), "--topic-prefix=" + r.topics.Prefix, "--instance=" + instance,
		"--key-ring=" + keyRing, "--allow-targets=127.0.0.0/8",
	}
	if r.clickhouse == nil {
		args = append(args, "--clickhouse="+pipeline.FreeAddr(t)) // where nothing is: the audit waits for it
	} else {
		args = append(args, "--clickhouse="+r.clickhouse.Native, "--clickhouse-database="+r.clickhouse.Database)
	}
	return pipeline.Start(t, "sender", args...)
}

// quickURL is that of a target at an address of its own, which has connections of its own.
func (r *rig) quickURL(n int) string {
	return fmt.Sprintf("http://127.%d.%d.%d:%d/%d", 1+n>>16, n>>8&255, n&255, r.port, n)
}

// webhooks makes so many webhooks that call where url says, and are otherwise as
// edit, which may be nil, has it.
func (r *rig) webhooks(t testing.TB, name string, count int, url func(n int) string, edit func(*schemas.Webhook)) []*schemas.Webhook {
	t.Helper()
	list := make([]*schemas.Webhook, 0, count)
	for n := range count {
		w := &schemas.Webhook{
			ID: fmt.Sprintf("wh_%s_%d", name, n), Active: true, URL: url(n), Events: []string{eventName},
			Generation: 1, Revision: 1, CreatedAt: time.Now(), UpdatedAt: time.Now(),
		}
		w.Organization = w.ID
		secret, err := r.ring.Seal(w.SecretIdentity(), schemas.NewSecret())
		if err != nil {
			t.Fatal(err)
		}
		w.Secrets = []schemas.SealedSecret{secret}
		if edit != nil {
			edit(w)
		}
		list = append(list, w)
		r.quick[w.ID] = w.URL == r.quickURL(n)
	}
	r.put(t, list...)
	return list
}

func (r *rig) put(t testing.TB, list ...*schemas.Webhook) {
	t.Helper()
	records := make([]*kgo.Record, 0, len(list))
	for _, w := range list {
		record, err := w.Record(r.topics.Webhooks)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, record)
	}
	if err := r.producer.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// remove deletes webhooks: what waits for them is discarded when it comes to its turn.
func (r *rig) remove(t testing.TB, list []*schemas.Webhook) {
	t.Helper()
	for _, w := range list {
		if err := r.producer.ProduceSync(t.Context(), schemas.Tombstone(r.topics.Webhooks, w.ID)).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// traffic is what is written in one go: deliveries to webhooks in turn.
type traffic struct {
	webhooks []*schemas.Webhook
	count    int
	rate     float64 // a second; 0: as fast as Kafka takes them
}

// written is a traffic as it was, or what of it was before it was stopped.
type written struct {
	traffic

	run string
	at  []int64 // when each was routed, microseconds since 1970
}

func (w *written) webhook(number int) *schemas.Webhook { return w.webhooks[number%len(w.webhooks)] }

func (w *written) message(number int) string {
	hook := w.webhook(number)
	return schemas.MessageID(hook.Organization, eventID(w.run, number), hook.ID)
}

// newRun names a traffic that is to be written.
func (r *rig) newRun(l traffic) *written {
	r.runs++
	return &written{traffic: l, run: "run" + strconv.Itoa(r.runs), at: make([]int64, 0, min(l.count, 1<<20))}
}

// write writes the traffic until ctx ends, and blocks until Kafka has it.
func (r *rig) write(ctx context.Context, w *written) error {
	kept := context.WithoutCancel(ctx) // what was begun is written
	var bad atomic.Pointer[error]
	start := time.Now()
	for number := range w.count {
		if w.rate > 0 {
			due := start.Add(time.Duration(float64(number) / w.rate * float64(time.Second)))
			if wait := time.Until(due); wait > 0 {
				select {
				case <-ctx.Done():
				case <-time.After(wait):
				}
			}
		}
		if ctx.Err() != nil {
			break
		}
		d := w.delivery(number)
		w.at = append(w.at, d.RoutedAt.UnixMicro())
		r.producer.Produce(kept, d.Record(r.topics.Deliveries), func(_ *kgo.Record, err error) {
			if err != nil {
				bad.CompareAndSwap(nil, &err)
			}
		})
	}
	if err := r.producer.Flush(kept); err != nil {
		return fmt.Errorf("flushing deliveries: %w", err)
	}
	if err := bad.Load(); err != nil {
		return fmt.Errorf("writing deliveries: %w", *err)
	}
	return nil
}

func (w *written) delivery(number int) schemas.Delivery {
	hook, now := w.webhook(number), time.Now()
	event := schemas.Event{ID: eventID(w.run, number), Name: eventName, Payload: appendPayload(nil, number)}
	return schemas.Delivery{
		WebhookID: hook.ID, WebhookRevision: hook.Revision, EventID: event.ID, Event: event.Name, Organization: hook.Organization,
		AcceptedAt: now, RoutedAt: now, Cause: schemas.CauseEvent, Body: schemas.AppendBody(nil, &event),
	}
}

// send writes a traffic to its end.
func (r *rig) send(t testing.TB, l traffic) *written {
	t.Helper()
	w := r.newRun(l)
	if err := r.write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	return w
}

// arrivals are those of some webhooks' deliveries.
type arrivals struct {
	waits []float64 // milliseconds from routed to received
	after []float64 // microseconds from the first one's writing to each one's arrival
	ids   []string  // of their webhooks
}

// of are those of webhooks whose id has a prefix.
func (a arrivals) of(prefix string) (some arrivals) {
	for i, id := range a.ids {
		if strings.HasPrefix(id, prefix) {
			some.waits, some.after, some.ids = append(some.waits, a.waits[i]), append(some.after, a.after[i]), append(some.ids, id)
		}
	}
	return some
}

// side is what was found of backlogs: deliveries a second until the last one had
// come, and until half of them had, which a few that wait for long do not bear on.
type side struct{ count, took, half float64 }

func (s *side) add(a arrivals) {
	s.count += float64(len(a.after))
	s.took += quantile(a.after, 1)
	s.half += quantile(a.after, 0.5)
}

func (s *side) rate() float64     { return s.count * 1e6 / s.took }
func (s *side) halfRate() float64 { return s.count / 2 * 1e6 / s.half }

// await waits until each delivery to a quick target has arrived, and the audit,
// if it is on, has its row. One that arrived twice is an error unless twice says
// that it may.
func (r *rig) await(t testing.TB, w *written, twice bool) (found arrivals) {
	t.Helper()
	chosen := w.choose(r.quick)
	r.delivered += len(chosen.at)
	limit := time.Minute + time.Duration(len(w.at))*5*time.Millisecond
	want := r.arrived + len(chosen.at)
	poll(t, limit, func() error {
		if r.arrived = r.total(t); r.arrived < want {
			return fmt.Errorf("requests at the receiver: got %d, want %d: %w", r.arrived, want, errNotOnce)
		}
		return nil
	})
	poll(t, limit, func() error {
		seen := r.seen(t)
		if twice {
			seen = firsts(seen)
		}
		var err error
		if found.waits, _, err = waits(sent{SentAt: chosen.at}, seen, chosen.message); err != nil && !twice {
			t.Fatal(err)
		}
		return err
	})
	found.ids = chosen.ids
	for i, at := range chosen.at {
		found.after = append(found.after, float64(at-w.at[0])+1000*found.waits[i])
	}
	r.forget(t)
	r.awaitRows(t, limit)
	return found
}

// chosen are deliveries of a run.
type chosen struct {
	at            []int64
	messages, ids []string
}

func (c *chosen) message(n int) string { return c.messages[n] }

// choose returns those to quick targets.
func (w *written) choose(quick map[string]bool) (c chosen) {
	for number, at := range w.at {
		if id := w.webhook(number).ID; quick[id] {
			c.at, c.messages, c.ids = append(c.at, at), append(c.messages, w.message(number)), append(c.ids, id)
		}
	}
	return c
}

// firsts are the first requests of each delivery.
func firsts(list []receiver.Seen) (kept []receiver.Seen) {
	had := map[string]bool{}
	for _, s := range list {
		if !had[s.MessageID] {
			kept = append(kept, s)
		}
		had[s.MessageID] = true
	}
	return kept
}

func (r *rig) total(t testing.TB) int {
	t.Helper()
	n, err := strconv.Atoi(string(r.ask(t, http.MethodGet, "/total")))
	if err != nil {
		t.Fatalf("reading the receiver's total: %v", err)
	}
	return n
}

func (r *rig) seen(t testing.TB) (list []receiver.Seen) {
	t.Helper()
	lines := json.NewDecoder(bytes.NewReader(r.ask(t, http.MethodGet, "/requests")))
	for lines.More() {
		var s receiver.Seen
		if err := lines.Decode(&s); err != nil {
			t.Fatalf("reading what the receiver got: %v", err)
		}
		list = append(list, s)
	}
	return list
}

func (r *rig) forget(t testing.TB) {
	t.Helper()
	r.ask(t, http.MethodDelete, "/requests")
}

func (r *rig) ask(t testing.TB, method, path string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.receiver.Admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, req, http.StatusOK)
}

// awaitRows waits for the audit, which would else go on into the next measurement.
func (r *rig) awaitRows(t testing.TB, limit time.Duration) {
	t.Helper()
	if r.clickhouse == nil {
		return
	}
	poll(t, limit, func() error {
		got, err := strconv.Atoi(strings.TrimSpace(r.clickhouse.Query(t,
			"SELECT count() FROM "+r.clickhouse.Database+".outcomes WHERE result = 'delivered'")))
		if err == nil && got < r.delivered {
			err = fmt.Errorf("delivered outcomes in ClickHouse: got %d, want %d: %w", got, r.delivered, errNotOnce)
		}
		return err
	})
}

// warm has the sender and the brokers, which Java compiles meanwhile, work for a while.
func (r *rig) warm(t testing.TB, webhooks []*schemas.Webhook, count int) {
	t.Helper()
	r.await(t, r.send(t, traffic{webhooks: webhooks, count: count}), false)
}

// metric sums up a metric of the sender; see total.
func (r *rig) metric(t testing.TB, name, label string) float64 {
	t.Helper()
	return total(r.sender.Metrics(t), name, label)
}

// records reads what is committed in topics.
func (r *rig) records(t testing.TB, topics []string, each func(*kgo.Record)) {
	t.Helper()
	cl, err := kafka.Config{Brokers: r.brokers, TopicPrefix: r.topics.Prefix}.NewClient("bench",
		kgo.ConsumeTopics(topics...), kgo.KeepControlRecords()) // the last before the end may be one
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	ends, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, topics...)
	if err := errors.Join(err, ends.Error()); err != nil {
		t.Fatal(err)
	}
	left := map[kafka.Place]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[kafka.Place{Topic: o.Topic, Partition: o.Partition}] = o.Offset
		}
	})
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("reading to %v: %v", left, err)
		}
		fetches.EachRecord(func(record *kgo.Record) {
			place := kafka.Place{Topic: record.Topic, Partition: record.Partition}
			if record.Offset+1 >= left[place] {
				delete(left, place)
			}
			if !record.Attrs.IsControl() {
				each(record)
			}
		})
	}
}
