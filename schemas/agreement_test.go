package schemas

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/twmb/franz-go/pkg/kgo"
)

var update = flag.Bool("update", false, "write the golden files anew") //nolint:gochecknoglobals // a flag

// golden is a record in testdata: what crosses Kafka, readable.
type golden struct {
	Key     string            `json:"key"`
	Headers map[string]string `json:"headers"`
	Value   string            `json:"value,omitempty"`  // where it is text
	Binary  []byte            `json:"binary,omitempty"` // where it is not
}

func moment(s int) time.Time { return time.Date(2026, 11, 23, 12, 0, s, 250e6, time.UTC) }

// example is a record of one kind with all fields set.
type example struct {
	record *kgo.Record
	value  any    // what it is read as; nil where that is not compared
	schema string // of its value, in json/
}

var exampleTopic = [16]byte{0x50, 0x72, 15: 1} //nolint:gochecknoglobals // a constant

// examples holds one record of every kind, by the name of its golden file.
func examples(t *testing.T) map[string]example {
	t.Helper()
	topics := NewTopics(DefaultPrefix)
	all := map[string]example{}
	addWritten(t, topics, all)
	addJob(t, topics, all)
	addLogged(topics, all)
	return all
}

const exampleWebhook = "wh_06bv2qk0q5nn9t1d3o8s2r4g5k"

// addWritten adds the records whose value is JSON of a Go type.
func addWritten(t *testing.T, topics Topics, all map[string]example) {
	t.Helper()
	add := func(name string, value any, record *kgo.Record, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		all[name] = example{record, value, name}
	}
	sealed := SealedSecret{KeyID: "k1", Nonce: make([]byte, 12), Ciphertext: make([]byte, 48), CreatedAt: moment(0)}
	old := sealed
	old.ExpiresAt = moment(40)
	webhook := Webhook{
		ID: exampleWebhook, Organization: "acme", Account: "north", Active: true, Paused: true, ResumedAt: moment(1), URL: "https://example.com/hook",
		Events: []string{"medical-encounters", "*.removed"}, Description: "encounters", Metadata: map[string]string{"team": "blue"},
		Filter: `payload.amount > 100`, Format: FormatCloudEvents,
		Handling: Handling{
			TimeoutMS: new(20_000), RetrySchedule: []string{"30s", "1h30m"}, MaxConcurrency: new(4),
			RateLimit: &RateLimit{Count: 90, Per: "minute"},
			Success:   Success2xx, FinalStatuses: []int{400, 404},
		},
		Headers:    []Header{{Name: "X-Team", Value: "blue"}, {Name: "X-Token", Sealed: &sealed}},
		Auth:       &Auth{Type: AuthBasic, Username: "postrider", Sealed: sealed},
		Signatures: []string{SchemeHMAC, SchemeEd25519}, Secrets: []SealedSecret{sealed},
		SigningKeys: []SigningKey{{ID: "whk_06bv2qk0q5nn9t1d3o8s2r4g5k", PublicKey: "whpk_" + strings.Repeat("A", 43) + "=", Seed: old}},
		Generation:  1, Revision: 3, CreatedAt: moment(0), UpdatedAt: moment(1),
	}
	record, err := webhook.Record(topics.Webhooks)
	add("webhook", webhook, record, err)

	state := WebhookState{WebhookID: webhook.ID, Generation: 1, FailingSince: moment(2), Attempts: 21, DisabledAt: moment(3), Reason: "gone"}
	record, err = state.Record(topics.WebhookStates)
	add("webhook-state", state, record, err)

	key := Key{
		ID: "key_06bv2qk0q5nn9t1d3o8s2r4g5k", Organization: "acme", Name: "producer", Scopes: []string{ScopeEventsWrite},
		Hash: strings.Repeat("0a", 32), RateLimit: &RateLimit{Count: 90, Per: "minute"}, CreatedAt: moment(0), LastUsedAt: moment(8), RevokedAt: moment(9),
	}
	record, err = key.Record(topics.Keys)
	add("key", key, record, err)

	change := Change{
		At: moment(1), Actor: "admin", Action: "updated", Object: "webhook", ObjectID: webhook.ID, Organization: "acme",
		RequestID: "r1", Before: json.RawMessage(`{"active":false}`), After: json.RawMessage(`{"active":true}`), Error: "none",
	}
	record, err = change.Record(topics.Changes)
	add("change", change, record, err)

	d := exampleDelivery()
	outcome := Outcome{
		Organization: "acme", Account: "north", WebhookID: webhook.ID, WebhookRevision: 3,
		DeliveryID: DeliveryID{Topic: exampleTopic, Partition: 3, Offset: 99},
		MessageID:  d.MessageID(), EventID: d.EventID, Event: d.Event, Cause: CauseEvent, Attempt: 2, StatusCode: 503,
		Result: ResultRetry, Reason: "status", URL: webhook.URL, StartedAt: moment(7), DurationMS: 12.5, DNSMS: 1, ConnectMS: 2,
		TLSMS: 3.25, FirstByteMS: 11, NextAttemptAt: moment(30), EventTime: moment(4), AcceptedAt: moment(5), RoutedAt: moment(6),
		ResponseHead: "HTTP/1.1 503 Service Unavailable\r\n", ResponseBody: []byte("later"), ResponseBytes: 5, Sender: "sender-1",
	}
	record, err = outcome.Record(topics.Outcomes)
	add("outcome", outcome, record, err)
}

// addJob adds the record of a job.
func addJob(t *testing.T, topics Topics, all map[string]example) {
	t.Helper()
	job := Job{
		ID: "job_06bv2qk0q5nn9t1d3o8s2r4g5k", Organization: "acme", WebhookID: exampleWebhook, State: JobFailed, Reason: "webhook_deleted",
		Since: moment(0), Until: moment(5), Rate: 100, Total: 12, Done: 7, Skipped: 1, AfterAt: moment(3),
		AfterID: DeliveryID{Topic: exampleTopic, Partition: 3, Offset: 99}.String(), Runner: "ingest-1", MovedAt: moment(6),
		Revision: 4, CreatedAt: moment(5), EndedAt: moment(6),
	}
	record, err := job.Record(topics.Jobs)
	if err != nil {
		t.Fatal(err)
	}
	all["job"] = example{record, job, "job"}
}

func exampleEvent() Event {
	return Event{
		ID: "e-1", Name: "medical-encounters.created", Organization: "acme", Account: "north", Source: "/clinic", Subject: "7",
		Time: moment(4), Payload: []byte(`{"id": 7, "weight": 0.1000}`), Extensions: []Attribute{{"partitionkey", "7"}},
	}
}

func exampleDelivery() Delivery {
	event := exampleEvent()
	return Delivery{
		WebhookID: exampleWebhook, WebhookRevision: 3, EventID: event.ID, Event: event.Name, Organization: "acme", Account: "north",
		EventTime: moment(4), AcceptedAt: moment(5), RoutedAt: moment(6), Cause: CauseEvent, Body: AppendBody(nil, &event),
	}
}

// addLogged adds the records that say what they say in headers or in bytes.
func addLogged(topics Topics, all map[string]example) {
	event := exampleEvent()
	all["event-binary"] = example{event.Record(topics.Events), nil, ""}
	all["event-plain"] = example{&kgo.Record{Topic: topics.Events, Key: []byte("acme"), Value: []byte(
		`{"id":"e-1","event":"medical-encounters.created","organization":"acme","account":"north","payload":{"id": 7},"time":"2026-11-23T12:00:04.25Z"}`)}, nil, "event"}
	all["event-structured"] = example{&kgo.Record{
		Topic: topics.Events, Key: []byte("acme"), Headers: []kgo.RecordHeader{{Key: "content-type", Value: []byte(ContentTypeCloudEvent)}},
		Value: []byte(`{"specversion":"1.0","id":"e-1","type":"medical-encounters.created","source":"/clinic","subject":"7",` +
			`"time":"2026-11-23T12:00:04.25Z","organization":"acme","account":"north","data":{"id": 7}}`),
	}, nil, ""}

	delivery := exampleDelivery()
	all["delivery"] = example{delivery.Record(topics.Deliveries), nil, "body"}
	cloud := delivery
	cloud.Format, cloud.Body = FormatCloudEvents, AppendFormatted(nil, FormatCloudEvents, &event)
	all["delivery-cloudevents"] = example{cloud.Record(topics.Deliveries), nil, ""}
	delivery.ID = DeliveryID{Topic: exampleTopic, Partition: 3, Offset: 99}
	delivery.Attempt, delivery.Parks, delivery.DueAt, delivery.FirstAttemptAt = 2, 1, moment(30), moment(7)
	all["retry"] = example{delivery.Record(topics.Retry[0]), nil, "body"}
	held := delivery
	held.DueAt, held.HeldAt = time.Time{}, moment(8)
	all["held"] = example{held.Record(topics.Held), nil, "body"}
	delivery.Reason = "timeout"
	all["dead-letter"] = example{delivery.Record(topics.DeadLetters), nil, "body"}

	routed := Routed{EventsTopic: exampleTopic, Partition: 3, Entries: []RoutedEntry{
		{Offset: 17, IDHash: DedupHash("acme", "e-1"), PayloadHash: PayloadHash(event.Payload), Result: RoutedMatched, Webhooks: 2},
		{Offset: 19, IDHash: DedupHash("acme", "e-1"), PayloadHash: PayloadHash(event.Payload), Result: RoutedDuplicate},
	}}
	all["routed"] = example{routed.Record(topics.Routed), nil, ""}
	bad := &kgo.Record{Topic: topics.Events, Partition: 3, Offset: 18, Key: []byte("acme"), Value: []byte("{")}
	all["rejected"] = example{RejectedRecord(topics.Rejected, bad, Invalid(CodeInvalidJSON, "#", "not JSON at byte 1")), nil, ""}
}

// TestGoldenRecords holds every record's bytes: what is written today is what
// testdata shows, and what testdata shows is read.
func TestGoldenRecords(t *testing.T) {
	for name, example := range examples(t) {
		path := filepath.Join("testdata", name+".v"+Version+".json")
		g := golden{Key: string(example.record.Key), Headers: map[string]string{}}
		for _, h := range example.record.Headers {
			g.Headers[h.Key] = string(h.Value)
		}
		if utf8.Valid(example.record.Value) {
			g.Value = string(example.record.Value)
		} else {
			g.Binary = example.record.Value
		}
		got, err := json.MarshalIndent(g, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		if *update {
			if err := os.WriteFile(path, got, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("reading golden record (go test -update writes it): %v", err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from %s:\n%s", name, path, got)
		}
		if read, err := decode(name, example.record); err != nil || example.value != nil && !reflect.DeepEqual(read, example.value) {
			t.Errorf("%s is read as %+v, %v, want %+v", name, read, err, example.value)
		}
	}
}

// decode reads an example with the decoder of its topic.
func decode(name string, r *kgo.Record) (any, error) {
	switch name {
	case "webhook":
		return DecodeWebhook(r)
	case "webhook-state":
		return DecodeWebhookState(r)
	case "key":
		return DecodeKey(r)
	case "job":
		return DecodeJob(r)
	case "change":
		return DecodeChange(r)
	case "outcome":
		return DecodeOutcome(r)
	case "delivery", "delivery-cloudevents":
		return DecodeDelivery(r, [16]byte{1})
	case "retry", "held", "dead-letter":
		return DecodeDelivery(r, [16]byte{})
	case "routed":
		return DecodeRouted(r)
	case "rejected":
		return DecodeRejected(r)
	default:
		return DecodeEvent(r)
	}
}

// TestAgreement holds Go types, JSON Schemas and examples together: an example
// with every field set validates, has exactly the schema's members, and comes
// back as the same value.
func TestAgreement(t *testing.T) {
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	for name, example := range examples(t) {
		if example.schema == "" {
			continue
		}
		raw, err := JSONSchemas.ReadFile("json/" + example.schema + ".json")
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		location := "mem:///" + name + ".json"
		if err := compiler.AddResource(location, doc); err != nil {
			t.Fatal(err)
		}
		schema, err := compiler.Compile(location)
		if err != nil {
			t.Fatal(err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(example.record.Value))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(value); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		described := slices.Sorted(maps.Keys(schema.Properties))
		if written := slices.Sorted(maps.Keys(value.(map[string]any))); !reflect.DeepEqual(written, described) {
			t.Errorf("%s: the schema describes %v, the example has %v", name, described, written)
		}
		if example.value == nil {
			continue
		}
		if fields := jsonFields(reflect.TypeOf(example.value)); !reflect.DeepEqual(fields, described) {
			t.Errorf("%s: the schema describes %v, the type has %v", name, described, fields)
		}
	}
}

// TestOpenAPIAgrees holds the OpenAPI description to the Go types it speaks of.
func TestOpenAPIAgrees(t *testing.T) {
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any `yaml:"properties"`
				Enum       []string       `yaml:"enum"`
			} `yaml:"schemas"`
		} `yaml:"components"`
	}
	if err := yaml.Unmarshal(OpenAPI(), &doc); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"Event":      {"account", "event", "id", "organization", "payload", "time"},
		"Problem":    jsonFields(reflect.TypeFor[Problem]()),
		"FieldError": jsonFields(reflect.TypeFor[FieldError]()),
	} {
		if got := slices.Sorted(maps.Keys(doc.Components.Schemas[name].Properties)); !reflect.DeepEqual(got, want) {
			t.Errorf("OpenAPI's %s has %v, want %v", name, got, want)
		}
	}
	if got := doc.Components.Schemas["Scope"].Enum; !reflect.DeepEqual(got, Scopes()) {
		t.Errorf("OpenAPI's scopes are %v, want %v", got, Scopes())
	}
}

func jsonFields(t reflect.Type) []string {
	var names []string
	for _, field := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
