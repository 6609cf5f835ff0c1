package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
)

// guarded is a system on a Kafka with users and ACLs.
type guarded struct {
	*system
	sasl string // where users connect
}

const (
	userPassword  = "a password of Kafka"
	ownTxns       = "shop-"  // what the producer's transactional ids begin with
	ownGroup      = "ledger" // the reader's
	topicsOfGuard = "guarded."
)

// mechanism is by which a role's user says who it is: the verifier and the router by the other of the two.
func mechanism(role kafka.Role) string {
	if role == kafka.RoleRouter || role == kafka.RoleVerify {
		return "SCRAM-SHA-256"
	}
	return "SCRAM-SHA-512"
}

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	cluster := pipeline.StartGuardedKafka(t)
	g := &guarded{sasl: cluster.Brokers[0].SASLAddr, system: &system{
		kafka:    kafka.Config{Brokers: cluster.Addrs(), TopicPrefix: topicsOfGuard},
		topics:   schemas.NewTopics(topicsOfGuard),
		ch:       pipeline.SharedClickHouse(t),
		receiver: receiver.Start(t, receiver.Config{}),
	}}
	users := []kadm.UpsertSCRAM{{User: "stranger", Mechanism: kadm.ScramSha512, Iterations: 4096, Password: userPassword}}
	for _, role := range kafka.Roles() {
		u := kadm.UpsertSCRAM{User: "postrider-" + string(role), Mechanism: kadm.ScramSha512, Iterations: 4096, Password: userPassword}
		if mechanism(role) == "SCRAM-SHA-256" {
			u.Mechanism = kadm.ScramSha256
		}
		users = append(users, u)
	}
	altered, err := kadm.NewClient(g.client(t)).AlterUserSCRAMs(t.Context(), nil, users)
	if err = errors.Join(err, altered.Error()); err != nil {
		t.Fatalf("making users: %v", err)
	}
	g.giveACLs(t)
	audit := clickhouse.Config{Address: g.ch.Native, Database: g.ch.Database}
	conn, err := audit.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered
	if err := clickhouse.Migrate(t.Context(), conn, g.ch.Database); err != nil {
		t.Fatal(err)
	}
	return g
}

// giveACLs gives every role its grants: the router and the producer by the script that
// `postrider topics acls` prints, with Kafka's own tool; the others by Kafka's API, which
// takes no Java for each.
func (g *guarded) giveACLs(t *testing.T) {
	t.Helper()
	g.runACLScript(t)
	admin := kadm.NewClient(g.client(t))
	for _, role := range kafka.Roles() {
		if role == kafka.RoleRouter || role == kafka.RoleProducer {
			continue
		}
		grants, err := kafka.Grants(role, g.topics, ownGroup)
		if err != nil {
			t.Fatal(err)
		}
		for _, grant := range grants {
			results, err := admin.CreateACLs(t.Context(), aclsOf(t, "User:postrider-"+string(role), grant))
			for _, r := range results {
				err = errors.Join(err, r.Err)
			}
			if err != nil {
				t.Fatalf("giving %s %+v: %v", role, grant, err)
			}
		}
	}
}

func aclsOf(t *testing.T, principal string, grant kafka.Grant) *kadm.ACLBuilder {
	t.Helper()
	b := kadm.NewACLs().Allow(principal).AllowHosts().ResourcePatternType(kadm.ACLPatternLiteral)
	if grant.Prefixed {
		b.ResourcePatternType(kadm.ACLPatternPrefixed)
	}
	switch grant.Resource {
	case "topic":
		b.Topics(grant.Names...)
	case "group":
		b.Groups(grant.Names...)
	case "transactional-id":
		b.TransactionalIDs(grant.Names...)
	default:
		b.Clusters()
	}
	var operations []kadm.ACLOperation
	for _, name := range grant.Operations {
		operation, err := kmsg.ParseACLOperation(name)
		if err != nil {
			t.Fatal(err)
		}
		operations = append(operations, operation)
	}
	return b.Operations(operations...)
}

// runACLScript has sh run the script.
func (g *guarded) runACLScript(t *testing.T) {
	t.Helper()
	script, stderr, code := pipeline.Run(t, "postrider", "topics", "acls", "--topic-prefix="+topicsOfGuard,
		"--role=router,producer", "--transactional-id="+ownTxns)
	if code != 0 {
		t.Fatalf("printing ACLs: exit code %d: %s", code, stderr)
	}
	tool := pipeline.KafkaTool(t, "org.apache.kafka.tools.AclCommand")
	bin := t.TempDir()
	wrapper := "#!/bin/sh\nexec '" + strings.Join(tool.Args, "' '") + "' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "kafka-acls.sh"), []byte(wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	sh := exec.CommandContext(t.Context(), "sh", "-s", "--", "--bootstrap-server", g.kafka.Brokers[0])
	sh.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	sh.Stdin = strings.NewReader(script)
	runCommand(t, sh)
}

// as are the arguments of a program that is a role's user.
func (g *guarded) as(role kafka.Role, more ...string) []string {
	return append([]string{
		"--brokers=" + g.sasl, "--topic-prefix=" + topicsOfGuard,
		"--kafka-sasl-user=postrider-" + string(role), "--kafka-sasl-password=" + userPassword, "--kafka-sasl-mechanism=" + mechanism(role),
	}, more...)
}

// clientOf is a client of a role's user, which gives up at once.
func (g *guarded) clientOf(t *testing.T, role kafka.Role, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cfg := kafka.Config{
		Brokers: []string{g.sasl}, TopicPrefix: topicsOfGuard,
		SASLUser: "postrider-" + string(role), SASLPassword: userPassword, SASLMechanism: mechanism(role),
	}
	if role == "" {
		cfg.SASLUser = "stranger"
	}
	cl, err := cfg.NewClient("test", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// command runs one of `postrider` as a role's user.
func (g *guarded) command(t *testing.T, role kafka.Role, args ...string) string {
	t.Helper()
	out, stderr, code := pipeline.Run(t, "postrider", append(args, g.as(role)...)...)
	if code != 0 {
		t.Fatalf("postrider %v as %s: exit code %d: %s%s", args, role, code, out, stderr)
	}
	return out
}

// launch starts the services, each as its own user.
func (g *guarded) launch(t *testing.T) {
	t.Helper()
	clickhouse := []string{"--clickhouse=" + g.ch.Native, "--clickhouse-database=" + g.ch.Database, "--key-ring=" + keyRing, loopback, "--log-format=text"}
	g.ingest = pipeline.Start(t, "ingest", g.as(kafka.RoleIngest, append(clickhouse, "--instance=ingest-1", "--admin-key="+adminKey)...)...)
	g.router = pipeline.Start(t, "router", g.as(kafka.RoleRouter, "--instance=router-1", "--log-format=text")...)
	g.sender = pipeline.Start(t, "sender", g.as(kafka.RoleSender, append(clickhouse, "--instance=sender-1", "--retry-schedule=1s")...)...)
	for _, service := range []*pipeline.Service{g.ingest, g.router, g.sender} {
		service.WaitReady(t)
	}
}
