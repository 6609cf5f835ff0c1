package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/deploy/verify"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
)

// TestAccountedFor is P11: under load, with deliveries that wait, are held, are sent
// again, with pings, copies and bad events, nothing is missing at any moment; and
// the metric says so.
func TestAccountedFor(t *testing.T) {
	s := start(t, "--retry-schedule=1s,2s,4s,1h")
	s.receiver.Answers("/fails", receiver.Status(500))
	s.receiver.Answers("/dies", receiver.Status(500))
	s.receiver.Answers("/flaky", receiver.Status(500), receiver.Status(200), receiver.Status(503))
	s.subscribe(t, "acme", "", "/ok", "*")
	s.subscribe(t, "acme", "", "/fails", "*")
	flaky := s.subscribe(t, "acme", "", "/flaky", "*")
	held := s.subscribe(t, "acme", "", "/held", "*")
	dies := s.want(t, http.StatusCreated, http.MethodPost, "/webhook-events",
		fmt.Sprintf(`{"organization":"acme","active":true,"url":%q,"events":"*","retry_schedule":[]}`, s.receiver.URL("/dies"))).field(t, "id")
	s.want(t, http.StatusOK, http.MethodPost, "/v1/webhooks/"+held.ID+"/pause", "")
	s.want(t, http.StatusAccepted, http.MethodPost, "/webhook-events", fmt.Sprintf(`{"webhook":%q,"event":"ping"}`, flaky.ID))

	stop := s.load(t)
	s.waitQuery(t, `SELECT count() > 0 FROM postrider.deliveries WHERE webhook_id = '`+dies+`' AND state = 'dead'`, "1")
	dead := s.query(t, `SELECT delivery_id FROM postrider.deliveries WHERE webhook_id = '`+dies+`' AND state = 'dead' LIMIT 1`)
	s.want(t, http.StatusAccepted, http.MethodPost, "/v1/deliveries/"+dead+"/retry", "")
	for i := range 8 {
		if i == 4 {
			s.want(t, http.StatusOK, http.MethodPost, "/v1/webhooks/"+held.ID+"/resume", "")
			s.sender.Kill9(t)
			s.sender.Restart(t)
			s.router.Kill9(t)
			s.router.Restart(t)
		}
		s.wantNothingMissing(t, verify.Config{})
	}
	stop()
	s.waitQuery(t, `SELECT count() FROM postrider.deliveries WHERE state = 'pending'`, "0")
	r := s.wantNothingMissing(t, verify.Config{})
	pipeline.Wait(t, 2*soon, "the metric", func() error {
		metrics := s.sender.Metrics(t)
		if !strings.Contains(metrics, "\npostrider_unaccounted 0\n") || strings.Contains(metrics, "\npostrider_accounted_timestamp_seconds 0\n") {
			return fmt.Errorf("%w: postrider_unaccounted is not 0, or was not counted", errNotYet)
		}
		return nil
	})
	for what, n := range map[string]int64{
		"delivered": r.Deliveries.Ended["delivered"], "dead": r.Deliveries.Ended["dead"], "pending": verify.Sum(r.Deliveries.Pending),
		"duplicates": r.Events.Duplicate, "rejected": r.Events.Rejected, "rows": r.Rows.Outcomes,
	} {
		if n == 0 {
			t.Errorf("there are no %s: %+v", what, r)
		}
	}
	if got := r.Events.Routed + 2; got != r.Deliveries.Total { // a ping, and one sent again
		t.Errorf("%d deliveries were routed, or asked for, and there are %d", got, r.Deliveries.Total)
	}
	since := s.wantNothingMissing(t, verify.Config{Since: time.Now().Add(-2 * time.Second), Organization: "acme"})
	if since.Events.Total > r.Events.Total {
		t.Errorf("more since a while than in all: %d events of %d", since.Events.Total, r.Events.Total)
	}
	if n := s.wantNothingMissing(t, verify.Config{Organization: "nobody"}).Deliveries.Total; n != 0 {
		t.Errorf("an organization that is not there has %d deliveries", n)
	}
}

// load posts events until it is told to stop: some twice, some bad.
func (s *system) load(t *testing.T) (stop func()) {
	t.Helper()
	producer := s.client(t)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for i := 0; ctx.Err() == nil && i < 4_000; i++ {
			texts := []string{fmt.Sprintf(`{"event":"a.b","organization":"acme","id":"e%d"}`, i)}
			switch i % 10 {
			case 1:
				texts = append(texts, texts[0])
			case 2:
				texts = append(texts, `{"event":"a.b"}`, strings.Replace(texts[0], "}", `,"payload":{"other":true}}`, 1))
			}
			for _, text := range texts {
				record := &kgo.Record{Topic: s.topics.Events, Key: []byte("acme"), Value: []byte(text)}
				if err := producer.ProduceSync(ctx, record).FirstErr(); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		}
	})
	stop = func() {
		cancel()
		group.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// verify reconciles what there is.
func (s *system) verify(t *testing.T, cfg verify.Config) *verify.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cfg.Kafka, cfg.List = s.kafka, 100
	cfg.ClickHouse = clickhouse.Config{Address: s.ch.Native, User: "default", Database: s.ch.Database}
	r, err := verify.Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (s *system) wantNothingMissing(t *testing.T, cfg verify.Config) *verify.Report {
	t.Helper()
	r := s.verify(t, cfg)
	if r.Total > 0 || len(r.NotChecked) > 0 {
		text, _ := json.MarshalIndent(r, "", " ")
		t.Fatalf("findings where nothing is missing:\n%s", text)
	}
	d := &r.Deliveries
	if d.Total != verify.Sum(d.Ended)+verify.Sum(d.Pending)+d.SetAside {
		t.Fatalf("deliveries do not add up: %+v", d)
	}
	return r
}

// TestLossesAreFound plants one loss after another, each of which verify lists with its place.
func TestLossesAreFound(t *testing.T) {
	s := start(t, "--retry-schedule=1h")
	s.receiver.Answers("/fails", receiver.Status(500))
	ok := s.subscribe(t, "acme", "", "/ok", "*")
	fails := s.subscribe(t, "acme", "", "/fails", "*")
	const events = 6
	for i := range events {
		s.post(t, fmt.Sprintf(`{"event":"a.b","organization":"acme","id":"e%d"}`, i))
		s.waitQuery(t, `SELECT count() FROM postrider.outcomes WHERE result = 'retry'`, fmt.Sprint(i+1)) // each in a transaction of its own
	}
	s.waitQuery(t, `SELECT state, count() FROM postrider.deliveries WHERE event = 'a.b' GROUP BY state ORDER BY state`, fmt.Sprintf("delivered\t%d\nretry\t%d", events, events))
	pipeline.Wait(t, soon, "the audit to be done", func() error {
		if r := s.verify(t, verify.Config{}); r.Rows.Lag > 0 || r.Total > 0 {
			return fmt.Errorf("%w: %+v", errNotYet, r)
		}
		return nil
	})
	p := planter{system: s, client: s.client(t, kgo.RecordPartitioner(kgo.ManualPartitioner())), want: map[verify.Kind]int64{}}
	p.plantRows(t)
	s.sender.Kill9(t)
	s.router.Kill9(t)
	p.plantOutcomes(t, ok.ID)
	p.plantWaiting(t, fails.ID)
	p.plantSkipped(t, partitionOf(s.topics.Deliveries, ok.ID))
	p.plantEvents(t)
	p.checkCommand(t)
}

// planter plants losses and knows what is to be found of them.
type planter struct {
	*system

	client *kgo.Client
	want   map[verify.Kind]int64
}

// expect says what a plant adds, and sees that it is found, and nothing else.
func (p *planter) expect(t *testing.T, what string, kinds ...verify.Kind) *verify.Report {
	t.Helper()
	for _, kind := range kinds {
		p.want[kind]++
	}
	r := p.verify(t, verify.Config{})
	if !maps.Equal(r.ByKind, p.want) {
		text, _ := json.MarshalIndent(r.Findings, "", " ")
		t.Fatalf("%s: found %v, want %v:\n%s", what, r.ByKind, p.want, text)
	}
	return r
}

// plantRows takes rows from ClickHouse, and adds some.
func (p *planter) plantRows(t *testing.T) {
	t.Helper()
	place := func(table, more string) string {
		return p.query(t, `SELECT 'topic_id = toUUID($$' || toString(topic_id) || '$$) AND partition = ' || toString(partition) || ' AND offset = ' || toString(offset)
			FROM postrider.`+table+` WHERE event = 'a.b' `+more+` ORDER BY partition, offset LIMIT 1`)
	}
	remove := func(table, where string) {
		p.query(t, `ALTER TABLE postrider.`+table+` DELETE WHERE `+where+` SETTINGS mutations_sync = 2`)
	}
	remove("outcomes", place("outcomes", "AND result = 'delivered'"))
	p.expect(t, "an outcome's row is gone", verify.OutcomeRowMissing)
	p.query(t, `INSERT INTO postrider.outcomes (* EXCEPT inserted_at) SELECT * EXCEPT inserted_at FROM postrider.outcomes WHERE `+place("outcomes", "AND result = 'retry'"))
	p.expect(t, "an outcome has two rows", verify.OutcomeRowTwice)
	// Where a transaction's marker stands there is no record.
	p.query(t, `INSERT INTO postrider.outcomes (* EXCEPT inserted_at) SELECT * EXCEPT inserted_at REPLACE (toInt64(`+p.markerOf(t, p.topics.Outcomes)+`) AS offset)
		FROM (SELECT * FROM postrider.outcomes WHERE `+place("outcomes", "AND result = 'retry'")+` LIMIT 1)`)
	p.expect(t, "a row has no outcome", verify.OutcomeRowOnly)
	remove("event_log", place("event_log", ""))
	p.expect(t, "an event's row is gone", verify.EventRowMissing)
	p.query(t, `INSERT INTO postrider.event_log (* EXCEPT inserted_at) SELECT * EXCEPT inserted_at FROM postrider.event_log WHERE `+place("event_log", ""))
	p.expect(t, "an event has two rows", verify.EventRowTwice)
	id := p.query(t, `SELECT delivery_id FROM postrider.deliveries WHERE state = 'retry' LIMIT 1`)
	remove("delivery_states", `delivery_id = '`+id+`'`)
	r := p.expect(t, "a delivery's rows are gone", verify.DeliveryRowMissing)
	for _, f := range r.Findings {
		if f.Kind == verify.DeliveryRowMissing && f.DeliveryID != id {
			t.Errorf("found %+v, want delivery %s", f, id)
		}
	}
}

// markerOf is an offset, in the partition of the first row by place, where no record stands.
func (p *planter) markerOf(t *testing.T, topic string) string {
	t.Helper()
	partition := p.query(t, `SELECT partition FROM postrider.outcomes WHERE event = 'a.b' AND result = 'retry' ORDER BY partition, offset LIMIT 1`)
	there := map[int64]bool{}
	for _, r := range p.readAll(t, topic) {
		if fmt.Sprint(r.Partition) == partition {
			there[r.Offset] = true
		}
	}
	for offset := range int64(len(there) + 1) {
		if !there[offset] {
			return fmt.Sprint(offset)
		}
	}
	t.Fatal("every offset has a record")
	return ""
}

// write produces records as they stand.
func (p *planter) write(t *testing.T, records ...*kgo.Record) {
	t.Helper()
	if err := p.client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// commit moves a group that has lost its members.
func (p *planter) commit(t *testing.T, group, topic string, partition int32, offset int64) {
	t.Helper()
	var offsets kadm.Offsets
	offsets.AddOffset(topic, partition, offset, -1)
	pipeline.Wait(t, soon, "the members of "+group+" to be gone", func() error {
		return kadm.NewClient(p.client).CommitAllOffsets(t.Context(), group, offsets)
	})
}

// first returns a copy of the first record that is asked for.
func (p *planter) first(t *testing.T, topic string, is func(*kgo.Record) bool) *kgo.Record {
	t.Helper()
	for _, r := range p.readAll(t, topic) {
		if is(r) {
			return &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers}
		}
	}
	t.Fatalf("no such record in %s", topic)
	return nil
}

func (p *planter) plantOutcomes(t *testing.T, hook string) {
	t.Helper()
	isEnd := func(r *kgo.Record) bool {
		o, err := schemas.DecodeOutcome(r)
		return err == nil && o.Ends() && o.WebhookID == hook
	}
	end := p.first(t, p.topics.Outcomes, isEnd)
	o, err := schemas.DecodeOutcome(end)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, end)
	p.expect(t, "a second end", verify.TwoEnds)
	o.DeliveryID.Offset += 1_000_000
	beyond, err := o.Record(p.topics.Outcomes)
	if err != nil {
		t.Fatal(err)
	}
	beyond.Partition = end.Partition
	p.write(t, beyond)
	r := p.expect(t, "an outcome of a delivery that is not there", verify.OutcomeWithoutDelivery)
	for _, f := range r.Findings {
		if f.Kind == verify.OutcomeWithoutDelivery && f.DeliveryID != o.DeliveryID.String() {
			t.Errorf("found %+v, want delivery %s", f, o.DeliveryID)
		}
	}
	d := p.first(t, p.topics.Deliveries, func(r *kgo.Record) bool { return string(r.Key) == hook })
	d.Topic = p.topics.Retry[0]
	o.DeliveryID.Offset -= 1_000_000 // the real one again
	named := func(id schemas.DeliveryID) *kgo.Record {
		again := *d
		again.Headers = append(append([]kgo.RecordHeader{}, d.Headers...), kgo.RecordHeader{Key: "delivery_id", Value: []byte(id.String())})
		return &again
	}
	p.write(t, named(o.DeliveryID))
	p.expect(t, "a delivery that has ended waits", verify.EndAndWaiting)
	p.write(t, named(schemas.DeliveryID{Topic: o.DeliveryID.Topic, Partition: end.Partition, Offset: p.gapOf(t, p.topics.Deliveries, end.Partition)}))
	p.expect(t, "a delivery that is not there waits", verify.WaitingWithoutDelivery)
}

// gapOf is an offset below the end at which no record stands.
func (p *planter) gapOf(t *testing.T, topic string, partition int32) int64 {
	t.Helper()
	next := int64(0)
	for _, r := range p.readAll(t, topic) {
		if r.Partition != partition {
			continue
		}
		if r.Offset > next {
			return next
		}
		next = r.Offset + 1
	}
	return next // a marker is behind the last
}

// plantWaiting doubles a record that waits, and takes another away.
func (p *planter) plantWaiting(t *testing.T, hook string) {
	t.Helper()
	var topic string
	for _, topic = range p.topics.Retry {
		if strings.HasSuffix(topic, ".1h") {
			break
		}
	}
	waiting := p.first(t, topic, func(r *kgo.Record) bool { return string(r.Key) == hook })
	partition := waiting.Partition
	p.write(t, waiting)
	p.expect(t, "a delivery waits twice", verify.TwoWaiting)
	var first, second int64 = -1, -1
	for _, r := range p.readAll(t, topic) {
		switch {
		case r.Partition != partition:
		case first < 0:
			first = r.Offset
		case second < 0:
			second = r.Offset
		}
	}
	// The first is the one that waits twice: passed, it waits once. The second is lost.
	p.commit(t, p.topics.SenderGroup, topic, partition, second)
	delete(p.want, verify.TwoWaiting)
	p.expect(t, "the first of the two is passed")
	p.commit(t, p.topics.SenderGroup, topic, partition, second+1)
	p.expect(t, "a delivery that waited is lost", verify.NoEnd)
}

// plantSkipped lets the senders pass a delivery.
func (p *planter) plantSkipped(t *testing.T, partition int) {
	t.Helper()
	d := p.first(t, p.topics.Deliveries, func(r *kgo.Record) bool { return int(r.Partition) == partition })
	g := schemas.GlanceDelivery(d)
	for i, h := range d.Headers {
		if h.Key == "cause" {
			d.Headers[i].Value = []byte(schemas.CauseRetry) // of no event in the log
		}
	}
	p.write(t, d)
	p.expect(t, "a delivery that nobody has come to")
	p.commit(t, p.topics.SenderGroup, p.topics.Deliveries, d.Partition, d.Offset+1)
	r := p.expect(t, "a delivery was passed", verify.NoEnd)
	named := false
	id := schemas.DeliveryID{Partition: d.Partition, Offset: d.Offset}
	for _, f := range r.Findings {
		named = named || f.Kind == verify.NoEnd && f.Partition == id.Partition && f.Offset == id.Offset && f.WebhookID == string(g.Webhook)
	}
	if !named {
		t.Errorf("no finding names the delivery at %d@%d: %+v", d.Partition, d.Offset, r.Findings)
	}
}

// plantEvents lets the router pass events: one on which it decided nothing, one of
// which it says that it has deliveries, and one whose deliveries are too many.
func (p *planter) plantEvents(t *testing.T) {
	t.Helper()
	event := func(id string) *kgo.Record {
		r := &kgo.Record{Topic: p.topics.Events, Value: []byte(`{"event":"a.b","organization":"acme","id":"` + id + `"}`)}
		p.write(t, r)
		return r
	}
	lost := event("lost")
	p.expect(t, "an event waits for the router")
	p.commit(t, p.topics.RouterGroup, p.topics.Events, lost.Partition, lost.Offset+1)
	r := p.expect(t, "an event was passed", verify.EventNotRouted)
	named := false
	for _, f := range r.Findings {
		named = named || f.Kind == verify.EventNotRouted && f.EventID == "lost" && f.Offset == lost.Offset
	}
	if !named {
		t.Errorf("no finding names the event: %+v", r.Findings)
	}
	bare := event("bare")
	routed := schemas.Routed{EventsTopic: p.topicID(t, p.topics.Events), Partition: bare.Partition, Entries: []schemas.RoutedEntry{
		{Offset: bare.Offset, IDHash: schemas.DedupHash("acme", "bare"), Result: schemas.RoutedMatched, Webhooks: 2},
	}}
	p.write(t, routed.Record(p.topics.Routed))
	p.commit(t, p.topics.RouterGroup, p.topics.Events, bare.Partition, bare.Offset+1)
	r = p.expect(t, "an event has no deliveries", verify.DeliveriesDiffer)
	named = false
	for _, f := range r.Findings {
		named = named || f.Kind == verify.DeliveriesDiffer && f.EventID == "bare" && strings.HasPrefix(f.Expected, "2 ") && f.Found == "0"
	}
	if !named {
		t.Errorf("no finding names the event: %+v", r.Findings)
	}
	more := p.first(t, p.topics.Deliveries, func(r *kgo.Record) bool { return string(schemas.GlanceDelivery(r).EventID) == "e3" })
	p.write(t, more)
	p.expect(t, "an event has a delivery too many, after the moment's stable end or not", verify.DeliveriesDiffer)
}

func (p *planter) topicID(t *testing.T, topic string) [16]byte {
	t.Helper()
	topics, err := kadm.NewClient(p.client).ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return topics[topic].ID
}

// checkCommand sees that the command line says the same, and by its exit code.
func (p *planter) checkCommand(t *testing.T) {
	t.Helper()
	args := append([]string{"verify"}, p.common()[:2]...)
	stdout, stderr, code := pipeline.Run(t, "postrider", append(args, "--json", "--list=3", "--clickhouse="+p.ch.Native, "--clickhouse-database="+p.ch.Database)...)
	var r verify.Report
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || code != 1 {
		t.Fatalf("exit code %d, want 1: %v\n%s\n%s", code, err, stdout, stderr)
	}
	if !maps.Equal(r.ByKind, p.want) || len(r.Findings) != 3 {
		t.Errorf("the command found %v and lists %d, want %v and 3", r.ByKind, len(r.Findings), p.want)
	}
	stdout, _, code = pipeline.Run(t, "postrider", append(args, "--log-only")...)
	if code != 1 || !strings.Contains(stdout, string(verify.EventNotRouted)) {
		t.Errorf("exit code %d, want 1 and the findings of the log:\n%s", code, stdout)
	}
	_, stderr, code = pipeline.Run(t, "postrider", append(args, "--topic-prefix=missing.")...)
	if code != 4 || !strings.Contains(stderr, "missing.") {
		t.Errorf("exit code %d, want 4 and which topics are missing: %s", code, stderr)
	}
	_, stderr, code = pipeline.Run(t, "postrider", append(args, "--organization=nobody", "--clickhouse=127.0.0.1:1")...)
	if code != 4 || !strings.Contains(stderr, "as far as it was checked") {
		t.Errorf("exit code %d, want 4 and that ClickHouse was not asked: %s", code, stderr)
	}
	stdout, _, code = pipeline.Run(t, "postrider", append(args, "--log-only", "--organization=nobody")...)
	if code != 0 || !strings.Contains(stdout, `Nothing of organization "nobody" was found`) {
		t.Errorf("exit code %d, want 0 and that nothing was found:\n%s", code, stdout)
	}
}

// TestBeyondTheLog: where retention has taken routed and deliveries, ClickHouse tells
// what is to be there.
func TestBeyondTheLog(t *testing.T) {
	s := start(t, "--retry-schedule=1h")
	s.receiver.Answers("/fails", receiver.Status(500))
	s.subscribe(t, "acme", "", "/ok", "*")
	fails := s.subscribe(t, "acme", "", "/fails", "*")
	const events = 6
	for i := range events {
		s.post(t, fmt.Sprintf(`{"event":"a.b","organization":"acme","id":"e%d"}`, i))
	}
	s.waitQuery(t, `SELECT state, count() FROM postrider.deliveries WHERE event = 'a.b' GROUP BY state ORDER BY state`, fmt.Sprintf("delivered\t%d\nretry\t%d", events, events))
	pipeline.Wait(t, soon, "the audit to be done", func() error {
		if r := s.verify(t, verify.Config{}); r.Rows.Lag > 0 || r.Total > 0 {
			return fmt.Errorf("%w: %+v", errNotYet, r)
		}
		return nil
	})
	p := planter{system: s, client: s.client(t, kgo.RecordPartitioner(kgo.ManualPartitioner())), want: map[verify.Kind]int64{}}
	admin := kadm.NewClient(p.client)
	ends, err := admin.ListEndOffsets(t.Context(), p.topics.Routed, p.topics.Deliveries)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.DeleteRecords(t.Context(), ends.Offsets()); err != nil {
		t.Fatal(err)
	}
	r := p.expect(t, "retention has taken routed and deliveries")
	if r.Deliveries.Older != events || r.Deliveries.Total != 0 || r.Events.Expired == 0 {
		t.Errorf("got %+v and %+v, want %d older deliveries that wait, and events that have expired", r.Deliveries, r.Events, events)
	}
	p.query(t, `ALTER TABLE postrider.delivery_states DELETE WHERE event_id = 'e1' AND state != 'retry' AND webhook_id != '`+fails.ID+`' SETTINGS mutations_sync = 2`)
	r = p.expect(t, "a delivery's rows are gone", verify.DeliveriesDiffer)
	if f := r.Findings[0]; f.EventID != "e1" || !strings.HasPrefix(f.Expected, "2 ") || !strings.HasPrefix(f.Found, "1 ") {
		t.Errorf("found %+v, want event e1 with 1 delivery of 2", f)
	}
	s.sender.Kill9(t)
	waiting := p.first(t, p.topics.Retry[12], func(r *kgo.Record) bool { return string(r.Key) == fails.ID })
	p.commit(t, p.topics.SenderGroup, waiting.Topic, waiting.Partition, 1)
	p.expect(t, "a delivery that waited is lost, and older than the log", verify.NoEnd)
}
