package audit

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/postrider/postrider/schemas"
)

// model is a partition of a log with its commit, and a table, against which a
// stream is run through crashes.
type model struct {
	log       []*kgo.Record // with gaps in the offsets, as control records leave them
	committed commitEntry
	now       int64 // ClickHouse's clock
	table     map[int64]int
	// late is an insert whose writer is gone or whose answer was lost: it may come
	// in up to its deadline.
	late     []int64
	deadline int64

	s *stream
	n int // of the log: read
}

// start begins a stream where the group stands, as a new owner does.
func (m *model) start() {
	m.s = newStream(sourceOutcomes, "outcomes", [16]byte{1}, 0, m.committed)
	m.n = 0
	for m.n < len(m.log) && m.log[m.n].Offset < m.committed.offset {
		m.n++
	}
}

func (m *model) read(t *rapid.T) {
	if m.n == len(m.log) {
		return
	}
	if err := m.s.add(m.log[m.n]); err != nil {
		t.Fatal(err)
	}
	m.n++
}

// arrive lets the late insert come in, if it is in time.
func (m *model) arrive() {
	if m.now <= m.deadline {
		for _, offset := range m.late {
			m.table[offset]++
		}
	}
	m.late = nil
}

// tick is what the writer does with one stream. The fate says where it stops:
// before the commit, after it, with the insert on its way, or nowhere.
func (m *model) tick(t *rapid.T) {
	b := m.s.ready()
	now := time.UnixMilli(m.now)
	if b == nil || len(settled([]*stream{m.s}, now, false)) == 0 {
		return
	}
	const timeout = 10
	deadline := now.Add(timeout * time.Millisecond)
	fate := rapid.SampledFrom([]string{"fine", "fine", "commit refused", "died after commit", "died in insert", "answer lost", "refused"}).Draw(t, "fate")
	if fate == "commit refused" {
		return
	}
	m.s.committed = m.s.entry(deadline)
	m.committed = m.s.committed
	if fate == "died after commit" {
		m.start()
		return
	}
	outcomes := tables()[0]
	if b.unknown.has(0) {
		present := make(map[place]struct{})
		for offset := range m.table {
			present[place{b.topic, b.partition, offset}] = struct{}{}
		}
		outcomes.drop(&b.rows, present)
	}
	var offsets []int64
	for _, p := range outcomes.places(&b.rows) {
		offsets = append(offsets, p.offset)
	}
	switch fate {
	case "died in insert":
		m.late, m.deadline = offsets, deadline.UnixMilli()
		m.start()
	case "answer lost":
		m.late, m.deadline = offsets, deadline.UnixMilli()
		b.note(0, errUnknown, deadline)
	case "refused":
	default:
		for _, offset := range offsets {
			m.table[offset]++
		}
		b.note(0, nil, deadline)
		m.s.inserted()
	}
}

// TestStreamIsExact walks a stream through crashes, lost answers and refusals at
// every step: each record is in the table once.
func TestStreamIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{table: make(map[int64]int), committed: commitEntry{offset: 0}, now: 1000}
		o := schemas.Outcome{WebhookID: "wh_1", DeliveryID: schemas.DeliveryID{Offset: 1}}
		offset := int64(0)
		m.start()
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				r, err := o.Record("outcomes")
				if err != nil {
					t.Fatal(err)
				}
				offset += rapid.Int64Range(1, 2).Draw(t, "gap")
				r.Offset = offset
				m.log = append(m.log, r)
			},
			"read":         m.read,
			"tick":         m.tick,
			"time passes":  func(t *rapid.T) { m.now += rapid.Int64Range(1, 8).Draw(t, "ms") },
			"insert comes": func(*rapid.T) { m.arrive() },
			"crash":        func(*rapid.T) { m.start() },
			"":             m.check,
		})
		m.finish(t)
	})
}

func (m *model) check(t *rapid.T) {
	for offset, n := range m.table {
		if n > 1 {
			t.Fatalf("offset %d is in the table %d times", offset, n)
		}
	}
}

// finish lets all go well from here, and looks that nothing is missing.
func (m *model) finish(t *rapid.T) {
	m.arrive()
	for m.n < len(m.log) {
		m.read(t)
	}
	for range 100 {
		m.now += 20
		m.tick(t)
		for m.n < len(m.log) { // it died again
			m.read(t)
		}
		m.arrive()
	}
	m.check(t)
	for _, r := range m.log {
		if m.table[r.Offset] != 1 && m.s.next > r.Offset {
			t.Fatalf("offset %d was passed and is in the table %d times", r.Offset, m.table[r.Offset])
		}
	}
}

func TestRestoredBlockHasItsBounds(t *testing.T) {
	o := schemas.Outcome{WebhookID: "wh_1", DeliveryID: schemas.DeliveryID{Offset: 1}}
	deadline := time.UnixMilli(5000)
	for _, test := range []struct {
		name    string
		offsets []int64 // polled together
		end     int64   // of the block, 0: not whole
		rows    int
	}{
		{"not whole yet", []int64{10, 11}, 0, 0},
		{"whole", []int64{10, 11, 12}, 13, 3},
		{"more was polled with it", []int64{10, 11, 12, 13, 14}, 13, 3},
		{"its end was compacted away or expired", []int64{10, 14, 15}, 13, 1},
		{"all of it expired", []int64{20}, 13, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStream(sourceOutcomes, "outcomes", [16]byte{1}, 0, commitEntry{10, pending{13, deadline}.text()})
			for _, offset := range test.offsets {
				r, err := o.Record("outcomes")
				if err != nil {
					t.Fatal(err)
				}
				r.Offset = offset
				if err := s.add(r); err != nil {
					t.Fatal(err)
				}
			}
			b := s.ready()
			if test.end == 0 {
				if b != nil {
					t.Fatalf("block %+v", b.bounds)
				}
				return
			}
			if b == nil || b.begin != 10 || b.end != test.end || len(b.rows.outcomes) != test.rows || !b.unknown.has(0) || !b.fence.Equal(deadline) {
				t.Fatalf("block is %+v", b)
			}
			s.inserted()
			if next := s.ready(); len(test.offsets) > test.rows && (next == nil || next.begin != 13 || len(next.rows.outcomes) != len(test.offsets)-test.rows) {
				t.Errorf("the block behind it is %+v", next)
			}
		})
	}
}

func TestSettled(t *testing.T) {
	fence := time.UnixMilli(1000)
	for _, test := range []struct {
		name    string
		unknown tableSet
		fence   time.Time
		now     int64
		busy    bool
		want    bool
	}{
		{"nothing unknown", 0, time.Time{}, 5, false, true},
		{"nothing unknown, others are late", 0, time.Time{}, 5, true, true},
		{"answered with an exception", 1, time.Time{}, 5, true, true},
		{"before its deadline", 1, fence, 999, false, false},
		{"at its deadline", 1, fence, 1000, false, false},
		{"past its deadline", 1, fence, 1001, false, true},
		{"past it, still at work", 1, fence, 1001, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &stream{block: &block{unknown: test.unknown, fence: test.fence}}
			got := len(settled([]*stream{s}, time.UnixMilli(test.now), test.busy)) == 1
			if got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}
