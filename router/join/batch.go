package join

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/router/dedup"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// partition is what a session knows of a partition of events that it owns.
type partition struct {
	number int32
	window *dedup.Window
	at     position // what was committed
	items  []item   // room for what is polled of it
}

// item is one polled record and what was decided on it before the barrier.
type item struct {
	record *kgo.Record
	next   int64 // the offset behind it
	event  schemas.Event
	entry  schemas.RoutedEntry
	fresh  bool  // its id was added to the window
	reason error // why it is rejected
}

// part is what was polled of one partition. Its items before at.item are committed.
type part struct {
	*partition

	at progress
}

// batch is what one poll returned, in the order of offsets within each partition.
type batch struct {
	ownership uint64
	parts     []*part
	skipping  bool // over records that cannot be fetched
}

func (b *batch) done() bool {
	for _, p := range b.parts {
		if p.at.item < len(p.items) {
			return false
		}
	}
	return true
}

// rollback takes the ids out of the windows that no committed transaction has decided on.
func (b *batch) rollback() {
	for _, p := range b.parts {
		fresh := 0
		for i := range p.items[p.at.item:] {
			if p.items[p.at.item+i].fresh {
				fresh++
			}
		}
		p.window.Rollback(fresh)
	}
}

// decider decides on records, one after the other in each partition.
type decider struct {
	eventsID [16]byte
}

// decide reads the record of an event and looks it up in its partition's window.
func (d decider) decide(w *dedup.Window, r *kgo.Record) item {
	it := item{record: r, next: r.Offset + 1, entry: schemas.RoutedEntry{Offset: r.Offset, Result: schemas.RoutedRejected}}
	if it.reason = schemas.CheckRecordSize(r, schemas.MaxEventRecordBytes); it.reason != nil {
		return it
	}
	e, err := schemas.DecodeEvent(r)
	if err != nil {
		it.reason = err
		return it
	}
	if e.ID == "" {
		e.ID = schemas.EventIDAt(d.eventsID, r.Partition, r.Offset)
	}
	it.event = e
	it.entry.IDHash = schemas.DedupHash(e.Organization, e.ID)
	it.entry.PayloadHash = schemas.PayloadHash(e.Payload)
	if schemas.OperationalName(e.Name) && e.Source != schemas.OperationalSource {
		it.reason = schemas.Invalid(schemas.CodeReservedName, "#/event",
			fmt.Sprintf("%q: the services webhook and delivery are Postrider's own", e.Name))
		return it
	}
	switch w.See(it.entry.IDHash, it.entry.PayloadHash, r.Timestamp) {
	case dedup.Duplicate:
		it.entry.Result = schemas.RoutedDuplicate
	case dedup.Reused:
		it.reason = schemas.Invalid(schemas.CodeIDReused, "#/id",
			fmt.Sprintf("%q was sent with another payload before", e.ID))
	default:
		it.entry.Result, it.fresh = schemas.RoutedMatched, true
	}
	return it
}

// skipped is the item for a batch of records that inflates beyond all bounds: it is rejected under its first offset.
func skipped(bomb *kgo.ErrDecompressTooLarge) item {
	return item{
		record: &kgo.Record{Topic: bomb.Topic, Partition: bomb.Partition, Offset: bomb.Offset},
		next:   bomb.NextOffset,
		entry:  schemas.RoutedEntry{Offset: bomb.Offset, Result: schemas.RoutedRejected},
		reason: kafka.Inflated(bomb),
	}
}

// collect makes a batch of what was polled. An error of a partition that is no record's is returned.
func (s *session) collect(fetches kgo.Fetches, ownership uint64) (*batch, error) {
	b := &batch{ownership: ownership}
	parts := make(map[int32]*part)
	of := func(number int32) *part {
		p := parts[number]
		if p == nil {
			owned := s.partitions[number]
			owned.items = owned.items[:0]
			p = &part{partition: owned}
			parts[number] = p
			b.parts = append(b.parts, p)
		}
		return p
	}
	decide := decider{s.eventsID}.decide
	var failed error
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		if f.Topic == "" { // an error of the group, which checkGroup has seen
			return
		}
		if s.partitions[f.Partition] == nil && (len(f.Records) > 0 || f.Err != nil) {
			failed = errors.Join(failed, fmt.Errorf("reading %s/%d: %w", f.Topic, f.Partition, errors.Join(errNotOwned, f.Err)))
			return
		}
		for _, r := range f.Records {
			p := of(f.Partition)
			p.items = append(p.items, decide(p.window, r))
		}
		bomb, isBomb := errors.AsType[*kgo.ErrDecompressTooLarge](f.Err)
		switch {
		case isBomb:
			p := of(f.Partition)
			p.items = append(p.items, skipped(bomb))
			b.skipping = true
		case f.Err != nil:
			failed = errors.Join(failed, fmt.Errorf("reading %s/%d: %w", f.Topic, f.Partition, f.Err))
		}
	})
	for _, p := range b.parts {
		// The cursor of the commit belongs to the event that stands at its offset.
		if first := p.items[0].record.Offset; first == p.partition.at.offset {
			p.at.cursor = p.partition.at.cursor
		}
	}
	if failed != nil {
		b.rollback()
	}
	return b, failed
}
