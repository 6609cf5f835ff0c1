package consume

import (
	"errors"
	"maps"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/retry"
)

func TestDelivered(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	w := r.webhook(t, "/ok", nil)
	made := r.deliveries(t, 100, w)
	r.start(t, "a")
	for id, list := range r.ends(t, r.read(t, r.topics.Outcomes), made) {
		o := list[0]
		if len(list) != 1 || o.Result != schemas.ResultDelivered || o.Attempt != 1 || o.StatusCode != 200 || o.Reason != "" {
			t.Errorf("delivery %s: %+v", id, list)
		}
	}
	for id, n := range r.target.requests() {
		if n != 1 {
			t.Errorf("message %s: %d requests, want 1", id, n)
		}
	}
}

func TestRetriedThenDead(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	dead := r.deliveries(t, 3, r.webhook(t, "/500", nil))
	once := r.deliveries(t, 3, r.webhook(t, "/once", nil))
	all := maps.Clone(dead)
	maps.Copy(all, once)
	r.start(t, "a", time.Second, 2*time.Second)
	outcomes := r.ends(t, r.read(t, r.topics.Outcomes), all)
	for id := range dead {
		want := []schemas.Result{schemas.ResultRetry, schemas.ResultRetry, schemas.ResultDead}
		list := outcomes[id]
		if len(list) != len(want) {
			t.Fatalf("delivery %s: %d outcomes, want %d", id, len(list), len(want))
		}
		for i, o := range list {
			if o.Result != want[i] || o.Attempt != i+1 || o.StatusCode != 500 || o.Reason != "status" {
				t.Errorf("outcome %d: %+v", i, o)
			}
			if i > 0 && o.StartedAt.Before(list[i-1].NextAttemptAt.Truncate(time.Microsecond)) {
				t.Errorf("attempt %d began at %v, early: it was due at %v", i+1, o.StartedAt, list[i-1].NextAttemptAt)
			}
		}
	}
	for id := range once {
		if list := outcomes[id]; len(list) != 2 || list[1].Result != schemas.ResultDelivered {
			t.Errorf("delivery %s: %+v", id, list)
		}
	}
	letters := r.read(t, r.topics.DeadLetters).until(t, "dead letters", func(l []*kgo.Record) bool { return len(l) >= len(dead) })
	for _, letter := range letters {
		d, err := schemas.DecodeDelivery(letter, [16]byte{})
		if err != nil || !dead[d.ID.String()] || d.Reason != "status" || d.Attempt != 3 || !strings.Contains(string(d.Body), `{"n": 1.0}`) {
			t.Errorf("dead letter %+v, error %v", d, err)
		}
	}
}

// TestHandling is what a webhook's owner says of its target, each in one webhook.
func TestHandling(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	tests := []struct {
		path     string
		handling schemas.Handling
		want     schemas.Result
		attempts int
		reason   string
	}{
		{"/204", schemas.Handling{}, schemas.ResultDead, 3, "status"},
		{"/204", schemas.Handling{Success: schemas.Success2xx}, schemas.ResultDelivered, 1, ""},
		{"/404", schemas.Handling{FinalStatuses: []int{400, 404}}, schemas.ResultDead, 1, "final_status"},
		{"/500", schemas.Handling{FinalStatuses: []int{400, 404}}, schemas.ResultDead, 3, "status"},
		{"/500", schemas.Handling{RetrySchedule: []string{}}, schemas.ResultDead, 1, "status"},
		{"/500", schemas.Handling{RetrySchedule: []string{"1s"}}, schemas.ResultDead, 2, "status"},
		{"/abort", schemas.Handling{}, schemas.ResultDead, 1, "aborted"},
		{"/hang", schemas.Handling{TimeoutMS: new(1000), RetrySchedule: []string{}}, schemas.ResultDead, 1, "timeout"},
	}
	all := make(map[string]bool)
	wanted := make(map[string]int)
	for i, test := range tests {
		w := r.webhook(t, test.path, func(w *schemas.Webhook) { w.Handling = test.handling })
		wanted[w.ID] = i
		maps.Copy(all, r.deliveries(t, 1, w))
	}
	r.start(t, "a", time.Second, time.Second)
	for _, list := range r.ends(t, r.read(t, r.topics.Outcomes), all) {
		o, test := list[len(list)-1], tests[wanted[list[0].WebhookID]]
		if o.Result != test.want || o.Attempt != test.attempts || o.Reason != test.reason || len(list) != test.attempts {
			t.Errorf("%s with %+v: %d outcomes, %s after attempt %d because of %q; want %s after %d because of %q", test.path, test.handling,
				len(list), o.Result, o.Attempt, o.Reason, test.want, test.attempts, test.reason)
		}
	}
}

func TestMaxConcurrency(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	w := r.webhook(t, "/slow", func(w *schemas.Webhook) { w.MaxConcurrency = new(2) })
	made := r.deliveries(t, 100, w)
	r.start(t, "a")
	r.ends(t, r.read(t, r.topics.Outcomes), made)
	r.target.mu.Lock()
	defer r.target.mu.Unlock()
	if r.target.peak > 2 {
		t.Errorf("%d requests at once, want at most 2", r.target.peak)
	}
}

// TestRateLimit stops a sender with deliveries that wait for their time: another goes on with them.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	w := r.webhook(t, "/ok", func(w *schemas.Webhook) { w.RateLimit = &schemas.RateLimit{Count: 20, Per: "second"} })
	made := r.deliveries(t, 40, w)
	l := r.read(t, r.topics.Outcomes)
	m := r.start(t, "a")
	l.until(t, "five outcomes", func(records []*kgo.Record) bool { return len(records) >= 5 })
	m.stop()
	r.start(t, "b")
	r.ends(t, l, made)
	for id, n := range r.target.requests() {
		if n != 1 {
			t.Errorf("message %s: %d requests, want 1", id, n)
		}
	}
}

func TestDiscarded(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	disabled := r.webhook(t, "/ok", func(w *schemas.Webhook) { w.Active = false })
	deleted := r.webhook(t, "/ok", nil)
	r.produce(t, schemas.Tombstone(r.topics.Webhooks, deleted.ID))
	late := r.webhook(t, "/500", nil)
	all := r.deliveries(t, 2, disabled, deleted, late)
	l := r.read(t, r.topics.Outcomes)
	r.start(t, "a", 2*time.Second)
	// The retries of the third wait while it is deleted.
	l.until(t, "two retries", func(records []*kgo.Record) bool { return len(records) == len(all) })
	r.produce(t, schemas.Tombstone(r.topics.Webhooks, late.ID))
	want := map[string]string{disabled.ID: reasonDisabled, deleted.ID: reasonDeleted, late.ID: reasonDeleted}
	for id, list := range r.ends(t, l, all) {
		o := list[len(list)-1]
		if o.Result != schemas.ResultDiscarded || o.Reason != want[o.WebhookID] {
			t.Errorf("delivery %s: %s %s, want discarded %s", id, o.Result, o.Reason, want[o.WebhookID])
		}
	}
}

func TestBadRecordsAreRejectedAndNewOnesKept(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	w := r.webhook(t, "/ok", nil)
	for _, topic := range []string{r.topics.Deliveries, r.topics.Retry[0], r.topics.Held} {
		r.produce(t, &kgo.Record{Topic: topic, Key: []byte(w.ID), Value: []byte("garbage"), Timestamp: time.Now().Add(-heldRest)})
	}
	r.produce(t,
		&kgo.Record{Topic: r.topics.Deliveries},
		&kgo.Record{
			Topic: r.topics.Deliveries, Key: []byte(w.ID), Value: []byte("?"),
			Headers: []kgo.RecordHeader{{Key: schemas.HeaderVersion, Value: []byte("99")}},
		},
	)
	made := r.deliveries(t, 20, w)
	r.start(t, "a")
	r.ends(t, r.read(t, r.topics.Outcomes), made)
	rejected := r.read(t, r.topics.Rejected).until(t, "rejected", func(l []*kgo.Record) bool { return len(l) >= 4 })
	for _, record := range rejected {
		if _, err := schemas.DecodeRejected(record); err != nil {
			t.Error(err)
		}
	}
	kept := r.read(t, r.topics.Retry[retry.TierFor(unreadDelay)]).until(t, "the new one", func(l []*kgo.Record) bool { return len(l) == 1 })
	var version *schemas.UnknownVersionError
	if _, err := schemas.DecodeDelivery(kept[0], [16]byte{}); !errors.As(err, &version) || string(kept[0].Value) != "?" {
		t.Errorf("kept %q, error %v", kept[0].Value, err)
	}
}

// TestInflatingBatchIsSkipped is a batch that would not fit into memory, as the first and later of each topic.
func TestInflatingBatchIsSkipped(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	hostile, err := r.kafka.NewClient("test-hostile", kgo.ProducerBatchMaxBytes(80<<20), kgo.ProducerBatchCompression(kgo.ZstdCompression()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer hostile.Close()
	bomb := func(topic string) {
		t.Helper()
		if err := hostile.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: 1, Value: make([]byte, 70<<20)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	hooks := r.webhooks(t, 8, "/ok") // on every partition, all but certainly
	bomb(r.topics.Deliveries)
	bomb(r.topics.Retry[0])
	made := r.deliveries(t, 5, hooks...)
	bomb(r.topics.Deliveries)
	maps.Copy(made, r.deliveries(t, 5, hooks...))
	m := r.start(t, "a")
	r.ends(t, r.read(t, r.topics.Outcomes), made)
	for _, record := range r.read(t, r.topics.Rejected).until(t, "rejected", func(l []*kgo.Record) bool { return len(l) >= 3 }) {
		if why, err := schemas.DecodeRejected(record); err != nil || why.Reason != schemas.CodeTooLarge || why.Partition != 1 {
			t.Errorf("rejected %+v, error %v", why, err)
		}
	}
	if !m.ready(t.Context()) {
		t.Error("not ready")
	}
}

// TestWebhookOfAnUnknownVersion stands for a newer binary's: its deliveries wait
// until one comes that knows it, whatever was in force before.
func TestWebhookOfAnUnknownVersion(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	before, only := r.webhook(t, "/ok", nil), schemas.Webhook{ID: schemas.NewWebhookID(), Revision: 1}
	for _, id := range []string{before.ID, only.ID} {
		r.produce(t, &kgo.Record{
			Topic: r.topics.Webhooks, Key: []byte(id), Value: []byte("?"),
			Headers: []kgo.RecordHeader{{Key: schemas.HeaderVersion, Value: []byte("99")}},
		})
	}
	r.deliveries(t, 2, before, only)
	m := r.start(t, "a")
	waiting := r.read(t, r.topics.Retry[retry.TierFor(unreadDelay)]).until(t, "waiting", func(l []*kgo.Record) bool { return len(l) == 4 })
	for _, record := range waiting {
		if d, err := schemas.DecodeDelivery(record, [16]byte{}); err != nil || d.Attempt != 0 || d.DueAt.Before(record.Timestamp.Add(unreadDelay)) {
			t.Errorf("waiting %+v, error %v", d, err)
		}
	}
	if m.ready(t.Context()) {
		t.Error("ready with webhooks that cannot be read")
	}
	r.produce(t, schemas.Tombstone(r.topics.Webhooks, only.ID))
	r.webhook(t, "/ok", func(w *schemas.Webhook) { w.ID, before = before.ID, *w })
	waitFor(t, "ready", func() bool { return m.ready(t.Context()) })
	r.ends(t, r.read(t, r.topics.Outcomes), r.deliveries(t, 1, before))
}

func TestKafkaAway(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	hooks := append(r.webhooks(t, 4, "/ok"), r.webhooks(t, 2, "/once")...)
	made := r.deliveries(t, 10, hooks...)
	l := r.read(t, r.topics.Outcomes)
	m := r.start(t, "a", time.Second)
	r.ends(t, l, made)

	_, text, err := net.SplitHostPort(r.kafka.Brokers[0])
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	r.cluster.Close()
	waitFor(t, "the sender to say that Kafka is away", func() bool { return !m.ready(t.Context()) })
	r.cluster = startCluster(t, kfake.DataDir(r.dir), kfake.Ports(port))
	waitFor(t, "the sender to be ready again", func() bool { return m.ready(t.Context()) })
	maps.Copy(made, r.deliveries(t, 10, hooks...))
	r.ends(t, l, made)
}

func TestDrain(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	made := r.deliveries(t, 5, r.webhooks(t, 3, "/hang")...)
	m := r.start(t, "a")
	waitFor(t, "attempts to run", func() bool { return len(r.target.requests()) == len(made) })
	stopped := make(chan struct{})
	go func() {
		m.stop()
		close(stopped)
	}()
	select {
	case <-stopped:
		t.Error("the sender stopped with attempts running")
	case <-time.After(300 * time.Millisecond):
	}
	r.target.release()
	<-stopped
	r.start(t, "b")
	if n := r.repeats(r.ends(t, r.read(t, r.topics.Outcomes), made)); n != 0 {
		t.Errorf("%d attempts repeated after a graceful stop, want 0", n)
	}
}
