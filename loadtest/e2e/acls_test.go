package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
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

// TestLeastPrivilege has everything run on a Kafka where each program is a user of its
// own, who may do what `postrider topics acls` gives its role, and no more.
func TestLeastPrivilege(t *testing.T) {
	g := startGuarded(t)
	g.command(t, kafka.RoleAdmin, "topics", "create", "--events-partitions=2", "--deliveries-partitions=2")
	g.command(t, kafka.RoleAdmin, "topics", "check")
	g.launch(t)

	g.receiver.Answers("/dies", receiver.Status(http.StatusInternalServerError))
	good := g.subscribe(t, "acme", "", "/good", "labs")
	g.subscribe(t, "acme", "", "/dies", "labs")
	held := g.subscribe(t, "acme", "", "/held", "labs")
	g.subscribe(t, "acme", "", "/gone", "labs")
	g.receiver.Answers("/gone", receiver.Status(http.StatusGone)) // the sender disables it
	g.want(t, http.StatusOK, http.MethodPost, "/v1/webhooks/"+held.ID+"/pause", "")
	g.want(t, http.StatusCreated, http.MethodPost, "/v1/keys", `{"organization":"acme","name":"k","scopes":["events:write"]}`)
	g.post(t, `{"event":"labs.created","organization":"acme"}`)
	g.produceInTransaction(t)
	g.want(t, http.StatusAccepted, http.MethodPost, "/webhook-events", fmt.Sprintf(`{"webhook":%q,"event":"ping"}`, good.ID))
	g.receiver.WaitFor(t, "/good", 3, soon)
	g.waitQuery(t, `SELECT count() FROM postrider.deliveries WHERE state = 'dead'`, "3") // two died, one was answered 410
	g.waitQuery(t, `SELECT count() FROM postrider.changes WHERE action = 'disabled'`, "1")

	// What a process that has died leaves is cleared away by the next of its name.
	g.router.Kill9(t)
	g.sender.Kill9(t)
	g.router.Restart(t)
	g.sender.Restart(t)
	g.want(t, http.StatusOK, http.MethodPost, "/v1/webhooks/"+held.ID+"/resume", "")
	g.post(t, `{"event":"labs.removed","organization":"acme"}`)
	g.receiver.WaitFor(t, "/good", 4, soon)
	g.receiver.WaitFor(t, "/held", 3, soon)
	g.waitQuery(t, `SELECT count() FROM postrider.deliveries WHERE state IN ('pending', 'retry', 'held')`, "0")
	g.command(t, kafka.RoleVerify, "verify", "--clickhouse="+g.ch.Native, "--clickhouse-database="+g.ch.Database)
	g.readOutcomes(t)
	g.refused(t)
	for _, service := range []*pipeline.Service{g.ingest, g.router, g.sender} {
		if out := strings.ToLower(service.Output(t)); strings.Contains(out, "authoriz") {
			t.Errorf("something was refused that it asked for:\n%s", out)
		}
	}
}

// produceInTransaction writes an event as a producer does that has transactions.
func (g *guarded) produceInTransaction(t *testing.T) {
	t.Helper()
	cl := g.clientOf(t, kafka.RoleProducer, kgo.TransactionalID(ownTxns+"1"))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: g.topics.Events, Key: []byte("acme"), Value: []byte(`{"event":"labs.created","organization":"acme"}`)}).FirstErr()
	if err = errors.Join(err, cl.EndTransaction(t.Context(), kgo.TryCommit)); err != nil {
		t.Fatalf("producing as a producer: %v", err)
	}
}

// readOutcomes reads what is public in the reader's own group.
func (g *guarded) readOutcomes(t *testing.T) {
	t.Helper()
	cl := g.clientOf(t, kafka.RoleReader, kgo.ConsumerGroup(ownGroup), kgo.ConsumeTopics(g.topics.Outcomes))
	fetches := cl.PollRecords(t.Context(), 1)
	if err := errors.Join(fetches.Err(), cl.CommitUncommittedOffsets(t.Context())); err != nil {
		t.Fatalf("reading outcomes as a reader: %v", err)
	}
	for _, r := range fetches.Records() {
		if _, err := schemas.DecodeOutcome(r); err != nil {
			t.Error(err)
		}
	}
}

// refused tries what each role must not do.
func (g *guarded) refused(t *testing.T) {
	t.Helper()
	topics := g.topics
	write := map[kafka.Role][]string{
		kafka.RoleProducer: {topics.Deliveries, topics.Webhooks, topics.Outcomes, topics.Keys},
		kafka.RoleIngest:   {topics.Outcomes, topics.Routed, topics.Retry[0]},
		kafka.RoleRouter:   {topics.Events, topics.Webhooks, topics.Outcomes},
		kafka.RoleSender:   {topics.Deliveries, topics.Webhooks, topics.Keys, topics.Routed},
		kafka.RoleVerify:   {topics.Events, topics.Outcomes},
		kafka.RoleAdmin:    {topics.Events, topics.Webhooks},
		kafka.RoleReader:   {topics.Events, topics.Outcomes},
		"":                 {topics.Events},
	}
	for role, names := range write {
		for _, topic := range names {
			// An idempotent producer without any topic to write to is refused before it names one.
			err := g.clientOf(t, role, kgo.DisableIdempotentWrite()).ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("{}")}).FirstErr()
			if !errors.Is(err, kerr.TopicAuthorizationFailed) {
				t.Errorf("%q writes to %s: got %v, want TOPIC_AUTHORIZATION_FAILED", role, topic, err)
			}
		}
	}
	read := map[kafka.Role][]string{
		kafka.RoleProducer: {topics.Events, topics.Outcomes},
		kafka.RoleIngest:   {topics.Deliveries, topics.Events, topics.Outcomes},
		kafka.RoleRouter:   {topics.Deliveries, topics.Outcomes, topics.Keys},
		kafka.RoleSender:   {topics.Keys, topics.DeadLetters},
		kafka.RoleVerify:   {topics.Webhooks, topics.Keys},
		kafka.RoleAdmin:    {topics.Webhooks, topics.Keys},
		kafka.RoleReader:   {topics.Deliveries, topics.Events},
		"":                 {topics.Outcomes},
	}
	for role, names := range read {
		for _, topic := range names {
			cl := g.clientOf(t, role, kgo.ConsumeTopics(topic), kgo.KeepRetryableFetchErrors())
			if err := cl.PollRecords(t.Context(), 1).Err(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
				t.Errorf("%q reads %s: got %v, want TOPIC_AUTHORIZATION_FAILED", role, topic, err)
			}
		}
	}
	for role, id := range map[kafka.Role]string{
		kafka.RoleProducer: topicsOfGuard + "router.router-1.0", kafka.RoleIngest: topicsOfGuard + "sender.sender-1",
		kafka.RoleRouter: topicsOfGuard + "webhooks-writer", kafka.RoleSender: ownTxns + "1",
	} {
		if _, _, err := g.clientOf(t, role, kgo.TransactionalID(id)).ProducerID(t.Context()); !errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
			t.Errorf("%s takes the transactional id %s: got %v, want TRANSACTIONAL_ID_AUTHORIZATION_FAILED", role, id, err)
		}
	}
	cl := g.clientOf(t, kafka.RoleReader, kgo.ConsumerGroup(topics.AuditGroup), kgo.ConsumeTopics(topics.Outcomes))
	if err := cl.PollRecords(t.Context(), 1).Err(); !errors.Is(err, kerr.GroupAuthorizationFailed) {
		t.Errorf("a reader joins the audit's group: got %v, want GROUP_AUTHORIZATION_FAILED", err)
	}
}
