package consume

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/schemas"
)

func TestRestoreRefusesForeignText(t *testing.T) {
	for _, text := range []string{"2:AA", "1:", "1:!", "1:AA", "1://///////////w", "x"} {
		if _, err := restore(10, text); !errors.Is(err, schemas.ErrMark) {
			t.Errorf("text %q: error %v, want schemas.ErrMark", text, err)
		}
	}
	if _, err := restore(-1, "1:AQ"); !errors.Is(err, schemas.ErrMark) {
		t.Errorf("text without an offset: error %v, want schemas.ErrMark", err)
	}
}

func TestTrackerDropsWhatRetentionRemoved(t *testing.T) {
	first := tracker{next: 10, seen: -1}
	for o := int64(10); o < 20; o++ {
		first.start(o, time.Time{})
	}
	for _, o := range []int64{11, 13, 19} {
		first.finish(o)
	}
	second, err := restore(first.mark())
	if err != nil {
		t.Fatal(err)
	}
	// Of 10 12 14 15 16 17 18 only 16 and later are still there.
	fresh, gone := second.start(16, time.Time{})
	if !fresh || gone != 4 {
		t.Fatalf("fresh %v, gone %d, want true and 4", fresh, gone)
	}
	second.finish(16)
	if low, _ := second.mark(); low != 17 {
		t.Errorf("low-water mark %d, want 17", low)
	}
	if fresh, _ := second.start(19, time.Time{}); fresh {
		t.Error("19 was finished and started again")
	}
	if low, text := second.mark(); low != 20 || text != "" {
		t.Errorf("mark %d %q, want 20 and no text: 17 and 18 are gone too", low, text)
	}
}

func TestTrackerStartsAnewWithTheLog(t *testing.T) {
	tr, err := restore(500, "")
	if err != nil {
		t.Fatal(err)
	}
	if fresh, _ := tr.start(3, time.Time{}); !fresh {
		t.Error("an offset below the committed one was taken for finished")
	}
}

func TestMarkFitsIntoMetadata(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := tracker{next: 1 << 40, seen: -1}
		offset := tr.next
		step := rapid.SampledFrom([]int64{1, 1 << 7, 1 << 14, 1 << 17, 1 << 21, 1 << 25})
		for tr.room(offset) {
			tr.start(offset, time.Time{})
			offset += step.Draw(t, "step")
		}
		low, text := tr.mark()
		if len(text) > schemas.MaxMarkText {
			t.Fatalf("%d characters for %d unfinished offsets", len(text), len(tr.open))
		}
		back, err := restore(low, text)
		if err != nil || len(back.open) != len(tr.open) || back.next != tr.next {
			t.Fatalf("read back %d offsets, next %d, error %v; want %d, %d", len(back.open), back.next, err, len(tr.open), tr.next)
		}
	})
}

// world is a partition that survives restarts: its log, what was committed, and
// how often each offset was finished in a commit.
type world struct {
	log      []int64
	offset   int64
	text     string
	finished map[int64]int

	tracker tracker
	at      int // place in log to read next
	running []int64
	done    []int64 // finished and not yet committed
}

func (w *world) assign(t *rapid.T) {
	tr, err := restore(w.offset, w.text)
	if err != nil {
		t.Fatalf("restoring %d %q: %v", w.offset, w.text, err)
	}
	w.tracker, w.running, w.done = tr, nil, nil
	for w.at = 0; w.at < len(w.log) && w.log[w.at] < w.offset; w.at++ {
		if w.finished[w.log[w.at]] == 0 {
			t.Fatalf("offset %d is below the low-water mark %d and not finished", w.log[w.at], w.offset)
		}
	}
}

func (w *world) read(t *rapid.T) {
	if w.at == len(w.log) || !w.tracker.room(w.log[w.at]) {
		return
	}
	offset := w.log[w.at]
	w.at++
	fresh, gone := w.tracker.start(offset, time.Time{})
	if gone != 0 {
		t.Fatalf("%d offsets taken for removed at %d", gone, offset)
	}
	if finished := w.finished[offset] > 0; fresh == finished {
		t.Fatalf("offset %d: to be started %v, finished before %v", offset, fresh, finished)
	}
	if fresh {
		w.running = append(w.running, offset)
	}
}

func (w *world) complete(t *rapid.T) {
	if len(w.running) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.running)-1).Draw(t, "which")
	w.done = append(w.done, w.running[i])
	w.running = append(w.running[:i], w.running[i+1:]...)
}

func (w *world) commit(t *rapid.T) {
	for _, offset := range w.done {
		w.tracker.finish(offset)
		if w.finished[offset]++; w.finished[offset] > 1 {
			t.Fatalf("offset %d finished twice", offset)
		}
	}
	w.done = nil
	w.offset, w.text = w.tracker.mark()
}

// TestTracker: in any order of completions, commits and restarts an offset that
// was finished is never started again, an unfinished one always is, none is skipped.
func TestTracker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{finished: make(map[int64]int)}
		offset := rapid.Int64Range(0, 1000).Draw(t, "log start")
		w.offset = offset
		for range rapid.IntRange(1, 60).Draw(t, "records") {
			offset += rapid.Int64Range(0, 3).Draw(t, "gap") // transaction markers
			w.log = append(w.log, offset)
			offset++
		}
		w.assign(t)
		t.Repeat(map[string]func(*rapid.T){
			"read":     w.read,
			"complete": w.complete,
			"commit":   w.commit,
			"restart":  w.assign,
		})
		for w.at < len(w.log) || len(w.running) > 0 {
			w.read(t)
			for len(w.running) > 0 {
				w.complete(t)
			}
		}
		w.commit(t)
		for _, offset := range w.log {
			if w.finished[offset] != 1 {
				t.Fatalf("offset %d finished %d times", offset, w.finished[offset])
			}
		}
		if low, text := w.offset, w.text; low <= w.log[len(w.log)-1] || text != "" {
			t.Fatalf("at the end the mark is %d %q", low, text)
		}
	})
}
