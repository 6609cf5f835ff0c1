package schemas

import "embed"

// openAPI is the contract of ingest's REST listener.
//
//go:embed openapi.yaml
var openAPI []byte

// OpenAPI returns the OpenAPI 3.1 description of the REST API, in YAML.
func OpenAPI() []byte { return openAPI }

// JSONSchemas holds the JSON Schemas (2020-12) of all records whose value is
// JSON, of the request body and of problem details: json/<name>.json.
//
//go:embed json/*.json
var JSONSchemas embed.FS
