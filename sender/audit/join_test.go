package audit

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/postrider/postrider/schemas"
)

func eventsTopic() [16]byte { return [16]byte{15: 7} }

func eventAt(offset int64) *kgo.Record {
	e := schemas.Event{ID: "e" + strconv.FormatInt(offset, 10), Name: "a.b", Organization: "acme", Source: "test"}
	r := e.Record("events")
	r.Offset, r.Timestamp = offset, time.UnixMilli(1_760_000_000_000+offset)
	return r
}

func routedAt(offset int64, entries ...schemas.RoutedEntry) *kgo.Record {
	routed := schemas.Routed{EventsTopic: eventsTopic(), Entries: entries}
	r := routed.Record("routed")
	r.Offset = offset
	return r
}

func matched(offset int64) schemas.RoutedEntry {
	return schemas.RoutedEntry{Offset: offset, Result: schemas.RoutedMatched, Webhooks: int(offset) + 1}
}

// take gives a join a record of either side.
func take(t testing.TB, j *join, r *kgo.Record) {
	t.Helper()
	if r.Topic == "events" {
		j.addEvent(r)
		return
	}
	routed, err := schemas.DecodeRouted(r)
	if err != nil {
		t.Fatal(err)
	}
	j.addRouted(r, routed)
}

// told says of each joined record which rows it has: offset, and matches or result.
func told(out []joined) []string {
	var told []string
	for _, j := range out {
		for _, e := range j.rows.events {
			matches := "?"
			if e.matches != nil {
				matches = strconv.Itoa(int(*e.matches))
			}
			told = append(told, fmt.Sprintf("%d=%s", e.offset, matches))
		}
		for _, c := range j.rows.copies {
			told = append(told, fmt.Sprintf("%d=%s", c.offset, c.result))
		}
		told = append(told, fmt.Sprintf("routed %d, events to %d", j.offset, j.eventsEnd))
	}
	return told
}

func TestJoin(t *testing.T) {
	duplicate := schemas.RoutedEntry{Offset: 1, Result: schemas.RoutedDuplicate}
	rejected := schemas.RoutedEntry{Offset: 2, Result: schemas.RoutedRejected}
	garbage := &kgo.Record{Topic: "events", Offset: 1, Value: []byte("garbage")}
	foreign := schemas.Routed{EventsTopic: [16]byte{1}, Entries: []schemas.RoutedEntry{matched(0)}}
	other := foreign.Record("routed")
	for _, test := range []struct {
		name    string
		next    int64
		records []*kgo.Record
		want    []string
		lost    int
	}{
		{"events first", 0, []*kgo.Record{eventAt(0), eventAt(1), routedAt(0, matched(0), matched(1))}, []string{"0=1", "1=2", "routed 0, events to 2"}, 0},
		{"routed first", 0, []*kgo.Record{routedAt(0, matched(0), matched(1)), eventAt(0), eventAt(1)}, []string{"0=1", "1=2", "routed 0, events to 2"}, 0},
		{"an event is still to come", 0, []*kgo.Record{routedAt(0, matched(0), matched(1)), eventAt(0)}, nil, 0},
		{"an entry is still to come", 0, []*kgo.Record{eventAt(0), eventAt(1), routedAt(0, matched(0))}, []string{"0=1", "routed 0, events to 1"}, 0},
		{"copies", 0, []*kgo.Record{eventAt(0), eventAt(1), eventAt(2), routedAt(0, matched(0), duplicate, rejected)}, []string{"0=1", "1=duplicate", "2=rejected", "routed 0, events to 3"}, 0},
		{"no event: no row", 0, []*kgo.Record{eventAt(0), garbage, routedAt(0, matched(0), schemas.RoutedEntry{Offset: 1, Result: schemas.RoutedRejected})}, []string{"0=1", "routed 0, events to 2"}, 0},
		{"offsets with gaps", 3, []*kgo.Record{eventAt(4), routedAt(7, matched(4)), eventAt(9), routedAt(9, matched(9))}, []string{"4=5", "routed 7, events to 5", "9=10", "routed 9, events to 10"}, 0},
		{"entries expired", 0, []*kgo.Record{eventAt(0), eventAt(1), eventAt(2), routedAt(5, matched(2))}, []string{"0=?", "1=?", "2=3", "routed 5, events to 3"}, 0},
		{"events expired", 0, []*kgo.Record{routedAt(0, matched(0), matched(1), matched(2)), eventAt(2)}, []string{"2=3", "routed 0, events to 3"}, 2},
		{"routed again", 2, []*kgo.Record{routedAt(0, matched(0)), eventAt(2), routedAt(1, matched(2))}, []string{"routed 0, events to 2", "2=3", "routed 1, events to 3"}, 1},
		{"start not known", -1, []*kgo.Record{routedAt(0, matched(0), matched(1)), eventAt(1)}, []string{"1=2", "routed 0, events to 2"}, 1},
		{"of a topic that was made again", 0, []*kgo.Record{other, eventAt(0)}, []string{"routed 0, events to 0"}, 1},
		{"no entries", 4, []*kgo.Record{routedAt(3)}, []string{"routed 3, events to 4"}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := newJoin(eventsTopic(), 0, test.next)
			var got []string
			for _, r := range test.records {
				take(t, j, r)
				got = append(got, told(j.advance())...)
			}
			if !slices.Equal(got, test.want) || j.lost != test.lost {
				t.Errorf("got %q, lost %d, want %q, lost %d", got, j.lost, test.want, test.lost)
			}
		})
	}
}

// TestJoinInAnyOrder reads both sides in random pieces: what comes out does not depend on them.
func TestJoinInAnyOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var events, routed []*kgo.Record
		var entries []schemas.RoutedEntry
		offset, place := int64(0), int64(0)
		for range rapid.IntRange(1, 30).Draw(rt, "events") {
			offset += rapid.Int64Range(1, 3).Draw(rt, "gap") // control records
			events = append(events, eventAt(offset))
			entries = append(entries, matched(offset))
			if rapid.Bool().Draw(rt, "end of transaction") {
				routed = append(routed, routedAt(place, entries...))
				place, entries = place+2, nil
			}
		}
		joinAll := func(draw func(string) bool) []string {
			j := newJoin(eventsTopic(), 0, 0)
			var got []string
			left, right := events, routed
			for len(left)+len(right) > 0 {
				if len(right) == 0 || len(left) > 0 && draw("from events") {
					take(t, j, left[0])
					left = left[1:]
				} else {
					take(t, j, right[0])
					right = right[1:]
				}
				got = append(got, told(j.advance())...)
			}
			if j.lost != 0 || (j.eventBytes == 0) != (len(j.events) == 0) || (j.decidedBytes == 0) != (len(j.decided) == 0) {
				rt.Fatalf("lost %d, %d bytes of %d events, %d bytes of %d records", j.lost, j.eventBytes, len(j.events), j.decidedBytes, len(j.decided))
			}
			return got
		}
		want := joinAll(func(string) bool { return true })
		got := joinAll(func(what string) bool { return rapid.Bool().Draw(rt, what) })
		slices.Sort(got)
		slices.Sort(want)
		// Where events came last, the end of what was passed may be further.
		rows := func(told []string) []string {
			return slices.DeleteFunc(slices.Clone(told), func(s string) bool { return s[0] == 'r' })
		}
		if !slices.Equal(rows(got), rows(want)) || len(got) != len(want) {
			rt.Fatalf("got %q, want %q", got, want)
		}
	})
}
