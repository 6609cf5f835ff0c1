package schemas

import (
	"strings"
)

// FieldError says what is wrong with one field of a request or record.
type FieldError struct {
	// Code is one of a closed set, for programs and metrics.
	Code Code `json:"code"`
	// Pointer is a JSON Pointer fragment (RFC 6901, section 6): "#/events/0"; "#" is the whole document.
	Pointer string `json:"pointer"`
	// Detail says in words what is wrong and what is allowed.
	Detail string `json:"detail"`
}

// Code is the reason for which a record or a field of a request is refused.
type Code string

// The closed set of codes.
const (
	CodeInvalidJSON        Code = "invalid_json"        // not JSON, or not UTF-8
	CodeTooDeep            Code = "too_deep"            // nested deeper than MaxDepth
	CodeTooLarge           Code = "too_large"           // longer than the limit said
	CodeUnknownField       Code = "unknown_field"       // a member that does not exist here
	CodeDuplicateField     Code = "duplicate_field"     // the same member twice in an envelope
	CodeWrongType          Code = "wrong_type"          // another JSON type than expected
	CodeRequired           Code = "required"            // missing or empty
	CodeInvalidValue       Code = "invalid_value"       // the right type, but not allowed
	CodeReservedName       Code = "reserved_name"       // an event of the services webhook or delivery
	CodeIDReused           Code = "id_reused"           // a known event id with another payload
	CodeInvalidCloudEvent  Code = "invalid_cloudevent"  // breaks CloudEvents 1.0
	CodeUnsupportedContent Code = "unsupported_content" // a content type that carries no JSON
	CodeUnknownVersion     Code = "unknown_version"     // a record version this binary does not know
	CodeInvalidRecord      Code = "invalid_record"      // a record of Postrider's own with missing or broken headers
	CodeRowRefused         Code = "row_refused"         // ClickHouse takes no row of it: it is missing from the audit alone
	CodeInvalidTarget      Code = "invalid_target"      // a URL that webhooks may not have
	CodeInvalidFilter      Code = "invalid_filter"      // an expression that cannot be compiled
	CodeNotFound           Code = "not_found"           // refers to what is not there
)

// ValidationError is why a request or record is refused: at least one field error.
type ValidationError struct {
	Fields []FieldError
}

// Invalid returns a ValidationError of one field.
func Invalid(code Code, pointer, detail string) *ValidationError {
	return &ValidationError{Fields: []FieldError{{Code: code, Pointer: pointer, Detail: detail}}}
}

// Error tells all field errors on one line.
func (e *ValidationError) Error() string {
	var b strings.Builder
	for i, f := range e.Fields {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(f.Pointer)
		b.WriteString(": ")
		b.WriteString(f.Detail)
	}
	return b.String()
}

// Code returns the first field's code: the reason under which a record is rejected.
func (e *ValidationError) Code() Code { return e.Fields[0].Code }

// Problem is the body of every HTTP error (RFC 9457, application/problem+json).
type Problem struct {
	Type     string       `json:"type"`
	Title    string       `json:"title"`
	Status   int          `json:"status"`
	Detail   string       `json:"detail,omitempty"`
	Instance string       `json:"instance,omitempty"`
	Errors   []FieldError `json:"errors,omitempty"`
}

// ProblemContentType is the media type of a Problem.
const ProblemContentType = "application/problem+json"
