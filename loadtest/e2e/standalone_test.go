package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// standalone is a standalone process with a receiver beside it.
type standalone struct {
	*pipeline.Service
	data, kafka, clickhouseHTTP, clickhouseNative string
	receiver                                      *receiver.Receiver
	key                                           string
}

// startStandalone starts one on a folder and free ports, and waits until it is ready.
func startStandalone(t *testing.T, args ...string) *standalone {
	t.Helper()
	s := &standalone{
		data: filepath.Join(t.TempDir(), "data"), kafka: pipeline.FreeAddr(t),
		clickhouseHTTP: pipeline.FreeAddr(t), clickhouseNative: pipeline.FreeAddr(t),
		receiver: receiver.Start(t, receiver.Config{}),
	}
	s.Service = pipeline.Start(t, "standalone", append([]string{
		"--data=" + s.data, "--kafka-listen=" + s.kafka,
		"--clickhouse-http-listen=" + s.clickhouseHTTP, "--clickhouse-native-listen=" + s.clickhouseNative,
		"--allow-targets=127.0.0.0/8",
	}, args...)...)
	s.WaitReady(t)
	s.key = s.readKey(t)
	return s
}

func (s *standalone) readKey(t *testing.T) string {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(s.data, "admin-key"))
	if errors.Is(err, os.ErrNotExist) {
		return adminKey
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(key))
}

// post makes a REST call, over a connection of its own: a killed process leaves none behind.
func (s *standalone) post(ctx context.Context, path, body string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.Listen+path, strings.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("making request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	req.Header.Set("Content-Type", "application/json")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("calling %s: %w", path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, text}, err
}

func (s *standalone) subscribe(t *testing.T, path, patterns string) {
	t.Helper()
	a, err := s.post(t.Context(), "/webhook-events", fmt.Sprintf(`{"organization":"acme","active":true,"url":%q,"events":%q}`, s.receiver.URL(path), patterns))
	if err != nil || a.Status != http.StatusCreated {
		t.Fatalf("creating webhook: %d %s %v", a.Status, a.Body, err)
	}
}

// query asks the embedded ClickHouse over HTTP, as anyone would.
func (s *standalone) query(ctx context.Context, statement string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.clickhouseHTTP+"/", strings.NewReader(statement))
	if err != nil {
		return "", fmt.Errorf("making request: %w", err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("asking ClickHouse: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(text)), err
}

func (s *standalone) waitQuery(t *testing.T, statement, want string) {
	t.Helper()
	pipeline.Wait(t, 2*soon, statement, func() error {
		got, err := s.query(t.Context(), statement)
		if err == nil && got != want {
			err = fmt.Errorf("got %q, want %q", got, want)
		}
		return err
	})
}

// accepted are the ids of events that were answered with 202.
type accepted struct {
	mu  sync.Mutex
	ids []string
}

func (a *accepted) add(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ids = append(a.ids, id)
}

func (a *accepted) all() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.ids)
}

// produceEvents posts events from several clients until ctx ends, whether or not anybody listens.
func (s *standalone) produceEvents(ctx context.Context, done *accepted) (wait func()) {
	var clients sync.WaitGroup
	for client := range 4 {
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("client-%d-%d", client, n)
				a, err := s.post(ctx, "/v1/events", fmt.Sprintf(`{"id":%q,"event":"kill.nine","organization":"acme","payload":{"n":%d}}`, id, n))
				if err == nil && a.Status == http.StatusAccepted {
					done.add(id)
				}
			}
		})
	}
	return clients.Wait
}

// TestStandaloneKilledAtAnyMoment kills with SIGKILL under load, again and again:
// every event that was accepted is delivered, routed once, and has its one row.
func TestStandaloneKilledAtAnyMoment(t *testing.T) {
	s := startStandalone(t)
	s.subscribe(t, "/kill", "kill")
	s.subscribe(t, "/nine", "*.nine")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var done accepted
	wait := s.produceEvents(ctx, &done)
	for range 8 {
		enough := len(done.all()) + 1 + rand.IntN(150)
		pipeline.Wait(t, soon, "accepted events", func() error {
			if n := len(done.all()); n < enough {
				return fmt.Errorf("%d of %d", n, enough)
			}
			return nil
		})
		s.Kill9(t)
		began := time.Now()
		s.Restart(t)
		s.WaitReady(t)
		t.Logf("ready %v after a kill", time.Since(began).Round(time.Millisecond))
	}
	stop()
	wait()

	ids := done.all()
	t.Logf("%d events accepted; %d kills fell into a commit", len(ids), strings.Count(s.Output(t), "taking back a commit"))
	for _, path := range []string{"/kill", "/nine"} {
		pipeline.Wait(t, 2*soon, "accepted events at the receiver", func() error {
			return s.missing(path, ids)
		})
	}
	s.waitQuery(t, "SELECT count() FROM postrider.deliveries WHERE state != 'delivered'", "0")
	s.waitQuery(t, "SELECT count() FROM (SELECT event_id FROM postrider.outcomes WHERE result = 'delivered' AND event_id IN ('"+
		strings.Join(ids, "','")+"') GROUP BY event_id HAVING uniqExact(webhook_id) = 2)", fmt.Sprint(len(ids)))
	for _, none := range []string{
		// Routed more than once, or not to both webhooks.
		"SELECT count() FROM (SELECT event_id FROM postrider.deliveries GROUP BY event_id HAVING count() != 2 OR uniqExact(webhook_id) != 2)",
		// Ended more than once, or not at all.
		"SELECT count() FROM (SELECT delivery_id FROM postrider.outcomes GROUP BY delivery_id HAVING countIf(result = 'delivered') != 1)",
	} {
		s.waitQuery(t, none, "0")
	}
	s.noOrphan(t)
}

// missing is an error as long as some of the events have not come in at a path.
func (s *standalone) missing(path string, ids []string) error {
	seen := make(map[string]bool)
	for _, r := range s.receiver.Requests(path) {
		if id, _, ok := strings.Cut(strings.TrimPrefix(string(r.Body), `{"id":"`), `"`); ok {
			seen[id] = true
		}
	}
	lost := 0
	for _, id := range ids {
		if !seen[id] {
			lost++
		}
	}
	if lost > 0 {
		return fmt.Errorf("%d of %d have not come in at %s", lost, len(ids), path)
	}
	return nil
}

// noOrphan kills the process, and waits until every port is free.
func (s *standalone) noOrphan(t *testing.T) {
	t.Helper()
	s.Kill9(t)
	for _, address := range []string{s.Listen, s.Admin, s.kafka, s.clickhouseHTTP, s.clickhouseNative} {
		pipeline.Wait(t, soon, "port "+address, func() error {
			ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
			if err != nil {
				return fmt.Errorf("listening: %w", err)
			}
			return ln.Close()
		})
	}
}

// TestStandaloneFirstLook does what the banner says, as printed, stops, and does it again.
func TestStandaloneFirstLook(t *testing.T) {
	began := time.Now()
	s := startStandalone(t)
	t.Logf("ready %v after the first start", time.Since(began).Round(time.Millisecond))
	commands := s.printedCommands(t)
	if !strings.Contains(s.Output(t), s.key) {
		t.Errorf("the admin key is not in what it printed:\n%s", s.Output(t))
	}
	create := strings.Replace(commands[0], "http://127.0.0.1:9999", strings.TrimSuffix(s.receiver.URL("/"), "/"), 1)
	if answer := shell(t, create); !strings.Contains(answer, `"secret":"whsec_`) {
		t.Errorf("creating a webhook as printed: %s", answer)
	}
	if answer := shell(t, commands[1]); !strings.Contains(answer, `"id":"evt_`) {
		t.Errorf("posting an event as printed: %s", answer)
	}
	s.receiver.WaitFor(t, "/hook", 1, soon)
	seen := func(n int) func() error {
		return func() error {
			if table := shell(t, commands[2]); strings.Count(table, "delivered") != n {
				return fmt.Errorf("the query as printed answers:\n%s", table)
			}
			return nil
		}
	}
	pipeline.Wait(t, soon, "the outcome's row", seen(1))

	if code := s.Terminate(t, soon); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0\n%s", code, s.Output(t))
	}
	s.Restart(t)
	s.WaitReady(t)
	pipeline.Wait(t, soon, "the banner", func() error { _, err := s.commands(t); return err })
	if strings.Count(s.Output(t), s.key) != 1 || s.readKey(t) != s.key {
		t.Error("the admin key was made or printed a second time")
	}
	shell(t, commands[1])
	s.receiver.WaitFor(t, "/hook", 2, soon)
	pipeline.Wait(t, soon, "the second outcome's row", seen(2))
	if code := s.Terminate(t, soon); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0\n%s", code, s.Output(t))
	}
	for _, name := range []string{"admin-key", "key-ring"} {
		if info, err := os.Stat(filepath.Join(s.data, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", name, info, err)
		}
	}
}

// commands are the curl lines printed last: create, post, ask.
func (s *standalone) commands(t *testing.T) ([]string, error) {
	t.Helper()
	output := s.Output(t)
	last := strings.LastIndex(output, "Postrider is ready.")
	if last < 0 {
		return nil, errors.New("it has not said that it is ready")
	}
	found := regexp.MustCompile(`(?m)^  curl (?:.*\\\n)*.*$`).FindAllString(output[last:], -1)
	if len(found) != 3 {
		return nil, fmt.Errorf("%d curl lines", len(found))
	}
	return found, nil
}

func (s *standalone) printedCommands(t *testing.T) (commands []string) {
	t.Helper()
	pipeline.Wait(t, soon, "the banner", func() (err error) {
		commands, err = s.commands(t)
		return err
	})
	return commands
}

func shell(t *testing.T, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	out, err := exec.CommandContext(ctx, "sh", "-c", "exec "+command).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// TestStandaloneTakesForeignProducers writes with Java's and librdkafka's clients, the latter in a transaction too.
func TestStandaloneTakesForeignProducers(t *testing.T) {
	s := startStandalone(t)
	s.subscribe(t, "/foreign", "foreign")
	java := pipeline.KafkaTool(t, "org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", s.kafka, "--topic", "postrider.events")
	java.Stdin = strings.NewReader(`{"event":"foreign.java","organization":"acme"}` + "\n")
	if out, err := java.CombinedOutput(); err != nil {
		t.Fatalf("console producer: %v\n%s", err, out)
	}
	const script = `
import sys
from confluent_kafka import Producer
for extra in ({}, {'transactional.id': 'foreign'}):
    p = Producer({'bootstrap.servers': sys.argv[1], 'partitioner': 'murmur2_random', **extra})
    if extra:
        p.init_transactions(20); p.begin_transaction()
    p.produce('postrider.events', key=b'acme', value=b'{"event":"foreign.python","organization":"acme"}')
    if extra:
        p.commit_transaction(20)
    if p.flush(20): sys.exit('not acknowledged')
`
	python := exec.CommandContext(t.Context(), pipeline.Python(t), "-c", script, s.kafka)
	if out, err := python.CombinedOutput(); err != nil {
		t.Fatalf("confluent-kafka: %v\n%s", err, out)
	}
	s.receiver.WaitFor(t, "/foreign", 3, soon)
}

// TestStandaloneOnOtherServers uses a Kafka and a ClickHouse that are there already.
func TestStandaloneOnOtherServers(t *testing.T) {
	cluster, prefix := pipeline.SharedKafka(t)
	ch := pipeline.SharedClickHouse(t)
	s := startStandalone(t, "--brokers="+strings.Join(cluster.Addrs(), ","), "--topic-prefix="+prefix,
		"--clickhouse=clickhouse://"+ch.Native+"/"+ch.Database, "--admin-key="+adminKey)
	s.subscribe(t, "/other", "*")
	if a, err := s.post(t.Context(), "/v1/events", `{"event":"other.servers","organization":"acme"}`); err != nil || a.Status != http.StatusAccepted {
		t.Fatalf("posting: %d %s %v", a.Status, a.Body, err)
	}
	s.receiver.WaitFor(t, "/other", 1, soon)
	waitReadyz(t, s.Service, http.StatusOK, "ready", "") // degraded while the tables are being made
	pipeline.Wait(t, soon, "the outcome's row", func() error {
		if n := ch.Query(t, "SELECT count() FROM "+ch.Database+".outcomes"); strings.TrimSpace(n) != "1" {
			return fmt.Errorf("%s rows", n)
		}
		return nil
	})
	if strings.Contains(s.Output(t), adminKey) {
		t.Error("it shows an admin key that it was given")
	}
	if code := s.Terminate(t, soon); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
}
