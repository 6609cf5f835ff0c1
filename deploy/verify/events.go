package verify

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// eventScan reads a partition of events and the same of routed in step, both in the
// order of events' offsets.
type eventScan struct {
	*run

	partition  int32
	at         position // of the router
	from, end  int64    // of events
	expires    bool     // routed may have dropped entries of the first events
	decided    int64    // the first offset of events that routed speaks of; -1: none so far
	events     *kafka.Cursor
	event      *kgo.Record // not yet passed; nil behind the last
	promise    func(h hash, n int64, event offsetAt)
	counts     *Report // nil in a second pass, which only promises
	span       *span   // nil where rows are not checked
	routedTail int64   // routed records from here on may be of transactions not over when stable was asked for
}

// checkEvents checks one partition of events.
func (r *run) checkEvents(ctx context.Context, partition int32) error {
	var sums balance
	scan := r.newEventScan(partition)
	scan.counts = newCounts()
	scan.promise = func(h hash, n int64, _ offsetAt) { sums.add(h, n) }
	if r.rows != nil {
		scan.span = r.newSpan(rowsOfEvents, partition, scan.from, scan.end)
	}
	if err := scan.read(ctx); err != nil {
		return err
	}
	if scan.span != nil {
		if err := scan.span.finish(ctx); err != nil {
			return err
		}
		scan.counts.Rows.Events, scan.counts.Rows.Lag = scan.span.rows, scan.span.lag
	}
	events := kafka.Place{Topic: r.snap.topics.Events, Partition: partition}
	err := r.readAll(ctx, events, max(scan.at.offset, scan.from), r.snap.ends[events], func(event *kgo.Record) error {
		if scan.scoped(event) {
			scan.counts.Events.Waiting++
		}
		return nil
	})
	r.finish(scan.counts, &sums)
	return err
}

func (r *run) newEventScan(partition int32) *eventScan {
	s := r.snap
	events := kafka.Place{Topic: s.topics.Events, Partition: partition}
	routed := kafka.Place{Topic: s.topics.Routed, Partition: partition}
	scan := &eventScan{
		run: r, partition: partition, at: s.router[events], from: s.from(events), decided: -1,
		expires:    s.starts[routed] > 0 && s.from(routed) == s.starts[routed],
		routedTail: s.stable[routed],
	}
	scan.end = min(scan.at.offset, s.ends[events])
	if scan.at.written > 0 {
		scan.end = min(scan.at.offset+1, s.ends[events])
	}
	return scan
}

func (s *eventScan) read(ctx context.Context) error {
	topics := s.snap.topics
	s.events = kafka.NewCursor(ctx, s.cl, kafka.Place{Topic: topics.Events, Partition: s.partition}, s.from, s.end)
	defer s.events.Close()
	if err := s.nextEvent(ctx); err != nil {
		return err
	}
	routed := kafka.Place{Topic: topics.Routed, Partition: s.partition}
	err := s.readAll(ctx, routed, s.snap.from(routed), s.snap.ends[routed], func(record *kgo.Record) error {
		return s.takeRouted(ctx, record)
	})
	for err == nil && s.event != nil {
		err = s.passEvent(ctx)
	}
	return err
}

// nextEvent reads the next event, before the rows of those behind it are asked for.
func (s *eventScan) nextEvent(ctx context.Context) error {
	var err error
	if s.event, err = s.events.Next(); err != nil {
		return fmt.Errorf("verifying: %w", err)
	}
	if s.event != nil && s.span != nil {
		return s.span.reach(ctx, s.event.Offset)
	}
	return nil
}

func (s *eventScan) takeRouted(ctx context.Context, record *kgo.Record) error {
	routed, err := schemas.DecodeRouted(record)
	if newer, is := errors.AsType[*schemas.UnknownVersionError](err); is {
		return fmt.Errorf("verifying %s/%d@%d: %w", record.Topic, record.Partition, record.Offset, newer)
	}
	if err != nil || routed.EventsTopic != s.snap.ids[s.snap.topics.Events] {
		return nil //nolint:nilerr // it is no router's, which its reader quarantines
	}
	for i := range routed.Entries {
		entry := &routed.Entries[i]
		if s.decided < 0 {
			s.decided = entry.Offset
		}
		if entry.Offset >= s.at.offset {
			continue // after the moment
		}
		for s.event != nil && s.event.Offset < entry.Offset {
			if err := s.passEvent(ctx); err != nil {
				return err
			}
		}
		if s.event == nil || s.event.Offset != entry.Offset {
			continue // not asked for, or retention has taken the event
		}
		s.decide(entry, record.Offset)
		if err := s.nextEvent(ctx); err != nil {
			return err
		}
	}
	return nil
}

// scoped says whether an event is asked for.
func (s *eventScan) scoped(event *kgo.Record) bool {
	if !s.within(event.Timestamp) {
		return false
	}
	if s.cfg.Organization == "" {
		return true
	}
	e, err := schemas.DecodeEvent(event)
	return err == nil && e.Organization == s.cfg.Organization
}

// decide takes the event and what routed says of it.
func (s *eventScan) decide(entry *schemas.RoutedEntry, routedOffset int64) {
	if !s.scoped(s.event) {
		s.mark(spanKnown)
		return
	}
	if entry.Result == schemas.RoutedMatched && s.balanced(s.event.Timestamp) && entry.Webhooks > 0 {
		s.promise(entry.IDHash, int64(entry.Webhooks), offsetAt{s.partition, entry.Offset})
		if routedOffset >= s.routedTail {
			s.mu.Lock()
			s.tail[entry.IDHash] = struct{}{}
			s.mu.Unlock()
		}
	}
	if s.counts == nil {
		return
	}
	c := &s.counts.Events
	c.Total++
	flag := spanKnown | spanWanted
	switch entry.Result {
	case schemas.RoutedMatched:
		if entry.Webhooks == 0 {
			c.Unmatched++
		} else {
			c.Matched++
			c.Routed += int64(entry.Webhooks)
		}
	case schemas.RoutedDuplicate:
		c.Duplicate++
	case schemas.RoutedRejected:
		c.Rejected++
		flag = s.flagOf(s.event)
	}
	s.mark(flag)
}

// flagOf says whether an event has a row: one that cannot be read has none.
func (s *eventScan) flagOf(event *kgo.Record) byte {
	if _, err := schemas.DecodeEvent(event); err != nil {
		return spanKnown
	}
	return spanKnown | spanWanted
}

func (s *eventScan) mark(flag byte) {
	if s.span != nil {
		if s.refusedRows.has(kafka.Place{Topic: s.event.Topic, Partition: s.event.Partition}, s.event.Offset) {
			flag = spanKnown
		}
		s.span.mark(s.event.Offset, s.event.Timestamp, flag)
	}
}

// passEvent takes an event of which routed says nothing.
func (s *eventScan) passEvent(ctx context.Context) error {
	event := s.event
	switch {
	case !s.scoped(event):
		s.mark(spanKnown)
	case event.Offset >= s.at.offset:
		s.begunEvent(event)
	case s.counts == nil:
	case s.expires && (s.decided < 0 || event.Offset < s.decided):
		s.counts.Events.Total++
		s.counts.Events.Expired++
		s.mark(s.flagOf(event))
	default:
		s.counts.Events.Total++
		s.mark(spanKnown)
		s.found.add(Finding{
			Kind: EventNotRouted, Topic: event.Topic, Partition: event.Partition, Offset: event.Offset,
			Expected: "an entry in " + s.snap.topics.Routed,
			Found:    fmt.Sprintf("none, and the router stands at %d", s.at.offset),
		})
	}
	return s.nextEvent(ctx)
}

// begunEvent takes the event in whose fan-out the router stands: so many of its
// deliveries must be there, and more may be.
func (s *eventScan) begunEvent(event *kgo.Record) {
	e, err := schemas.DecodeEvent(event)
	if err != nil {
		return
	}
	if e.ID == "" {
		e.ID = schemas.EventIDAt(s.snap.ids[s.snap.topics.Events], event.Partition, event.Offset)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := schemas.DedupHash(e.Organization, e.ID)
	if s.partial[h] == nil {
		s.partial[h] = &tally{promised: s.at.written, event: offsetAt{event.Partition, event.Offset}}
	}
}

// findHorizon finds the time up to which routed, or deliveries, says nothing any
// more: what they no longer have cannot be balanced.
func (r *run) findHorizon(ctx context.Context) error {
	s := r.snap
	for p := range s.events {
		if routed := (kafka.Place{Topic: s.topics.Routed, Partition: p}); s.starts[routed] > 0 && s.from(routed) == s.starts[routed] {
			if err := r.horizonOfRouted(ctx, routed); err != nil {
				return err
			}
		}
	}
	for p := range s.deliveries {
		deliveries := kafka.Place{Topic: s.topics.Deliveries, Partition: p}
		if s.starts[deliveries] == 0 || s.from(deliveries) > s.starts[deliveries] {
			continue
		}
		first, err := r.firstOf(ctx, deliveries, s.starts[deliveries], s.ends[deliveries])
		if err != nil {
			return err
		}
		if first != nil {
			r.raiseHorizon(first)
		}
	}
	return nil
}

// horizonOfRouted looks at the event of the first entry that is left. Where none
// is left no event that was passed has one: the last of them counts.
func (r *run) horizonOfRouted(ctx context.Context, place kafka.Place) error {
	s := r.snap
	events := kafka.Place{Topic: s.topics.Events, Partition: place.Partition}
	end := min(s.router[events].offset, s.ends[events])
	first, err := r.firstOf(ctx, place, s.starts[place], s.ends[place])
	if err != nil {
		return err
	}
	if first != nil {
		if routed, err := schemas.DecodeRouted(first); err == nil && len(routed.Entries) > 0 {
			end = min(end, routed.Entries[0].Offset)
		}
	}
	const look = 10_000 // offsets, among which markers and aborted records may be
	from := max(end-look, s.starts[events])
	return r.readAll(ctx, events, from, end, func(event *kgo.Record) error {
		r.raiseHorizon(event)
		return nil
	})
}

func (r *run) raiseHorizon(record *kgo.Record) {
	if record.Timestamp.After(r.horizon) {
		r.horizon = record.Timestamp
	}
}

// firstOf returns the first record of a partition from an offset on, nil if there is none.
func (r *run) firstOf(ctx context.Context, place kafka.Place, from, end int64) (*kgo.Record, error) {
	cursor := kafka.NewCursor(ctx, r.cl, place, from, end)
	defer cursor.Close()
	record, err := cursor.Next()
	if err != nil {
		return nil, fmt.Errorf("verifying: %w", err)
	}
	return record, nil
}
