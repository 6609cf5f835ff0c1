package sender

import (
	"errors"
	"os"
	"strings"
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/audit"
	"github.com/postrider/postrider/sender/retry"
)

const (
	defaultConcurrency = 32
	maxConcurrency     = 512 // connections to a host, of deliver

	defaultDisableAfter = 5 * 24 * time.Hour
)

// Config is what a sender needs to know. Register fills it from settings;
// whoever makes one itself may leave Concurrency, InFlight, Drain, DisableAfter
// and RetrySchedule zero for their defaults.
type Config struct {
	Kafka    kafka.Config
	Audit    audit.Config // its Kafka and Instance are set by Run
	Instance string
	StartAt  kafka.StartAt

	// KeyRing is the text of the ring that opens signing secrets.
	KeyRing string
	// AllowTargets are CIDRs and names that webhooks may call although they are not public.
	AllowTargets []string
	// RetrySchedule holds the delays between attempts.
	RetrySchedule []time.Duration

	// Concurrency is how many attempts of one webhook may run at once.
	Concurrency int
	// InFlight bounds the memory of deliveries that are started and not committed.
	InFlight int64
	// DisableAfter is how long all attempts of a webhook have failed when it is disabled.
	DisableAfter time.Duration
	// Drain is how long a stopping sender waits for what it has started.
	Drain time.Duration
}

// Register adds the sender's settings.
func (c *Config) Register(s *process.Settings) {
	c.Kafka.Register(s)
	c.Audit.Register(s)
	c.StartAt.Register(s)
	host, err := os.Hostname()
	if err != nil {
		host = "sender"
	}
	s.String(&c.Instance, "instance", host, "name of this sender, the same over restarts and no other's: its transactional id")
	s.Durations(&c.RetrySchedule, "retry-schedule", retry.DefaultSchedule(),
		"delays between attempts, each after the attempt before; the first attempt is at once and not in it")
	s.Int(&c.Concurrency, "webhook-concurrency", defaultConcurrency, "how many attempts of one webhook may run at once")
	process.Between(s, &c.Concurrency, "webhook-concurrency", 1, maxConcurrency)
	s.Bytes(&c.InFlight, "in-flight", "64MiB", "memory for deliveries that are being attempted or committed")
	process.Between(s, &c.InFlight, "in-flight", 4<<20, 64<<30)
	s.Duration(&c.DisableAfter, "disable-after", defaultDisableAfter,
		"how long a webhook's attempts have all failed, twenty at least, when it is disabled")
	process.Between(s, &c.DisableAfter, "disable-after", time.Second, 365*24*time.Hour)
	s.Duration(&c.Drain, "drain", 20*time.Second, "how long a stopping sender waits for the attempts it has started")
	process.Between(s, &c.Drain, "drain", 0, 10*time.Minute)

	s.Secret(&c.KeyRing, "key-ring", "",
		"keys that open signing secrets: one <id>:<base64 of 32 bytes> a line (@FILE reads them from a file)")
	s.Strings(&c.AllowTargets, "allow-targets", nil,
		"CIDRs of private or loopback addresses, and names, that webhooks may call; plain http is accepted only there")
	s.Required("key-ring")
	s.CheckText(&c.KeyRing, "key-ring", schemas.CheckKeyRing)
	s.Check(func() error { return c.check(s) })
}

// check holds the rules that a setting's kind cannot say.
func (c *Config) check(s *process.Settings) error {
	var problems []error
	if _, err := schemas.ParseTargetPolicy(c.AllowTargets); err != nil {
		problems = append(problems, s.Invalid("allow-targets", err.Error()))
	}
	if err := retry.Schedule(c.RetrySchedule).Check(); err != nil {
		problems = append(problems, s.Invalid("retry-schedule", "delays from 1ms to 168h each, at most 50"))
	}
	if c.Instance == "" || len(c.Instance) > 100 || strings.Trim(c.Instance, instanceCharacters) != "" {
		problems = append(problems, s.Invalid("instance", "1 to 100 of the characters A-Z a-z 0-9 . _ -"))
	}
	return errors.Join(problems...)
}

const instanceCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

func (c *Config) setDefaults() {
	if c.RetrySchedule == nil {
		c.RetrySchedule = retry.DefaultSchedule()
	}
	if c.Concurrency == 0 {
		c.Concurrency = defaultConcurrency
	}
	if c.InFlight == 0 {
		c.InFlight = 64 << 20
	}
	if c.DisableAfter == 0 {
		c.DisableAfter = defaultDisableAfter
	}
	if c.Drain == 0 {
		c.Drain = 20 * time.Second
	}
	c.Audit.Kafka, c.Audit.Instance = c.Kafka, c.Instance
}
