package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
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

const (
	adminKey = "bench-admin-key-0123456789-0123456789"
	keyRing  = "k1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	prefix   = schemas.DefaultPrefix
)

// bed is everything between the client and the rows.
type bed struct {
	kafka                  *pipeline.Kafka
	clickhouse             *pipeline.ClickHouse
	ingest, router, sender *pipeline.Service
	receiver               *pipeline.Service
	target                 string   // host:port that webhooks call
	webhooks               []string // ids, by organization
	delivered              int      // events through the pipeline so far
	all                    int      // and those straight to the receiver
}

// bringUp starts all processes and creates the webhooks: one an organization, each
// at a path of its own.
func bringUp(t testing.TB, webhooks int, partitions schemas.Partitions) *bed {
	t.Helper()
	b := &bed{kafka: pipeline.StartKafka(t, 1), clickhouse: pipeline.StartClickHouse(t), target: pipeline.FreeAddr(t)}
	b.prepare(t, partitions)
	b.receiver = pipeline.Start(t, "receiver", "--listen="+b.target, "--light").WaitReady(t)
	common := []string{"--brokers=" + strings.Join(b.kafka.Addrs(), ","), "--topic-prefix=" + prefix, "--instance=bench"}
	targets := slices.Concat(common, []string{"--key-ring=" + keyRing, "--allow-targets=127.0.0.0/8"})
	targets = append(targets, "--clickhouse="+b.clickhouse.Native, "--clickhouse-database="+b.clickhouse.Database)
	b.ingest = pipeline.Start(t, "ingest", slices.Concat(targets, []string{"--admin-key=" + adminKey})...)
	b.router = pipeline.Start(t, "router", common...)
	b.sender = pipeline.Start(t, "sender", targets...)
	for _, s := range b.services() {
		s.WaitReady(t)
	}
	for n := range webhooks {
		b.webhooks = append(b.webhooks, b.subscribe(t, n))
	}
	return b
}

// prepare creates the topics and tables.
func (b *bed) prepare(t testing.TB, partitions schemas.Partitions) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.kafka.Addrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	audit := clickhouse.Config{Address: b.clickhouse.Native, Database: b.clickhouse.Database}
	conn, err := audit.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := errors.Join(
		kafka.CreateTopics(t.Context(), cl, schemas.NewTopics(prefix), partitions, 0),
		clickhouse.Migrate(t.Context(), conn, b.clickhouse.Database),
	); err != nil {
		t.Fatal(err)
	}
}

func (b *bed) services() []*pipeline.Service {
	return []*pipeline.Service{b.ingest, b.router, b.sender}
}

// subscribe creates the webhook of an organization.
func (b *bed) subscribe(t testing.TB, n int) string {
	t.Helper()
	body := fmt.Sprintf(`{"organization":%q,"active":true,"url":"http://%s/hook/%d","events":"medical-encounters"}`, organization(n), b.target, n)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+b.ingest.Listen+"/webhook-events", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminKey)
	req.Header.Set("Content-Type", "application/json")
	var made struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(do(t, req, http.StatusCreated), &made); err != nil {
		t.Fatal(err)
	}
	return made.ID
}

func do(t testing.TB, req *http.Request, want int) []byte {
	t.Helper()
	text, err := ask(req, want)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// errStatus is an answer of another status than is wanted.
var errStatus = errors.New("another status")

// ask makes a request that must be answered with a status.
func ask(req *http.Request, want int) ([]byte, error) {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("calling %s %s: %w", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%w: got %d %.200s, want %d", errStatus, resp.StatusCode, text, want)
	}
	if err != nil {
		return nil, fmt.Errorf("calling %s %s: %w", req.Method, req.URL, err)
	}
	return text, nil
}

// passage is what became of a load.
type passage struct {
	sent   sent
	waits  []float64 // milliseconds, from request to arrival
	lastAt int64     // when the last one arrived
	rowsAt int64     // when the last row was in ClickHouse; microseconds as everywhere
	used   []used
}

// used is what a process has used since its start, or since another reading: then
// the memory stays what it was at most.
type used struct {
	process string
	time    time.Duration
	peak    int64 // bytes resident
}

// through sends a load through the pipeline and waits until the last row of it is in ClickHouse.
func (b *bed) through(t testing.TB, l load) passage {
	t.Helper()
	l.Addr, l.Path, l.Bearer, l.Want, l.Organizations = b.ingest.Listen, "/v1/events", adminKey, http.StatusAccepted, len(b.webhooks)
	before := b.readings(t)
	s, client := runClient(t, l)
	b.delivered += l.Events
	b.all += l.Events
	// So slow, or slower, is an end and no measurement.
	limit := time.Minute + time.Duration(l.Events)*5*time.Millisecond
	poll(t, limit, func() error { return b.arrived(t) })
	poll(t, limit, func() error { return b.rows(t) })
	p := passage{sent: s, rowsAt: time.Now().UnixMicro(), used: since(before, b.readings(t), client)}
	p.arrivals(t, b, b.message(l.Run))
	return p
}

// bare posts a load straight to the receiver.
func (b *bed) bare(t testing.TB, l load) passage {
	t.Helper()
	l.Addr, l.Path, l.PathEach, l.Want, l.Organizations = b.target, "/bare", true, http.StatusOK, len(b.webhooks)
	before := b.readings(t)
	s, client := runClient(t, l)
	b.all += l.Events
	p := passage{sent: s, used: since(before, b.readings(t), client)}
	p.arrivals(t, b, func(number int) string { return eventID(l.Run, number) })
	return p
}

// arrivals compares what the receiver got with what was sent.
func (p *passage) arrivals(t testing.TB, b *bed, message func(number int) string) {
	t.Helper()
	var got []receiver.Seen
	lines := json.NewDecoder(bytes.NewReader(b.ask(t, "/requests")))
	for lines.More() {
		var s receiver.Seen
		if err := lines.Decode(&s); err != nil {
			t.Fatalf("reading what the receiver got: %v", err)
		}
		got = append(got, s)
	}
	var err error
	if p.waits, p.lastAt, err = waits(p.sent, got, message); err != nil {
		t.Fatal(err)
	}
}

func (b *bed) ask(t testing.TB, path string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+b.receiver.Admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, req, http.StatusOK)
}

// arrived is nil when the receiver got as many requests as were sent.
func (b *bed) arrived(t testing.TB) error {
	t.Helper()
	got, err := strconv.Atoi(string(b.ask(t, "/total")))
	if err == nil && got < b.all {
		err = fmt.Errorf("requests at the receiver: got %d, want %d", got, b.all)
	}
	return err
}

// rows is nil when each event has its row and each delivery its outcome.
func (b *bed) rows(t testing.TB) error {
	t.Helper()
	got := strings.TrimSpace(b.clickhouse.Query(t, strings.ReplaceAll(
		"SELECT (SELECT count() FROM db.outcomes WHERE result = 'delivered'), (SELECT count() FROM db.event_log WHERE event NOT LIKE 'webhook.%')", "db.", b.clickhouse.Database+".")))
	if want := fmt.Sprintf("%d\t%d", b.delivered, b.delivered); got != want {
		return fmt.Errorf("outcomes and events in ClickHouse: got %q, want %q", got, want)
	}
	return nil
}

// hops are the medians in milliseconds of a run's ways between Kafka's clock, the
// router's and the sender's, which is one clock here.
func (b *bed) hops(t testing.TB, run string) []float64 {
	t.Helper()
	text := b.clickhouse.Query(t, "SELECT quantileExact(0.5)(toUnixTimestamp64Milli(routed_at) - toUnixTimestamp64Milli(accepted_at)),"+
		" quantileExact(0.5)(toUnixTimestamp64Milli(started_at) - toUnixTimestamp64Milli(routed_at))"+
		" FROM "+b.clickhouse.Database+".outcomes WHERE startsWith(event_id, '"+run+"-')")
	var medians []float64
	for field := range strings.FieldsSeq(text) {
		x, err := strconv.ParseFloat(field, 64)
		if err != nil {
			t.Fatalf("reading medians %q: %v", text, err)
		}
		medians = append(medians, x)
	}
	return medians
}

// poll tries a condition every 50 ms, so that asking costs little of what is measured.
func poll(t testing.TB, limit time.Duration, condition func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	for err := condition(); err != nil; err = condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", limit, err)
		}
		<-tick.C
	}
}

// readings are of all processes but the client, since their starts.
func (b *bed) readings(t testing.TB) []used {
	t.Helper()
	table := []used{
		{process: "Kafka", time: b.kafka.Brokers[0].CPU(t), peak: peakMemory(t, b.kafka.Brokers[0].PID())},
		{process: "ClickHouse", time: b.clickhouse.CPU(t), peak: peakMemory(t, b.clickhouse.PID())},
	}
	for i, name := range []string{"ingest", "router", "sender"} {
		s := b.services()[i]
		table = append(table, used{process: name, time: s.CPU(t), peak: peakMemory(t, s.PID())})
	}
	return append(table, used{process: "receiver", time: b.receiver.CPU(t), peak: peakMemory(t, b.receiver.PID())})
}

func peakMemory(t testing.TB, pid int) int64 {
	t.Helper()
	bytes, err := peakBytes(strconv.Itoa(pid))
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// since is what was used between two readings, and by the client.
func since(before, after []used, client used) []used {
	spent := make([]used, 0, len(after)+1)
	for i, u := range after {
		spent = append(spent, used{u.process, u.time - before[i].time, u.peak})
	}
	return append(spent, client)
}

// costs are those of each process beside those of the bare loop, where only two have work.
func (p passage) costs(events int, bare passage) []cost {
	var table []cost
	for i, u := range p.used {
		c := cost{Process: u.process, Pipeline: perThousand(u.time, events), Peak: megabytes(u.peak)}
		if u.process == "receiver" || u.process == "client" {
			c.Bare = perThousand(bare.used[i].time, events)
		}
		table = append(table, c)
	}
	return table
}

// services are megabytes of the three together, at most: each at its own worst.
func (p passage) services() float64 {
	var sum int64
	for _, u := range p.used {
		switch u.process {
		case "ingest", "router", "sender":
			sum += u.peak
		}
	}
	return megabytes(sum)
}
