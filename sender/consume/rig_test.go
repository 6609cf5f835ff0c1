package consume

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/deliver"
	"github.com/postrider/postrider/sender/retry"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(memberVariable); text != "" {
		os.Exit(runMember(text))
	}
	goleak.VerifyTestMain(m)
}

const patienceOfTests = 60 * time.Second

// rig is a Kafka with Postrider's topics, a target, and what both have seen.
type rig struct {
	cluster *kfake.Cluster
	dir     string // of the cluster's data
	kafka   kafka.Config
	topics  schemas.Topics
	keys    string
	ring    schemas.KeyRing
	client  *kgo.Client
	target  *target
	events  int
}

func startCluster(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(append(opts, kfake.NumBrokers(1))...)
	if err != nil {
		t.Fatalf("starting kfake: %v", err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

func startRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	cluster := startCluster(t, kfake.DataDir(dir))
	keys := schemas.NewKeyRing("test")
	ring, err := schemas.ParseKeyRing(keys)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{cluster: cluster, dir: dir, keys: keys, ring: ring, kafka: kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: schemas.DefaultPrefix}}
	r.topics = r.kafka.Topics()
	if r.client, err = r.kafka.NewClient("test"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.client.Close)
	if err := kafka.CreateTopics(t.Context(), r.client, r.topics, schemas.Partitions{Events: 2, Deliveries: 4}, 1); err != nil {
		t.Fatalf("creating topics: %v", err)
	}
	r.target = startTarget(t)
	return r
}

func (r *rig) produce(t *testing.T, records ...*kgo.Record) {
	t.Helper()
	if err := r.client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatalf("producing: %v", err)
	}
}

// webhook installs a webhook whose target is at path.
func (r *rig) webhook(t *testing.T, path string, change func(*schemas.Webhook)) schemas.Webhook {
	t.Helper()
	now := time.Now().UTC()
	w := schemas.Webhook{
		ID: schemas.NewWebhookID(), Organization: "org", Active: true, URL: r.target.server.URL + path,
		Events: []string{"*"}, Generation: 1, Revision: 1, CreatedAt: now, UpdatedAt: now,
	}
	sealed, err := r.ring.Seal(w.SecretIdentity(), schemas.NewSecret())
	if err != nil {
		t.Fatal(err)
	}
	w.Secrets = []schemas.SealedSecret{sealed}
	if change != nil {
		change(&w)
	}
	record, err := w.Record(r.topics.Webhooks)
	if err != nil {
		t.Fatal(err)
	}
	r.produce(t, record)
	return w
}

// deliveries writes n deliveries to each webhook and returns their ids.
func (r *rig) deliveries(t *testing.T, n int, webhooks ...schemas.Webhook) map[string]bool {
	t.Helper()
	ids, err := kafka.TopicIDs(t.Context(), r.client, r.topics.Deliveries)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	var records []*kgo.Record
	for range n {
		for _, w := range webhooks {
			r.events++
			d := schemas.Delivery{
				WebhookID: w.ID, WebhookRevision: w.Revision, EventID: fmt.Sprintf("evt-%d", r.events), Event: "labs.created",
				Organization: "org", AcceptedAt: now, RoutedAt: now, Cause: schemas.CauseEvent,
				Body: fmt.Appendf(nil, `{"id":"evt-%d","event":"labs.created","payload":{"n": 1.0}}`, r.events),
			}
			records = append(records, d.Record(r.topics.Deliveries))
		}
	}
	r.produce(t, records...)
	made := make(map[string]bool, len(records))
	for _, record := range records {
		made[schemas.DeliveryID{Topic: ids[r.topics.Deliveries], Partition: record.Partition, Offset: record.Offset}.String()] = true
	}
	return made
}

// member is a running sender.
type member struct {
	process *process.Process
	stop    func() // leaves gracefully and waits for it
	done    chan error
}

// settings are a member's, in this process or another.
type settings struct {
	Kafka    kafka.Config
	Instance string
	Ring     string
	Schedule retry.Schedule
}

// run is a sender without its audit.
func (s settings) run(ctx context.Context, p *process.Process) error {
	policy, err := schemas.ParseTargetPolicy([]string{"127.0.0.0/8"})
	if err != nil {
		return err
	}
	ring, err := schemas.ParseKeyRing(s.Ring)
	if err != nil {
		return err
	}
	client := deliver.New(deliver.Config{Policy: policy, MaxConnsPerHost: 4096})
	defer client.Close()
	c, err := New(Config{
		Kafka: s.Kafka, Instance: s.Instance, Schedule: s.Schedule, KeyRing: ring,
		Concurrency: 32, InFlight: 64 << 20, Drain: 10 * time.Second,
	}, client, p)
	if err != nil {
		return err
	}
	return process.Run(ctx, process.Stage{Name: "follow", Run: c.Follow}, process.Stage{Name: "consume", Run: c.Run})
}

func (r *rig) settings(instance string, schedule ...time.Duration) settings {
	return settings{Kafka: r.kafka, Instance: instance, Ring: r.keys, Schedule: schedule}
}

func (r *rig) start(t *testing.T, instance string, schedule ...time.Duration) *member {
	t.Helper()
	m := &member{process: process.New(slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("sender", instance)), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { m.done <- r.settings(instance, schedule...).run(ctx, m.process) }()
	var once sync.Once
	m.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-m.done; err != nil {
				t.Errorf("sender %s: %v", instance, err)
			}
		})
	}
	t.Cleanup(m.stop)
	return m
}

// ready is what /readyz says.
func (m *member) ready(ctx context.Context) bool {
	answer := httptest.NewRecorder()
	m.process.Health.ServeHTTP(answer, httptest.NewRequestWithContext(ctx, http.MethodGet, "/readyz", http.NoBody))
	return answer.Code == http.StatusOK
}

// partitions is how many partitions it works.
func (m *member) partitions(t *testing.T) (n float64) {
	t.Helper()
	families, err := m.process.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "postrider_sender_partitions" {
			n = family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return n
}

// log reads a topic as it is written, read committed.
type log struct {
	client  *kgo.Client
	records []*kgo.Record
}

func (r *rig) read(t *testing.T, topics ...string) *log {
	t.Helper()
	client, err := r.kafka.NewClient("test-reader", kgo.ConsumeTopics(topics...), kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &log{client: client}
}

// until reads on until done says so.
func (l *log) until(t *testing.T, what string, done func([]*kgo.Record) bool) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfTests)
	defer cancel()
	for !done(l.records) {
		fetches := l.client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("waiting for %s: %d records so far", what, len(l.records))
		}
		l.records = append(l.records, fetches.Records()...)
	}
	return l.records
}

// ends waits until each delivery has its end, and returns all outcomes by delivery.
// More than one end, or one of another delivery, fails the test.
func (r *rig) ends(t *testing.T, l *log, made map[string]bool) map[string][]schemas.Outcome {
	t.Helper()
	outcomes := make(map[string][]schemas.Outcome)
	ended := make(map[string]schemas.Result)
	next := 0
	l.until(t, fmt.Sprintf("%d ends", len(made)), func(records []*kgo.Record) bool {
		for ; next < len(records); next++ {
			o, err := schemas.DecodeOutcome(records[next])
			if err != nil {
				t.Fatal(err)
			}
			id := o.DeliveryID.String()
			if !made[id] {
				t.Fatalf("outcome %s of a delivery that was not made: %s", o.Result, id)
			}
			outcomes[id] = append(outcomes[id], o)
			if o.Ends() {
				if before, twice := ended[id]; twice {
					t.Fatalf("delivery %s ended twice: %s, %s", id, before, o.Result)
				}
				ended[id] = o.Result
			}
		}
		return len(ended) == len(made)
	})
	for id, list := range outcomes {
		attempts := make(map[int]bool)
		for _, o := range list {
			if o.Result == schemas.ResultDiscarded {
				continue // no attempt: it names the one before
			}
			if attempts[o.Attempt] {
				t.Errorf("delivery %s has two outcomes of attempt %d", id, o.Attempt)
			}
			attempts[o.Attempt] = true
		}
	}
	return outcomes
}

// target is an HTTP server that answers as its path says and counts what it saw.
type target struct {
	server *httptest.Server
	hang   chan struct{} // closed at the end of the test, or to let /hang go

	mu        sync.Mutex
	seen      map[string]int // requests by webhook-id
	now, peak int            // requests to /slow at once
}

func startTarget(t *testing.T) *target {
	t.Helper()
	tg := &target{seen: make(map[string]int), hang: make(chan struct{})}
	tg.server = httptest.NewServer(tg)
	t.Cleanup(tg.server.Close)
	t.Cleanup(tg.release)
	return tg
}

func (tg *target) release() {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	select {
	case <-tg.hang:
	default:
		close(tg.hang)
	}
}

func (tg *target) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	tg.mu.Lock()
	tg.seen[r.Header.Get("webhook-id")]++
	n := tg.seen[r.Header.Get("webhook-id")]
	tg.mu.Unlock()
	switch {
	case strings.HasPrefix(r.URL.Path, "/500"):
		w.WriteHeader(http.StatusInternalServerError)
	case strings.HasPrefix(r.URL.Path, "/once") && n == 1:
		w.WriteHeader(http.StatusServiceUnavailable)
	case strings.HasPrefix(r.URL.Path, "/204"):
		w.WriteHeader(http.StatusNoContent)
	case strings.HasPrefix(r.URL.Path, "/404"):
		w.WriteHeader(http.StatusNotFound)
	case strings.HasPrefix(r.URL.Path, "/abort"):
		w.Header().Set("Webhook-Delivery", "Abort")
		w.WriteHeader(http.StatusInternalServerError)
	case strings.HasPrefix(r.URL.Path, "/slow"):
		tg.slow()
	case strings.HasPrefix(r.URL.Path, "/hang"):
		select {
		case <-tg.hang:
		case <-r.Context().Done():
		}
	}
}

// slow takes a moment, and notes how many do so at once.
func (tg *target) slow() {
	count := func(n int) {
		tg.mu.Lock()
		defer tg.mu.Unlock()
		tg.now += n
		tg.peak = max(tg.peak, tg.now)
	}
	count(1)
	defer count(-1)
	<-time.After(5 * time.Millisecond)
}

func (tg *target) requests() map[string]int {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	return maps.Clone(tg.seen)
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(patienceOfTests)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waiting for %s", what)
		}
	}
}
