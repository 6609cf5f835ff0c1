package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postrider/postrider/ingest"
	"github.com/postrider/postrider/router"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender"
	"github.com/postrider/postrider/sender/retry"
)

// instance names the three services: their transactional ids are the same at every start.
const instance = "standalone"

// minAdminKey is ingest's: 32 characters of base64 are 192 bits.
const minAdminKey = 32

// config is what the operator of a standalone may choose.
type config struct {
	data        string
	listen      string
	adminListen string
	kafkaListen string
	// kafka has no brokers where the embedded one is used.
	kafka                            kafka.Config
	clickhouseHTTP, clickhouseNative string
	clickhouse                       string // empty: the embedded one
	adminKey                         string // empty: the one in the folder
	allowTargets                     []string
	retrySchedule                    []time.Duration
	startAt                          kafka.StartAt
	logFormat                        string
}

// Register implements process.Registrar.
func (c *config) Register(s *process.Settings) {
	s.String(&c.data, "data", "./data", "folder of everything kept")
	s.Address(&c.listen, "listen", "127.0.0.1:8080", "where REST is served")
	s.Address(&c.adminListen, "admin-listen", "127.0.0.1:8081", "where /livez, /readyz and /metrics are served")
	s.Address(&c.kafkaListen, "kafka-listen", "127.0.0.1:9092", "where the embedded Kafka listens, for producers")
	s.Strings(&c.kafka.Brokers, "brokers", nil, "brokers of a real Kafka, each host:port, to use instead of the embedded one")
	s.Address(&c.clickhouseHTTP, "clickhouse-http-listen", "127.0.0.1:8123", "where the embedded ClickHouse listens for HTTP; it has no access control, so only a loopback address")
	s.Address(&c.clickhouseNative, "clickhouse-native-listen", "127.0.0.1:9000", "where it listens for its native protocol, on the same host")
	s.Secret(&c.clickhouse, "clickhouse", "", "another ClickHouse to use instead of the embedded one: host:port of its native protocol, or clickhouse://user:password@host:port/database?secure=true")
	s.Secret(&c.adminKey, "admin-key", "", "API key with every scope, at least 32 characters (@FILE reads it from a file); made at first start and kept in the folder if empty")
	s.Strings(&c.allowTargets, "allow-targets", nil, "CIDRs of private or loopback addresses, and names, that webhooks may call; plain http is accepted only there")
	s.Durations(&c.retrySchedule, "retry-schedule", retry.DefaultSchedule(), "delays, each after the attempt before; the first attempt is at once and not in it")
	s.String(&c.logFormat, "log-format", "text", "form of the log on standard error: json or text")
	c.kafka.Register(s)
	c.startAt.Register(s)
	s.Required("data", "listen", "admin-listen")
	s.Check(func() error { return c.check(s) })
	s.Check(func() error { return c.checkAddresses(s) })
	s.Check(func() error { return checkFolder(s, c.data) })
}

func (c *config) check(s *process.Settings) error {
	var problems []error
	if n := utf8.RuneCountInString(c.adminKey); n > 0 && n < minAdminKey {
		problems = append(problems, s.Invalid("admin-key", "at least 32 characters, or empty"))
	}
	if _, err := schemas.ParseTargetPolicy(c.allowTargets); err != nil {
		problems = append(problems, s.Invalid("allow-targets", err.Error()))
	}
	if err := retry.Schedule(c.retrySchedule).Check(); err != nil {
		problems = append(problems, s.Invalid("retry-schedule", "delays from 1ms to 168h each, at most 50"))
	}
	if c.embeddedKafka() && c.kafka.TLS {
		problems = append(problems, s.Invalid("kafka-tls", "false unless --brokers is set: the embedded Kafka has no TLS"))
	}
	if c.embeddedKafka() && c.kafka.SASLUser != "" {
		problems = append(problems, s.Invalid("kafka-sasl-user", "empty unless --brokers is set: the embedded Kafka has no users"))
	}
	if c.clickhouse != "" {
		if _, err := c.clickhouseConfig("").Options(); err != nil {
			problems = append(problems, s.Invalid("clickhouse", "host:port or clickhouse://user:password@host:port/database?secure=true"))
		}
	}
	return errors.Join(problems...)
}

// checkAddresses holds what is known of the listeners before they listen.
func (c *config) checkAddresses(s *process.Settings) error {
	var problems []error
	names := []string{"listen", "admin-listen"}
	addresses := []string{c.listen, c.adminListen}
	if c.embeddedKafka() {
		names, addresses = append(names, "kafka-listen"), append(addresses, c.kafkaListen)
	}
	if c.embeddedClickHouse() {
		names = append(names, "clickhouse-http-listen", "clickhouse-native-listen")
		addresses = append(addresses, c.clickhouseHTTP, c.clickhouseNative)
		httpAddr, httpErr := netip.ParseAddrPort(c.clickhouseHTTP)
		native, nativeErr := netip.ParseAddrPort(c.clickhouseNative)
		if httpErr != nil || !httpAddr.Addr().IsLoopback() {
			problems = append(problems, s.Invalid("clickhouse-http-listen", "a loopback address with a port, such as 127.0.0.1:8123: this ClickHouse has no access control"))
		}
		if nativeErr != nil || !native.Addr().IsLoopback() || httpErr == nil && native.Addr() != httpAddr.Addr() {
			problems = append(problems, s.Invalid("clickhouse-native-listen", "a loopback address with a port, of the same host as --clickhouse-http-listen"))
		}
	}
	seen := make(map[string]string)
	for i, address := range addresses {
		if first, twice := seen[address]; twice && !strings.HasSuffix(address, ":0") {
			problems = append(problems, s.Invalid(names[i], "another address than --"+first+" has"))
		}
		seen[address] = names[i]
	}
	return errors.Join(problems...)
}

func (c *config) embeddedKafka() bool      { return len(c.kafka.Brokers) == 0 }
func (c *config) embeddedClickHouse() bool { return c.clickhouse == "" }

// clickhouseConfig is how the audit finds ClickHouse; embedded is the address of the embedded one.
func (c *config) clickhouseConfig(embedded string) clickhouse.Config {
	address := c.clickhouse
	if c.embeddedClickHouse() {
		address = embedded
	}
	return clickhouse.Config{Address: address, User: "default", Database: clickhouse.DefaultDatabase}
}

// services are the settings of the three, with their defaults where standalone has no flag.
type services struct {
	ingest ingest.Config
	router router.Config
	sender sender.Config
}

// services makes them; kafkaAddress and clickhouseAddress are of the embedded ones.
func (c *config) services(f *folder, kafkaAddress, clickhouseAddress string) services {
	var s services
	defaults := process.NewSettings(instance)
	s.ingest.Register(defaults)
	s.router.Register(defaults)
	s.sender.Register(defaults)

	brokers := c.kafkaConfig(kafkaAddress)
	s.ingest.Kafka, s.router.Kafka, s.sender.Kafka = brokers, brokers, brokers
	s.ingest.Instance, s.router.Instance, s.sender.Instance = instance, instance, instance
	s.ingest.KeyRing, s.sender.KeyRing = f.keyRing, f.keyRing
	s.ingest.AdminKey = f.adminKey
	s.ingest.AllowTargets, s.sender.AllowTargets = c.allowTargets, c.allowTargets
	s.sender.RetrySchedule = c.retrySchedule
	s.ingest.ClickHouse = c.clickhouseConfig(clickhouseAddress)
	s.sender.Audit.ClickHouse = s.ingest.ClickHouse
	s.router.StartAt, s.sender.StartAt = c.startAt, c.startAt
	return s
}

func (c *config) kafkaConfig(embedded string) kafka.Config {
	k := c.kafka
	if c.embeddedKafka() {
		k.Brokers = []string{embedded}
	}
	return k
}

func (c *config) kafkaDir() string      { return filepath.Join(c.data, "kafka") }
func (c *config) clickhouseDir() string { return filepath.Join(c.data, "clickhouse") }

// checkFolder tells early, before any port is found to be taken, that another standalone has the folder.
func checkFolder(s *process.Settings, data string) error {
	lock, err := lockFolder(data, false)
	if errors.Is(err, errFolderInUse) {
		return s.Invalid("data", "a folder that no other process uses: another standalone runs on it")
	}
	if err != nil {
		return s.Invalid("data", fmt.Sprintf("a folder that can be used: %v", err))
	}
	if lock == nil {
		return nil
	}
	return lock.Close() //nolint:wrapcheck // never happens to a file not written to
}
