package consume

import (
	"slices"
	"time"

	"github.com/postrider/postrider/schemas"
)

const (
	maxUnfinished = schemas.MaxUnfinished
	maxSpan       = schemas.MaxMarkSpan
)

// tracker knows which offsets of one partition are unfinished. Offsets may have
// gaps (transaction markers, compaction). It is a value without locks or clocks.
//
// An offset is started once, finished once, and may be started again only by
// another tracker that was restored from a mark in which it is unfinished.
type tracker struct {
	base int64   // where it was restored
	next int64   // every offset below it is finished or in open; -1 before the first
	open []entry // unfinished, ascending
	seen int64   // the last offset started, -1 before the first
	// again counts the offsets that a mark listed and that were not read again
	// since: the first in open above seen.
	again int
}

// entry is an unfinished offset and when its record was written.
type entry struct {
	offset int64
	at     time.Time
}

// restore returns the tracker that a partition's committed offset (-1: none) and metadata say.
func restore(offset int64, text string) (tracker, error) {
	m, err := schemas.ParseMark(offset, text)
	if err != nil {
		return tracker{}, err
	}
	t := tracker{base: offset, next: m.Next, seen: -1, again: len(m.Unfinished)}
	for _, unfinished := range m.Unfinished {
		t.open = append(t.open, entry{offset: unfinished})
	}
	return t, nil
}

// mark returns the offset to commit, which is the low-water mark, and the metadata.
func (t *tracker) mark() (offset int64, text string) {
	m := schemas.Mark{Next: t.next, Unfinished: make([]int64, len(t.open))}
	for i, e := range t.open {
		m.Unfinished[i] = e.offset
	}
	return m.Low(), m.Text()
}

// room reports whether start may be called with offset: what the mark would have to list is bounded.
func (t *tracker) room(offset int64) bool {
	if offset < t.next || len(t.open) == 0 {
		return true
	}
	return len(t.open) < maxUnfinished && offset-t.open[0].offset < maxSpan
}

// finished reports whether an offset that was just read was finished before.
func (t *tracker) finished(offset int64) bool {
	if offset < t.base || offset >= t.next {
		return false
	}
	_, unfinished := t.find(offset)
	return !unfinished
}

// free is how many more offsets may be unfinished.
func (t *tracker) free() int { return max(0, maxUnfinished-len(t.open)) }

// start takes the next offset read, which must be above the one before. It is
// false if the offset was finished before. gone counts offsets that were to be
// read again and that the log no longer has.
func (t *tracker) start(offset int64, at time.Time) (fresh bool, gone int) {
	if offset < t.base || t.next < 0 {
		// Below what was committed: the log was begun anew, and nothing known is of it.
		*t = tracker{base: offset, next: offset, seen: -1}
	}
	gone = t.pass(offset)
	t.seen = offset
	if offset >= t.next {
		t.open = append(t.open, entry{offset, at})
		t.next = offset + 1
		return true, gone
	}
	i, found := t.find(offset)
	if found {
		t.open[i].at = at
		t.again--
	}
	return found, gone
}

// pass drops the offsets that were to be read again and lie below offset: the
// position has passed them, so retention has removed them.
func (t *tracker) pass(offset int64) (gone int) {
	if t.again == 0 {
		return 0
	}
	from, _ := t.find(t.seen + 1)
	to, _ := t.find(offset)
	if to > from {
		gone = min(to-from, t.again)
		t.open = slices.Delete(t.open, from, from+gone)
		t.again -= gone
	}
	return gone
}

// finish says that a started offset needs no more.
func (t *tracker) finish(offset int64) {
	if i, found := t.find(offset); found {
		t.open = slices.Delete(t.open, i, i+1)
	}
}

func (t *tracker) find(offset int64) (int, bool) {
	return slices.BinarySearchFunc(t.open, offset, func(e entry, o int64) int {
		switch {
		case e.offset < o:
			return -1
		case e.offset > o:
			return 1
		default:
			return 0
		}
	})
}

// oldest returns when the oldest unfinished record that was read was written; zero if there is none.
func (t *tracker) oldest() time.Time {
	for _, e := range t.open {
		if !e.at.IsZero() {
			return e.at
		}
	}
	return time.Time{}
}
