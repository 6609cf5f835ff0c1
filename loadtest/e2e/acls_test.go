package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// TestLeastPrivilege has everything run on a Kafka where each program is a user of its
// own, who may do what `postrider topics acls` gives its role, and no more.
func TestLeastPrivilege(t *testing.T) {
	g := startGuarded(t)
	g.command(t, kafka.RoleAdmin, "topics", "create", "--events-partitions=2", "--deliveries-partitions=2")
	g.command(t, kafka.RoleAdmin, "topics", "check")
	g.launch(t)

	pipeline.Wait(t, soon, "the first write, for which a broker has much to make", func() error {
		if a := g.call(t, http.MethodPost, "/v1/keys", `{"organization":"acme","name":"k","scopes":["events:write"]}`); a.Status != http.StatusCreated {
			return fmt.Errorf("making a key: %d %s", a.Status, a.Body)
		}
		return nil
	})
	g.receiver.Answers("/dies", receiver.Status(http.StatusInternalServerError))
	good := g.subscribe(t, "acme", "", "/good", "labs")
	dies := g.subscribe(t, "acme", "", "/dies", "labs")
	held := g.subscribe(t, "acme", "", "/held", "labs")
	g.subscribe(t, "acme", "", "/gone", "labs")
	g.receiver.Answers("/gone", receiver.Status(http.StatusGone)) // the sender disables it
	g.want(t, http.StatusOK, http.MethodPost, "/v1/webhooks/"+held.ID+"/pause", "")
	g.post(t, `{"event":"labs.created","organization":"acme"}`)
	g.produceInTransaction(t)
	g.want(t, http.StatusAccepted, http.MethodPost, "/webhook-events", fmt.Sprintf(`{"webhook":%q,"event":"ping"}`, good.ID))
	g.receiver.WaitFor(t, "/good", 3, soon)
	g.waitQuery(t, `SELECT count() FROM postrider.deliveries WHERE state = 'dead' AND webhook_id = '`+dies.ID+`'`, "2")
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
