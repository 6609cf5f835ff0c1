package faults

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
)

const (
	adminKey = "faults-admin-key-0123456789-0123456789"
	keyRing  = "k1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

	// retrySchedule lets a target be away for a good minute.
	retrySchedule = "1s,1s,2s,4s,8s,15s,15s,15s,30s,30s"

	// soon bounds what takes milliseconds on an idle machine and seconds on a loaded one.
	soon = time.Minute
)

// options say how a scenario's world differs from the usual: one broker and one
// ClickHouse shared with others, one process of each service, twenty organizations
// with a webhook each, and a steady load.
type options struct {
	brokers  int      // 3: a cluster of its own; 1: a broker of its own; 0: the shared one
	settings []string // of those brokers
	cluster  func(w *world)
	// unverified is a kfake with aborted transactions. It names them in no answer to a
	// fetch that it cuts at the fetch's size: who reads much at once reads them as committed.
	unverified    bool
	ownClickHouse bool
	clickHouse    func(w *world) // starts one
	proxied       bool           // ClickHouse is behind toxiproxy
	rate          int            // events a second; 0: the usual, -1: no load
	organizations int            // 0: the usual
	sender        []string       // further arguments
	webhook       string         // further members of the webhooks: `,"name":value`
	delay         time.Duration  // until the webhooks' targets answer
}

const (
	partitions         = 4
	usualOrganizations = 20
)

// world is everything between the producers and the receivers, and the ledger
// outside of it.
type world struct {
	t   *testing.T
	row *Row

	kafka   *pipeline.Kafka // nil if there is kfake
	kfake   *kfake.Cluster
	small   string // folder of a small file system
	ch      *pipeline.ClickHouse
	store   string          // address of ClickHouse, as the services have it
	proxy   *pipeline.Proxy // before it, if any
	cfg     kafka.Config
	topics  schemas.Topics
	ingest  *pipeline.Service
	router  *pipeline.Service
	sender  *pipeline.Service
	targets *receiver.Receiver
	ledger  *ledger.Ledger
	load    *load
	log     *log

	watch atomic.Pointer[func(receiver.Request)] // told of requests beside the ledger, if set

	mu       sync.Mutex // guards the below
	services []*pipeline.Service

	peak          atomic.Int64 // bytes
	senderArgs    []string     // of every sender
	organizations []string     // with a webhook each, at the path that has their name
	kills         []ledger.Kill
	ends          []time.Time // of faults
	mayRepeat     int         // requests, without a kill
	aside         int         // rows that ClickHouse refuses
	unverified    bool
}

// startWorld brings a world up and its load under way.
func startWorld(t *testing.T, row *Row, o options) *world {
	t.Helper()
	w := &world{t: t, row: row, ledger: ledger.New(), senderArgs: o.sender, unverified: o.unverified}
	prefix := "faults."
	switch {
	case o.cluster != nil:
		o.cluster(w)
	case o.brokers == 0:
		w.kafka, prefix = pipeline.SharedKafka(t)
	default:
		w.kafka = pipeline.StartKafka(t, o.brokers, o.settings...)
	}
	if w.kafka != nil {
		w.cfg.Brokers = w.kafka.Addrs()
	}
	w.cfg.TopicPrefix, w.topics = prefix, schemas.NewTopics(prefix)
	w.startStore(o)
	w.targets = receiver.Start(t, receiver.Config{Seen: w.saw})
	w.prepare()
	w.log = w.startLog()
	w.ingest = w.start("ingest", "ingest-1")
	w.router = w.start("router", "router-1")
	w.sender = w.start("sender", "sender-1")
	for _, service := range w.services {
		service.WaitReady(t)
	}
	w.organize(cmp.Or(o.organizations, usualOrganizations), o.webhook, receiver.Answer{Delay: o.delay})
	w.watchMemory()
	if o.rate >= 0 {
		w.startLoad(o.rate)
	}
	return w
}

func (w *world) startStore(o options) {
	w.t.Helper()
	switch {
	case o.clickHouse != nil:
		o.clickHouse(w)
	case o.ownClickHouse:
		w.ch = pipeline.StartClickHouse(w.t)
	default:
		w.ch = pipeline.SharedClickHouse(w.t)
	}
	w.store = w.ch.Native
	if o.proxied {
		w.proxy = pipeline.StartProxy(w.t, w.ch.Native)
		w.store = w.proxy.Addr
	}
}

// saw is told of each request that a target got.
func (w *world) saw(r receiver.Request) {
	w.ledger.Request(r)
	if watch := w.watch.Load(); watch != nil {
		(*watch)(r)
	}
}

// prepare makes topics and tables.
func (w *world) prepare() {
	w.t.Helper()
	err := kafka.CreateTopics(w.t.Context(), w.client(), w.topics, schemas.Partitions{Events: partitions, Deliveries: partitions}, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := clickhouse.Config{Address: w.ch.Native, Database: w.ch.Database}.Open()
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered
	if err := clickhouse.Migrate(w.t.Context(), conn, w.ch.Database); err != nil {
		w.t.Fatal(err)
	}
}

// start starts one more process of a service and does not wait.
func (w *world) start(name, instance string) *pipeline.Service {
	w.t.Helper()
	return w.startBy(nil, name, pipeline.Binary(w.t, name), instance)
}

// startBy is start, of another binary or by another program: see pipeline.StartBy.
func (w *world) startBy(by []string, name, binary, instance string, more ...string) *pipeline.Service {
	w.t.Helper()
	args := []string{
		"--brokers=" + strings.Join(w.cfg.Brokers, ","), "--topic-prefix=" + w.cfg.TopicPrefix,
		"--log-format=text", "--instance=" + instance,
	}
	audit := []string{"--key-ring=" + keyRing, "--allow-targets=127.0.0.0/8", "--clickhouse=" + w.store, "--clickhouse-database=" + w.ch.Database}
	switch name {
	case "ingest":
		args = append(append(args, audit...), "--admin-key="+adminKey)
	case "sender":
		args = append(append(args, audit...), "--audit-insert-timeout=2s", "--retry-schedule="+retrySchedule)
		args = append(args, w.senderArgs...)
	}
	s := pipeline.StartBy(w.t, by, name, binary, append(args, more...)...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.services = append(w.services, s)
	return s
}

// client is a franz-go client of the test's own.
func (w *world) client(opts ...kgo.Opt) *kgo.Client {
	w.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(w.cfg.Brokers...)}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(cl.Close)
	return cl
}

// watchMemory keeps the most that all services had resident at once.
func (w *world) watchMemory() {
	end, done := make(chan struct{}), make(chan struct{})
	w.t.Cleanup(func() { close(end); <-done })
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			var sum int64
			w.mu.Lock()
			for _, service := range w.services {
				sum += service.Resident()
			}
			w.mu.Unlock()
			w.peak.Store(max(w.peak.Load(), sum))
		}
	}()
}

// faultEnded notes that a fault is over now: recovery counts from here.
func (w *world) faultEnded() { w.ends = append(w.ends, time.Now()) }

// killSender kills a sender and notes what it had said by then.
func (w *world) killSender(s *pipeline.Service) {
	w.t.Helper()
	s.Kill9(w.t)
	w.noteKill()
}

// noteKill notes that a sender has come to an end that could not tell of its
// attempts in flight.
func (w *world) noteKill() {
	w.t.Helper()
	w.kills = append(w.kills, ledger.Kill{At: time.Now(), Ends: w.endOffsets(w.topics.Outcomes, false)})
}

// endOffsets are a topic's end offsets by partition: of what is written, or of what is
// committed.
func (w *world) endOffsets(topic string, committed bool) map[int32]int64 {
	w.t.Helper()
	ends, cl := map[int32]int64{}, w.client()
	defer cl.Close()
	list := kadm.NewClient(cl).ListEndOffsets
	if committed {
		list = kadm.NewClient(cl).ListCommittedOffsets
	}
	pipeline.Wait(w.t, soon, "the ends of "+topic, func() error { // which a new leader may not know for a moment
		ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
		defer cancel()
		listed, err := list(ctx, topic)
		if err == nil {
			err = listed.Error()
		}
		listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
		return err
	})
	return ends
}

// waitMetric waits until a gauge of a service is as it should be.
func (w *world) waitMetric(s *pipeline.Service, name string, ok func(value float64) bool) {
	w.t.Helper()
	pipeline.Wait(w.t, soon, name, func() error {
		v, err := strconv.ParseFloat(metric(s.Metrics(w.t), name), 64)
		if err == nil && !ok(v) {
			err = fmt.Errorf("it is %v", v)
		}
		return err
	})
}

// progress waits until events go through everything: so many more than now are
// accepted, and as many requests come.
func (w *world) progress(events int) {
	w.t.Helper()
	before := w.ledger.Count()
	pipeline.Wait(w.t, 2*soon, "progress", func() error {
		now := w.ledger.Count()
		if accepted, requests := now.Accepted-before.Accepted, now.Requests-before.Requests; accepted < events || requests < events {
			return fmt.Errorf("%d more accepted and %d more requests, want %d", accepted, requests, events)
		}
		return nil
	})
}

// finish ends the load, waits until all has come to rest, and judges.
func (w *world) finish() {
	w.t.Helper()
	w.load.stop(w.t)
	w.settle()
	facts := w.log.facts()
	facts.Kills, facts.MayRepeat = w.kills, w.mayRepeat
	if w.aside > 0 {
		facts.Aside = w.setAside()
	}
	facts.Rows = w.rows()
	facts.Events = w.events()
	w.row.Verdict = w.ledger.Judge(facts)
	w.row.Recovery = w.recovered()
	w.row.PeakBytes = w.peak.Load()
	w.verify()
}

// verify has Postrider itself say that nothing is missing: it must agree with the ledger.
func (w *world) verify() {
	w.t.Helper()
	if w.t.Failed() || w.unverified { // which it cannot then
		return
	}
	if out, errOut, code := pipeline.Run(w.t, "postrider", "verify", "--list=5", "--brokers="+strings.Join(w.cfg.Brokers, ","),
		"--topic-prefix="+w.cfg.TopicPrefix, "--clickhouse="+w.ch.Native, "--clickhouse-database="+w.ch.Database); code != 0 {
		w.problemf("postrider verify ended with %d: %s%s", code, out, errOut)
	}
}

// settle waits until each owed delivery was accepted by its target or has another
// end, and the audit has caught up. What never comes to rest is the judge's to tell.
func (w *world) settle() {
	w.t.Helper()
	limit := pick(2*soon, 10*soon)
	if err := pipeline.Try(w.t, limit, func() error { return w.log.settled(w) }); err != nil {
		w.problemf("deliveries did not come to rest within %v: %v", limit, err)
	}
	if err := pipeline.Try(w.t, 2*soon, w.settledRows); err != nil {
		w.problemf("the audit did not catch up: %v", err)
	}
}
