package schemas

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

func headers(pairs ...string) []kgo.RecordHeader {
	var hs []kgo.RecordHeader
	for i := 0; i+1 < len(pairs); i += 2 {
		hs = append(hs, kgo.RecordHeader{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return hs
}

func TestDecodeEventForms(t *testing.T) {
	const payload = `{"b": 1e400, "a":0.1000,"a":2, "s":"\u00e9\/\ud800"}`
	binary := headers("ce_specversion", "1.0", "ce_id", "e1", "ce_type", "labs.created", "ce_source", "/s",
		"ce_organization", "o1", "ce_account", "a1", "ce_subject", "sub", "ce_time", "2026-01-02T03:04:05.678Z",
		"ce_traceparent", "00-x", "content-type", "application/json; charset=utf-8")
	for name, rec := range map[string]*kgo.Record{
		"binary":     {Headers: binary, Value: []byte(payload)},
		"structured": {Headers: headers("content-type", "application/cloudevents+json"), Value: []byte(`{"specversion":"1.0","id":"e1","type":"labs.created","source":"/s","organization":"o1","account":"a1","subject":"sub","time":"2026-01-02T03:04:05.678Z","traceparent":"00-x","data":` + payload + `}`)},
		"plain":      {Value: []byte(`{"id":"e1","event":"labs.created","organization":"o1","account":"a1","time":"2026-01-02T04:04:05.678+01:00", "payload": ` + payload + ` }`)},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := DecodeEvent(rec)
			if err != nil {
				t.Fatalf("decoding: %v", err)
			}
			if got := string(e.Payload); got != payload {
				t.Errorf("payload is %s, want it byte for byte: %s", got, payload)
			}
			if e.ID != "e1" || e.Name != "labs.created" || e.Organization != "o1" || e.Account != "a1" {
				t.Errorf("got %+v", e)
			}
			if want := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC); !e.Time.Equal(want) {
				t.Errorf("time is %v, want %v", e.Time, want)
			}
			again, err := DecodeEvent(e.Record("events"))
			if err != nil || string(again.Payload) != payload || again.ID != e.ID || again.Account != e.Account || !again.Time.Equal(e.Time) {
				t.Errorf("written and read again: %+v, %v", again, err)
			}
			want := `{"id":"e1","event":"labs.created","payload":` + payload + `}`
			if got := string(AppendBody(nil, &e)); got != want {
				t.Errorf("body is %s, want %s", got, want)
			}
		})
	}
}

func TestBodyWithoutPayload(t *testing.T) {
	for _, value := range []string{`{"id":"é\"<","event":"a","organization":"o"}`, `{"id":"é\"<","event":"a","organization":"o","payload":null}`} {
		e, err := DecodePlainEvent([]byte(value))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(AppendBody(nil, &e)), `{"id":"é\"<","event":"a"}`; got != want {
			t.Errorf("body is %s, want %s", got, want)
		}
	}
}

func TestDecodeEventRefuses(t *testing.T) {
	deep := strings.Repeat(`{"a":`, MaxDepth) + "1" + strings.Repeat("}", MaxDepth)
	cloud := func(body string) *kgo.Record {
		return &kgo.Record{Headers: headers("content-type", "application/cloudevents+json"), Value: []byte(body)}
	}
	plain := func(body string) *kgo.Record { return &kgo.Record{Value: []byte(body)} }
	for _, c := range []struct {
		name    string
		rec     *kgo.Record
		code    Code
		pointer string
	}{
		{"empty", plain(""), CodeInvalidJSON, "#"},
		{"null value", &kgo.Record{}, CodeInvalidJSON, "#"},
		{"garbage", plain("\x00\x01"), CodeInvalidJSON, "#"},
		{"truncated", plain(`{"event":"a"`), CodeInvalidJSON, "#"},
		{"two values", plain(`{} {}`), CodeInvalidJSON, "#"},
		{"invalid UTF-8", plain("{\"event\":\"a\xff\"}"), CodeInvalidJSON, "#"},
		{"too deep", plain(`{"event":"a","organization":"o","payload":` + deep + `}`), CodeTooDeep, "#"},
		{"array", plain(`[]`), CodeWrongType, "#"},
		{"unknown field", plain(`{"event":"a","organization":"o","org/x":1}`), CodeUnknownField, "#/org~1x"},
		{"twice", plain(`{"event":"a","organization":"o","event":"b"}`), CodeDuplicateField, "#/event"},
		{"no organization", plain(`{"event":"a"}`), CodeRequired, "#/organization"},
		{"no event", plain(`{"organization":"o"}`), CodeRequired, "#/event"},
		{"wrong type", plain(`{"event":1,"organization":"o"}`), CodeWrongType, "#/event"},
		{"bad name", plain(`{"event":"a b","organization":"o"}`), CodeInvalidValue, "#/event"},
		{"long name", plain(`{"event":"` + strings.Repeat("a", 201) + `","organization":"o"}`), CodeInvalidValue, "#/event"},
		{"payload a string", plain(`{"event":"a","organization":"o","payload":"x"}`), CodeWrongType, "#/payload"},
		{"payload an array", plain(`{"event":"a","organization":"o","payload":[]}`), CodeWrongType, "#/payload"},
		{"bad time", plain(`{"event":"a","organization":"o","time":"yesterday"}`), CodeInvalidValue, "#/time"},
		{"empty id", plain(`{"event":"a","organization":"o","id":""}`), CodeInvalidValue, "#/id"},
		{"control character", plain(`{"event":"a","organization":"o\u0000"}`), CodeInvalidValue, "#/organization"},
		{"half a surrogate", plain(`{"event":"a","organization":"\ud800"}`), CodeInvalidValue, "#/organization"},
		{"no specversion", cloud(`{"id":"1","type":"a","source":"s","organization":"o"}`), CodeInvalidCloudEvent, "#/specversion"},
		{"no id", cloud(`{"specversion":"1.0","type":"a","source":"s","organization":"o"}`), CodeRequired, "#/id"},
		{"no type", cloud(`{"specversion":"1.0","id":"1","source":"s","organization":"o"}`), CodeRequired, "#/type"},
		{"attribute an object", cloud(`{"specversion":"1.0","id":"1","type":"a","source":"s","organization":"o","x":{}}`), CodeInvalidCloudEvent, "#/x"},
		{"attribute's name", cloud(`{"specversion":"1.0","id":"1","type":"a","source":"s","organization":"o","X-y":"1"}`), CodeInvalidCloudEvent, "#/X-y"},
		{"data twice", cloud(`{"specversion":"1.0","id":"1","type":"a","source":"s","organization":"o","data":{},"data_base64":"e30="}`), CodeInvalidCloudEvent, "#/data_base64"},
		{"not base64", cloud(`{"specversion":"1.0","id":"1","type":"a","source":"s","organization":"o","data_base64":"?"}`), CodeInvalidCloudEvent, "#/data_base64"},
		{"batch in Kafka", &kgo.Record{Headers: headers("content-type", "application/cloudevents-batch+json"), Value: []byte("[]")}, CodeUnsupportedContent, "#"},
		{"data not JSON", &kgo.Record{Headers: headers("ce_specversion", "1.0", "ce_id", "1", "ce_type", "a", "ce_source", "s", "ce_organization", "o", "content-type", "text/plain"), Value: []byte("x")}, CodeUnsupportedContent, "#/datacontenttype"},
		{"too large", &kgo.Record{Headers: headers("ce_specversion", "1.0", "ce_id", "1", "ce_type", "a", "ce_source", "s", "ce_organization", "o"), Value: []byte(`{"a":"` + strings.Repeat("x", MaxPayloadBytes) + `"}`)}, CodeTooLarge, "#/data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := DecodeEvent(c.rec)
			var invalid *ValidationError
			if !errors.As(err, &invalid) {
				t.Fatalf("got %v, want a ValidationError", err)
			}
			if f := invalid.Fields[0]; f.Code != c.code || f.Pointer != c.pointer {
				t.Errorf("got %+v, want %s at %s", invalid.Fields, c.code, c.pointer)
			}
		})
	}
}

func TestDecodeEventTellsAllProblems(t *testing.T) {
	_, err := DecodePlainEvent([]byte(`{"event":"a b","payload":3,"x":1}`))
	var invalid *ValidationError
	if !errors.As(err, &invalid) || len(invalid.Fields) != 4 {
		t.Errorf("got %v, want payload, x, event and organization told at once", err)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte(`{"id":"1","event":"a.b","organization":"o","payload":{"a":[1,2]}}`), "")
	f.Add([]byte(`{"specversion":"1.0","id":"1","type":"a","source":"s","organization":"o","data":{}}`), "application/cloudevents+json")
	f.Fuzz(func(t *testing.T, value []byte, contentType string) {
		e, err := DecodeEvent(&kgo.Record{Value: value, Headers: headers("content-type", contentType)})
		if err != nil {
			var invalid *ValidationError
			if !errors.As(err, &invalid) || len(invalid.Fields) == 0 {
				t.Fatalf("error %v is no ValidationError", err)
			}
			return
		}
		if body := AppendBody(nil, &e); !json.Valid(body) {
			t.Fatalf("body of %q is no JSON: %q", value, body)
		}
		again, err := DecodeEvent(e.Record("t"))
		// A plain event without id is given one before it is written.
		if e.ID != "" && (err != nil || string(again.Payload) != string(e.Payload)) {
			t.Fatalf("written and read again: %+v, %v", again, err)
		}
	})
}

func TestSoundEventsHaveNoProblems(t *testing.T) {
	text := func(t *rapid.T, name string) string {
		return rapid.OneOf(
			rapid.StringMatching(`[ -~]{0,300}`), rapid.StringN(0, 40, 1200), rapid.Just(""), rapid.StringMatching(`[a-z]{1,8}`),
		).Draw(t, name)
	}
	sound := 0
	rapid.Check(t, func(t *rapid.T) {
		e := Event{
			ID: text(t, "id"), Name: rapid.OneOf(rapid.Just("a.b"), rapid.String()).Draw(t, "name"), Organization: text(t, "organization"),
			Account: text(t, "account"), Source: text(t, "source"), Subject: text(t, "subject"), Payload: []byte("{}"),
		}
		if !e.sound() {
			return
		}
		sound++
		if fields := fieldErrors(&e); fields != nil {
			t.Fatalf("sound, and yet: %v", fields)
		}
	})
	if sound == 0 {
		t.Error("no event drawn was sound")
	}
}

func TestCloudEventBody(t *testing.T) {
	const payload = `{"b": 1e400, "a":0.1000,"a":2, "s":"\u00e9\/\ud800"}`
	e := Event{
		ID: `é"<`, Name: "labs.created", Organization: "o1", Account: "a1", Subject: "s", Time: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC),
		Payload: []byte(payload), Extensions: []Attribute{{"traceparent", "00-x"}},
	}
	body := AppendFormatted(nil, FormatCloudEvents, &e)
	got, err := DecodeCloudEvent(body)
	if err != nil || string(got.Payload) != payload || got.ID != e.ID || got.Name != e.Name || got.Source != DefaultSource || got.Organization != "o1" ||
		got.Account != "a1" || got.Subject != "s" || !got.Time.Equal(e.Time) || len(got.Extensions) != 1 || got.Extensions[0] != e.Extensions[0] {
		t.Errorf("%s is read as %+v, %v", body, got, err)
	}
	bare := AppendFormatted(nil, FormatCloudEvents, &Event{ID: "1", Name: "ping", Organization: "o", Source: "/x"})
	if want := `{"specversion":"1.0","id":"1","source":"/x","type":"ping","organization":"o"}`; string(bare) != want {
		t.Errorf("got %s, want %s", bare, want)
	}
	for _, f := range []Format{"", FormatPlain} {
		if got, want := string(AppendFormatted(nil, f, &e)), string(AppendBody(nil, &e)); got != want {
			t.Errorf("format %q: got %s, want %s", f, got, want)
		}
	}
}
