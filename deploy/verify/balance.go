package verify

import "encoding/binary"

// hash names an event: schemas.DedupHash of its organization and id.
type hash = [16]byte

// cells is the number of sums: so many mismatches are told apart in one more pass.
const cells = 1 << 16

// balance sums hashes: those of events, each as often as routed promises a
// delivery, less those of deliveries. A cell whose events have all their deliveries
// and no others is zero, in whatever order they came; one that is not, is zero by
// chance once in 2^64. So all events are checked in one megabyte.
type balance [cells]struct{ high, low uint64 }

func (b *balance) add(h hash, n int64) {
	c := &b[cellOf(h)]
	c.high += binary.BigEndian.Uint64(h[:8]) * uint64(n) //nolint:gosec // modulo 2^64, as meant
	c.low += binary.BigEndian.Uint64(h[8:]) * uint64(n)  //nolint:gosec // modulo 2^64, as meant
}

func (b *balance) merge(other *balance) {
	for i := range other {
		b[i].high += other[i].high
		b[i].low += other[i].low
	}
}

// unbalanced returns the cells that are not zero.
func (b *balance) unbalanced() (found []int) {
	for i := range b {
		if b[i].high != 0 || b[i].low != 0 {
			found = append(found, i)
		}
	}
	return found
}

func cellOf(h hash) int { return int(binary.BigEndian.Uint16(h[:])) }

// tally is an event's two sides: how many deliveries routed promises, and how many
// there are, with the place of a record that says so.
type tally struct {
	promised, made int64
	event          offsetAt // in events; known where promised is
	delivery       offsetAt // in deliveries; known where made is
}

// offsetAt is a place whose topic is known.
type offsetAt struct {
	partition int32
	offset    int64
}
