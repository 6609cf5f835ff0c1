package ingest

import (
	"net"
	"os"
	"unicode/utf8"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

// minAdminKey is the least length of the admin key: 32 characters of base64 are 192 bits.
const minAdminKey = 32

// Config says where ingest listens, and whom and what it trusts.
type Config struct {
	Kafka kafka.Config
	// ClickHouse is where the audit is read.
	ClickHouse clickhouse.Config
	Instance   string
	Listen     string
	// KeyRing is the text of the ring that seals signing secrets.
	KeyRing string
	// AdminKey is the bootstrap key of postrider keys; empty: there is none.
	AdminKey string
	// KeyRateLimit bounds the requests of each API key that has no limit of its own, such as 100/second; empty: there is none.
	KeyRateLimit string
	// MaxWebhooks bounds the webhooks that an organization's own keys may make; 0: they may make any number.
	MaxWebhooks int
	// AllowTargets are CIDRs and names that webhooks may call although they are not public.
	AllowTargets []string

	// Listener is listened on instead of Listen, if set: for tests, and for who binds its ports first.
	Listener net.Listener
	// Audit is asked instead of ClickHouse, if set: for tests.
	Audit audit.Audit
}

// Register adds the settings of ingest.
func (c *Config) Register(s *process.Settings) {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "ingest"
	}
	c.Kafka.Register(s)
	c.ClickHouse.Register(s)
	s.String(&c.Instance, "instance", hostname, "name of this process, stable over restarts")
	s.Address(&c.Listen, "listen", "127.0.0.1:8080", "where REST is served")
	s.Secret(&c.KeyRing, "key-ring", "",
		"keys that seal signing secrets, the first for new ones: one <id>:<base64 of 32 bytes> a line (@FILE reads them from a file)")
	s.Secret(&c.AdminKey, "admin-key", "",
		"API key with every scope for all organizations, any text of at least 32 characters; none if empty (@FILE reads it from a file)")
	s.String(&c.KeyRateLimit, "key-rate-limit", "",
		"requests that an API key without a limit of its own may make here, such as 100/second or 600/minute; empty: any number. The admin key has no limit")
	s.Int(&c.MaxWebhooks, "max-webhooks", 0, "webhooks that an organization may have, as far as its own keys make them; 0: any number")
	s.Strings(&c.AllowTargets, "allow-targets", nil,
		"CIDRs of private or loopback addresses, and names, that webhooks may call; plain http is accepted only there")
	s.Required("key-ring")
	s.Check(func() error {
		if c.MaxWebhooks < 0 {
			return s.Invalid("max-webhooks", "0 or more")
		}
		return nil
	})
	s.CheckText(&c.KeyRateLimit, "key-rate-limit", func(text string) error {
		_, err := schemas.ParseRateLimit(text)
		return err
	})
	s.CheckText(&c.KeyRing, "key-ring", schemas.CheckKeyRing)
	s.Check(func() error {
		if n := utf8.RuneCountInString(c.AdminKey); n > 0 && n < minAdminKey {
			return s.Invalid("admin-key", "at least 32 characters, or empty")
		}
		return nil
	})
	s.Check(func() error {
		if _, err := schemas.ParseTargetPolicy(c.AllowTargets); err != nil {
			return s.Invalid("allow-targets", err.Error())
		}
		return nil
	})
}
