package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// TestCopies is P3 over clients: an event that comes by REST, from the Java client
// and from librdkafka, in whatever form, meets its copies in one partition and is
// routed once. With another payload its id is refused, whoever sends it.
func TestCopies(t *testing.T) {
	s := start(t)
	s.subscribe(t, "acme", "", "/copies", "labs")
	const ids = 3 // each begins with another client
	senders := []func(t *testing.T, id, payload string){
		func(t *testing.T, id, payload string) {
			t.Helper()
			s.post(t, fmt.Sprintf(`{"id":%q,"event":"labs.created","organization":"acme","payload":%s}`, id, payload))
		},
		func(t *testing.T, id, payload string) {
			t.Helper()
			produceJava(t, s, copyForm(id, payload))
		},
		func(t *testing.T, id, payload string) {
			t.Helper()
			producePython(t, s, copyForm(id, payload))
		},
	}
	for first := range ids {
		id := fmt.Sprintf("copy-%d", first)
		for n := range senders {
			senders[(first+n)%len(senders)](t, id, `{"weight":0.10}`)
		}
		senders[(first+1)%len(senders)](t, id, `{"weight":0.1}`) // another payload, byte for byte
	}
	s.quiet(t, "acme")

	places := map[string]map[int32]int{}
	for _, r := range s.readAll(t, s.topics.Events) {
		e, err := schemas.DecodeEvent(r)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(e.ID, "copy-") {
			continue
		}
		if places[e.ID] == nil {
			places[e.ID] = map[int32]int{}
		}
		places[e.ID][r.Partition]++
	}
	for id, partitions := range places {
		if len(partitions) != 1 {
			t.Errorf("copies of %s are in partitions %v, want one", id, partitions)
		}
	}
	if n := s.receiver.Count("/copies"); n != ids || len(places) != ids {
		t.Errorf("got %d requests for %d ids, want one for each of %d: %s", n, len(places), ids, bodies(s.receiver.Requests("/copies")))
	}
	rejected := 0
	for _, r := range s.readAll(t, s.topics.Rejected) {
		got, err := schemas.DecodeRejected(r)
		if err != nil || got.Reason != schemas.CodeIDReused {
			t.Errorf("rejected %+v, %v, want %s", got, err, schemas.CodeIDReused)
		}
		rejected++
	}
	if rejected != ids {
		t.Errorf("got %d rejected, want %d", rejected, ids)
	}
	s.waitQuery(t, `SELECT event_id, matches, copies FROM postrider.events WHERE event_id LIKE 'copy-%' ORDER BY event_id`,
		"copy-0\t1\t2\ncopy-1\t1\t2\ncopy-2\t1\t2")
}

// copyForm is a CloudEvent of a producer.
func copyForm(id, payload string) form {
	return form{"binary", [][2]string{
		{"ce_specversion", "1.0"},
		{"ce_id", id},
		{"ce_type", "labs.created"},
		{"ce_source", "/lab"},
		{"ce_organization", "acme"},
		{"content-type", "application/json"},
	}, payload}
}

// produceJava is the Java client under Kafka's console producer, with a key.
func produceJava(t *testing.T, s *system, f form) {
	t.Helper()
	var headers []string
	for _, h := range f.headers {
		headers = append(headers, h[0]+":"+h[1])
	}
	cmd := pipeline.KafkaTool(t, "org.apache.kafka.tools.ConsoleProducer",
		"--bootstrap-server", s.kafka.Brokers[0], "--topic", s.topics.Events,
		"--reader-property", "parse.headers=true", "--reader-property", "headers.delimiter=|",
		"--reader-property", "parse.key=true", "--reader-property", "key.separator=|")
	cmd.Stdin = strings.NewReader(strings.Join(headers, ",") + "|acme|" + f.value + "\n")
	runCommand(t, cmd)
}
