// Package kafka provides what every service needs to use Kafka the same way:
// a client's options, the creation and checking of topics, the first offsets
// of consumer groups, and a Follower that reads compacted topics whole and
// keeps on reading them. What records mean is left to package schemas, and
// consuming in groups and transactions to the services.
//
// A Follower runs two goroutines besides the one that calls Run, and ends them
// before Run returns. Nothing else here outlives its call.
package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

// maxDecompressedBatch bounds what a fetched batch may inflate to. A producer's
// batch holds at most a few records of 1 MiB; kgo's own bound of 1 GiB would
// let one hostile batch take a process's memory.
const maxDecompressedBatch = 64 << 20

// Config says how to reach Kafka and which topics are Postrider's.
type Config struct {
	Brokers     []string
	TopicPrefix string

	TLS     bool
	TLSCA   string // file of PEM certificates; empty for the system's
	TLSCert string // file of the client's certificate; empty for none
	TLSKey  string // file of its key

	SASLUser      string // empty for no SASL
	SASLPassword  string
	SASLMechanism string // one of Kafka's names; empty for PLAIN
}

// Mechanisms of SASL, by the names that Kafka has for them (sasl.mechanism).
const (
	mechanismPlain    = "PLAIN"
	mechanismSCRAM256 = "SCRAM-SHA-256"
	mechanismSCRAM512 = "SCRAM-SHA-512"
)

// Register adds the settings of a Kafka client. That brokers are given is left
// to NewClient, as standalone has a broker of its own.
func (c *Config) Register(s *process.Settings) {
	s.Strings(&c.Brokers, "brokers", []string{"127.0.0.1:9092"}, "Kafka brokers to start from, each host:port")
	s.String(&c.TopicPrefix, "topic-prefix", schemas.DefaultPrefix, "prefix of the names of all topics and consumer groups")
	s.Bool(&c.TLS, "kafka-tls", false, "speak TLS to the brokers")
	s.String(&c.TLSCA, "kafka-tls-ca", "", "file of the certificates (PEM) that may sign a broker's; the system's if empty")
	s.String(&c.TLSCert, "kafka-tls-cert", "", "file of the client's certificate (PEM)")
	s.String(&c.TLSKey, "kafka-tls-key", "", "file of the client's private key (PEM)")
	s.String(&c.SASLUser, "kafka-sasl-user", "", "user of SASL; no SASL if empty")
	s.Secret(&c.SASLPassword, "kafka-sasl-password", "", "password of SASL (@FILE reads it from a file)")
	s.String(&c.SASLMechanism, "kafka-sasl-mechanism", mechanismPlain, "mechanism of SASL: PLAIN (over TLS only, for the password is sent), SCRAM-SHA-256 or SCRAM-SHA-512")
	s.OneOf(&c.SASLMechanism, "kafka-sasl-mechanism", mechanismPlain, mechanismSCRAM256, mechanismSCRAM512)
	s.Check(func() error { return c.check(s) })
}

// check holds the rules that relate settings to each other.
func (c *Config) check(s *process.Settings) error {
	var problems []error
	if !regexp.MustCompile(`^[A-Za-z0-9._-]{0,200}$`).MatchString(c.TopicPrefix) {
		problems = append(problems, s.Invalid("topic-prefix", "at most 200 of the characters A-Z a-z 0-9 . _ -"))
	}
	for name, file := range map[string]string{"kafka-tls-ca": c.TLSCA, "kafka-tls-cert": c.TLSCert, "kafka-tls-key": c.TLSKey} {
		if file != "" && !c.TLS {
			problems = append(problems, s.Invalid(name, "empty unless --kafka-tls is set"))
		}
	}
	if c.TLSCert != "" && c.TLSKey == "" {
		problems = append(problems, s.Invalid("kafka-tls-key", "set where --kafka-tls-cert is"))
	}
	if c.TLSKey != "" && c.TLSCert == "" {
		problems = append(problems, s.Invalid("kafka-tls-cert", "set where --kafka-tls-key is"))
	}
	if (c.SASLUser == "") != (c.SASLPassword == "") {
		problems = append(problems, s.Invalid("kafka-sasl-user", "set together with --kafka-sasl-password"))
	}
	if len(problems) == 0 {
		if _, err := c.tlsConfig(); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// Topics returns the names of all topics under the configured prefix.
func (c Config) Topics() schemas.Topics {
	return schemas.NewTopics(c.TopicPrefix)
}

// NewClient returns a client with the options all of Postrider's clients share;
// opts come after them and so go before. It opens no connection: a broker that
// is away shows at the first request. The caller closes the client.
func (c Config) NewClient(clientID string, opts ...kgo.Opt) (*kgo.Client, error) {
	if len(c.Brokers) == 0 {
		return nil, errors.New("making Kafka client: --brokers is empty")
	}
	shared, err := c.options(clientID)
	if err != nil {
		return nil, fmt.Errorf("making Kafka client %q: %w", clientID, err)
	}
	cl, err := kgo.NewClient(append(shared, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("making Kafka client %q: %w", clientID, err)
	}
	return cl, nil
}

func (c Config) options(clientID string) ([]kgo.Opt, error) {
	events := c.Topics().Events
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(clientID),

		// A host that is gone answers nothing at all; with the default of 10 s one
		// dead seed alone would take the whole of the recovery time (I7).
		kgo.DialTimeout(3 * time.Second),

		// After a retriable error a producer waits for fresh metadata, which the
		// client asks for no more often than this (default 5 s).
		kgo.MetadataMinAge(250 * time.Millisecond),

		kgo.MaxDecompressBatchBytes(maxDecompressedBatch),

		// Without these two a consumer takes records of aborted transactions, and
		// one without a commit, or whose offset is gone, jumps to one minute ago.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),

		kgo.RecordPartitioner(Partitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),

		// About half the bytes at no cost to the broker, and at the least memory: an
		// lz4 writer holds 4 MiB a batch under way (the three services' peak was 309 MB
		// with it), and zstd takes twice the CPU for a third less.
		kgo.ProducerBatchCompression(kgo.SnappyCompression(), kgo.NoCompression()),

		// The topics' max.message.bytes: a batch is refused as a whole, and kgo
		// would otherwise refuse any record over 1,000,012 bytes itself.
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 {
			if topic == events {
				return schemas.MaxEventRecordBytes
			}
			return schemas.MaxRecordBytes
		}),
	}
	conf, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	if conf != nil {
		opts = append(opts, kgo.DialTLSConfig(conf))
	}
	if c.SASLUser != "" {
		mechanism, err := c.mechanism()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.SASL(mechanism))
	}
	return opts, nil
}

// mechanism is how the client says who it is.
func (c Config) mechanism() (sasl.Mechanism, error) {
	shared := scram.Auth{User: c.SASLUser, Pass: c.SASLPassword}
	switch c.SASLMechanism {
	case "", mechanismPlain:
		return plain.Auth{User: c.SASLUser, Pass: c.SASLPassword}.AsMechanism(), nil
	case mechanismSCRAM256:
		return shared.AsSha256Mechanism(), nil
	case mechanismSCRAM512:
		return shared.AsSha512Mechanism(), nil
	default:
		return nil, fmt.Errorf("making Kafka client: --kafka-sasl-mechanism is %q, allowed are %s, %s and %s",
			c.SASLMechanism, mechanismPlain, mechanismSCRAM256, mechanismSCRAM512)
	}
}

// tlsConfig reads the files; nil means no TLS.
func (c Config) tlsConfig() (*tls.Config, error) {
	if !c.TLS {
		return nil, nil //nolint:nilnil // no TLS is a configuration too
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLSCA != "" {
		pem, err := os.ReadFile(c.TLSCA)
		if err != nil {
			return nil, fmt.Errorf("reading --kafka-tls-ca: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading --kafka-tls-ca %q: no PEM certificate in it", c.TLSCA)
		}
	}
	if c.TLSCert != "" {
		pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("reading --kafka-tls-cert %q and --kafka-tls-key %q: %w", c.TLSCert, c.TLSKey, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// Partitioner puts records as the Java client does, by murmur2 of the key, so
// that copies of an event meet whoever writes them. In the topics whose records
// stand where their source stood (routed, retry tiers, held), a record keeps
// the partition its writer set.
func Partitioner() kgo.Partitioner {
	t := schemas.NewTopics("")
	return partitioner{byKey: kgo.StickyKeyPartitioner(nil), byHand: append([]string{t.Routed, t.Held}, t.Retry...)}
}

// Inflated is why a batch that inflates beyond maxDecompressedBatch is rejected, a *schemas.ValidationError.
func Inflated(bomb *kgo.ErrDecompressTooLarge) error {
	return schemas.Invalid(schemas.CodeTooLarge, "#",
		fmt.Sprintf("a batch of records to offset %d that inflates beyond all bounds", bomb.NextOffset-1))
}

// PartitionOf returns where Partitioner puts the records of a key, of so many partitions.
func PartitionOf(key string, partitions int) int32 {
	return int32(kgo.StickyKeyPartitioner(nil).ForTopic("").Partition(&kgo.Record{Key: []byte(key)}, partitions)) //nolint:gosec // below partitions
}

type partitioner struct {
	byKey  kgo.Partitioner
	byHand []string // names without their prefix
}

// ForTopic implements kgo.Partitioner.
func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	for _, name := range p.byHand {
		if strings.HasSuffix(topic, name) {
			return kgo.ManualPartitioner().ForTopic(topic)
		}
	}
	return p.byKey.ForTopic(topic)
}
