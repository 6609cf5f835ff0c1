package audit

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// join merges one partition of events with the same partition of routed, both
// in the order of events' offsets. It holds what has no partner yet, and is
// pure: records in, joined records of routed out.
type join struct {
	topic     [16]byte // the id of events
	partition int32
	// next is the offset of events that is to be read next; -1: not known yet.
	next int64

	events  []*kgo.Record   // read, and not yet decided
	decided []decidedRecord // records of routed, not yet joined to their end

	eventBytes, decidedBytes int
	// made is the first offset of events behind what was joined; -1: nothing was.
	made int64
	// lost counts entries whose event Kafka no longer has.
	lost int
}

type decidedRecord struct {
	offset int64
	at     time.Time
	routed schemas.Routed
	joined rows // of the entries that are joined already
	bytes  int
}

// joined is a record of routed with all rows its entries make.
type joined struct {
	offset int64 // of routed
	rows   rows
	// eventsEnd is the first offset of events behind the record's last entry.
	eventsEnd int64
}

func newJoin(topic [16]byte, partition int32, next int64) *join {
	return &join{topic: topic, partition: partition, next: next, made: -1}
}

func (j *join) addEvent(r *kgo.Record) {
	j.next = r.Offset + 1
	j.events = append(j.events, r)
	j.eventBytes += recordBytes(r)
}

func (j *join) addRouted(r *kgo.Record, routed schemas.Routed) {
	d := decidedRecord{offset: r.Offset, at: r.Timestamp, routed: routed, bytes: 3 * recordBytes(r)} // three: entries are larger in memory
	j.decided = append(j.decided, d)
	j.decidedBytes += d.bytes
}

// addSkipped stands for records of routed up to offset that cannot be read.
func (j *join) addSkipped(offset int64) {
	j.decided = append(j.decided, decidedRecord{offset: offset})
}

// advance joins as far as both sides reach.
func (j *join) advance() []joined {
	var out []joined
	for len(j.decided) > 0 {
		d := &j.decided[0]
		if !j.joinEntries(d) {
			break
		}
		out = append(out, joined{offset: d.offset, rows: d.joined, eventsEnd: j.passed()})
		j.decidedBytes -= d.bytes
		j.decided[0] = decidedRecord{}
		j.decided = j.decided[1:]
	}
	return out
}

// passed is the first offset of events that is neither joined nor given up.
func (j *join) passed() int64 {
	if len(j.events) > 0 {
		return j.events[0].Offset
	}
	return j.next
}

// joinEntries joins a record's entries and reports whether it came to their end.
func (j *join) joinEntries(d *decidedRecord) bool {
	for len(d.routed.Entries) > 0 {
		entry := d.routed.Entries[0]
		switch {
		case d.routed.EventsTopic != j.topic:
			j.lost++ // events was made again since
		case len(j.events) == 0 && (j.next < 0 || entry.Offset >= j.next):
			return false // its event is still to come
		case len(j.events) == 0 || j.events[0].Offset > entry.Offset:
			j.lost++ // retention took it, or it was routed before (an operator turned the router back)
		case j.events[0].Offset < entry.Offset:
			// Its entry expired before it was read, as routed is kept for a day and
			// events for a week: the event is told, its matches are not known.
			d.joined.addEvent(j.place(), j.take(), nil, time.Time{})
			continue
		default:
			d.joined.addEvent(j.place(), j.take(), &entry, d.at)
		}
		d.routed.Entries = d.routed.Entries[1:]
	}
	return true
}

func (j *join) place() place {
	return place{j.topic, j.partition, j.events[0].Offset}
}

func (j *join) take() *kgo.Record {
	r := j.events[0]
	j.events[0] = nil
	j.events = j.events[1:]
	j.eventBytes -= recordBytes(r)
	return r
}

// recordBytes is about what a record takes in memory.
func recordBytes(r *kgo.Record) int {
	const fixed = 256 // the struct, and what allocation rounds up
	n := fixed + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += 48 + len(h.Key) + len(h.Value)
	}
	return n
}
