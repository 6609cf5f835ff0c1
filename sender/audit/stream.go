package audit

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// source is a topic the audit reads.
type source int

// The sources, in the order of schemas.Topics.Audited.
const (
	sourceEvents source = iota
	sourceRouted
	sourceDeliveries
	sourceOutcomes
	sourceChanges
)

// String is the source's metric label: the topic's name without its prefix.
func (s source) String() string {
	return [...]string{"events", "routed", "deliveries", "outcomes", "changes"}[s]
}

// stream is one partition of a source other than events: what was read of it and
// is not in ClickHouse yet. The partition of events that goes with a partition
// of routed is in its join. It is pure; the writer moves its bytes.
type stream struct {
	source    source
	topic     string
	topicID   [16]byte
	partition int32

	// next is the first offset not in ClickHouse: what is committed, or is to be
	// at the next commit; -1 while there is no commit and no record was read.
	next int64
	// eventsNext is the same of the partition of events (routed only).
	eventsNext int64
	// made is how far block and buffer reach.
	made int64
	// restored is the block that an earlier writer's commit names, until it is made again.
	restored pending
	// compare says that there is no commit to tell what is in ClickHouse: every
	// block is looked up.
	compare bool

	block  *block // cut, and not in ClickHouse
	buffer rows   // behind the block
	join   *join  // of routed

	// stopped is why nothing more is read of it.
	stopped error
	// end is the high watermark at the last poll.
	end int64
	// committed and eventsCommitted are what was last accepted, to see whether there is news.
	committed, eventsCommitted commitEntry
}

// commitEntry is one partition of a commit.
type commitEntry struct {
	offset   int64
	metadata string
}

// newStream returns a stream that begins where the commits say; an offset of -1
// says that there is none.
func newStream(s source, topic string, topicID [16]byte, partition int32, from commitEntry) *stream {
	st := &stream{
		source: s, topic: topic, topicID: topicID, partition: partition,
		next: from.offset, made: from.offset, eventsNext: -1, committed: from, compare: from.offset < 0,
	}
	named, err := parsePending(from.offset, from.metadata)
	if err != nil {
		// Whoever wrote this, it was not us: no block is named, and none can be trusted to be missing.
		st.compare = true
		return st
	}
	st.restored = named
	return st
}

// add takes a record. The error says that the record is not of its source's
// form, or of a newer one.
func (s *stream) add(r *kgo.Record) error {
	if s.next < 0 {
		s.next, s.made = r.Offset, r.Offset
	}
	if s.source == sourceRouted {
		routed, err := schemas.DecodeRouted(r)
		if schemas.IsNewer(err) {
			return err
		}
		s.join.addRouted(r, routed) // a bad record has no entries
		return err
	}
	s.cutRestored(r.Offset)
	var err error
	switch s.source {
	case sourceDeliveries:
		err = s.buffer.addDelivery(s.topicID, r)
	case sourceOutcomes:
		err = s.buffer.addOutcome(s.topicID, r)
	case sourceChanges:
		err = s.buffer.addChange(s.topicID, r)
	case sourceEvents, sourceRouted:
		panic("BUG: events and routed are joined")
	}
	if schemas.IsNewer(err) {
		return err
	}
	s.took(r.Offset)
	return err
}

// addEvent takes a record of the partition of events that goes with a stream of routed.
func (s *stream) addEvent(r *kgo.Record) {
	s.join.addEvent(r)
}

// advance moves what the join has finished into the buffer.
func (s *stream) advance() {
	for _, j := range s.join.advance() {
		s.cutRestored(j.offset)
		s.buffer.merge(&j.rows)
		s.join.made = j.eventsEnd
		s.took(j.offset)
	}
}

// took moves on behind a record, and makes the restored block when it is whole.
func (s *stream) took(offset int64) {
	s.made = offset + 1
	s.cutRestored(s.made)
}

// skipTo passes records that cannot be read.
func (s *stream) skipTo(offset int64) {
	if s.next < 0 {
		s.next, s.made = offset, offset
	}
	if s.source == sourceRouted {
		s.join.addSkipped(offset - 1)
		return
	}
	s.cutRestored(offset)
	s.took(offset - 1)
}

// cutRestored makes the restored block again once everything before next was
// taken and that is all of it.
func (s *stream) cutRestored(next int64) {
	if s.restored.end == 0 || next < s.restored.end {
		return
	}
	s.cutAt(s.restored.end)
	s.block.unknown, s.block.fence = ^tableSet(0), s.restored.deadline
	s.restored = pending{}
}

// ready returns the block to be inserted, nil if there is none.
func (s *stream) ready() *block {
	if s.block == nil && s.restored.end == 0 && s.made > s.next {
		s.cutAt(s.made)
	}
	return s.block
}

func (s *stream) cutAt(end int64) {
	s.block = &block{bounds: bounds{s.topicID, s.partition, s.next, end}, rows: s.buffer, eventsEnd: -1}
	if s.join != nil {
		s.block.eventsEnd = s.join.made
	}
	if s.compare {
		s.block.unknown = ^tableSet(0)
	}
	s.buffer = rows{}
}

// inserted moves on behind the block, all of which is in ClickHouse.
func (s *stream) inserted() {
	s.next = s.block.end
	if s.block.eventsEnd >= 0 {
		s.eventsNext = s.block.eventsEnd
	}
	s.block = nil
}

// entry is what is to be committed: the end of what is in ClickHouse, and the
// block behind it with the deadline of its insert.
func (s *stream) entry(deadline time.Time) commitEntry {
	switch {
	case s.block != nil:
		return commitEntry{s.next, pending{s.block.end, deadline}.text()}
	case s.restored.end > 0:
		return commitEntry{s.next, s.restored.text()}
	default:
		return commitEntry{s.next, ""}
	}
}

// bytes is about what the stream holds in memory.
func (s *stream) bytes() int {
	n := s.buffer.bytes
	if s.block != nil {
		n += s.block.rows.bytes
	}
	return n
}

// rowCount is the number of rows it holds.
func (s *stream) rowCount() int {
	n := s.buffer.count()
	if s.block != nil {
		n += s.block.rows.count()
	}
	return n
}
