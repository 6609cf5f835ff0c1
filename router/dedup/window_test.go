package dedup_test

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/router/dedup"
)

// model is the window in its plainest form: a list.
type model struct {
	seen  []seen
	limit int
	age   time.Duration
}

type seen struct {
	id      [16]byte
	payload [8]byte
	at      time.Time
}

func (m *model) see(s seen) dedup.Verdict {
	for _, known := range m.seen {
		if known.id == s.id && s.at.Sub(known.at) <= m.age {
			if known.payload == s.payload {
				return dedup.Duplicate
			}
			return dedup.Reused
		}
	}
	m.seen = append(m.seen, s)
	return dedup.Fresh
}

func (m *model) settle(now time.Time) {
	for len(m.seen) > 0 && (len(m.seen) > m.limit || now.Sub(m.seen[0].at) > m.age) {
		m.seen = m.seen[1:]
	}
}

func TestWindowAgreesWithModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &model{limit: rapid.IntRange(1, 3000).Draw(t, "limit"), age: time.Minute}
		w := dedup.NewWindow(m.limit, m.age)
		ids := rapid.Uint64Range(1, 6000).Draw(t, "ids")
		now := time.Unix(1_700_000_000, 0)
		var settled int // how many of the model's ids cannot be rolled back
		for range rapid.IntRange(1, 60).Draw(t, "transactions") {
			fresh := 0
			random := rapid.Uint64().Draw(t, "random")
			for i := range rapid.IntRange(0, 800).Draw(t, "events") {
				s := seen{id: id((random + uint64(i)*uint64(i)) % ids), at: now}
				s.payload[0] = byte((random>>32 + uint64(i)) % 3)
				got, want := w.See(s.id, s.payload, s.at), m.see(s)
				if got != want {
					t.Fatalf("event %d: got %v, want %v", i, got, want)
				}
				if got == dedup.Fresh {
					fresh++
				}
			}
			if rapid.Bool().Draw(t, "abort") {
				w.Rollback(fresh)
				m.seen = m.seen[:settled]
			} else {
				w.Settle(now)
				m.settle(now)
				settled = len(m.seen)
			}
			if w.Len() != len(m.seen) {
				t.Fatalf("got %d ids, want %d", w.Len(), len(m.seen))
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
		}
	})
}

func TestWindowForgetsAndRemembers(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_700_000_000, 0)
	for _, c := range []struct {
		name    string
		settle  bool
		between int // further ids
		later   time.Duration
		want    dedup.Verdict
	}{
		{"at once", false, 0, 0, dedup.Duplicate},
		{"after a commit", true, 0, 0, dedup.Duplicate},
		{"at the end of its time", true, 0, time.Hour, dedup.Duplicate},
		{"after its time", true, 0, time.Hour + time.Second, dedup.Fresh},
		{"after its time, not settled", false, 0, time.Hour + time.Second, dedup.Fresh},
		{"at the limit", true, 9, 0, dedup.Duplicate},
		{"over the limit", true, 10, 0, dedup.Fresh},
		{"over the limit, not settled", false, 10, 0, dedup.Duplicate},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := dedup.NewWindow(10, time.Hour)
			w.See(id(0), [8]byte{1}, start)
			for i := range c.between {
				w.See(id(uint64(i)+1), [8]byte{}, start)
			}
			if c.settle {
				w.Settle(start.Add(c.later))
			}
			if got := w.See(id(0), [8]byte{1}, start.Add(c.later)); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestWindowShrinks(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	w := dedup.NewWindow(dedup.MaxIDs, time.Hour)
	for i := range uint64(100_000) {
		w.See(id(i), [8]byte{}, now)
	}
	w.SetLimit(10)
	w.Settle(now)
	for i := range uint64(100_000) {
		want := dedup.Fresh
		if i >= 99_990 {
			want = dedup.Duplicate
		}
		if got := w.See(id(i), [8]byte{}, now); got != want {
			t.Fatalf("id %d: got %v, want %v", i, got, want)
		}
		w.Rollback(1 - int(want))
	}
}

// TestMemoryPerID holds the constant to what a full window takes.
func TestMemoryPerID(t *testing.T) {
	const ids = dedup.MaxIDs
	now := time.Unix(1_700_000_000, 0)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w := dedup.NewWindow(ids, time.Hour)
	for i := range uint64(ids) {
		w.Add(id(i), [8]byte{}, now)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%.1f bytes an id", float64(after.HeapAlloc-before.HeapAlloc)/ids)
	if got := (after.HeapAlloc - before.HeapAlloc) / ids; got > dedup.BytesPerID {
		t.Errorf("got %d bytes an id, want at most %d", got, dedup.BytesPerID)
	}
	runtime.KeepAlive(w)
}

// id returns the nth of a series of ids whose bits are not spread at all, as a stranger could choose them.
func id(n uint64) (b [16]byte) {
	binary.BigEndian.PutUint64(b[:], n)
	return b
}

func BenchmarkSee(b *testing.B) {
	w := dedup.NewWindow(dedup.MaxIDs, time.Hour)
	now := time.Unix(1_700_000_000, 0)
	var n uint64
	for b.Loop() {
		n++
		w.See(id(n*0x9e3779b97f4a7c15), [8]byte{}, now)
		if n%5000 == 0 {
			w.Settle(now)
		}
	}
}
