package history_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/ingest"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const adminKey = "an admin key of the tests, long enough"

// at0 is when the tests' history begins.
var at0 = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant

// world is an ingest on an embedded Kafka and a real ClickHouse, whose rows the test writes.
type world struct {
	store *pipeline.ClickHouse
	url   string
}

func start(t *testing.T, store *pipeline.ClickHouse) *world {
	t.Helper()
	cfg := clickhouse.Config{Address: store.Native, User: "default", Database: store.Database}
	migrate(t, cfg)
	_, brokers := pipeline.StartKfake(t)
	settings := kafka.Config{Brokers: brokers, TopicPrefix: "test."}
	client, err := settings.NewClient("test")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := kafka.CreateTopics(t.Context(), client, settings.Topics(), schemas.Partitions{Events: 4, Deliveries: 4}, 1); err != nil {
		t.Fatal(err)
	}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := process.New(slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- ingest.Run(ctx, ingest.Config{
			Kafka: settings, Instance: "one", KeyRing: schemas.NewKeyRing("test"), AdminKey: adminKey, Listener: ln, ClickHouse: cfg,
		}, p)
	}()
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	w := &world{store: store, url: "http://" + ln.Addr().String()}
	pipeline.Wait(t, 20*time.Second, "ingest to be ready", func() error {
		if a := w.get(t, "/v1/webhooks", adminKey); a.status != http.StatusOK {
			return fmt.Errorf("got %d", a.status) //nolint:err113 // told once
		}
		return nil
	})
	return w
}

func migrate(t *testing.T, cfg clickhouse.Config) {
	t.Helper()
	conn, err := cfg.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := clickhouse.Migrate(t.Context(), conn, cfg.DatabaseName()); err != nil {
		t.Fatal(err)
	}
}

type row map[string]any

// insert adds rows; columns that are left out have their defaults.
func (w *world) insert(t *testing.T, table string, rows ...row) {
	t.Helper()
	var text strings.Builder
	for _, r := range rows {
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(append(line, '\n'))
	}
	w.store.Query(t, "INSERT INTO "+w.store.Database+"."+table+" SETTINGS date_time_input_format = 'best_effort' FORMAT JSONEachRow\n"+text.String())
}

func dlv(n int) string {
	return schemas.DeliveryID{Topic: [16]byte{1}, Partition: 2, Offset: int64(n)}.String()
}

func stamp(at time.Time) string { return at.Format("2006-01-02T15:04:05.000Z") }

// delivery is a delivery that was routed n seconds after at0.
func delivery(n int, organization, state string) row {
	at := at0.Add(time.Duration(n) * time.Second)
	return row{
		"organization": organization, "webhook_id": "wh_1", "delivery_id": dlv(n), "message_id": "msg_" + fmt.Sprint(n), "event_id": fmt.Sprintf("event-%d", n),
		"event": "a.b", "cause": "event", "state": state, "accepted_at": stamp(at), "routed_at": stamp(at), "updated_at": stamp(at), "version": 0,
	}
}

func event(n int, organization string) row {
	at := stamp(at0.Add(time.Duration(n) * time.Second))
	id := fmt.Sprintf("event-%d", n)
	return row{
		"organization": organization, "event_id": id, "event": "a.b", "cause": "event", "source": "/clinic", "accepted_at": at, "routed_at": at,
		"body": `{"id":"` + id + `","event":"a.b","payload":{"n": ` + fmt.Sprint(n) + `.0}}`, "body_bytes": 40, "matches": 1,
		"topic_id": "00000000-0000-0000-0000-000000000001", "partition": 1, "offset": n,
	}
}

func change(n int, organization, object string) row {
	return row{
		"organization": organization, "at": stamp(at0.Add(time.Duration(n/3) * time.Second)), "actor": "key_1", "action": "updated", "object": object,
		"object_id": fmt.Sprint("id-", n), "before": `{"n":1}`, "after": `{"n":2}`,
		"topic_id": "00000000-0000-0000-0000-000000000002", "partition": 0, "offset": n,
	}
}

type answer struct {
	status int
	header http.Header
	raw    string
	json   map[string]any
}

func (w *world) get(t *testing.T, path, key string, header ...string) answer {
	t.Helper()
	a, err := w.try(t.Context(), http.MethodGet, path, key, "", header...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (w *world) try(ctx context.Context, method, path, key, body string, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	a := answer{status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	_ = json.Unmarshal(raw, &a.json) // nil where it is none
	return a, err
}

func (a answer) want(t *testing.T, status int) answer {
	t.Helper()
	if a.status != status {
		t.Fatalf("got %d with %s, want %d", a.status, a.raw, status)
	}
	return a
}

// makeKey makes a key of an organization.
func (w *world) makeKey(t *testing.T, organization string, scopes ...string) string {
	t.Helper()
	body, err := json.Marshal(map[string]any{"organization": organization, "scopes": scopes})
	if err != nil {
		t.Fatal(err)
	}
	a, err := w.try(t.Context(), http.MethodPost, "/v1/keys", adminKey, string(body))
	if err != nil {
		t.Fatal(err)
	}
	key, _ := a.want(t, http.StatusCreated).json["key"].(string)
	return key
}

// ids are those of a page's rows, by a member.
func ids(t *testing.T, a answer, member string) (found []string) {
	t.Helper()
	rows, ok := a.want(t, http.StatusOK).json["data"].([]any)
	if !ok {
		t.Fatalf("got %s, want a page", a.raw)
	}
	for _, r := range rows {
		id, _ := r.(map[string]any)[member].(string)
		found = append(found, id)
	}
	return found
}
