package clickhouse

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// The rules of a migration: it is never changed once released; every statement
// may run again, and while another process runs it (IF NOT EXISTS, OR REPLACE,
// ADD COLUMN IF NOT EXISTS), since ClickHouse has neither transactions over DDL
// nor locks; and what it adds, an older sender can do without (new columns have
// defaults, nothing is renamed or dropped).
//
//go:embed ddl/*.sql
var ddl embed.FS

// Migration is one numbered step of the schema.
type Migration struct {
	Version int
	Name    string
	// Statements are in order, with the database's name filled in.
	Statements []string
}

// Migrations returns all steps for a database, in order, for reading and for
// who would rather run them by hand.
func Migrations(database string) []Migration {
	names, err := fs.Glob(ddl, "ddl/*.sql")
	if err != nil {
		panic(fmt.Sprintf("BUG: listing embedded DDL: %v", err))
	}
	migrations := make([]Migration, 0, len(names))
	for _, name := range names { // Glob sorts by name, so by number
		text, err := ddl.ReadFile(name)
		if err != nil {
			panic(fmt.Sprintf("BUG: reading embedded DDL %s: %v", name, err))
		}
		base := strings.TrimSuffix(strings.TrimPrefix(name, "ddl/"), ".sql")
		number, title, _ := strings.Cut(base, "_")
		version, err := strconv.Atoi(number)
		if err != nil {
			panic(fmt.Sprintf("BUG: embedded DDL %s has no number: %v", name, err))
		}
		migrations = append(migrations, Migration{version, title, statements(string(text), database)})
	}
	return migrations
}

// statements parts a file at each semicolon that ends a line.
func statements(text, database string) []string {
	var out []string
	for statement := range strings.SplitSeq(strings.ReplaceAll(text, "{database}", database)+"\n", ";\n") {
		if statement = strings.TrimSpace(statement); statement != "" {
			out = append(out, statement)
		}
	}
	return out
}

// Latest is the version this binary brings a database to, and the least it can write to.
func Latest() int {
	migrations := Migrations(DefaultDatabase)
	return migrations[len(migrations)-1].Version
}

// Server error codes (src/Common/ErrorCodes.cpp).
const (
	codeUnknownTable    = 60
	codeUnknownDatabase = 81
)

// Version returns the version of the database's schema, 0 where there is none.
func Version(ctx context.Context, conn driver.Conn, database string) (int, error) {
	var version uint32
	err := conn.QueryRow(ctx, "SELECT max(version) FROM "+database+".schema_migrations").Scan(&version)
	var exception *ch.Exception
	switch {
	case errors.As(err, &exception) && (exception.Code == codeUnknownTable || exception.Code == codeUnknownDatabase):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("asking for the schema version of database %s: %w", database, err)
	}
	return int(version), nil
}

// Migrate creates the database if it is missing and brings its schema to
// Latest. It may be repeated, and run by several at once. A schema that is newer
// already is left as it is.
func Migrate(ctx context.Context, conn driver.Conn, database string) error {
	if !databaseName().MatchString(database) {
		return fmt.Errorf("migrating database %q: a name has letters, digits and underscores only", database)
	}
	for _, statement := range []string{
		"CREATE DATABASE IF NOT EXISTS " + database + " ENGINE = Atomic",
		"CREATE TABLE IF NOT EXISTS " + database + ".schema_migrations" +
			" (version UInt32, name String, applied_at DateTime64(3, 'UTC') DEFAULT now64(3))" +
			" ENGINE = ReplacingMergeTree ORDER BY version",
	} {
		if err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("preparing database %s: %w", database, err)
		}
	}
	current, err := Version(ctx, conn, database)
	if err != nil {
		return err
	}
	for _, m := range Migrations(database) {
		if m.Version <= current {
			continue
		}
		if err := apply(ctx, conn, database, m); err != nil {
			return err
		}
	}
	return nil
}

func apply(ctx context.Context, conn driver.Conn, database string, m Migration) error {
	for i, statement := range m.Statements {
		if err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("migrating database %s to version %d (%s), statement %d: %w", database, m.Version, m.Name, i+1, err)
		}
	}
	err := conn.Exec(ctx, "INSERT INTO "+database+".schema_migrations (version, name) VALUES (?, ?)", m.Version, m.Name)
	if err != nil {
		return fmt.Errorf("recording version %d of database %s: %w", m.Version, database, err)
	}
	return nil
}

// Retention is how long the audit keeps what. The schema's own is 30 days and 2 years.
type Retention struct {
	// Bodies is for events' bodies and for responses, in whole days.
	Bodies time.Duration
	// Rows is for outcomes, deliveries and events as a whole, in whole days.
	// The admin's changes and the webhooks' revisions are kept for good.
	Rows time.Duration
}

// SetRetention changes how long the audit keeps what, from now on and for what
// is there. ClickHouse drops it in the background. It does nothing where the
// retention is so already.
func SetRetention(ctx context.Context, conn driver.Conn, database string, r Retention) error {
	const day = 24 * time.Hour
	bodies, rows := int(r.Bodies/day), int(r.Rows/day)
	if bodies < 1 || rows < 1 {
		return fmt.Errorf("setting retention of database %s: bodies %s, rows %s: at least a day each", database, r.Bodies, r.Rows)
	}
	for _, rule := range []struct {
		table string
		alter string // what to alter
		ttl   string // how it then stands in the table's DDL
	}{
		{"outcomes", "MODIFY TTL ", fmt.Sprintf("inserted_at + toIntervalDay(%d)", rows)},
		{"delivery_states", "MODIFY TTL ", fmt.Sprintf("inserted_at + toIntervalDay(%d)", rows)},
		{"event_log", "MODIFY TTL ", fmt.Sprintf("inserted_at + toIntervalDay(%d)", rows)},
		{"event_copies", "MODIFY TTL ", fmt.Sprintf("inserted_at + toIntervalDay(%d)", rows)},
		{"outcomes", "MODIFY COLUMN response_head TTL ", fmt.Sprintf("inserted_at + toIntervalDay(%d)", bodies)},
		{"outcomes", "MODIFY COLUMN response_body TTL ", fmt.Sprintf("inserted_at + toIntervalDay(%d)", bodies)},
		{"event_log", "MODIFY COLUMN body TTL ", fmt.Sprintf("inserted_at + toIntervalDay(%d)", bodies)},
	} {
		if err := setTTL(ctx, conn, database, rule.table, rule.alter, rule.ttl); err != nil {
			return err
		}
	}
	return nil
}

// setTTL alters a TTL unless it stands there already: altering rewrites every part.
func setTTL(ctx context.Context, conn driver.Conn, database, table, alter, ttl string) error {
	var create string
	err := conn.QueryRow(ctx, "SELECT create_table_query FROM system.tables WHERE database = ? AND name = ?", database, table).Scan(&create)
	if err != nil {
		return fmt.Errorf("reading the definition of %s.%s: %w", database, table, err)
	}
	if hasTTL(create, alter, ttl) {
		return nil
	}
	if err := conn.Exec(ctx, "ALTER TABLE "+database+"."+table+" "+alter+ttl); err != nil {
		return fmt.Errorf("setting retention of %s.%s: %w", database, table, err)
	}
	return nil
}

// hasTTL reports whether a CREATE TABLE, on one line as ClickHouse shows it, has
// the TTL in the place that alter names.
func hasTTL(create, alter, ttl string) bool {
	column, ok := strings.CutPrefix(alter, "MODIFY COLUMN ")
	if !ok {
		_, engine, _ := strings.Cut(create, " ENGINE = ")
		return strings.Contains(engine, "TTL "+ttl+" ")
	}
	name, _, _ := strings.Cut(column, " ")
	_, definition, _ := strings.Cut(create, "`"+name+"`")
	definition, _, _ = strings.Cut(definition, "`")
	return strings.Contains(definition, "TTL "+ttl)
}
