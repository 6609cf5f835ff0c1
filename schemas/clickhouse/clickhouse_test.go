package clickhouse

import (
	"reflect"
	"strings"
	"testing"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

func TestOptions(t *testing.T) {
	for _, test := range []struct {
		name     string
		cfg      Config
		addr     string
		user     string
		password string
		database string
		tls      bool
	}{
		{"an address", Config{Address: "h:9000", User: "u", Password: "p", Database: "d"}, "h:9000", "u", "p", "d", false},
		{"several", Config{Address: "h:9000, i:9000", User: "u"}, "h:9000 i:9000", "u", "", DefaultDatabase, false},
		{"a DSN", Config{Address: "clickhouse://a:b@h:9440/x?secure=true", User: "u", Password: "p", Database: "d"}, "h:9440", "a", "b", "x", true}, //nolint:gosec // no real password
		{"a DSN that leaves things open", Config{Address: "clickhouse://h:9000", User: "u", Password: "p", Database: "d"}, "h:9000", "u", "p", "d", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, err := test.cfg.Options()
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(o.Addr, " "); got != test.addr {
				t.Errorf("address is %q, want %q", got, test.addr)
			}
			if o.Auth.Username != test.user || o.Auth.Password != test.password || o.Auth.Database != "" {
				t.Errorf("auth is %+v", o.Auth)
			}
			if got := test.cfg.DatabaseName(); got != test.database {
				t.Errorf("database is %q, want %q", got, test.database)
			}
			if (o.TLS != nil) != test.tls {
				t.Errorf("TLS is %v", o.TLS)
			}
		})
	}
}

func TestBadOptions(t *testing.T) {
	for _, address := range []string{"", "h", "http://h:8123", "clickhouse://u:secret@h:9000/a-b", "clickhouse://u:secret@h:x%", "clickhouse://u:secret@h:9000?secure=perhaps"} {
		_, err := Config{Address: address}.Options()
		if err == nil {
			t.Errorf("%q was taken", address)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is told: %v", err)
		}
	}
}

func TestSettings(t *testing.T) {
	for _, test := range []struct {
		args string
		bad  string // the setting that is told, if any
	}{
		{"", ""},
		{"--clickhouse=db:9000 --clickhouse-database=audit", ""},
		{"--clickhouse=nowhere", "clickhouse"},
		{"--clickhouse-database=a;b", "clickhouse-database"},
	} {
		var cfg Config
		s := process.NewSettings("test")
		cfg.Register(s)
		err := s.Parse(strings.Fields(test.args), nil)
		if (err != nil) != (test.bad != "") || err != nil && !strings.Contains(err.Error(), "--"+test.bad) {
			t.Errorf("%q: got %v, want a problem of %q", test.args, err, test.bad)
		}
	}
}

func TestMigrationsAreNumbered(t *testing.T) {
	for i, m := range Migrations("db") {
		if m.Version != i+1 || m.Name == "" || len(m.Statements) == 0 {
			t.Errorf("migration %d is %d_%s with %d statements", i+1, m.Version, m.Name, len(m.Statements))
		}
		for _, s := range m.Statements {
			if strings.Contains(s, "{database}") || !strings.Contains(s, " db.") {
				t.Errorf("%d_%s does not name its database: %s", m.Version, m.Name, s)
			}
			if !strings.Contains(s, "IF NOT EXISTS") && !strings.Contains(s, "OR REPLACE") && !strings.Contains(s, " MATERIALIZE INDEX ") {
				t.Errorf("%d_%s cannot run again: %s", m.Version, m.Name, s)
			}
		}
	}
	if got, want := Latest(), len(Migrations("db")); got != want {
		t.Errorf("the latest is %d, want %d", got, want)
	}
}

// TestOutcomesHaveEveryField: the table is the record, and where it stood.
func TestOutcomesHaveEveryField(t *testing.T) {
	var create string
	for _, m := range Migrations("db") {
		for _, s := range m.Statements {
			if strings.Contains(s, "CREATE TABLE IF NOT EXISTS db.outcomes\n") {
				create = s
			}
		}
	}
	for field := range reflect.TypeFor[schemas.Outcome]().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if !strings.Contains(create, "\n    "+name+" ") {
			t.Errorf("outcomes has no column %s", name)
		}
	}
	for _, name := range []string{"topic_id", "partition", "offset"} {
		if !strings.Contains(create, "\n    "+name+" ") {
			t.Errorf("outcomes has no column %s", name)
		}
	}
}

func TestHasTTL(t *testing.T) {
	const create = "CREATE TABLE d.t (`a` String CODEC(ZSTD(3)) TTL inserted_at + toIntervalDay(30), `b` String)" +
		" ENGINE = MergeTree ORDER BY b TTL inserted_at + toIntervalDay(730) SETTINGS x = 1"
	for _, test := range []struct {
		alter, ttl string
		want       bool
	}{
		{"MODIFY TTL ", "inserted_at + toIntervalDay(730)", true},
		{"MODIFY TTL ", "inserted_at + toIntervalDay(30)", false},
		{"MODIFY COLUMN a TTL ", "inserted_at + toIntervalDay(30)", true},
		{"MODIFY COLUMN a TTL ", "inserted_at + toIntervalDay(730)", false},
		{"MODIFY COLUMN b TTL ", "inserted_at + toIntervalDay(30)", false},
	} {
		if got := hasTTL(create, test.alter, test.ttl); got != test.want {
			t.Errorf("%s%s: got %v, want %v", test.alter, test.ttl, got, test.want)
		}
	}
}
