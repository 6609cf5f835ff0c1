// Package clickhouse is the audit's schema: the tables and views that users
// query with SQL, as numbered DDL, with the migrations that bring a database to
// it, and the settings by which every service finds its ClickHouse. Writing the
// rows is the sender's audit; this package runs no goroutine.
package clickhouse

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/postrider/postrider/schemas/process"
)

// DefaultDatabase is the database where none is named.
const DefaultDatabase = "postrider"

// Config says where ClickHouse is and who we are there.
type Config struct {
	// Address is host:port of the native protocol, or a DSN such as
	// clickhouse://user:password@host:9440/database?secure=true.
	Address string
	// User, Password and Database count where the DSN does not name them.
	User, Password, Database string
}

// Register adds the settings.
func (c *Config) Register(s *process.Settings) {
	s.Secret(&c.Address, "clickhouse", "127.0.0.1:9000",
		"ClickHouse's native protocol: host:port (several with commas), or clickhouse://user:password@host:port/database?secure=true")
	s.String(&c.User, "clickhouse-user", "default", "ClickHouse user, where --clickhouse names none")
	s.Secret(&c.Password, "clickhouse-password", "", "ClickHouse password, where --clickhouse names none")
	s.String(&c.Database, "clickhouse-database", DefaultDatabase, "database of the audit's tables, where --clickhouse names none")
	s.Check(func() error {
		if _, err := c.Options(); err != nil {
			return s.Invalid("clickhouse", "host:port or clickhouse://user:password@host:port/database?secure=true")
		}
		return nil
	})
	s.Check(func() error {
		if !databaseName().MatchString(c.Database) {
			return s.Invalid("clickhouse-database", "a name of letters, digits and underscores")
		}
		return nil
	})
}

// databaseName is what a database may be called: it stands unquoted in every statement.
func databaseName() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`) }

// Options returns clickhouse-go's options for the native protocol. They name no
// database, since a server refuses a connection to one that has yet to be
// created: every statement names its tables in full, with DatabaseName.
func (c Config) Options() (*ch.Options, error) {
	options := &ch.Options{Addr: strings.Split(c.Address, ",")}
	if strings.Contains(c.Address, "://") {
		parsed, err := c.parseDSN()
		if err != nil {
			return nil, err
		}
		options = parsed
	}
	for i, address := range options.Addr {
		options.Addr[i] = strings.TrimSpace(address)
		if _, _, err := net.SplitHostPort(options.Addr[i]); err != nil {
			return nil, fmt.Errorf("reading ClickHouse address %q: %w", options.Addr[i], err)
		}
	}
	options.Auth.Database = ""
	if options.Auth.Username == "" {
		options.Auth.Username, options.Auth.Password = c.User, c.Password
	}
	options.Protocol = ch.Native
	if options.DialTimeout == 0 {
		options.DialTimeout = 5 * time.Second
	}
	if options.Compression == nil {
		// A third of the bytes for a fifth more of the client's time, most of which is not spent here.
		options.Compression = &ch.Compression{Method: ch.CompressionLZ4}
	}
	options.ClientInfo.Products = append(options.ClientInfo.Products, struct{ Name, Version string }{"postrider", process.Version()})
	return options, nil
}

// parseDSN reads a DSN without showing its password in an error.
func (c Config) parseDSN() (*ch.Options, error) {
	parsed, err := url.Parse(c.Address)
	if err != nil {
		return nil, fmt.Errorf("reading ClickHouse DSN: not a URL")
	}
	switch parsed.Scheme {
	case "clickhouse", "tcp", "native":
	default:
		return nil, fmt.Errorf("reading ClickHouse DSN: scheme %q: only the native protocol is spoken (clickhouse://)", parsed.Scheme)
	}
	options, err := ch.ParseDSN(c.Address)
	if err != nil {
		return nil, fmt.Errorf("reading ClickHouse DSN of %s: %w", parsed.Host, err)
	}
	if name := strings.TrimPrefix(parsed.Path, "/"); name != "" && !databaseName().MatchString(name) {
		return nil, fmt.Errorf("reading ClickHouse DSN of %s: database %q: letters, digits and underscores only", parsed.Host, name)
	}
	return options, nil
}

// DatabaseName is the database of the audit's tables: the DSN's, else Database.
func (c Config) DatabaseName() string {
	if strings.Contains(c.Address, "://") {
		if parsed, err := url.Parse(c.Address); err == nil {
			if name := strings.TrimPrefix(parsed.Path, "/"); name != "" {
				return name
			}
		}
	}
	if c.Database == "" {
		return DefaultDatabase
	}
	return c.Database
}

// Open returns a pool of connections. It does not connect yet.
func (c Config) Open() (driver.Conn, error) {
	options, err := c.Options()
	if err != nil {
		return nil, err
	}
	conn, err := ch.Open(options)
	if err != nil {
		return nil, fmt.Errorf("opening ClickHouse at %s: %w", strings.Join(options.Addr, ","), err)
	}
	return conn, nil
}
