package bench

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/history"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
)

// floorList is what a page of one webhook's last day may take at the 99th percentile, in milliseconds.
const floorList = 300.0

var historyDeliveries = flag.Int("history-deliveries", 50_000_000, "deliveries of a month, of which pages are asked for") //nolint:gochecknoglobals // a flag

// historyOptions say what there is, and how often each thing is asked.
type historyOptions struct {
	size     history.Size
	requests int
}

// BenchmarkHistory measures what asking for deliveries takes where there are many.
func BenchmarkHistory(b *testing.B) {
	for b.Loop() {
		f := askHistory(b, historyOptions{requests: 1000, size: history.Size{
			Deliveries: *historyDeliveries, Changes: 100_000, Webhooks: 1000, Organizations: 20,
			Until: time.Now().UTC().Truncate(time.Second), Days: 30,
		}})
		if err := errors.Join(f.print(os.Stdout), write(filepath.Join(filepath.Dir(results), "history.json"), f)); err != nil {
			b.Fatal(err)
		}
	}
}

// TestHistoryBenchAtSmallSize keeps it working.
func TestHistoryBenchAtSmallSize(t *testing.T) {
	f := askHistory(t, historyOptions{requests: 20, size: history.Size{
		Deliveries: 20_000, Changes: 1000, Webhooks: 50, Organizations: 5, Until: time.Now().UTC().Truncate(time.Second), Days: 30,
	}})
	if len(f.Figures) == 0 {
		t.Error("got no figures")
	}
	for _, x := range f.Figures {
		if x.Pipeline <= 0 {
			t.Errorf("%s: got %v, want a figure", x.Name, x.Pipeline)
		}
	}
}

func askHistory(t testing.TB, o historyOptions) found {
	t.Helper()
	f := found{other: true, Case: "History", Setup: fmt.Sprintf("REST on %d deliveries of %d days and %d webhooks, the first with a tenth of them; %d requests each, one after another",
		o.size.Deliveries, o.size.Days, o.size.Webhooks, o.requests)}
	if err := f.machine(); err != nil {
		t.Fatal(err)
	}
	h := bringUpHistory(t, o.size)
	day := "&since=" + url.QueryEscape(o.size.Until.Add(-24*time.Hour).Format(time.RFC3339))
	hook := func(n int) string {
		return "organization=" + history.Organization(n%o.size.Organizations) + "&webhook=" + history.WebhookID(n)
	}
	cases := []struct {
		name string
		path func(i int) string
		held bool
	}{
		{"one webhook's last day", func(i int) string { return "/v1/deliveries?" + hook(i%o.size.Webhooks) + day }, true},
		{"  of these only the dead", func(i int) string { return "/v1/deliveries?status=dead&" + hook(i%o.size.Webhooks) + day }, true},
		{"  of the first webhook", func(int) string { return "/v1/deliveries?" + hook(0) + day }, true},
		{"an event with its deliveries", func(i int) string { return "/v1/events/" + history.EventID(i*(o.size.Deliveries/o.requests)) }, false},
	}
	for _, c := range cases {
		var took []float64
		for i := range o.requests {
			took = append(took, h.get(t, c.path(i)))
		}
		p99 := newFigure(c.name+", p99", "ms", quantile(took, 0.99), 0)
		if c.held {
			p99 = p99.held(floorList, atMost)
		}
		f.Figures = append(f.Figures, newFigure(c.name+", p50", "ms", quantile(took, 0.5), 0), p99)
	}
	return f
}

// historyRig is an ingest before a ClickHouse with a history.
type historyRig struct {
	url string
	key string
}

func bringUpHistory(t testing.TB, size history.Size) *historyRig {
	t.Helper()
	store := pipeline.StartClickHouse(t)
	conn, err := clickhouse.Config{Address: store.Native, User: "default"}.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := clickhouse.Migrate(t.Context(), conn, store.Database); err != nil {
		t.Fatal(err)
	}
	for _, statement := range size.Statements(store.Database) {
		if err := conn.Exec(t.Context(), statement+" SETTINGS max_insert_threads = 2, max_execution_time = 0"); err != nil {
			t.Fatalf("%.60s: %v", statement, err)
		}
	}
	_, brokers := pipeline.StartKfake(t)
	cfg := kafka.Config{Brokers: brokers, TopicPrefix: "bench."}
	client, err := cfg.NewClient("bench")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := kafka.CreateTopics(t.Context(), client, cfg.Topics(), schemas.Partitions{Events: 4, Deliveries: 4}, 1); err != nil {
		t.Fatal(err)
	}
	const key = "an admin key of the bench, long enough"
	s := pipeline.Start(t, "ingest", "--brokers="+strings.Join(brokers, ","), "--topic-prefix=bench.", "--instance=bench",
		"--key-ring="+schemas.NewKeyRing("bench"), "--admin-key="+key, "--clickhouse="+store.Native).WaitReady(t)
	return &historyRig{"http://" + s.Listen, key}
}

// get returns how many milliseconds an answer took.
func (h *historyRig) get(t testing.TB, path string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+h.key)
	began := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || len(body) < 20 {
		t.Fatalf("%s: got %d with %.200s, %v", path, resp.StatusCode, body, err)
	}
	return float64(time.Since(began).Microseconds()) / 1000
}
