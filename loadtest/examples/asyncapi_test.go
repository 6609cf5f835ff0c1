package examples

import (
	"bytes"
	"os"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/postrider/postrider/loadtest/pipeline"
)

// TestAsyncAPI holds schemas/asyncapi.yaml to the JSON Schema of AsyncAPI 3.0.0.
func TestAsyncAPI(t *testing.T) {
	published, err := os.ReadFile(pipeline.AsyncAPISchema(t))
	if err != nil {
		t.Fatal(err)
	}
	definition, err := jsonschema.UnmarshalJSON(bytes.NewReader(published))
	if err != nil {
		t.Fatal(err)
	}
	const location = "http://asyncapi.com/definitions/3.0.0/asyncapi.json"
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource(location, definition); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile(location)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../schemas/asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(document); err != nil {
		t.Errorf("it is no AsyncAPI 3.0.0: %v", err)
	}
	document.(map[string]any)["channels"].(map[string]any)["events"].(map[string]any)["addresses"] = "a mistake"
	if schema.Validate(document) == nil {
		t.Error("a document with a mistake validates")
	}
}
