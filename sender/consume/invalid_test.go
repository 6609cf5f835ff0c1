package consume

import (
	"testing"
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// TestInvalidWebhookIsServedNothing writes settings that make no sense past the
// API, straight into the topic: nothing is sent with them, no ping either.
func TestInvalidWebhookIsServedNothing(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	ids, err := kafka.TopicIDs(t.Context(), r.client, r.topics.Deliveries)
	if err != nil {
		t.Fatal(err)
	}
	made := make(map[string]bool)
	for _, spoil := range []func(*schemas.Webhook){
		func(w *schemas.Webhook) { w.MaxConcurrency = new(-1) },
		func(w *schemas.Webhook) { w.RateLimit = &schemas.RateLimit{Count: -1} },
		func(w *schemas.Webhook) { w.RetrySchedule = []string{"-1s", "soon"} },
		func(w *schemas.Webhook) { w.Headers = []schemas.Header{{Name: "Host", Value: "a\r\nb"}} },
		func(w *schemas.Webhook) { w.TimeoutMS, w.Paused = new(0), true },
	} {
		w := r.webhook(t, "/ok", spoil)
		for id := range r.deliveries(t, 2, w) {
			made[id] = true
		}
		now := time.Now().UTC()
		ping := schemas.Delivery{
			WebhookID: w.ID, WebhookRevision: w.Revision, EventID: "evt-ping", Event: schemas.PingName, Organization: "org",
			AcceptedAt: now, RoutedAt: now, Cause: schemas.CausePing, Body: []byte(`{}`),
		}
		record := ping.Record(r.topics.Deliveries)
		r.produce(t, record)
		made[schemas.DeliveryID{Topic: ids[r.topics.Deliveries], Partition: record.Partition, Offset: record.Offset}.String()] = true
	}
	r.start(t, "a", time.Second)
	for id, list := range r.ends(t, r.read(t, r.topics.Outcomes), made) {
		if o := list[len(list)-1]; len(list) != 1 || o.Result != schemas.ResultDiscarded || o.Reason != reasonDisabled {
			t.Errorf("delivery %s: %+v, want one outcome, discarded", id, list)
		}
	}
	if got := r.target.requests(); len(got) != 0 {
		t.Errorf("got requests %v, want none", got)
	}
}
