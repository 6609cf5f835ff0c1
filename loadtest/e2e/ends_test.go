package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// TestEveryDeliveryEnds is P5: a failing target is tried on schedule, the sender's
// or the webhook's own, then the delivery is a dead letter; a deleted webhook's is
// discarded.
func TestEveryDeliveryEnds(t *testing.T) {
	s := start(t, "--retry-schedule=1s,2s")
	// A receiver of its own: its first connection is a fresh one, and so not tried
	// again within the attempt as a stale one is.
	dropping := receiver.Start(t, receiver.Config{})
	dropping.Answers("/", receiver.Answer{Drop: true}, receiver.Status(200))
	ok := receiver.Status(200)
	const (
		deadOf   = "1\t%[1]d\tretry\n2\t%[1]d\tretry\n3\t%[1]d\tdead"
		secondOf = "1\t%d\tretry\n2\t200\tdelivered"
	)
	for _, c := range []ending{
		{name: "500", answers: []receiver.Answer{receiver.Status(500)}, outcomes: fmt.Sprintf(deadOf, 500), reason: "status"},
		{name: "404", answers: []receiver.Answer{receiver.Status(404)}, outcomes: fmt.Sprintf(deadOf, 404), reason: "status"},
		{name: "refused", url: "http://" + pipeline.FreeAddr(t) + "/", outcomes: fmt.Sprintf(deadOf, 0), reason: "connect_refused"},
		{
			name: "hangs", settings: `,"timeout_ms":1000,"retry_schedule":["1s","2s","3s"]`,
			answers: []receiver.Answer{{Hang: true}}, outcomes: "1\t0\tretry\n2\t0\tretry\n3\t0\tretry\n4\t0\tdead", reason: "timeout",
		},
		{name: "201", answers: []receiver.Answer{receiver.Status(201), ok}, outcomes: fmt.Sprintf(secondOf, 201)},
		{name: "hangs once", answers: []receiver.Answer{{Hang: true}, ok}, outcomes: fmt.Sprintf(secondOf, 0)},
		{name: "dropped", url: dropping.URL("/"), outcomes: fmt.Sprintf(secondOf, 0)},
		{
			name:     "recovers",
			answers:  []receiver.Answer{receiver.Status(503), receiver.Status(301), ok},
			outcomes: "1\t503\tretry\n2\t301\tretry\n3\t200\tdelivered",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s.checkEnding(t, c)
		})
	}
	t.Run("delete stops retries", func(t *testing.T) {
		t.Parallel()
		s.checkDeleted(t)
	})
}

// ending is how a target answers, and what becomes of a delivery to it.
type ending struct {
	name     string
	url      string // empty: the system's receiver, with answers
	settings string // of the webhook, as further JSON
	answers  []receiver.Answer
	outcomes string // attempt, status and result, a line each
	reason   string // of the last outcome and the dead letter; empty: there is none
}

func (s *system) checkEnding(t *testing.T, c ending) {
	t.Helper()
	url := c.url
	if url == "" {
		path := "/" + strings.ReplaceAll(c.name, " ", "-")
		url = s.receiver.URL(path)
		s.receiver.Answers(path, c.answers...)
	}
	hook := s.want(t, http.StatusCreated, http.MethodPost, "/webhook-events",
		fmt.Sprintf(`{"organization":%q,"active":true,"url":%q,"events":"*"%s}`, c.name, url, c.settings)).field(t, "id")
	s.post(t, fmt.Sprintf(`{"event":"a.b","organization":%q}`, c.name))
	s.waitQuery(t, `SELECT attempt, status_code, result FROM postrider.outcomes WHERE webhook_id = '`+hook+`' ORDER BY attempt`, c.outcomes)
	s.waitQuery(t, `SELECT state, attempts FROM postrider.deliveries WHERE webhook_id = '`+hook+`'`,
		last(c.outcomes, 2)+"\t"+last(c.outcomes, 0))
	// Never early: an attempt starts no sooner than its delay after the one before.
	early := s.query(t, `SELECT count() FROM (SELECT started_at, leadInFrame(started_at) OVER
		(ORDER BY attempt ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS next, attempt FROM postrider.outcomes WHERE webhook_id = '`+hook+`')
		WHERE next > 0 AND toUnixTimestamp64Milli(next) < toUnixTimestamp64Milli(started_at) + 1000 * attempt - 1`)
	if early != "0" {
		t.Errorf("%s retries came early", early)
	}
	s.checkDeadLetter(t, hook, c)
}

// checkDeadLetter finds the delivery among the dead letters, once, with its reason
// and attempts, or not at all.
func (s *system) checkDeadLetter(t *testing.T, hook string, c ending) {
	t.Helper()
	var letters []string
	for _, r := range s.readAll(t, s.topics.DeadLetters) {
		d, err := schemas.DecodeDelivery(r, [16]byte{})
		if err != nil {
			t.Fatal(err)
		}
		if d.WebhookID == hook {
			letters = append(letters, fmt.Sprintf("%s after %d attempts", d.Reason, d.Attempt))
		}
	}
	var want []string
	if c.reason != "" {
		want = []string{c.reason + " after " + last(c.outcomes, 0) + " attempts"}
		s.waitQuery(t, `SELECT reason FROM postrider.outcomes WHERE webhook_id = '`+hook+`' AND result = 'dead'`, c.reason)
	}
	if !slices.Equal(letters, want) {
		t.Errorf("dead letters are %q, want %q", letters, want)
	}
}

func (s *system) checkDeleted(t *testing.T) {
	t.Helper()
	s.receiver.Answers("/deleted", receiver.Status(500))
	hook := s.subscribe(t, "deleted", "", "/deleted", "*")
	s.post(t, `{"event":"a.b","organization":"deleted"}`)
	s.receiver.WaitFor(t, "/deleted", 1, soon)
	s.want(t, http.StatusNoContent, http.MethodDelete, "/v1/webhooks/"+hook.ID, "")
	seen := s.receiver.Count("/deleted")
	s.waitQuery(t, `SELECT result, reason FROM postrider.outcomes WHERE webhook_id = '`+hook.ID+`' ORDER BY started_at DESC LIMIT 1`,
		"discarded\twebhook_deleted")
	if n := s.receiver.Count("/deleted"); n > seen {
		t.Errorf("%d requests came after the deletion was acknowledged", n-seen)
	}
}

// last gives a field of the last line.
func last(lines string, field int) string {
	return strings.Split(lines[strings.LastIndexByte(lines, '\n')+1:], "\t")[field]
}

// TestIsolation is P6: a target that hangs delays only itself, and not the one
// whose deliveries stand between its own, in the same partition.
func TestIsolation(t *testing.T) {
	s := start(t)
	s.receiver.Answers("/hangs", receiver.Answer{Hang: true})
	slow := s.subscribe(t, "slow", "", "/hangs", "*")
	// An attempt that ends makes room: none does before the test is over.
	s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+slow.ID, `{"timeout_ms":30000}`)
	partition := partitionOf(s.topics.Deliveries, slow.ID)
	s.subscribeIn(t, partition, "quick", "/answers")
	const n = 2000 // more than any pool of workers holds
	var batch []string
	for i := range n {
		batch = append(batch, fmt.Sprintf(`{"event":"a.b","organization":"slow","id":"slow-%d"}`, i))
	}
	for len(batch) > 0 {
		s.want(t, http.StatusAccepted, http.MethodPost, "/v1/events", "["+strings.Join(batch[:1000], ",")+"]")
		batch = batch[1000:]
	}
	s.receiver.WaitFor(t, "/hangs", 1, soon)
	for i := range 200 {
		s.post(t, fmt.Sprintf(`{"event":"a.b","organization":"quick","id":"quick-%d"}`, i))
	}
	s.receiver.WaitFor(t, "/answers", 200, soon)
	s.receiver.Answers("/hangs", receiver.Status(200))
	s.receiver.Release("/hangs")
	s.waitQuery(t, `SELECT uniqExact(delivery_id) FROM postrider.outcomes WHERE organization = 'quick' AND result = 'delivered'`, "200")
	for _, r := range s.readAll(t, s.topics.Deliveries) {
		if int(r.Partition) != partition {
			t.Fatalf("a delivery stands in partition %d, want all in %d", r.Partition, partition)
		}
	}
}

// subscribeIn creates webhooks for all events until the deliveries of one stand in
// a partition, and deletes the others.
func (s *system) subscribeIn(t *testing.T, partition int, organization, path string) webhook {
	t.Helper()
	for {
		w := s.subscribe(t, organization, "", path, "*")
		if partitionOf(s.topics.Deliveries, w.ID) == partition {
			return w
		}
		s.want(t, http.StatusNoContent, http.MethodDelete, "/v1/webhooks/"+w.ID, "")
	}
}

// partitionOf is where a record with a key goes.
func partitionOf(topic, key string) int {
	return kafka.Partitioner().ForTopic(topic).Partition(&kgo.Record{Key: []byte(key)}, partitions)
}
