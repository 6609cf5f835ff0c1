package schemas

import (
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

// What is counted is what is decoded, whatever the texts hold.
func TestGlancesAgreeWithDecoding(t *testing.T) {
	texts := []string{"acme", `"delivery_id":"dlv_x"`, `a\b`, "ü<>&", `","result":"dead`}
	for _, text := range texts {
		d := Delivery{
			ID: DeliveryID{Topic: [16]byte{1, 2}, Partition: 7, Offset: 1 << 40}, WebhookID: "wh_1", EventID: text, Event: "a.b", Organization: text,
			Cause: CauseEvent, AcceptedAt: time.UnixMicro(1_790_000_000_000_001), Body: []byte("{}"),
		}
		r := d.Record("t")
		g := GlanceDelivery(r)
		if g.ID != d.ID || string(g.Organization) != text || string(g.EventID) != text || string(g.Webhook) != d.WebhookID ||
			g.Cause != d.Cause || !g.AcceptedAt.Equal(d.AcceptedAt) || !g.Known || g.Newer {
			t.Errorf("delivery of %q: got %+v", text, g)
		}
		o := Outcome{Organization: text, Account: text, WebhookID: "wh_1", DeliveryID: d.ID, EventID: text, Result: ResultDead, Reason: text, ResponseHead: text}
		r, err := o.Record("t")
		if err != nil {
			t.Fatal(err)
		}
		got, err := GlanceOutcome(r)
		if err != nil || got.ID != d.ID || string(got.Organization) != text || got.Result != ResultDead || !got.Ends() {
			t.Errorf("outcome of %q: got %+v, %v", text, got, err)
		}
	}
}

func TestGlancesTellOtherVersionsAndGarbage(t *testing.T) {
	newer := &kgo.Record{Value: []byte("{}"), Headers: []kgo.RecordHeader{{Key: HeaderVersion, Value: []byte("2")}}}
	if g := GlanceDelivery(newer); g.Known || !g.Newer {
		t.Errorf("a delivery of version 2: got %+v", g)
	}
	var unknown *UnknownVersionError
	if _, err := GlanceOutcome(newer); !errors.As(err, &unknown) {
		t.Errorf("an outcome of version 2: got %v", err)
	}
	if g := GlanceDelivery(&kgo.Record{Value: []byte("x")}); g.Known || g.Newer {
		t.Errorf("garbage: got %+v", g)
	}
	if _, err := GlanceOutcome(&kgo.Record{Value: []byte("x"), Headers: []kgo.RecordHeader{versionHeader()}}); err == nil {
		t.Error("garbage is an outcome")
	}
}

func TestMarkRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m Mark
		for range rapid.IntRange(0, 50).Draw(t, "unfinished") {
			m.Unfinished = append(m.Unfinished, m.Next+rapid.Int64Range(0, 1<<20).Draw(t, "gap"))
			m.Next = m.Unfinished[len(m.Unfinished)-1] + 1
		}
		m.Next += rapid.Int64Range(0, 1<<20).Draw(t, "behind")
		got, err := ParseMark(m.Low(), m.Text())
		if err != nil || got.Next != m.Next || len(got.Unfinished) != len(m.Unfinished) {
			t.Fatalf("got %+v, %v, want %+v", got, err, m)
		}
		for _, offset := range m.Unfinished {
			if !got.Live(offset) {
				t.Fatalf("%d is finished in %+v", offset, got)
			}
		}
		if !got.Live(m.Next) || m.Next > 0 && got.Live(m.Next-1) != m.Live(m.Next-1) {
			t.Fatalf("around %d: %+v", m.Next, got)
		}
	})
}
