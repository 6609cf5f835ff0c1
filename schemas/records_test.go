package schemas

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

func TestPatternsFor(t *testing.T) {
	for name, want := range map[string][]string{
		"medical-encounters.created": {"medical-encounters.created", "medical-encounters", "*.created", "*"},
		"com.example.labs.created":   {"com.example.labs.created", "com.example.labs", "*.created", "*"},
		"service":                    {"service", "*"},
		"ping":                       {"ping"},
		"webhook.disabled":           {"webhook.disabled", "webhook"},
		"delivery.dead":              {"delivery.dead", "delivery"},
	} {
		if got := PatternsFor(name); !reflect.DeepEqual(got, want) {
			t.Errorf("PatternsFor(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestValidPattern(t *testing.T) {
	for pattern, want := range map[string]bool{
		"*": true, "*.removed": true, "a": true, "a.b.c": true, "a-b_c.D9": true,
		"": false, "**": false, "a.*": false, "*.a.b": false, "*.": false, "a ": false, ".a": false, "a.": false, "é": false,
		strings.Repeat("a", 200): true, strings.Repeat("a", 201): false,
	} {
		if got := ValidPattern(pattern); got != want {
			t.Errorf("ValidPattern(%q) = %v, want %v", pattern, got, want)
		}
	}
}

func TestCutPayload(t *testing.T) {
	for _, payload := range []string{``, `{}`, `{"n": 1e400,  "s":"<&>\u00e9", "payload":{}}`, ` {"a":1} `} {
		e := Event{ID: "\u00e9\"\\", Name: "a.b"}
		if payload != "" {
			e.Payload = []byte(payload)
		}
		got, ok := CutPayload(AppendBody(nil, &e), &e)
		if !ok || !reflect.DeepEqual(got, []byte(e.Payload)) {
			t.Errorf("got payload %q, %v, want %q", got, ok, payload)
		}
	}
	e := Event{ID: "1", Name: "a"}
	for _, body := range []string{
		``, `{}`, `{"id":"1","event":"a"`, `{"id":"1","event":"a",`, `{"id":"1","event":"a","other":{}}`, `{"id":"2","event":"a"}`, `{"id":"1","event":"ab"}`,
		string(AppendFormatted(nil, FormatCloudEvents, &e)),
	} {
		if payload, ok := CutPayload([]byte(body), &e); ok {
			t.Errorf("got payload %q of %s, want none to be found", payload, body)
		}
	}
}

func TestDeliveryRoundTrip(t *testing.T) {
	at := time.UnixMicro(1760000000123456).UTC()
	d := Delivery{
		WebhookID: "wh_1", WebhookRevision: 7, EventID: "é", Event: "a.b", Organization: "o", Account: "acc",
		EventTime: at, AcceptedAt: at.Add(time.Second), RoutedAt: at.Add(time.Minute), Cause: CauseEvent, Body: []byte(`{"id":"é"}`),
	}
	topic := [16]byte{1, 2, 3}
	rec := d.Record("deliveries")
	rec.Partition, rec.Offset = 3, 99
	got, err := DecodeDelivery(rec, topic)
	d.ID = DeliveryID{Topic: topic, Partition: 3, Offset: 99}
	if err != nil || !reflect.DeepEqual(got, d) {
		t.Fatalf("got %+v, %v, want %+v", got, err, d)
	}

	d.Attempt, d.Parks, d.DueAt, d.FirstAttemptAt, d.Reason = 3, 2, at, at, "timeout"
	got, err = DecodeDelivery(d.Record("deliveries.retry.1s"), [16]byte{})
	if err != nil || !reflect.DeepEqual(got, d) {
		t.Fatalf("got %+v, %v, want %+v", got, err, d)
	}
}

func TestDecodeDeliveryRefuses(t *testing.T) {
	good := func() *kgo.Record {
		d := Delivery{WebhookID: "wh_1", EventID: "e", Event: "a", Organization: "o", Cause: CausePing, Body: []byte("{}")}
		return d.Record("deliveries")
	}
	drop := func(r *kgo.Record, key string) {
		for i, h := range r.Headers {
			if h.Key == key {
				r.Headers = append(r.Headers[:i], r.Headers[i+1:]...)
				return
			}
		}
	}
	for name, spoil := range map[string]func(*kgo.Record){
		"no version":    func(r *kgo.Record) { drop(r, "version") },
		"no webhook id": func(r *kgo.Record) { drop(r, "webhook_id") },
		"no cause":      func(r *kgo.Record) { drop(r, "cause") },
		"no body":       func(r *kgo.Record) { r.Value = nil },
		"other key":     func(r *kgo.Record) { r.Key = []byte("wh_2") },
		"null key":      func(r *kgo.Record) { r.Key = nil },
		"bad revision":  func(r *kgo.Record) { r.Headers = append(r.Headers, headers("webhook_revision", "x")...) },
		"bad attempt":   func(r *kgo.Record) { r.Headers = append(r.Headers, headers("attempt", "-1")...) },
		"bad id":        func(r *kgo.Record) { r.Headers = append(r.Headers, headers("delivery_id", "dlv_0")...) },
	} {
		r := good()
		spoil(r)
		var invalid *ValidationError
		if _, err := DecodeDelivery(r, [16]byte{1}); !errors.As(err, &invalid) {
			t.Errorf("%s: got %v, want a ValidationError", name, err)
		}
	}
	if _, err := DecodeDelivery(good(), [16]byte{}); err == nil {
		t.Error("outside deliveries the delivery's id must be in a header")
	}
	newer := good()
	newer.Headers[0].Value = []byte("2")
	var unknown *UnknownVersionError
	if _, err := DecodeDelivery(newer, [16]byte{1}); !errors.As(err, &unknown) {
		t.Errorf("got %v, want an UnknownVersionError", err)
	}
}

func TestRoutedRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Routed{EventsTopic: [16]byte{9}, Partition: 5, Entries: []RoutedEntry{}}
		offset := int64(0)
		for range rapid.IntRange(0, 50).Draw(t, "entries") {
			offset += rapid.Int64Range(1, 1<<40).Draw(t, "gap")
			r.Entries = append(r.Entries, RoutedEntry{
				Offset: offset, IDHash: DedupHash("o", rapid.String().Draw(t, "id")),
				PayloadHash: PayloadHash([]byte{1}),
				Result:      RoutedResult(rapid.IntRange(1, 3).Draw(t, "result")), //nolint:gosec // small
				Webhooks:    rapid.IntRange(0, 1<<20).Draw(t, "webhooks"),
			})
		}
		rec := r.Record("routed")
		got, err := DecodeRouted(rec)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("got %+v, %v, want %+v", got, err, r)
		}
		if n := len(rec.Value); n > 0 {
			rec.Value = rec.Value[:rapid.IntRange(0, n-1).Draw(t, "cut")]
			if _, err := DecodeRouted(rec); err == nil {
				t.Fatal("a truncated record was read")
			}
		}
	})
}

func TestRejectedAlwaysFits(t *testing.T) {
	for name, bad := range map[string]*kgo.Record{
		"small":       {Topic: "events", Partition: 2, Offset: 17, Key: []byte("k"), Value: []byte("v"), Headers: headers("version", "9", "a", "b")},
		"null":        {Topic: "events"},
		"huge value":  {Topic: "events", Value: make([]byte, MaxRecordBytes)},
		"huge header": {Topic: "events", Value: make([]byte, 1000), Headers: headers("h", strings.Repeat("x", 1<<20), "small", "y")},
		"huge key":    {Topic: "events", Key: make([]byte, 1<<20)},
	} {
		rec := RejectedRecord("rejected", bad, Invalid(CodeReservedName, "#/event", strings.Repeat("long ", 10000)))
		size := len(rec.Key) + len(rec.Value)
		for _, h := range rec.Headers {
			size += len(h.Key) + len(h.Value) + 16
		}
		if size > MaxRecordBytes {
			t.Errorf("%s: %d bytes do not fit into %d", name, size, MaxRecordBytes)
		}
		got, err := DecodeRejected(rec)
		if err != nil || got.Reason != CodeReservedName || got.Topic != "events" || got.Partition != bad.Partition || got.Offset != bad.Offset {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		if got.Cut != strings.HasPrefix(name, "huge") && name != "huge key" {
			t.Errorf("%s: cut is %v", name, got.Cut)
		}
	}
}

func TestKeyRing(t *testing.T) {
	first, second := NewKeyRing("k1"), NewKeyRing("k2")
	ring, err := ParseKeyRing("# old and new\n" + second + first)
	if err != nil {
		t.Fatal(err)
	}
	old, err := ParseKeyRing(first)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := old.Seal("webhook/wh_1/secret", []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ring.Open("webhook/wh_1/secret", sealed); err != nil || string(got) != "plain" {
		t.Errorf("a ring that holds the key opens %q, %v", got, err)
	}
	if _, err := ring.Open("webhook/wh_2/secret", sealed); !errors.Is(err, ErrNotOpened) {
		t.Errorf("copied to another webhook: got %v, want ErrNotOpened", err)
	}
	sealed, err = ring.Seal("x", []byte("plain"))
	if err != nil || sealed.KeyID != "k2" {
		t.Errorf("sealed under %q, %v, want the first key, k2", sealed.KeyID, err)
	}
	if _, err := old.Open("x", sealed); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("key not in the ring: got %v, want ErrUnknownKey", err)
	}
	for _, text := range []string{"", "#\n", "k1", "k1:AAAA", ":" + strings.TrimPrefix(first, "k1:"), first + first, "k1:not base64 at all"} {
		if _, err := ParseKeyRing(text); !errors.Is(err, ErrInvalidKeyRing) {
			t.Errorf("ParseKeyRing(%q): got %v, want ErrInvalidKeyRing", text, err)
		}
	}
}

func TestParseSecret(t *testing.T) {
	secret := NewSecret()
	if got, err := ParseSecret(FormatSecret(secret)); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("got %x, %v, want %x", got, err, secret)
	}
	for _, n := range []int{0, 23, 65} {
		if _, err := ParseSecret("whsec_" + base64.StdEncoding.EncodeToString(make([]byte, n))); !errors.Is(err, ErrInvalidSecret) {
			t.Errorf("%d bytes: got %v, want ErrInvalidSecret", n, err)
		}
	}
}

// The example of the Standard Webhooks specification's reference libraries.
func TestAppendSignature(t *testing.T) {
	secret, err := ParseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	got := string(AppendSignature(nil, secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, []byte(`{"test": 2432232314}`)))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("signature is %s, want %s", got, want)
	}
}

func TestAppendSignatureV1a(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	encoded, ok := strings.CutPrefix(string(AppendSignatureV1a(nil, key, "msg_1", 1614265330, []byte(`{"a": 1}`))), "v1a,")
	signature, err := base64.StdEncoding.DecodeString(encoded)
	public, isPublic := key.Public().(ed25519.PublicKey)
	if !ok || err != nil || !isPublic || !ed25519.Verify(public, []byte(`msg_1.1614265330.{"a": 1}`), signature) {
		t.Errorf("signature %q does not verify", encoded)
	}
}

func TestReseal(t *testing.T) {
	old, fresh := NewKeyRing("old"), NewKeyRing("new")
	both, err := ParseKeyRing(fresh + old)
	if err != nil {
		t.Fatal(err)
	}
	one, err := ParseKeyRing(old)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := one.Seal("a", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	sealed.ExpiresAt = moment(9)
	again, err := both.Reseal("a", sealed)
	if err != nil || again.KeyID != "new" || !again.CreatedAt.Equal(sealed.CreatedAt) || !again.ExpiresAt.Equal(sealed.ExpiresAt) {
		t.Fatalf("got %+v, %v, want it under the first key with its times", again, err)
	}
	if plain, err := both.Open("a", again); err != nil || string(plain) != "secret" {
		t.Errorf("opened %q, %v", plain, err)
	}
	if same, err := both.Reseal("a", again); err != nil || !reflect.DeepEqual(same, again) {
		t.Errorf("sealed again under the same key: %+v, %v", same, err)
	}
	if _, err := both.Reseal("b", sealed); !errors.Is(err, ErrNotOpened) {
		t.Errorf("of another identity: %v, want ErrNotOpened", err)
	}
}

func TestDeliveryIDRefuses(t *testing.T) {
	id := DeliveryID{Topic: [16]byte{255}, Partition: 1, Offset: 1 << 40}
	text := id.String()
	if got, err := ParseDeliveryID(text); err != nil || got != id {
		t.Errorf("got %+v, %v, want %+v", got, err, id)
	}
	for _, bad := range []string{"", "dlv_", text[4:], text + "0", strings.ToUpper(text), text[:len(text)-1] + "1"} {
		if _, err := ParseDeliveryID(bad); !errors.Is(err, ErrInvalidDeliveryID) {
			t.Errorf("ParseDeliveryID(%q): got %v, want ErrInvalidDeliveryID", bad, err)
		}
	}
}

func TestTopicNames(t *testing.T) {
	topics := NewTopics("p.")
	if got, want := len(topics.Specs(DefaultPartitions())), 13+17; got != want {
		t.Errorf("%d topics, want %d", got, want)
	}
	if got := len(topics.Sources()); got != 19 {
		t.Errorf("a sender consumes %d topics, want 19", got)
	}
	if got, want := topics.Retry[6], "p.deliveries.retry.1m"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, spec := range topics.Specs(DefaultPartitions()) {
		if strings.HasPrefix(spec.Name, "p.deliveries") && spec.Partitions != DefaultDeliveries {
			t.Errorf("%s has %d partitions, want %d like deliveries", spec.Name, spec.Partitions, DefaultDeliveries)
		}
	}
}

func TestDecodeStrict(t *testing.T) {
	type inner struct {
		N int     `json:"n"`
		P *string `json:"p"`
	}
	type value struct {
		A string            `json:"a"`
		B []string          `json:"b"`
		C []inner           `json:"c"`
		D *inner            `json:"d"`
		M map[string]string `json:"m"`
		R json.RawMessage   `json:"r"`
		Handling
	}
	known := []string{"a", "b", "c", "d", "m", "r", "timeout_ms"}
	for body, want := range map[string]FieldError{
		`{"a":"x","e":1}`:                   {CodeUnknownField, "#/e", ""},
		`{"a":1}`:                           {CodeWrongType, "#/a", "a number cannot stand here"},
		`{"a":null}`:                        {CodeWrongType, "#/a", "null cannot stand here"},
		`{"a":"x","a":"y"}`:                 {CodeDuplicateField, "#/a", ""},
		`{"a":"\ud800"}`:                    {CodeInvalidValue, "#/a", ""},
		`{"A":"x"}`:                         {CodeUnknownField, "#/A", ""},
		`{"b":"x"}`:                         {CodeWrongType, "#/b", ""},
		`{"b":null}`:                        {CodeWrongType, "#/b", ""},
		`{"b":["x",null]}`:                  {CodeWrongType, "#/b/1", "null cannot stand here"},
		`{"c":[{"n":1},{"n":"1"}]}`:         {CodeWrongType, "#/c/1/n", "a string cannot stand here"},
		`{"c":[{"n":1.5}]}`:                 {CodeWrongType, "#/c/0/n", ""},
		`{"c":[{"n":1},null]}`:              {CodeWrongType, "#/c/1", ""},
		`{"c":[{"e":1}]}`:                   {CodeUnknownField, "#/c/0/e", ""},
		`{"c":[{"N":1}]}`:                   {CodeUnknownField, "#/c/0/N", ""},
		`{"c":[{"n":1,"n":2}]}`:             {CodeDuplicateField, "#/c/0/n", ""},
		`{"d":null}`:                        {CodeWrongType, "#/d", ""},
		`{"d":{"p":null}}`:                  {CodeWrongType, "#/d/p", "null cannot stand here"},
		`{"d":{"e/~":{}}}`:                  {CodeUnknownField, "#/d/e~1~0", ""},
		`{"m":{"x":"1","y":null}}`:          {CodeWrongType, "#/m/y", ""},
		`{"m":{"x":{}}}`:                    {CodeWrongType, "#/m/x", "an object cannot stand here"},
		`{"timeout_ms":true}`:               {CodeWrongType, "#/timeout_ms", "a boolean cannot stand here"},
		`[1]`:                               {CodeWrongType, "#", ""},
		`null`:                              {CodeWrongType, "#", ""},
		`{`:                                 {CodeInvalidJSON, "#", ""},
		`{"d":{"` + longName(1e5) + `":1}}`: {CodeUnknownField, "#/d/" + longName(100) + "…", ""},
	} {
		err := DecodeStrict([]byte(body), new(value), known...)
		var invalid *ValidationError
		if !errors.As(err, &invalid) || invalid.Fields[0].Code != want.Code || invalid.Fields[0].Pointer != want.Pointer ||
			want.Detail != "" && invalid.Fields[0].Detail != want.Detail {
			t.Errorf("%.50s: got %v, want %s at %s", body, err, want.Code, want.Pointer)
		}
	}
	var v value
	err := DecodeStrict([]byte(` {"a":"x","b":[],"c":[{"n":1,"p":""}],"d":{},"m":{"N":"1"},"r":null,"timeout_ms":7} `), &v, known...)
	if err != nil || v.A != "x" || v.B == nil || len(v.C) != 1 || v.D == nil || v.M["N"] != "1" || string(v.R) != "null" || *v.TimeoutMS != 7 {
		t.Errorf("got %+v, %v", v, err)
	}
}

func longName(n int) string { return strings.Repeat("e", n) }

// TestInvalidWebhook is about settings that make no sense: they are read, say why,
// and are not in force. What is no webhook at all is still an error.
func TestInvalidWebhook(t *testing.T) {
	good := func() Webhook {
		return Webhook{ID: "wh_1", Organization: "acme", Active: true, URL: "https://example.com/", Events: []string{"a"}, Revision: 1}
	}
	for name, bad := range map[string]struct {
		spoil func(*Webhook)
		want  string
	}{
		"nothing":         {func(*Webhook) {}, ""},
		"timeout":         {func(w *Webhook) { w.TimeoutMS = new(0) }, "#/timeout_ms: must be at least 1000"},
		"rate":            {func(w *Webhook) { w.RateLimit = &RateLimit{Count: -1, Per: "second"} }, "#/rate_limit/count: must be at least 1"},
		"schedule":        {func(w *Webhook) { w.RetrySchedule = []string{"100h", "100h"} }, "#/retry_schedule: over 168h in all"},
		"header":          {func(w *Webhook) { w.Headers = []Header{{Name: "Host", Value: "x"}} }, "#/headers/0/name: "},
		"line break":      {func(w *Webhook) { w.Headers = []Header{{Name: "X-A", Value: "x\r\ny"}} }, "#/headers/0/value: "},
		"no url":          {func(w *Webhook) { w.URL = "" }, "#/url: missing or empty"},
		"no patterns":     {func(w *Webhook) { w.Events = nil }, "#/events: "},
		"long key":        {func(w *Webhook) { w.Metadata = map[string]string{strings.Repeat("é", 1000): "x"} }, "#/metadata/é"},
		"no organization": {func(w *Webhook) { w.Organization, w.TimeoutMS = "", new(0) }, "error"},
		"huge":            {func(w *Webhook) { w.Description = strings.Repeat("x", maxInvalidBytes) }, "error"},
	} {
		w := good()
		bad.spoil(&w)
		r, err := w.Record("webhooks")
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeWebhook(r)
		if (err != nil) != (bad.want == "error") || err == nil && (!strings.HasPrefix(got.Invalid, bad.want) || got.Active != (bad.want == "") || len(got.Invalid) > 1000) {
			t.Errorf("%s: got active %v, invalid %q, %v, want %q", name, got.Active, got.Invalid, err, bad.want)
		}
		if got.Invalid = ""; err == nil && bad.want != "" {
			got.Active = true
			if !reflect.DeepEqual(got, w) {
				t.Errorf("%s: got %+v, want all that the record says", name, got)
			}
		}
	}
}
