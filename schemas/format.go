package schemas

import (
	"bytes"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Format is what a webhook's requests look like.
type Format string

// The formats. The zero value is FormatPlain.
const (
	FormatPlain       Format = "plain"       // the webhook contract's body: {"id", "event", "payload"?}
	FormatCloudEvents Format = "cloudevents" // a CloudEvent in structured mode (CloudEvents JSON format 1.0.2)
)

func validFormat(text string) bool {
	switch Format(text) {
	case "", FormatPlain, FormatCloudEvents:
		return true
	}
	return false
}

// ContentType is that of a body of the format.
func (f Format) ContentType() string {
	if f == FormatCloudEvents {
		return ContentTypeCloudEvent
	}
	return ContentTypeJSON
}

// AppendFormatted appends the body of a format: the bytes that are signed and
// sent. The payload is spliced in byte for byte; the event must be valid.
func AppendFormatted(dst []byte, f Format, e *Event) []byte {
	if f == FormatCloudEvents {
		return appendCloudEvent(dst, e)
	}
	return AppendBody(dst, e)
}

// AppendBody appends what a target gets: {"id", "event", "payload"?}, the
// payload spliced in byte for byte. The event must be valid.
func AppendBody(dst []byte, e *Event) []byte {
	dst = slices.Grow(dst, len(`{"id":"","event":"","payload":}`)+len(e.ID)+len(e.Name)+len(e.Payload))
	dst = append(dst, `{"id":`...)
	dst, _ = jsontext.AppendQuote(dst, e.ID) // errs on bad UTF-8 only, which Validate refused
	dst = append(dst, `,"event":`...)
	dst, _ = jsontext.AppendQuote(dst, e.Name)
	if e.Payload != nil {
		dst = append(dst, `,"payload":`...)
		dst = append(dst, e.Payload...)
	}
	return append(dst, '}')
}

// CutPayload returns the payload of a body that AppendBody made of the event's id
// and name, byte for byte and aliasing it; nil for none. ok is false where the
// body is no such body.
func CutPayload(body []byte, e *Event) (payload []byte, ok bool) {
	envelope := AppendBody(nil, &Event{ID: e.ID, Name: e.Name})
	rest, ok := bytes.CutPrefix(body, envelope[:len(envelope)-1])
	if !ok || len(rest) == 0 || rest[len(rest)-1] != '}' {
		return nil, false
	}
	if rest = rest[:len(rest)-1]; len(rest) == 0 {
		return nil, true
	}
	return bytes.CutPrefix(rest, []byte(`,"payload":`))
}

// appendCloudEvent appends an event in structured mode.
func appendCloudEvent(dst []byte, e *Event) []byte {
	dst = slices.Grow(dst, 256+len(e.ID)+len(e.Source)+len(e.Payload))
	dst = append(dst, `{"specversion":"1.0"`...)
	add := func(name, value string) {
		if value == "" {
			return
		}
		dst = append(dst, `,"`...)
		dst = append(dst, name...) // a-z and 0-9
		dst = append(dst, `":`...)
		dst, _ = jsontext.AppendQuote(dst, value) // errs on bad UTF-8 only, which Validate refused
	}
	add(attrID, e.ID)
	source := e.Source
	if source == "" {
		source = DefaultSource
	}
	add(attrSource, source)
	add(attrType, e.Name)
	add(attrSubject, e.Subject)
	if !e.Time.IsZero() {
		add(attrTime, e.Time.Format(time.RFC3339Nano))
	}
	add(attrOrganization, e.Organization)
	add(attrAccount, e.Account)
	for _, a := range e.Extensions {
		add(a.Name, a.Value)
	}
	if e.Payload != nil {
		add(attrDataContentType, ContentTypeJSON)
		dst = append(dst, `,"data":`...)
		dst = append(dst, e.Payload...)
	}
	return append(dst, '}')
}
