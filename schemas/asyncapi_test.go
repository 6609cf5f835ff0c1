package schemas

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// asyncAPI is asyncapi.yaml as far as it speaks of what Go decides.
type asyncAPI struct {
	Channels map[string]struct {
		Address  string         `json:"address"`
		Messages map[string]any `json:"messages"`
		Bindings struct {
			Kafka struct {
				Partitions         int            `json:"partitions"`
				TopicConfiguration map[string]any `json:"topicConfiguration"`
			} `json:"kafka"`
		} `json:"bindings"`
	} `json:"channels"`
	Components struct {
		Parameters map[string]struct {
			Default string `json:"default"`
		} `json:"parameters"`
		Messages map[string]struct {
			Headers  any `json:"headers"`
			Examples []struct {
				Name    string            `json:"name"`
				Headers map[string]string `json:"headers"`
				Payload any               `json:"payload"`
			} `json:"examples"`
		} `json:"messages"`
	} `json:"components"`
}

// readAsyncAPI returns the description, and it as JSON.
func readAsyncAPI(t *testing.T) (doc asyncAPI, asJSON []byte) {
	t.Helper()
	text, err := os.ReadFile("asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if asJSON, err = yaml.YAMLToJSON(text); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(asJSON, &doc); err != nil {
		t.Fatal(err)
	}
	return doc, asJSON
}

// publicTopics are those of the description, by the names of their channels.
func publicTopics(t Topics) map[string]string {
	return map[string]string{
		"events": t.Events, "outcomes": t.Outcomes, "dead-letters": t.DeadLetters, "changes": t.Changes, "rejected": t.Rejected,
	}
}

// TestAsyncAPIChannels holds addresses, partitions and settings to those of topics.go.
func TestAsyncAPIChannels(t *testing.T) {
	doc, _ := readAsyncAPI(t)
	if got := doc.Components.Parameters["prefix"].Default; got != DefaultPrefix {
		t.Errorf("the prefix is %q, want %q", got, DefaultPrefix)
	}
	topics := NewTopics("any.")
	want := publicTopics(topics)
	if got := slices.Sorted(maps.Keys(doc.Channels)); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
		t.Errorf("channels are %v, want %v", got, want)
	}
	specs := map[string]TopicSpec{}
	for _, spec := range topics.Specs(DefaultPartitions()) {
		specs[spec.Name] = spec
	}
	for name, channel := range doc.Channels {
		if got := strings.ReplaceAll(channel.Address, "{prefix}", "any."); got != want[name] {
			t.Errorf("the address of %s is %s, want %s", name, got, want[name])
		}
		spec, kafka := specs[want[name]], channel.Bindings.Kafka
		if kafka.Partitions != spec.Partitions {
			t.Errorf("%s has %d partitions, want %d", name, kafka.Partitions, spec.Partitions)
		}
		configs := map[string]string{}
		for key, value := range kafka.TopicConfiguration {
			switch value := value.(type) {
			case []any:
				configs[key] = value[0].(string)
			case float64:
				configs[key] = strconv.FormatFloat(value, 'f', -1, 64)
			default:
				configs[key] = value.(string)
			}
		}
		if !maps.Equal(configs, spec.Configs) {
			t.Errorf("%s has the settings %v, want %v", name, configs, spec.Configs)
		}
		for message := range channel.Messages {
			if _, described := doc.Components.Messages[message]; !described {
				t.Errorf("message %s of %s is not described", message, name)
			}
		}
	}
}

// TestAsyncAPIMessages holds each message's schemas and example to the golden record
// of its name.
func TestAsyncAPIMessages(t *testing.T) {
	doc, asJSON := readAsyncAPI(t)
	compile := asyncAPICompiler(t, asJSON)
	for name, message := range doc.Components.Messages {
		g := readGolden(t, name)
		if len(message.Examples) != 1 || message.Examples[0].Name != name+".v1" {
			t.Errorf("%s has the examples %+v, want the golden record's", name, message.Examples)
			continue
		}
		headers := map[string]any{}
		for key, value := range g.Headers {
			headers[key] = value
		}
		if got := message.Examples[0].Headers; !maps.Equal(got, g.Headers) {
			t.Errorf("the example of %s has the headers %v, want %v", name, got, g.Headers)
		}
		if message.Headers != nil {
			if err := compile(name + "/headers").Validate(headers); err != nil {
				t.Errorf("headers of %s: %v", name, err)
			}
		}
		if name == "rejected" { // its value is what could not be read
			if got := message.Examples[0].Payload; got != g.Value {
				t.Errorf("the example of %s has the value %v, want %s", name, got, g.Value)
			}
			continue
		}
		var value any
		if err := json.Unmarshal([]byte(g.Value), &value); err != nil {
			t.Fatal(err)
		}
		if got := message.Examples[0].Payload; !reflect.DeepEqual(got, value) {
			t.Errorf("the example of %s has the value %v, want %v", name, got, value)
		}
		if err := compile(name + "/payload").Validate(value); err != nil {
			t.Errorf("value of %s: %v", name, err)
		}
	}
}

// asyncAPICompiler compiles a schema by its place below components/messages.
func asyncAPICompiler(t *testing.T, asJSON []byte) func(part string) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	add := func(location string, text []byte) {
		t.Helper()
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err == nil {
			err = compiler.AddResource(location, value)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("mem:///asyncapi.json", asJSON)
	for _, name := range []string{"event", "outcome", "body", "change"} {
		text, err := JSONSchemas.ReadFile("json/" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		add("mem:///json/"+name+".json", text)
	}
	return func(part string) *jsonschema.Schema {
		t.Helper()
		schema, err := compiler.Compile("mem:///asyncapi.json#/components/messages/" + part)
		if err != nil {
			t.Fatal(err)
		}
		return schema
	}
}

func readGolden(t *testing.T, name string) (g golden) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".v"+Version+".json"))
	if err == nil {
		err = json.Unmarshal(text, &g)
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestOutcomesOfLaterReleases: outcomes is public. What a later release adds is passed
// over, and nothing that readers count on goes away or becomes optional.
func TestOutcomesOfLaterReleases(t *testing.T) {
	record := examples(t)["outcome"].record
	want, err := DecodeOutcome(record)
	if err != nil {
		t.Fatal(err)
	}
	record.Value = append([]byte(`{"added": {"by": ["a", "later", "release"]}, `), record.Value[1:]...)
	if got, err := DecodeOutcome(record); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with another member: got %+v, %v, want %+v", got, err, want)
	}

	text, err := JSONSchemas.ReadFile("json/outcome.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Required   []string `json:"required"`
		Properties map[string]struct {
			Type   string   `json:"type"`
			Format string   `json:"format"`
			Enum   []string `json:"enum"`
		} `json:"properties"`
		AdditionalProperties any `json:"additionalProperties"`
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	if schema.AdditionalProperties != nil {
		t.Errorf("the schema has additionalProperties %v: members could not be added", schema.AdditionalProperties)
	}
	for name, kind := range map[string]string{
		"organization": "string", "webhook_id": "string", "webhook_revision": "integer", "delivery_id": "string", "message_id": "string",
		"event_id": "string", "event": "string", "cause": "", "attempt": "integer", "status_code": "integer", "result": "", "started_at": "string",
		"duration_ms": "number", "sender": "string",
	} {
		if !slices.Contains(schema.Required, name) || schema.Properties[name].Type != kind {
			t.Errorf("%s is no longer required, or no longer of type %q: %+v", name, kind, schema.Properties[name])
		}
	}
	var results []string
	for _, result := range Results() {
		results = append(results, string(result))
	}
	if got := schema.Properties["result"].Enum; !slices.Equal(got, []string{"delivered", "retry", "dead", "discarded", "held"}) || !slices.Equal(got, results) {
		t.Errorf("results are %v in the schema and %v in Go: another one would make an end that readers do not know", got, results)
	}
}
