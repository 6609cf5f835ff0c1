package audit

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
)

// ddlColumns reads the columns of a table out of its CREATE TABLE, a line each.
func ddlColumns(t *testing.T, table string) []string {
	t.Helper()
	for _, m := range clickhouse.Migrations("db") {
		for _, statement := range m.Statements {
			_, body, found := strings.Cut(statement, "CREATE TABLE IF NOT EXISTS db."+table+"\n(\n")
			if !found {
				continue
			}
			body, _, _ = strings.Cut(body, "\n)\n")
			var columns []string
			for line := range strings.SplitSeq(body, "\n") {
				name := strings.Fields(line)[0]
				if name != "INDEX" && name != "PROJECTION" {
					columns = append(columns, name)
				}
			}
			return columns
		}
	}
	t.Fatalf("no DDL of %s", table)
	return nil
}

func TestRowsHaveTheDDLsColumns(t *testing.T) {
	for _, table := range tables() {
		got := slices.Clone(table.columns)
		got = append(got, "inserted_at") // the server's
		if table.fenced {
			got = append(got, "insert_by")
		}
		want := ddlColumns(t, table.name)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", table.name, got, want)
		}
	}
}

func TestOutcomeMakesARowAndAState(t *testing.T) {
	started := time.UnixMilli(1_760_000_000_000).UTC()
	o := schemas.Outcome{
		Organization: "acme", WebhookID: "wh_1", DeliveryID: schemas.DeliveryID{Offset: 9}, Attempt: 3, StatusCode: 503,
		Result: schemas.ResultRetry, Reason: "status", StartedAt: started, DurationMS: 250, NextAttemptAt: started.Add(time.Minute),
	}
	rec, err := o.Record("outcomes")
	if err != nil {
		t.Fatal(err)
	}
	rec.Partition, rec.Offset = 4, 77
	var r rows
	if err := r.addOutcome([16]byte{1}, rec); err != nil {
		t.Fatal(err)
	}
	if len(r.outcomes) != 1 || r.outcomes[0].place != (place{[16]byte{1}, 4, 77}) || r.outcomes[0].Result != schemas.ResultRetry {
		t.Errorf("outcomes are %+v", r.outcomes)
	}
	s := r.states[0]
	if s.state != "retry" || s.attempts != 3 || s.version != 78 || !s.updatedAt.Equal(started.Add(250*time.Millisecond)) || s.deliveryID != o.DeliveryID.String() {
		t.Errorf("state is %+v", s)
	}
}

func TestDeliveryMakesAPendingState(t *testing.T) {
	for _, test := range []struct {
		cause  schemas.Cause
		events int
	}{{schemas.CauseEvent, 0}, {schemas.CauseReplay, 0}, {schemas.CauseRetry, 0}, {schemas.CausePing, 1}} {
		d := schemas.Delivery{
			WebhookID: "wh_1", EventID: "evt_1", Event: "ping", Organization: "acme", Cause: test.cause,
			RoutedAt: time.UnixMilli(5), Body: []byte(`{"id":"evt_1","event":"ping"}`),
		}
		var r rows
		if err := r.addDelivery([16]byte{1}, d.Record("deliveries")); err != nil {
			t.Fatal(err)
		}
		if len(r.states) != 1 || r.states[0].state != "pending" || r.states[0].version != 0 {
			t.Errorf("%s: states are %+v", test.cause, r.states)
		}
		if len(r.events) != test.events {
			t.Errorf("%s: events are %+v, want %d", test.cause, r.events, test.events)
		}
		if test.events > 0 && (string(r.events[0].body) != string(d.Body) || *r.events[0].matches != 1) {
			t.Errorf("%s: event is %+v", test.cause, r.events[0])
		}
	}
}

func TestChangeMakesARevision(t *testing.T) {
	for _, test := range []struct {
		name     string
		change   schemas.Change
		revision int64 // 0: none
		deleted  bool
	}{
		{"created", schemas.Change{Action: "created", Object: "webhook", After: []byte(`{"id":"wh_1","revision":1,"state":"active"}`)}, 1, false},
		{"deleted", schemas.Change{Action: "deleted", Object: "webhook", Before: []byte(`{"id":"wh_1","revision":4}`)}, 4, true},
		{"refused", schemas.Change{Action: "updated", Object: "webhook", Error: "no"}, 0, false},
		{"a key", schemas.Change{Action: "created", Object: "key", After: []byte(`{"id":"key_1"}`)}, 0, false},
		{"of an unknown form", schemas.Change{Action: "updated", Object: "webhook", After: []byte(`[]`)}, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			rec, err := test.change.Record("changes")
			if err != nil {
				t.Fatal(err)
			}
			var r rows
			if err := r.addChange([16]byte{1}, rec); err != nil {
				t.Fatal(err)
			}
			if len(r.changes) != 1 || len(r.webhooks) != min(int(test.revision), 1) {
				t.Fatalf("%d changes, %d webhooks", len(r.changes), len(r.webhooks))
			}
			if test.revision > 0 && (r.webhooks[0].Revision != test.revision || r.webhooks[0].deleted != test.deleted) {
				t.Errorf("revision is %+v", r.webhooks[0])
			}
		})
	}
}

func TestPingsBodyIsTheContracts(t *testing.T) {
	for _, payload := range []string{"", `{"n": 1.10}`} {
		e := schemas.Event{ID: "evt_1", Name: schemas.PingName, Organization: "acme", Account: "a1", Time: time.UnixMilli(5)}
		if payload != "" {
			e.Payload = []byte(payload)
		}
		want := string(schemas.AppendBody(nil, &e))
		for _, format := range []schemas.Format{"", schemas.FormatPlain, schemas.FormatCloudEvents} {
			d := schemas.Delivery{
				WebhookID: "wh_1", EventID: e.ID, Event: e.Name, Organization: e.Organization, Account: e.Account, Cause: schemas.CausePing,
				Format: format, Body: schemas.AppendFormatted(nil, format, &e),
			}
			var r rows
			if err := r.addDelivery([16]byte{1}, d.Record("deliveries")); err != nil {
				t.Fatal(err)
			}
			if got := string(r.events[0].body); got != want {
				t.Errorf("format %q: body is %s, want %s", format, got, want)
			}
		}
	}
	broken := schemas.Delivery{Format: schemas.FormatCloudEvents, Body: []byte("{")}
	if got := string(contractBody(&broken)); got != "{" {
		t.Errorf("a broken body became %s", got)
	}
}

func TestEventWithoutIDHasItsPlaces(t *testing.T) {
	var r rows
	at := place{[16]byte{1}, 2, 3}
	r.addEvent(at, &kgo.Record{Value: []byte(`{"event":"a.b","organization":"acme"}`)}, nil, time.Time{})
	if want := schemas.EventIDAt(at.topic, at.partition, at.offset); r.events[0].eventID != want {
		t.Errorf("id is %s, want %s", r.events[0].eventID, want)
	}
}

func TestBadRecordsAreTold(t *testing.T) {
	newer := &kgo.Record{Topic: "outcomes", Headers: []kgo.RecordHeader{{Key: "version", Value: []byte("7")}}}
	for _, s := range []source{sourceRouted, sourceDeliveries, sourceOutcomes, sourceChanges} {
		st := newStream(s, "t", [16]byte{}, 0, commitEntry{offset: 0})
		st.join = newJoin([16]byte{}, 0, 0)
		if err := st.add(&kgo.Record{Value: []byte("\xff")}); err == nil || schemas.IsNewer(err) {
			t.Errorf("%s: garbage gave %v", s, err)
		}
		var unknown *schemas.UnknownVersionError
		if err := st.add(newer); !errors.As(err, &unknown) {
			t.Errorf("%s: a newer record gave %v", s, err)
		}
		st.advance()
		if st.made != 1 {
			t.Errorf("%s: read to %d, want 1: past the garbage, and not past the newer", s, st.made)
		}
	}
}
