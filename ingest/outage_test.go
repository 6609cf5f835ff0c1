package ingest_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/ingest"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

const event = `{"id":"1","event":"a","organization":"acme"}`

// wantUnavailable fails the test unless q is answered 503 within the 5 s that are
// promised, and two that a busy machine may add.
func (r *replica) wantUnavailable(t *testing.T, q request) {
	t.Helper()
	start := time.Now()
	got, err := r.try(t.Context(), q)
	if err != nil || got.status != http.StatusServiceUnavailable {
		t.Errorf("got status %d with %s, %v, want 503", got.status, got.raw, err)
		return
	}
	if took := time.Since(start); took > 7*time.Second || got.header.Get("Retry-After") == "" {
		t.Errorf("got an answer after %s with Retry-After %q, want one within 5 s", took, got.header.Get("Retry-After"))
	}
}

func freePort(t *testing.T) (address string, port int) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	tcp, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("got address %v of TCP", ln.Addr())
	}
	return tcp.String(), tcp.Port
}

func TestKafkaAwayAtStart(t *testing.T) {
	t.Parallel() // most of it is waiting
	address, port := freePort(t)
	f := &fixture{keyRing: schemas.NewKeyRing("test"), audit: newFakeAudit()}
	f.cfg.Brokers, f.cfg.TopicPrefix = []string{address}, "test."
	f.topics = f.cfg.Topics()
	r := f.startReplica(t, "one")
	waitFor(t, "the replica to say what is missing", func() bool {
		got := r.readiness(t)
		return got.code == http.StatusServiceUnavailable && strings.Contains(got.body.String(), `"name":"kafka","required":true,"state":"down"`)
	})
	r.wantUnavailable(t, request{path: "/v1/events", body: event})
	r.do(t, request{method: "GET", path: "/openapi.yaml", key: "-"}).want(t, http.StatusOK)

	// Kafka comes, without topics at first.
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	waitFor(t, "the replica to say how to make the topics", func() bool {
		return strings.Contains(r.readiness(t).body.String(), "postrider topics create")
	})
	r.wantUnavailable(t, request{path: "/v1/webhooks", body: create})
	f.createTopics(t)
	r.waitReady(t)
	r.do(t, request{path: "/v1/events", body: event}).want(t, http.StatusAccepted)
}

func TestKafkaGoesAway(t *testing.T) {
	t.Parallel() // most of it is waiting
	f, r := start(t)
	key, _ := r.makeKey(t, "acme", schemas.ScopeEventsWrite)
	r.do(t, request{path: "/v1/events", body: event, key: key}).want(t, http.StatusAccepted)
	f.cluster.Close()
	var wg sync.WaitGroup
	for _, q := range []request{
		{path: "/v1/events", body: event},
		{path: "/v1/webhooks", body: create},
		{path: "/v1/events", body: event, key: key}, // is it still good? nobody can tell
	} {
		wg.Go(func() { r.wantUnavailable(t, q) })
	}
	wg.Wait()
	waitFor(t, "the replica to be unready", func() bool { return r.readiness(t).code == http.StatusServiceUnavailable })
	r.wantUnavailable(t, request{method: "GET", path: "/v1/webhooks"}) // what it knew a while ago may be wrong
}

// An event is accepted when all in-sync replicas have it, and not before (P1).
func TestNotDurableIsNotAccepted(t *testing.T) {
	t.Parallel() // most of it is waiting
	f, r := start(t)
	r.do(t, request{path: "/v1/events", body: event}).want(t, http.StatusAccepted)
	fault := f.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	r.wantUnavailable(t, request{path: "/v1/events", body: strings.Replace(event, `"1"`, `"2"`, 1)})
	r.wantUnavailable(t, request{path: "/v1/events", body: "[" + event + "]"})
	fault.Remove()
	waitFor(t, "events to be accepted again", func() bool {
		return r.do(t, request{path: "/v1/events", body: strings.Replace(event, `"1"`, `"3"`, 1)}).status == http.StatusAccepted
	})
	if _, ok := f.events(t)["3"]; !ok {
		t.Error("got no event 3 in Kafka, which was accepted")
	}
}

// A request that is under way when the process is told to stop is answered.
func TestStopAnswersWhatItHasTaken(t *testing.T) {
	f, r := start(t)
	fault := f.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	answered := make(chan error, 1)
	go func() {
		got, err := r.try(context.WithoutCancel(t.Context()), request{path: "/v1/events", body: event})
		if err == nil && got.status != http.StatusAccepted {
			err = errors.New("got " + got.raw)
		}
		answered <- err
	}()
	if err := fault.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.stop()
	}()
	waitFor(t, "the listener to be closed", func() bool {
		_, err := r.try(t.Context(), request{method: "GET", path: "/openapi.yaml", header: map[string]string{"Connection": "close"}})
		return err != nil
	})
	fault.Remove()
	if err := <-answered; err != nil {
		t.Error(err)
	}
	<-stopped
}

func TestPortTaken(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	cfg := ingest.Config{Listen: ln.Addr().String(), KeyRing: schemas.NewKeyRing("test")}
	cfg.Kafka.Brokers = []string{"127.0.0.1:1"}
	err = ingest.Run(t.Context(), cfg, process.New(nil))
	if !errors.Is(err, process.ErrPortTaken) || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("got %v, want a port taken, and the flag", err)
	}
}

func TestBadSettingsAreToldAtOnce(t *testing.T) {
	var cfg ingest.Config
	s := process.NewSettings("ingest")
	cfg.Register(s)
	err := s.Parse([]string{"--admin-key=short", "--allow-targets=10.0.0.0/99", "--key-ring=x:y", "--listen=nowhere"}, nil)
	var settings *process.SettingsError
	if !errors.As(err, &settings) || len(settings.Problems) != 4 {
		t.Fatalf("got %v, want four problems", err)
	}
	if strings.Contains(err.Error(), "short") {
		t.Errorf("got %v, want the admin key masked", err)
	}
	if err := process.NewSettings("ingest").Parse(nil, nil); err != nil {
		t.Fatal(err)
	}
}

// TestUnknownVersion is F24 at ingest: what a newer replica has written is
// neither shown as it was before nor written over, and /readyz says why.
func TestUnknownVersion(t *testing.T) {
	f, r := start(t)
	key, keyID := r.makeKey(t, "acme", schemas.ScopeWebhooksRead)
	id := r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	other := r.do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	path := "/v1/webhooks/" + id
	header := []kgo.RecordHeader{{Key: schemas.HeaderVersion, Value: []byte("2")}}
	for topic, id := range map[string]string{f.topics.Webhooks: id, f.topics.Keys: keyID} {
		newer := &kgo.Record{Topic: topic, Key: []byte(id), Value: []byte("?"), Headers: header}
		if err := f.client(t).ProduceSync(t.Context(), newer).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the replica to name the version", func() bool {
		got := r.readiness(t)
		return got.code == http.StatusServiceUnavailable && strings.Contains(got.body.String(), `record version`)
	})
	before := len(f.readAll(t, f.topics.Webhooks)) + len(f.readAll(t, f.topics.Keys))
	for _, q := range []request{
		{method: "GET", path: path},
		{method: "PATCH", path: path, body: `{"active":false}`},
		{method: "DELETE", path: path},
		{path: path + "/ping"},
		{path: path + "/secrets"},
		{method: "GET", path: "/v1/webhooks?organization=other"},
		{method: "GET", path: "/.well-known/webhook-keys"},
		{method: "GET", path: "/v1/keys"},
		{method: "DELETE", path: "/v1/keys/" + keyID},
		{method: "GET", path: "/v1/webhooks/" + other, key: key}, // is it still good? nobody here can tell
	} {
		r.wantUnavailable(t, q)
	}
	if after := len(f.readAll(t, f.topics.Webhooks)) + len(f.readAll(t, f.topics.Keys)); after != before {
		t.Errorf("got %d records, want %d as before", after, before)
	}
	r.do(t, request{method: "PATCH", path: "/v1/webhooks/" + other, body: `{"active":false}`}).want(t, http.StatusOK)
	for topic, id := range map[string]string{f.topics.Webhooks: id, f.topics.Keys: keyID} {
		if err := f.client(t).ProduceSync(t.Context(), schemas.Tombstone(topic, id)).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	r.waitReady(t)
	r.do(t, request{method: "GET", path: path}).want(t, http.StatusNotFound)
}
