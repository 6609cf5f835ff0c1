package ingest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/ingest"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// fasthttp's clock runs as long as the process; its pools end up to 10 s after their server.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
	)
}

const adminKey = "an admin key of the tests, long enough"

// fixture is a cluster with one or more ingests on it.
type fixture struct {
	cluster *kfake.Cluster
	cfg     kafka.Config
	topics  schemas.Topics
	keyRing string
	// audit stands for ClickHouse; nil: clickHouse is asked.
	audit      *fakeAudit
	clickHouse clickhouse.Config

	maxWebhooks int
	keyRate     string
}

// replica is one ingest, called over HTTP.
type replica struct {
	url     string
	client  *http.Client
	process *process.Process
	stop    func()
}

func startCluster(t *testing.T, opts ...kfake.Opt) *fixture {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	f := &fixture{
		cluster: cluster,
		cfg:     kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: "test."},
		keyRing: schemas.NewKeyRing("test"),
		audit:   newFakeAudit(),
	}
	f.topics = f.cfg.Topics()
	return f
}

func (f *fixture) client(t *testing.T) *kgo.Client {
	t.Helper()
	cl, err := f.cfg.NewClient("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func (f *fixture) createTopics(t *testing.T) {
	t.Helper()
	cl := f.client(t)
	if err := kafka.CreateTopics(t.Context(), cl, f.topics, schemas.Partitions{Events: 4, Deliveries: 4}, 1); err != nil {
		t.Fatal(err)
	}
}

// startReplica runs an ingest until the test ends; it need not be ready yet.
func (f *fixture) startReplica(t *testing.T, name string) *replica {
	t.Helper()
	var listen net.ListenConfig
	ln, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := process.New(slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})))
	cfg := ingest.Config{
		Kafka: f.cfg, Instance: name, KeyRing: f.keyRing, AdminKey: adminKey,
		AllowTargets: []string{"127.0.0.0/8"}, Listener: ln, ClickHouse: f.clickHouse,
		MaxWebhooks: f.maxWebhooks, KeyRateLimit: f.keyRate,
	}
	if f.audit != nil {
		cfg.Audit = f.audit
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- ingest.Run(ctx, cfg, p) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	stopped := false
	r := &replica{url: "http://" + ln.Addr().String(), client: &http.Client{Transport: transport}, process: p}
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("stopping %s: %v", name, err)
		}
	}
	t.Cleanup(r.stop)
	return r
}

// start runs an ingest on a cluster with topics, and waits until it is ready.
func start(t *testing.T, opts ...kfake.Opt) (*fixture, *replica) {
	t.Helper()
	f := startCluster(t, opts...)
	f.createTopics(t)
	r := f.startReplica(t, "one")
	r.waitReady(t)
	return f, r
}

func (r *replica) waitReady(t *testing.T) {
	t.Helper()
	waitFor(t, "the replica to be ready", func() bool { return r.readiness(t).code == http.StatusOK })
}

type recorder struct {
	code   int
	body   bytes.Buffer
	header http.Header
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

func (r *replica) readiness(t *testing.T) *recorder {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &recorder{header: http.Header{}}
	r.process.Health.ServeHTTP(w, req)
	return w
}

// metric returns the sum of a metric over its labels.
func (r *replica) metric(t *testing.T, name string) (sum float64) {
	t.Helper()
	families, err := r.process.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

// request is what the tests send; the zero key is the admin key, "-" none.
type request struct {
	method, path, key, body, contentType string
	header                               map[string]string
}

type response struct {
	status int
	header http.Header
	raw    string
	json   map[string]any
}

func (r *replica) do(t *testing.T, q request) response {
	t.Helper()
	got, err := r.try(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (r *replica) try(ctx context.Context, q request) (response, error) {
	if q.method == "" {
		q.method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, q.method, r.url+q.path, strings.NewReader(q.body))
	if err != nil {
		return response{}, err
	}
	if q.key == "" {
		q.key = adminKey
	}
	if q.key != "-" {
		req.Header.Set("Authorization", "Bearer "+q.key)
	}
	if q.contentType == "" {
		q.contentType = "application/json"
	}
	if q.body != "" {
		req.Header.Set("Content-Type", q.contentType)
	}
	for name, value := range q.header {
		req.Header.Set(name, value)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return response{}, err
	}
	got := response{status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	if strings.HasSuffix(resp.Header.Get("Content-Type"), "json") {
		if err := json.Unmarshal(raw, &got.json); err != nil {
			return response{}, err
		}
	}
	return got, nil
}

// want fails the test unless the status is as wanted.
func (r response) want(t *testing.T, status int) response {
	t.Helper()
	if r.status != status {
		t.Fatalf("got status %d with %s, want %d", r.status, r.raw, status)
	}
	if status >= 400 && r.header.Get("Content-Type") != schemas.ProblemContentType {
		t.Errorf("got content type %q of a refusal, want %q", r.header.Get("Content-Type"), schemas.ProblemContentType)
	}
	return r
}

// wantError fails the test unless a problem names this code at this pointer.
func (r response) wantError(t *testing.T, code, pointer string) {
	t.Helper()
	if !strings.Contains(r.raw, `"code":"`+code+`","pointer":"`+pointer+`"`) {
		t.Errorf("got %s, want error %s at %s", r.raw, code, pointer)
	}
}

func (r response) text(name string) string {
	s, _ := r.json[name].(string)
	return s
}

// readAll returns the committed records of a topic, as they stand now.
func (f *fixture) readAll(t *testing.T, topic string) []*kgo.Record {
	t.Helper()
	var records []*kgo.Record
	follower, err := kafka.NewFollower(f.cfg, "reader", slog.New(slog.DiscardHandler), []string{topic}, func(r *kgo.Record) {
		records = append(records, r)
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- follower.Run(ctx) }()
	if err := follower.Barrier(ctx); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	return records
}
