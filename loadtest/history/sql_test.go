package history_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/postrider/postrider/loadtest/history"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas/clickhouse"
)

var update = flag.Bool("update", false, "write the answers in the page of questions anew") //nolint:gochecknoglobals // a flag

const page = "../../schemas/clickhouse/README.md"

// question is one of the page: its SQL, its answer, and the share of rows that it reads at most, in percent.
type question struct {
	title, sql, answer string
	most               float64
}

func questions(t *testing.T) (asked []question) {
	t.Helper()
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile("(?s)### (\\d+\\. [^\n]*)\n```sql\n(.*?)\n```\n```text\n(.*?)```\nReads at most ([0-9.]+) %\\.\n")
	for _, found := range form.FindAllStringSubmatch(string(raw), -1) {
		q := question{title: found[1], sql: found[2], answer: found[3]}
		if _, err := fmt.Sscan(found[4], &q.most); err != nil {
			t.Fatal(err)
		}
		asked = append(asked, q)
	}
	if len(asked) != 20 || strings.Count(string(raw), "```sql") != len(asked) {
		t.Fatalf("got %d questions of %d in %s, want 20", len(asked), strings.Count(string(raw), "```sql"), page)
	}
	return asked
}

// parameters that questions have.
type parameters map[string]string

// ask asks a question in a database, and says how many rows were read.
func (q question) ask(t *testing.T, conn driver.Conn, p parameters) (answer string, read uint64) {
	t.Helper()
	given := ch.Parameters{}
	for name, value := range p {
		if strings.Contains(q.sql, "{"+name+":") {
			given[name] = value
		}
	}
	ctx := ch.Context(t.Context(), ch.WithParameters(given), ch.WithProgress(func(p *ch.Progress) { read += p.Rows }),
		ch.WithSettings(ch.Settings{"use_query_condition_cache": 0}))
	rows, err := conn.Query(ctx, q.sql)
	if err != nil {
		t.Fatalf("%s: %v", q.title, err)
	}
	defer rows.Close()
	var text strings.Builder
	text.WriteString(strings.Join(rows.Columns(), " | ") + "\n")
	for rows.Next() {
		values := make([]any, len(rows.Columns()))
		for i, column := range rows.ColumnTypes() {
			values[i] = newOf(column)
		}
		if err := rows.Scan(values...); err != nil {
			t.Fatalf("%s: %v", q.title, err)
		}
		for i, value := range values {
			if i > 0 {
				text.WriteString(" | ")
			}
			text.WriteString(shown(value))
		}
		text.WriteString("\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", q.title, err)
	}
	return text.String(), read
}

// open opens a connection whose database is the one of the test: the questions name none.
func open(t testing.TB, store *pipeline.ClickHouse) driver.Conn {
	t.Helper()
	options, err := clickhouse.Config{Address: store.Native, User: "default"}.Options()
	if err != nil {
		t.Fatal(err)
	}
	options.Auth.Database = store.Database
	conn, err := ch.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestQuestions asks each question of the page with rows that are known.
func TestQuestions(t *testing.T) {
	store := pipeline.SharedClickHouse(t)
	migrate(t, clickhouse.Config{Address: store.Native, User: "default", Database: store.Database})
	w := &world{store: store}
	w.insertKnown(t)
	conn := open(t, store)
	p := parameters{
		"organization": "acme", "webhook": "wh_1", "event": "event-1", "delivery": dlv(1), "key": "key_1",
		"since": "2026-11-01 00:00:00.000", "until": "2026-11-02 00:00:00.000",
	}
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, q := range questions(t) {
		got, _ := q.ask(t, conn, p)
		if *update {
			text = strings.Replace(text, q.sql+"\n```\n```text\n"+q.answer+"```", q.sql+"\n```\n```text\n"+got+"```", 1)
		} else if got != q.answer {
			t.Errorf("%s: got\n%s\nwant\n%s", q.title, got, q.answer)
		}
		if lines := strings.Count(got, "\n"); lines < 2 {
			t.Errorf("%s: got %s: the known rows have no answer", q.title, got)
		}
	}
	if *update {
		if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// granule is how many rows of the generated history are read at least.
const granule = 256

// TestQuestionsReadLittle asks each question of a generated history, whose granules
// are as much smaller than usual as it is, and counts the rows that are read.
func TestQuestionsReadLittle(t *testing.T) {
	store := pipeline.SharedClickHouse(t)
	conn := open(t, store)
	for _, m := range clickhouse.Migrations(store.Database) {
		for _, statement := range m.Statements {
			exec(t.Context(), t, conn, strings.Replace(statement, "SETTINGS non_replicated", fmt.Sprintf("SETTINGS index_granularity = %d, non_replicated", granule), 1))
		}
	}
	until := at0.Add(14 * 24 * time.Hour) // a month's end is a partition's
	size := history.Size{Deliveries: 300_000, Changes: 300_000, Webhooks: 400, Organizations: 20, Until: until, Days: 30}
	for _, statement := range size.Statements(store.Database) {
		exec(t.Context(), t, conn, statement)
	}
	for _, table := range []string{"event_log", "delivery_states", "outcomes", "changes", "webhooks"} {
		exec(t.Context(), t, conn, "OPTIMIZE TABLE "+table+" FINAL") // as in time by itself
	}
	tables := map[string]uint64{}
	for _, view := range clickhouse.Views() {
		for _, table := range view.Tables {
			var n uint64
			if err := conn.QueryRow(t.Context(), "SELECT count() FROM "+table).Scan(&n); err != nil {
				t.Fatal(err)
			}
			tables[view.Name] += n
		}
	}
	var delivery string
	if err := conn.QueryRow(t.Context(), "SELECT delivery_id FROM outcomes WHERE offset = 299990").Scan(&delivery); err != nil {
		t.Fatal(err)
	}
	p := parameters{
		"organization": history.Organization(0), "webhook": history.WebhookID(0), "event": history.EventID(299_990), "delivery": delivery, "key": "key_1",
		"since": until.Add(-24 * time.Hour).Format("2006-01-02 15:04:05.000"), "until": until.Format("2006-01-02 15:04:05.000"),
	}
	for _, q := range questions(t) {
		_, read := q.ask(t, conn, p)
		var of uint64
		for name, rows := range tables {
			if strings.Contains(q.sql, "FROM "+name) {
				of += rows
			}
		}
		percent := 100 * float64(read) / float64(of)
		t.Logf("%s: read %d of %d rows, %.2f %%", q.title, read, of, percent)
		if percent > q.most {
			t.Errorf("%s: read %d of %d rows, %.2f %%, want at most %g %%", q.title, read, of, percent, q.most)
		}
	}
}

func exec(ctx context.Context, t testing.TB, conn driver.Conn, statement string) {
	t.Helper()
	if err := conn.Exec(ctx, statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}
