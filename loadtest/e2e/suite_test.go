// Package e2e shows each promise of the README from outside: events in by REST
// or Kafka, requests at a receiver, rows in ClickHouse. The services are
// processes, Kafka is Apache Kafka, ClickHouse is real.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
)

func TestMain(m *testing.M) { pipeline.Main(m) }

const (
	adminKey   = "e2e-admin-key-0123456789-0123456789"
	partitions = 4

	// soon bounds what takes milliseconds on an idle machine and seconds on a loaded one.
	soon = 30 * time.Second
)

// system is everything between a producer and a receiver, for one test.
type system struct {
	kafka  kafka.Config
	topics schemas.Topics
	ch     *pipeline.ClickHouse

	ingest, router, sender *pipeline.Service
	receiver               *receiver.Receiver
}

// start brings a system up on the shared Kafka and ClickHouse, with topics and a
// database of its own. more are further arguments of the sender.
func start(t *testing.T, more ...string) *system {
	t.Helper()
	cluster, prefix := pipeline.SharedKafka(t)
	return startOn(t, cluster, prefix, pipeline.SharedClickHouse(t), more...)
}

func startOn(t *testing.T, cluster *pipeline.Kafka, prefix string, ch *pipeline.ClickHouse, more ...string) *system {
	t.Helper()
	s := prepare(t, cluster, prefix, ch)
	s.launch(t, more...)
	s.ingest.WaitReady(t)
	s.router.WaitReady(t)
	s.sender.WaitReady(t)
	return s
}

// prepare makes topics, tables and a receiver, and starts no service.
func prepare(t *testing.T, cluster *pipeline.Kafka, prefix string, ch *pipeline.ClickHouse) *system {
	t.Helper()
	s := &system{
		kafka:    kafka.Config{Brokers: cluster.Addrs(), TopicPrefix: prefix},
		topics:   schemas.NewTopics(prefix),
		ch:       ch,
		receiver: receiver.Start(t, receiver.Config{}),
	}
	cl := s.client(t)
	err := kafka.CreateTopics(t.Context(), cl, s.topics, schemas.Partitions{Events: partitions, Deliveries: partitions}, 0)
	if err != nil {
		t.Fatal(err)
	}
	audit := clickhouse.Config{Address: ch.Native, Database: ch.Database}
	conn, err := audit.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered
	if err := clickhouse.Migrate(t.Context(), conn, ch.Database); err != nil {
		t.Fatal(err)
	}
	return s
}

// launch starts the services and does not wait. more are further arguments of the sender.
func (s *system) launch(t *testing.T, more ...string) {
	t.Helper()
	s.startIngest(t, "ingest-1", loopback)
	s.router = pipeline.Start(t, "router", join(s.common(), nil, "--instance=router-1")...)
	s.startSender(t, "sender-1", append([]string{loopback}, more...)...)
}

// loopback lets webhooks call the tests' receivers.
const loopback = "--allow-targets=127.0.0.0/8"

// startIngest starts an ingest, to which the test's calls then go.
func (s *system) startIngest(t *testing.T, instance string, more ...string) {
	t.Helper()
	s.ingest = pipeline.Start(t, "ingest", join(s.common(), more,
		"--instance="+instance, "--key-ring="+keyRing, "--admin-key="+adminKey,
		"--clickhouse="+s.ch.Native, "--clickhouse-database="+s.ch.Database)...)
}

func (s *system) startSender(t *testing.T, instance string, more ...string) {
	t.Helper()
	s.sender = pipeline.Start(t, "sender", join(s.common(), more,
		"--instance="+instance, "--key-ring="+keyRing,
		"--clickhouse="+s.ch.Native, "--clickhouse-database="+s.ch.Database)...)
}

// common are the arguments of every service.
func (s *system) common() []string {
	return []string{"--brokers=" + strings.Join(s.kafka.Brokers, ","), "--topic-prefix=" + s.topics.Prefix, "--log-format=text"}
}

// keyRing seals the tests' secrets.
const keyRing = "k1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

func join(a, b []string, more ...string) []string {
	return append(append(append([]string{}, a...), b...), more...)
}

// client is a franz-go client of the test's own.
func (s *system) client(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(s.kafka.Brokers...)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// answer is a REST answer.
type answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// field is a member of the answer's JSON object, as text.
func (a answer) field(t *testing.T, name string) string {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(a.Body, &members); err != nil {
		t.Fatalf("reading answer %s: %v", a.Body, err)
	}
	value, ok := members[name]
	if !ok {
		t.Fatalf("the answer has no %q: %s", name, a.Body)
	}
	return fmt.Sprint(value)
}

// call makes a REST call with the admin key. Headers come in pairs.
func (s *system) call(t *testing.T, method, path, body string, headers ...string) answer {
	t.Helper()
	a, err := s.try(t, method, path, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// try is call for where there may be no answer.
func (s *system) try(t *testing.T, method, path, body string, headers ...string) (answer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.ingest.Listen+path, strings.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("making request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+adminKey)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("calling %s %s: %w", method, path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("reading the answer of %s %s: %w", method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, text}, nil
}

// want makes a REST call that must be answered with a status.
func (s *system) want(t *testing.T, status int, method, path, body string, headers ...string) answer {
	t.Helper()
	a := s.call(t, method, path, body, headers...)
	if a.Status != status {
		t.Fatalf("%s %s %s: got %d %s, want %d", method, path, body, a.Status, a.Body, status)
	}
	return a
}

// webhook is a webhook that a test has created.
type webhook struct{ ID, Organization, Secret, Path string }

// subscribe creates a webhook of organization (and account, if given) to
// patterns, at a path of the receiver.
func (s *system) subscribe(t *testing.T, organization, account, path string, patterns ...string) webhook {
	t.Helper()
	body := map[string]any{"organization": organization, "active": true, "url": s.receiver.URL(path), "events": patterns}
	if account != "" {
		body["account"] = account
	}
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	a := s.want(t, http.StatusCreated, http.MethodPost, "/webhook-events", string(text))
	return webhook{ID: a.field(t, "id"), Organization: organization, Secret: a.field(t, "secret"), Path: path}
}

// post sends a plain event by REST and returns its id.
func (s *system) post(t *testing.T, event string) string {
	t.Helper()
	return s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", event).field(t, "id")
}

// query asks ClickHouse, with the tables of the test's own database.
func (s *system) query(t *testing.T, statement string) string {
	t.Helper()
	return strings.TrimRight(s.ch.Query(t, strings.ReplaceAll(statement, "postrider.", s.ch.Database+".")), "\n")
}

// notOperational leaves out the events that Postrider itself makes, of the webhooks and of their deliveries.
const notOperational = `event NOT LIKE 'webhook.%' AND event NOT LIKE 'delivery.%'`

// waitQuery waits until a query's answer is want.
func (s *system) waitQuery(t *testing.T, statement, want string) {
	t.Helper()
	pipeline.Wait(t, soon, statement, func() error {
		if got := s.query(t, statement); got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
}

// quiet waits until all that events so far make has been done. A last event, the
// fence, goes the same way as the organization's others; when it arrives they have
// been routed, and what they were routed to stands in deliveries. Deliveries do not
// arrive in that order, so each has to have ended too.
func (s *system) quiet(t *testing.T, organization string) {
	t.Helper()
	path := "/fence/" + organization
	s.subscribe(t, organization, "", path, "fence")
	before := s.receiver.Count(path)
	s.post(t, fmt.Sprintf(`{"event":"fence.passed","organization":%q}`, organization))
	s.receiver.WaitFor(t, path, before+1, soon)
	s.waitQuery(t, `SELECT count() FROM postrider.deliveries WHERE state NOT IN ('pending', 'retry')`,
		fmt.Sprint(len(s.readAll(t, s.topics.Deliveries))))
}

// bodies are the requests' bodies as text.
func bodies(requests []receiver.Request) []string {
	var texts []string
	for _, r := range requests {
		texts = append(texts, string(bytes.Clone(r.Body)))
	}
	return texts
}
