package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/deploy/clickhouse"
	"github.com/postrider/postrider/ingest"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

func TestMain(m *testing.M) {
	clickhouse.ChildMain()
	os.Exit(m.Run())
}

const adminKey = "postrider-test-admin-key-0123456789"

// command runs the program, and fails the test if its exit code is another.
func command(t *testing.T, want int, stdin string, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	if code := run(args, strings.NewReader(stdin), &out, &errOut); code != want {
		t.Fatalf("postrider %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, &out, &errOut)
	}
	return out.String(), errOut.String()
}

func startKafka(t *testing.T) string {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.BrokerConfigs(map[string]string{"transaction.max.timeout.ms": "60000"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster.ListenAddrs()[0]
}

// startIngest serves REST on a Kafka with topics, and points the environment at it.
func startIngest(t *testing.T, set ...func(*ingest.Config)) (broker string) {
	t.Helper()
	broker = startKafka(t)
	command(t, 0, "", "topics", "create", "--brokers="+broker, "--events-partitions=1", "--deliveries-partitions=1")
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var cfg ingest.Config
	cfg.Register(process.NewSettings("test"))
	cfg.Kafka.Brokers, cfg.Instance, cfg.Listener = []string{broker}, "test", ln
	cfg.KeyRing, cfg.AdminKey = schemas.NewKeyRing("test"), adminKey
	for _, set := range set {
		set(&cfg)
	}
	p := process.New(slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- ingest.Run(ctx, cfg, p) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Setenv("POSTRIDER_SERVER", "http://"+ln.Addr().String())
	t.Setenv("POSTRIDER_ADMIN_KEY", adminKey)
	waitAnswer(t, "http://"+ln.Addr().String()+"/v1/keys")
	return broker
}

// waitAnswer waits until ingest answers with something other than 503.
func waitAnswer(t *testing.T, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+adminKey)
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close() // only the status counts
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for ingest: %v %v", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func TestTopics(t *testing.T) {
	broker := "--brokers=" + startKafka(t)
	out, said := command(t, 1, "", "topics", "check", broker)
	if !strings.Contains(out, "postrider.events (needed): the topic does not exist") || !strings.Contains(out, "postrider topics create") {
		t.Errorf("checking nothing says:\n%s%s", out, said)
	}
	out, _ = command(t, 0, "", "topics", "create", broker, "--events-partitions=3", "--deliveries-partitions=5", "--json")
	var made struct{ Topics []topicView }
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatal(err)
	}
	partitions := make(map[string]int)
	for _, topic := range made.Topics {
		partitions[topic.Name] = topic.Partitions
		if !topic.Created {
			t.Errorf("%s was there before", topic.Name)
		}
	}
	if partitions["postrider.routed"] != 3 || partitions["postrider.deliveries.retry.16h"] != 5 || partitions["postrider.webhooks"] != 1 {
		t.Errorf("partitions: %v", partitions)
	}
	if out, _ = command(t, 0, "", "topics", "create", broker); !strings.Contains(out, "was there") || strings.Contains(out, "created") {
		t.Errorf("creating again says:\n%s", out)
	}
	if out, _ = command(t, 0, "", "topics", "check", broker, "--json"); !strings.Contains(out, `"differences": []`) {
		t.Errorf("checking says:\n%s", out)
	}
}

func TestKafkaAway(t *testing.T) {
	_, said := command(t, 1, "", "topics", "check", "--brokers=127.0.0.1:1", "--timeout=1s")
	if !strings.Contains(said, "127.0.0.1:1: connect: connection refused") {
		t.Errorf("it says:\n%s", said)
	}
}

func TestKeys(t *testing.T) {
	startIngest(t)
	out, _ := command(t, 0, "", "keys", "create", "--organization=acme", "--name=laptop", "--scopes=events:write,webhooks:read", "--json")
	var made keyView
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Key == "" || made.Organization != "acme" || len(made.Scopes) != 2 {
		t.Fatalf("creating a key: %v\n%s", err, out)
	}
	if out, _ := command(t, 0, "", "keys", "create"); !strings.Contains(out, "(all)") || !strings.Contains(out, "KEY") {
		t.Errorf("creating a key for all says:\n%s", out)
	}
	out, _ = command(t, 0, "", "keys", "list", "--organization=acme")
	if !strings.Contains(out, made.ID) || !strings.Contains(out, "laptop") || strings.Contains(out, "(all)") || strings.Contains(out, made.Key) {
		t.Errorf("listing acme's keys says:\n%s", out)
	}
	command(t, 0, "", "keys", "revoke", made.ID)
	if out, _ := command(t, 0, "", "keys", "list", "--json"); !strings.Contains(out, `"revoked_at"`) {
		t.Errorf("listing keys says:\n%s", out)
	}
	if _, said := command(t, 1, "", "events", "send", "--admin-key="+made.Key, "--event=a.b"); !strings.Contains(said, "401") {
		t.Errorf("sending with a revoked key says:\n%s", said)
	}
	_, said := command(t, 1, "", "keys", "create", "--scopes=everything")
	if !strings.Contains(said, "422") || !strings.Contains(said, "#/scopes/0: ") {
		t.Errorf("a bad scope says:\n%s", said)
	}
	_, said = command(t, 1, "", "keys", "create", "--scopes=everything", "--json")
	var problem schemas.Problem
	if err := json.Unmarshal([]byte(said), &problem); err != nil || problem.Status != 422 || problem.Errors[0].Pointer != "#/scopes/0" {
		t.Errorf("a bad scope says, as JSON: %v\n%s", err, said)
	}
	command(t, 1, "", "keys", "revoke", "key_unknown")
	command(t, 2, "", "keys", "revoke")
}

func TestWebhookStates(t *testing.T) {
	broker := startIngest(t)
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	w := schemas.Webhook{ID: schemas.NewWebhookID(), Organization: "acme", URL: "https://example.com/", Events: []string{"a"}, Generation: 1, Revision: 1}
	record, err := w.Record("postrider.webhooks")
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ action, want string }{{"pause", "disabled"}, {"enable", "paused"}, {"resume", "active"}} {
		if out, _ := command(t, 0, "", "webhooks", step.action, w.ID); out != "Webhook "+w.ID+" is "+step.want+".\n" {
			t.Errorf("%s says:\n%s", step.action, out)
		}
		if out, _ := command(t, 0, "", "webhooks", step.action, w.ID, "--json"); !strings.Contains(out, `"state": "`+step.want+`"`) {
			t.Errorf("%s says, as JSON:\n%s", step.action, out)
		}
		if _, said := command(t, 1, "", "webhooks", step.action, "wh_unknown"); !strings.Contains(said, "webhook wh_unknown: refused: 404") {
			t.Errorf("%s of an unknown webhook says:\n%s", step.action, said)
		}
		command(t, 2, "", "webhooks", step.action)
		command(t, 2, "", "webhooks", step.action, w.ID, "another")
	}
}

func TestRewrap(t *testing.T) {
	broker := "--brokers=" + startKafka(t)
	command(t, 0, "", "topics", "create", broker, "--events-partitions=1", "--deliveries-partitions=1")
	old, fresh := schemas.NewKeyRing("old"), schemas.NewKeyRing("new")
	ring, err := schemas.ParseKeyRing(old)
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.TrimPrefix(broker, "--brokers=")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	const webhooks = 450
	for i := range webhooks {
		w := schemas.Webhook{
			ID: fmt.Sprintf("wh_%04d", i), Organization: "acme", Active: true, URL: "https://example.com/", Events: []string{"*"}, Revision: 3,
			CreatedAt: time.Now().UTC(), UpdatedAt: time.Now().UTC(),
		}
		sealed, err := ring.Seal(w.SecretIdentity(), []byte(w.ID))
		if err != nil {
			t.Fatal(err)
		}
		w.Secrets = []schemas.SealedSecret{sealed}
		record, err := w.Record("postrider.webhooks")
		if err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if _, said := command(t, 1, "", "webhooks", "rewrap", broker, "--key-ring="+fresh); !strings.Contains(said, "450 webhooks") {
		t.Errorf("without the old key it says:\n%s", said)
	}
	both := "--key-ring=" + strings.TrimSpace(fresh) + "," + strings.TrimSpace(old)
	if out, _ := command(t, 0, "", "webhooks", "rewrap", broker, both); out != "450 webhooks, 450 of them sealed anew.\n" {
		t.Errorf("it shows %q", out)
	}
	if out, _ := command(t, 0, "", "webhooks", "rewrap", broker, "--key-ring="+fresh, "--json"); !strings.Contains(out, `"changed": 0`) {
		t.Errorf("done again, without the old key, it shows %s", out)
	}
	if _, said := command(t, 2, "", "webhooks", "rewrap", broker, "--key-ring=k:short"); !strings.Contains(said, "key-ring") {
		t.Errorf("a bad key ring says:\n%s", said)
	}
}

// TestSendEvent sends a payload in each way: its bytes reach the topic as they are.
func TestSendEvent(t *testing.T) {
	broker := startIngest(t)
	const payload = `{"n": 1e400, "s":"<&>\u00e9",  "x":0.1000}`
	file := filepath.Join(t.TempDir(), "payload.json")
	if err := os.WriteFile(file, []byte(payload+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, given := range []string{payload, file, "-"} {
		id := fmt.Sprintf("event-%d", i)
		out, _ := command(t, 0, payload, "events", "send", "--event=a.b", "--organization=acme", "--account=lab", "--id="+id, "--payload="+given)
		if out != id+"\n" {
			t.Errorf("sending %s shows %q", id, out)
		}
	}
	out, _ := command(t, 0, "", "events", "send", "--event=a.b", "--organization=acme", "--json")
	if !strings.Contains(out, `"id": "evt_`) {
		t.Errorf("sending without payload shows %s", out)
	}

	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics("postrider.events"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var values []string
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(values) < 4 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	for i, want := range []string{payload, payload, payload, ""} {
		if values[i] != want {
			t.Errorf("payload %d is %q, want %q", i, values[i], want)
		}
	}

	if _, said := command(t, 1, "", "events", "send", "--event=webhook.x", "--organization=acme"); !strings.Contains(said, "#/event: ") {
		t.Errorf("a reserved name says:\n%s", said)
	}
	command(t, 1, "no JSON", "events", "send", "--event=a.b", "--organization=acme", "--payload=-")
	command(t, 1, "", "events", "send", "--event=a.b", "--payload=/nowhere.json")
}

func TestMigrate(t *testing.T) {
	server, err := clickhouse.Start(t.Context(), clickhouse.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	address := "--clickhouse=" + server.NativeAddr()
	if out, _ := command(t, 0, "", "clickhouse", "migrate", address, "--keep-bodies-days=7", "--keep-rows-days=400"); !strings.Contains(out, "was at version 0") {
		t.Errorf("migrating says:\n%s", out)
	}
	if out, _ := command(t, 0, "", "clickhouse", "migrate", address); !strings.Contains(out, "already") {
		t.Errorf("migrating again says:\n%s", out)
	}
	create, err := server.Query(t.Context(), "SHOW CREATE TABLE postrider.outcomes")
	if err != nil || !strings.Contains(create, "toIntervalDay(400)") || !strings.Contains(create, "toIntervalDay(7)") {
		t.Errorf("after migrating twice the table is %v\n%s", err, create)
	}
	command(t, 2, "", "clickhouse", "migrate", address, "--keep-bodies-days=7")
}

func TestUsage(t *testing.T) {
	t.Setenv("POSTRIDER_ADMIN_KEY", "")
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 0, "topics"},
		{[]string{"-h"}, 0, "clickhouse"},
		{[]string{"--version"}, 0, "postrider"},
		{[]string{"topics"}, 0, "create"},
		{[]string{"topics", "create", "-h"}, 0, "--deliveries-partitions"},
		{[]string{"keys", "list", "--help"}, 0, "POSTRIDER_ADMIN_KEY"},
		{[]string{"topic"}, 2, "perhaps topics"},
		{[]string{"topics", "delete"}, 2, `unknown command "delete"`},
		{[]string{"--bogus"}, 2, "--bogus"},
		{[]string{"topics", "create", "--bogus=1", "--replication=many"}, 2, "--replication"},
		{[]string{"topics", "create", "--bogus=1", "--replication=many"}, 2, "--bogus"},
		{[]string{"keys", "list"}, 2, "--admin-key"},
		{[]string{"deliveries", "retry", "--admin-key=k"}, 2, "one delivery's id, or --webhook with --since"},
		{[]string{"deliveries", "retry", "--admin-key=k", "dlv_1", "--since=x"}, 2, "one delivery's id, or --webhook with --since"},
		{[]string{"deliveries", "retry", "--admin-key=k", "--webhook=wh_1"}, 2, "one delivery's id, or --webhook with --since"},
		{[]string{"events", "send", "--admin-key=k", "--server=nowhere"}, 2, "--server"},
	} {
		out, said := command(t, test.code, "", test.args...)
		if !strings.Contains(out+said, test.says) {
			t.Errorf("postrider %s does not say %q:\n%s%s", strings.Join(test.args, " "), test.says, out, said)
		}
	}
}
