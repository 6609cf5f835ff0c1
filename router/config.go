package router

import (
	"os"
	"regexp"
	"strings"

	"github.com/postrider/postrider/router/join"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

// maxSessions is more than partitions of events would keep busy on any machine.
const maxSessions = 64

// Config says how the router works.
type Config struct {
	Kafka    kafka.Config
	Instance string
	// Sessions is how many clients, each with partitions of its own, work side by side.
	Sessions int
	// DedupMemory bounds what the windows of event ids take together, in bytes.
	DedupMemory int64
	// StartAt is where a group begins that has no committed offset.
	StartAt kafka.StartAt
}

// Register adds the settings of the router.
func (c *Config) Register(s *process.Settings) {
	c.Kafka.Register(s)
	s.String(&c.Instance, "instance", hostname(), "name of this process, stable over restarts and no other's")
	s.Int(&c.Sessions, "sessions", 1, "Kafka clients that route side by side, each its own partitions of events")
	s.Bytes(&c.DedupMemory, "dedup-memory", "256MiB", "memory for the ids of events seen, over all partitions")
	c.StartAt.Register(s)
	s.Required("brokers")
	process.Between(s, &c.Sessions, "sessions", 1, maxSessions)
	process.Between(s, &c.DedupMemory, "dedup-memory", 1<<20, 1<<40)
	s.Check(func() error {
		// It becomes part of group instance ids, for which Kafka allows what it allows in a topic's name.
		if !regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`).MatchString(c.Instance) {
			return s.Invalid("instance", "1 to 100 of the characters A-Z a-z 0-9 . _ -")
		}
		return nil
	})
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "router"
	}
	return strings.ToLower(name)
}

func (c *Config) join() join.Config {
	return join.Config{
		Kafka: c.Kafka, Instance: c.Instance, Sessions: c.Sessions, DedupMemory: c.DedupMemory,
		MaxEvents: join.MaxEvents, MaxRecords: join.MaxRecords, MaxBytes: join.MaxBytes,
	}
}
