package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaVersion is the release of Apache Kafka that tests run.
const kafkaVersion = "4.3.0"

// kafkaPOM lists what to copy: the broker, its console tools, and something that
// prints what they log.
const kafkaPOM = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>postrider</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>` + kafkaVersion + `</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>` + kafkaVersion + `</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
`

// Kafka is a cluster of Apache Kafka brokers.
type Kafka struct {
	Brokers []*Broker
}

// Broker is one broker, which is a controller too.
type Broker struct {
	*Process
	// Addr is where clients connect, host:port. It stays over restarts.
	Addr string
	// SASLAddr is where they have to say who they are; empty where there are no users.
	SASLAddr string
}

// SharedKafka is the one-broker cluster of this test binary, and a topic prefix of
// the test's own. It must not be killed.
func SharedKafka(t testing.TB) (k *Kafka, topicPrefix string) {
	t.Helper()
	s := the(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kafka == nil {
		s.kafka = startKafka(t, filepath.Join(s.dir, "kafka"), 1, false, nil)
	}
	return s.kafka, unique(t) + "."
}

// StartKafka starts a cluster of the test's own, with one broker or three: three
// have replication factor 3 and min ISR 2 throughout. Settings are lines of
// server.properties, and come last. It blocks until all brokers have registered.
func StartKafka(t testing.TB, brokers int, settings ...string) *Kafka {
	t.Helper()
	return StartKafkaIn(t, t.TempDir(), brokers, settings...)
}

// StartKafkaIn is StartKafka with the cluster's data in a folder.
func StartKafkaIn(t testing.TB, dir string, brokers int, settings ...string) *Kafka {
	t.Helper()
	return startKafka(t, dir, brokers, false, settings).ownedBy(t)
}

// StartGuardedKafka starts a broker of the test's own that has users and ACLs. At
// SASLAddr it takes SCRAM only, and lets nobody do what no ACL allows; at Addr, where
// nobody is asked, everything is allowed, such as to make users.
func StartGuardedKafka(t testing.TB) *Kafka {
	t.Helper()
	return startKafka(t, t.TempDir(), 1, true, []string{
		"sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512",
		"listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS",
		"allow.everyone.if.no.acl.found=false",
		"transaction.max.timeout.ms=60000", "transaction.abort.timed.out.transaction.cleanup.interval.ms=1000", // as recommended
	}).ownedBy(t)
}

func (k *Kafka) ownedBy(t testing.TB) *Kafka {
	t.Helper()
	for _, b := range k.Brokers {
		b.ownedBy(t)
	}
	return k
}

// StartKfake starts franz-go's in-process Kafka on free ports and returns it with
// its addresses. It stands in for Kafka where the network and the broker's own timing do not matter.
func StartKfake(t testing.TB, opts ...kfake.Opt) (*kfake.Cluster, []string) {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatalf("starting kfake: %v", err)
	}
	t.Cleanup(cluster.Close)
	return cluster, cluster.ListenAddrs()
}

func startKafka(t testing.TB, dir string, brokers int, guarded bool, settings []string) *Kafka {
	t.Helper()
	if brokers != 1 && brokers != 3 {
		t.Fatalf("starting Kafka: %d brokers: want 1 or 3", brokers)
	}
	java, libs := kafkaLibs(t)
	k := &Kafka{}
	var controllers []string
	for i := range brokers {
		b := &Broker{Addr: FreeAddr(t)}
		if guarded {
			b.SASLAddr = FreeAddr(t)
		}
		k.Brokers = append(k.Brokers, b)
		controllers = append(controllers, fmt.Sprintf("%d@%s", i+1, FreeAddr(t)))
	}
	formatted := make(chan error, brokers)
	for i, b := range k.Brokers {
		home := filepath.Join(dir, fmt.Sprintf("broker-%d", i+1))
		properties := filepath.Join(home, "server.properties")
		text := brokerProperties(home, i+1, b, controllers, settings)
		if err := errors.Join(os.MkdirAll(home, 0o750), os.WriteFile(properties, []byte(text), 0o600)); err != nil {
			t.Fatalf("writing Kafka's settings: %v", err)
		}
		b.Process = newProcess(home, fmt.Sprintf("kafka-%d", i+1), java,
			append(append([]string{"-Xmx1g"}, javaOptions(libs, "kafka.Kafka")...), properties)...)
		go func() {
			formatted <- runTool(t.Context(), java, append(toolOptions(libs, "kafka.tools.StorageTool"), "format",
				"--cluster-id", "cG9zdHJpZGVyLXRlc3RzLQ", "--config", properties)...)
		}()
	}
	for range k.Brokers {
		if err := <-formatted; err != nil {
			t.Fatalf("formatting Kafka's storage: %v", err)
		}
	}
	for _, b := range k.Brokers {
		if err := b.start(the(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := wait(t.Context(), 2*time.Minute, k.Brokers[0].Done(), k.ready(t.Context(), inSync)); err != nil {
		for _, b := range k.Brokers {
			b.kill()
			t.Logf("%s wrote, at the end:\n%s", b.name, tail(b.log))
		}
		t.Fatalf("waiting for Kafka: not within two minutes: %v", err)
	}
	return k
}

// brokerProperties are the settings that a single machine needs, and none that
// would make the cluster kinder than Kafka's defaults; but for eight instead of
// fifty partitions of the internal topics, and no wait for a group's first members.
func brokerProperties(home string, id int, b *Broker, controllers, settings []string) string {
	replicas, minISR := 1, 1
	if len(controllers) == 3 {
		replicas, minISR = 3, 2
	}
	_, controller, _ := strings.Cut(controllers[id-1], "@")
	listeners := "PLAINTEXT://" + b.Addr
	if b.SASLAddr != "" {
		listeners += ",SASL://" + b.SASLAddr
	}
	lines := []string{
		"process.roles=broker,controller",
		fmt.Sprintf("node.id=%d", id),
		"controller.quorum.voters=" + strings.Join(controllers, ","),
		"controller.listener.names=CONTROLLER",
		"listeners=" + listeners + ",CONTROLLER://" + controller,
		"advertised.listeners=" + listeners,
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
		"log.dirs=" + filepath.Join(home, "data"),
		"auto.create.topics.enable=false",
		"group.initial.rebalance.delay.ms=0",
		"offsets.topic.num.partitions=8",
		"transaction.state.log.num.partitions=8",
		"share.coordinator.state.topic.num.partitions=8",
		fmt.Sprintf("default.replication.factor=%d", replicas),
		fmt.Sprintf("min.insync.replicas=%d", minISR),
		fmt.Sprintf("offsets.topic.replication.factor=%d", replicas),
		fmt.Sprintf("transaction.state.log.replication.factor=%d", replicas),
		fmt.Sprintf("transaction.state.log.min.isr=%d", minISR),
		fmt.Sprintf("share.coordinator.state.topic.replication.factor=%d", replicas),
		fmt.Sprintf("share.coordinator.state.topic.min.isr=%d", minISR),
	}
	return strings.Join(append(lines, settings...), "\n") + "\n"
}

// Addrs are the addresses of all brokers, for a client's seeds.
func (k *Kafka) Addrs() []string {
	addrs := make([]string, 0, len(k.Brokers))
	for _, b := range k.Brokers {
		addrs = append(addrs, b.Addr)
	}
	return addrs
}

// WaitReady waits until every broker is registered, such as after a restart, and
// every replica of every topic is in sync.
func (k *Kafka) WaitReady(t testing.TB, limit time.Duration) {
	t.Helper()
	Wait(t, limit, "Kafka", k.ready(t.Context(), inSync))
}

func inSync(p kadm.PartitionDetail) error {
	if len(p.ISR) != len(p.Replicas) {
		return fmt.Errorf("replicas of %s/%d in sync: %v of %v", p.Topic, p.Partition, p.ISR, p.Replicas)
	}
	return nil
}

// WaitLed waits until every broker is registered, and every partition has a leader:
// from then on clients can go on.
func (k *Kafka) WaitLed(t testing.TB, limit time.Duration) {
	t.Helper()
	Wait(t, limit, "leaders", k.ready(t.Context(), func(p kadm.PartitionDetail) error {
		if p.Leader < 0 {
			return fmt.Errorf("nobody leads %s/%d", p.Topic, p.Partition)
		}
		return nil
	}))
}

// ready asks the brokers about themselves, once all of them listen.
func (k *Kafka) ready(ctx context.Context, check func(kadm.PartitionDetail) error) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // a suspended broker takes connections
		defer cancel()
		for _, b := range k.Brokers {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.Addr)
			if err != nil {
				return fmt.Errorf("connecting to broker: %w", err)
			}
			_ = conn.Close()
		}
		cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addrs()...), kgo.RetryTimeout(time.Second), kgo.RequestRetries(0))
		if err != nil {
			return fmt.Errorf("making Kafka client: %w", err)
		}
		defer cl.Close()
		meta, err := kadm.NewClient(cl).Metadata(ctx)
		if err != nil {
			return fmt.Errorf("asking for brokers: %w", err)
		}
		if len(meta.Brokers) != len(k.Brokers) {
			return fmt.Errorf("registered brokers: got %d, want %d", len(meta.Brokers), len(k.Brokers))
		}
		meta.Topics.EachPartition(func(p kadm.PartitionDetail) {
			if err == nil {
				err = check(p)
			}
		})
		return err
	}
}

// KafkaTool is one of Kafka's own command-line programs by its Java class, such as
// org.apache.kafka.tools.ConsoleProducer. The caller runs it; it ends with the test, or after toolTime.
func KafkaTool(t testing.TB, class string, args ...string) *exec.Cmd {
	t.Helper()
	java, libs := kafkaLibs(t)
	ctx, cancel := context.WithTimeout(t.Context(), toolTime)
	t.Cleanup(cancel)
	return tool(ctx, java, append(toolOptions(libs, class), args...)...)
}

func javaOptions(libs, class string) []string {
	return []string{"-cp", filepath.Join(libs, "*"), "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", class}
}

// toolOptions are for programs that end within seconds: one compiler and one
// collector are less to start.
func toolOptions(libs, class string) []string {
	return append([]string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"}, javaOptions(libs, class)...)
}

// kafkaLibs is the path of java and of the folder with Kafka's jars.
func kafkaLibs(t testing.TB) (java, libs string) {
	t.Helper()
	java, err := exec.LookPath("java")
	if err != nil {
		t.Fatal("finding java: not on PATH: install a JDK, version 17 or newer, for Apache Kafka")
	}
	dir := cached(t, "kafka-"+kafkaVersion, func(ctx context.Context, dir string) error {
		mvn, err := exec.LookPath("mvn")
		if err != nil {
			return errors.New("finding mvn: not on PATH: install Maven, which fetches Apache Kafka")
		}
		pom := filepath.Join(dir, "pom.xml")
		if err := os.WriteFile(pom, []byte(kafkaPOM), 0o600); err != nil {
			return fmt.Errorf("writing pom.xml: %w", err)
		}
		return runTool(ctx, mvn, "--batch-mode", "--quiet", "--file", pom,
			"dependency:copy-dependencies", "-DoutputDirectory="+filepath.Join(dir, "libs"))
	})
	return java, filepath.Join(dir, "libs")
}
