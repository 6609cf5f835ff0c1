package account

import (
	"context"
	"math/bits"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// book is what is known of one partition of deliveries.
type book struct {
	*accountant

	partition int32
	// open holds the deliveries that have been read, or waited when the book was
	// begun, and that have no end: a bit each.
	open set
	// deliveries and outcomes are the offsets to be read next.
	deliveries, outcomes int64
}

// begin opens a book: with what waits in tiers, and with deliveries from the
// low-water mark on still to be read.
func (a *accountant) begin(ctx context.Context, m *moment, partition int32) (*book, error) {
	deliveries := kafka.Place{Topic: a.topics.Deliveries, Partition: partition}
	outcomes := kafka.Place{Topic: a.topics.Outcomes, Partition: partition}
	mark := m.marks[deliveries]
	b := &book{
		accountant: a, partition: partition, open: make(set),
		deliveries: max(mark.Low(), m.starts[deliveries]), outcomes: m.stable[outcomes],
	}
	return b, b.waiting(ctx, m, b.open.add)
}

// waiting gives the deliveries that wait in tiers, or held, at the moment; some twice.
func (b *book) waiting(ctx context.Context, m *moment, each func(offset int64)) error {
	for _, topic := range b.topics.Waiting() {
		place := kafka.Place{Topic: topic, Partition: b.partition}
		mark := m.marks[place]
		err := b.read(ctx, place, max(mark.Low(), m.starts[place]), m.ends[place], func(r *kgo.Record) {
			id := schemas.GlanceDelivery(r).ID
			if mark.Live(r.Offset) && id.Topic == m.id && id.Partition == b.partition {
				each(id.Offset)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// balance brings the book up to the moment and returns how many deliveries are
// neither open where they stand, nor ended, nor waiting.
func (b *book) balance(ctx context.Context, m *moment, aside map[int64]struct{}) (int, error) {
	deliveries := kafka.Place{Topic: b.topics.Deliveries, Partition: b.partition}
	outcomes := kafka.Place{Topic: b.topics.Outcomes, Partition: b.partition}
	err := b.read(ctx, deliveries, b.deliveries, m.ends[deliveries], func(r *kgo.Record) {
		if _, is := aside[r.Offset]; !is {
			b.open.add(r.Offset)
		}
	})
	if err != nil {
		return 0, err
	}
	b.deliveries = max(b.deliveries, m.ends[deliveries])
	err = b.read(ctx, outcomes, b.outcomes, m.ends[outcomes], func(r *kgo.Record) {
		o, err := schemas.GlanceOutcome(r)
		if err == nil && o.Ends() && o.ID.Topic == m.id && o.ID.Partition == b.partition {
			b.open.remove(o.ID.Offset)
		}
	})
	if err != nil {
		return 0, err
	}
	b.outcomes = max(b.outcomes, m.ends[outcomes])

	mark := m.marks[deliveries]
	passed := make(set)
	b.open.each(func(offset int64) {
		if !mark.Live(offset) {
			passed.add(offset)
		}
	})
	if len(passed) == 0 {
		return 0, nil
	}
	err = b.waiting(ctx, m, passed.remove)
	return passed.count(), err
}

// set is a set of offsets, with a page of bits for each span of offsets that has any.
type set map[int64]*page

const pageOffsets = 4096

type page struct {
	bits  [pageOffsets / 64]uint64
	count int
}

func (s set) add(offset int64) {
	p := s[offset/pageOffsets]
	if p == nil {
		p = &page{}
		s[offset/pageOffsets] = p
	}
	word, bit := &p.bits[offset%pageOffsets/64], uint64(1)<<(offset%64)
	if *word&bit == 0 {
		*word |= bit
		p.count++
	}
}

func (s set) remove(offset int64) {
	p := s[offset/pageOffsets]
	if p == nil {
		return
	}
	word, bit := &p.bits[offset%pageOffsets/64], uint64(1)<<(offset%64)
	if *word&bit == 0 {
		return
	}
	*word &^= bit
	if p.count--; p.count == 0 {
		delete(s, offset/pageOffsets)
	}
}

func (s set) count() (n int) {
	for _, p := range s {
		n += p.count
	}
	return n
}

// each gives all offsets, in no order.
func (s set) each(f func(offset int64)) {
	for number, p := range s {
		for i, word := range p.bits {
			for ; word != 0; word &= word - 1 {
				f(number*pageOffsets + int64(64*i+bits.TrailingZeros64(word)))
			}
		}
	}
}
