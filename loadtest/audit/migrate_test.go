package audit_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas/clickhouse"
)

// startStore opens a connection to a database of the test's own.
func startStore(t *testing.T) (*world, driver.Conn) {
	t.Helper()
	w := &world{store: pipeline.SharedClickHouse(t)}
	conn, err := clickhouse.Config{Address: w.store.Native, User: "default"}.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return w, conn
}

func TestMigrate(t *testing.T) {
	w, conn := startStore(t)
	if version, err := clickhouse.Version(t.Context(), conn, w.store.Database); version != 0 || err != nil {
		t.Fatalf("an empty database has version %d, %v", version, err)
	}
	errs := make([]error, 8)
	var running sync.WaitGroup
	for i := range errs {
		running.Go(func() { errs[i] = clickhouse.Migrate(t.Context(), conn, w.store.Database) })
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Errorf("eight at once: %v", err)
	}
	if err := clickhouse.Migrate(t.Context(), conn, w.store.Database); err != nil {
		t.Errorf("again: %v", err)
	}
	if version, err := clickhouse.Version(t.Context(), conn, w.store.Database); version != clickhouse.Latest() || err != nil {
		t.Errorf("version is %d, %v, want %d", version, err, clickhouse.Latest())
	}
	w.wantQuery(t, "SELECT name FROM system.tables WHERE database = '{db}' ORDER BY name", strings.Join([]string{
		"changes", "changes_v1", "deliveries", "deliveries_v1", "delivery_states", "event_copies", "event_log", "events", "events_v1",
		"outcomes", "outcomes_v1", "schema_migrations", "webhooks", "webhooks_v1",
	}, "\n"))
}

// TestMigrationsMayRunAgain: each statement, as an interrupted migration would leave them.
func TestMigrationsMayRunAgain(t *testing.T) {
	w, conn := startStore(t)
	for range 2 {
		for _, m := range clickhouse.Migrations(w.store.Database) {
			for _, statement := range m.Statements {
				if err := conn.Exec(t.Context(), statement); err != nil {
					t.Errorf("%d_%s: %v", m.Version, m.Name, err)
				}
			}
		}
	}
}

func TestRetention(t *testing.T) {
	w, conn := startStore(t)
	if err := clickhouse.Migrate(t.Context(), conn, w.store.Database); err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	r := clickhouse.Retention{Bodies: 7 * day, Rows: 90 * day}
	for range 2 {
		if err := clickhouse.SetRetention(t.Context(), conn, w.store.Database, r); err != nil {
			t.Fatal(err)
		}
	}
	w.wantQuery(t, "SELECT name FROM system.tables WHERE database = '{db}' AND engine LIKE '%MergeTree'"+
		" AND create_table_query LIKE '%TTL inserted_at + toIntervalDay(90) SETTINGS%' ORDER BY name", "delivery_states\nevent_copies\nevent_log\noutcomes")
	// Three times as one insert each, so as parts of their own: a body's time is over, a row's, and neither's.
	for _, insert := range []string{"('new', 'b', now())", "('old', 'b', now() - INTERVAL 8 DAY)", "('gone', 'b', now() - INTERVAL 91 DAY)"} {
		w.query(t, "INSERT INTO {db}.event_log (event_id, body, inserted_at) VALUES "+insert)
	}
	w.query(t, "OPTIMIZE TABLE {db}.event_log FINAL")
	w.wantQuery(t, "SELECT event_id, body FROM {db}.event_log ORDER BY event_id", "new\tb\nold\t")
	if err := clickhouse.SetRetention(t.Context(), conn, w.store.Database, clickhouse.Retention{Bodies: time.Hour, Rows: day}); err == nil {
		t.Error("a retention of an hour was taken")
	}
}

// TestLateInsertIsRefused: the deadline holds when the block arrives, not when the insert begins.
func TestLateInsertIsRefused(t *testing.T) {
	w, conn := startStore(t)
	if err := clickhouse.Migrate(t.Context(), conn, w.store.Database); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"outcomes", "event_log", "event_copies", "changes", "webhooks"} {
		batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO "+w.store.Database+"."+table+" (organization, offset, insert_by)")
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := batch.Append("acme", int64(1), begun.Add(50*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		wait(t, 200*time.Millisecond)
		err = batch.Send()
		var exception *ch.Exception
		if !errors.As(err, &exception) || !strings.Contains(exception.Message, "insert arrived after its deadline") {
			t.Errorf("%s: got %v", table, err)
		}
		w.wantQuery(t, "SELECT count() FROM {db}."+table, "0")
	}
}

func TestLatestStateWins(t *testing.T) {
	w, conn := startStore(t)
	if err := clickhouse.Migrate(t.Context(), conn, w.store.Database); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"('delivered', 9, 3)", "('pending', 0, 0)", "('retry', 5, 2)", "('delivered', 9, 3)"} {
		w.query(t, "INSERT INTO {db}.delivery_states (delivery_id, state, version, attempts, organization, webhook_id) "+
			"SELECT 'dlv_1', *, 'acme', 'wh_1' FROM VALUES('s String, v UInt64, a UInt16', "+state+")")
	}
	w.wantQuery(t, "SELECT state, attempts, next_attempt_at FROM {db}.deliveries", "delivered\t3\t\\N")
}
