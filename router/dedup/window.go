// Package dedup provides the memory of event ids that keeps an event sent twice from being routed twice (P3): a window for each partition of
// events, and reading it back from the log of what was decided. When to commit and when to roll back is left to the caller. It runs no goroutines.
package dedup

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"time"
)

const (
	// MaxIDs is the most ids a window holds.
	MaxIDs = 1_000_000
	// BytesPerID is what an id costs: an entry of 28 bytes (16 of id hash, 8 of payload hash, 4 of time) and, with the index between three
	// eighths and three quarters full, 5 to 11 bytes of index.
	BytesPerID = 40

	chunkBits = 10
	chunkSize = 1 << chunkBits
	// A slot holds the low 31 bits of an entry's number; the top bit tells it from an empty slot.
	slotUsed = 1 << 31
	slotMask = slotUsed - 1
	minSlots = 1 << 6
)

// A Verdict says what a window knows about an event.
type Verdict int

// Verdicts.
const (
	Fresh     Verdict = iota // not seen: it has been added
	Duplicate                // seen, with the same payload
	Reused                   // seen, with another payload
)

// An entry holds no pointers, so the garbage collector never looks into the millions of them.
type entry struct {
	id      [16]byte
	payload [8]byte
	at      uint32 // Unix seconds
}

// A Window is a ring of ids, oldest first, with an index by open addressing. What See added stays subject to Rollback until Settle, and nothing is
// forgotten but by Settle: an aborted transaction leaves no trace. It is not safe for concurrent use.
type Window struct {
	limit int
	age   int64     // seconds
	seed  [2]uint64 // ids are chosen by strangers, who must not be able to choose the slots as well

	// Entry number n is in chunks[n>>chunkBits - oldest>>chunkBits]. A list of chunks grows and shrinks without moving entries.
	chunks       [][]entry
	oldest, next uint64 // numbers of the oldest entry and of the one to come
	slots        []uint32
	mask         uint64 // one less than the number of slots, a power of two
}

// NewWindow returns an empty window of at most limit ids, each forgotten after age.
func NewWindow(limit int, age time.Duration) *Window {
	return &Window{
		limit: max(limit, 1),
		age:   int64(age / time.Second),
		seed:  [2]uint64{rand.Uint64(), rand.Uint64()}, //nolint:gosec // spreads load, guards no secret
		slots: make([]uint32, minSlots),
		mask:  minSlots - 1,
	}
}

// Len is the number of ids held.
func (w *Window) Len() int { return int(w.next - w.oldest) } //nolint:gosec // below 2^31

// SetLimit changes how many ids the window holds, from the next Settle on.
func (w *Window) SetLimit(limit int) { w.limit = max(limit, 1) }

// See looks an event up that was accepted at the time given, and adds it if it is fresh.
func (w *Window) See(id [16]byte, payload [8]byte, at time.Time) Verdict {
	now := at.Unix()
	for i := w.home(id); w.slots[i] != 0; i = (i + 1) & w.mask {
		// An expired entry may still be there: only Settle forgets, as the transaction may yet be aborted.
		if e := w.at(w.number(w.slots[i])); e.id == id && now-int64(e.at) <= w.age {
			if e.payload == payload {
				return Duplicate
			}
			return Reused
		}
	}
	w.Add(id, payload, at)
	return Fresh
}

// Add adds an id without looking it up.
func (w *Window) Add(id [16]byte, payload [8]byte, at time.Time) {
	if (w.Len()+1)*4 > len(w.slots)*3 {
		w.index(len(w.slots) * 2)
	}
	if last := int(w.next>>chunkBits - w.oldest>>chunkBits); last == len(w.chunks) {
		w.chunks = append(w.chunks, make([]entry, chunkSize))
	}
	*w.at(w.next) = entry{id: id, payload: payload, at: uint32(max(at.Unix(), 0))} //nolint:gosec // until 2106
	w.put(w.next)
	w.next++
}

// Rollback forgets the n ids that were added last.
func (w *Window) Rollback(n int) {
	for range n {
		w.next--
		w.remove(w.next)
	}
	w.trim()
}

// Settle makes what was added permanent and forgets what is too old at the time given, or too much.
func (w *Window) Settle(now time.Time) {
	for w.oldest < w.next && (w.Len() > w.limit || now.Unix()-int64(w.at(w.oldest).at) > w.age) {
		w.remove(w.oldest)
		w.oldest++
		if w.oldest%chunkSize == 0 {
			w.chunks[0] = nil
			w.chunks = w.chunks[1:]
		}
	}
	w.trim()
}

// trim gives memory back after much was forgotten.
func (w *Window) trim() {
	needed := 0
	if w.next > w.oldest {
		needed = int((w.next-1)>>chunkBits-w.oldest>>chunkBits) + 1
	}
	for last := len(w.chunks) - 1; last >= max(needed, 1); last-- {
		w.chunks[last] = nil
		w.chunks = w.chunks[:last]
	}
	if len(w.slots) > minSlots && w.Len()*8 < len(w.slots) {
		w.index(len(w.slots) / 2)
	}
}

func (w *Window) at(number uint64) *entry {
	return &w.chunks[number>>chunkBits-w.oldest>>chunkBits][number%chunkSize]
}

// number is the whole of an entry's number, of which a slot holds 31 bits: there are never as many entries.
func (w *Window) number(slot uint32) uint64 {
	return w.oldest + uint64((slot-uint32(w.oldest))&slotMask) //nolint:gosec // the low bits are meant
}

// home is the slot where looking for an id begins.
func (w *Window) home(id [16]byte) uint64 {
	high, low := bits.Mul64(binary.LittleEndian.Uint64(id[:8])^w.seed[0], binary.LittleEndian.Uint64(id[8:])^w.seed[1])
	return (high ^ low) & w.mask
}

func (w *Window) put(number uint64) {
	i := w.home(w.at(number).id)
	for w.slots[i] != 0 {
		i = (i + 1) & w.mask
	}
	w.slots[i] = slotUsed | uint32(number&slotMask)
}

// remove takes an entry out of the index and closes the gap, so that no probe ends early (Knuth, volume 3, section 6.4, algorithm R).
func (w *Window) remove(number uint64) {
	gap := w.home(w.at(number).id)
	for w.slots[gap] != slotUsed|uint32(number&slotMask) {
		gap = (gap + 1) & w.mask
	}
	for i := (gap + 1) & w.mask; w.slots[i] != 0; i = (i + 1) & w.mask {
		home := w.home(w.at(w.number(w.slots[i])).id)
		if (i-home)&w.mask >= (i-gap)&w.mask { // its probe passes the gap
			w.slots[gap] = w.slots[i]
			gap = i
		}
	}
	w.slots[gap] = 0
}

// index makes the index anew with the number of slots given, a power of two.
func (w *Window) index(slots int) {
	w.slots, w.mask = make([]uint32, slots), uint64(slots)-1 //nolint:gosec // not negative
	for number := w.oldest; number < w.next; number++ {
		w.put(number)
	}
}
