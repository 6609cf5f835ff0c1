package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// TestEveryDeliveryEnds is P5: a failing target is tried on schedule, then the
// delivery is a dead letter; a deleted webhook's is discarded.
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
		{"500", "", []receiver.Answer{receiver.Status(500)}, fmt.Sprintf(deadOf, 500)},
		{"404", "", []receiver.Answer{receiver.Status(404)}, fmt.Sprintf(deadOf, 404)},
		{"refused", "http://" + pipeline.FreeAddr(t) + "/", nil, fmt.Sprintf(deadOf, 0)},
		{"201", "", []receiver.Answer{receiver.Status(201), ok}, fmt.Sprintf(secondOf, 201)},
		{"timeout", "", []receiver.Answer{{Hang: true}, ok}, fmt.Sprintf(secondOf, 0)},
		{"dropped", dropping.URL("/"), nil, fmt.Sprintf(secondOf, 0)},
		{
			"recovers", "",
			[]receiver.Answer{receiver.Status(503), receiver.Status(301), ok},
			"1\t503\tretry\n2\t301\tretry\n3\t200\tdelivered",
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
	answers  []receiver.Answer
	outcomes string // attempt, status and result, a line each
}

func (s *system) checkEnding(t *testing.T, c ending) {
	t.Helper()
	url := c.url
	if url == "" {
		url = s.receiver.URL("/" + c.name)
		s.receiver.Answers("/"+c.name, c.answers...)
	}
	hook := s.want(t, http.StatusCreated, http.MethodPost, "/webhook-events",
		fmt.Sprintf(`{"organization":%q,"active":true,"url":%q,"events":"*"}`, c.name, url)).field(t, "id")
	s.post(t, fmt.Sprintf(`{"event":"a.b","organization":%q}`, c.name))
	s.waitQuery(t, `SELECT attempt, status_code, result FROM postrider.outcomes WHERE webhook_id = '`+hook+`' ORDER BY attempt`, c.outcomes)
	s.waitQuery(t, `SELECT state, attempts FROM postrider.deliveries WHERE webhook_id = '`+hook+`'`,
		last(c.outcomes, 2)+"\t"+last(c.outcomes, 0))
	// Never early: an attempt starts no sooner than its delay after the one before.
	early := s.query(t, `SELECT count() FROM (SELECT started_at, leadInFrame(started_at) OVER
		(ORDER BY attempt ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS next, attempt FROM postrider.outcomes WHERE webhook_id = '`+hook+`')
		WHERE next > 0 AND attempt < 3 AND toUnixTimestamp64Milli(next) < toUnixTimestamp64Milli(started_at) + 1000 * attempt - 1`)
	if early != "0" {
		t.Errorf("%s retries came early", early)
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

// TestIsolation is P6: a target that hangs delays only itself.
func TestIsolation(t *testing.T) {
	s := start(t)
	s.receiver.Answers("/hangs", receiver.Answer{Hang: true})
	s.subscribe(t, "slow", "", "/hangs", "*")
	s.subscribe(t, "quick", "", "/answers", "*")
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
}
