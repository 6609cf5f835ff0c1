package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestFreshChanges is P4's other half: a change of a webhook that was acknowledged
// before an event is in force for it. Whoever was deleted, disabled, turned to
// other events or given a filter that they do not pass gets no delivery, and who
// has a new URL gets it there.
func TestFreshChanges(t *testing.T) {
	s := start(t)
	const tries = 400 // 80 of each kind, half by REST, half by Kafka
	producer := s.client(t, kgo.ProducerLinger(0))
	changes := []func(id, path string){
		func(id, _ string) { s.want(t, http.StatusNoContent, http.MethodDelete, "/v1/webhooks/"+id, "") },
		func(id, _ string) {
			s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+id, `{"active":false}`)
		},
		func(id, _ string) {
			s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+id, `{"events":["other"]}`)
		},
		func(id, _ string) {
			s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+id, `{"filter":"event != 'a.b'"}`)
		},
		func(id, path string) {
			s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+id, fmt.Sprintf(`{"url":%q}`, s.receiver.URL(path+"/new")))
		},
	}
	const moved = 4 // the kind that is still to be called
	for i := range tries {
		organization, path := fmt.Sprintf("o%d", i), fmt.Sprintf("/changed/%d", i)
		hook := s.subscribe(t, organization, "", path, "a")
		changes[i%len(changes)](hook.ID, path)
		event := fmt.Sprintf(`{"event":"a.b","organization":%q,"id":"1"}`, organization)
		if i/len(changes)%2 == 0 {
			s.post(t, event)
			continue
		}
		record := &kgo.Record{Topic: s.topics.Events, Key: []byte(organization), Value: []byte(event)}
		if err := producer.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	s.waitQuery(t, `SELECT count(), sum(matches) FROM postrider.events WHERE `+notOperational, fmt.Sprintf("%d\t%d", tries, tries/len(changes)))
	for i := range tries {
		path := fmt.Sprintf("/changed/%d", i)
		if i%len(changes) == moved {
			s.receiver.WaitFor(t, path+"/new", 1, soon)
		}
		if n := s.receiver.Count(path); n != 0 {
			t.Errorf("try %d: %d requests came where none should since the change", i, n)
		}
	}
	if n := len(s.readAll(t, s.topics.Deliveries)); n != tries/len(changes) {
		t.Errorf("got %d deliveries, want %d", n, tries/len(changes))
	}
}
