package schemas

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

// RoutedResult is what the router made of one event.
type RoutedResult byte

// What the router makes of events. The numbers are the format.
const (
	RoutedMatched   RoutedResult = 1 // a delivery for each of Webhooks webhooks, which may be none
	RoutedDuplicate RoutedResult = 2 // the same organization, id and payload within the window
	RoutedRejected  RoutedResult = 3 // in rejected, with the reason
)

// RoutedEntry is one event in routed.
type RoutedEntry struct {
	// Offset is the event's in its partition of events.
	Offset int64
	// IDHash is DedupHash of organization and id; zero for an event that has none.
	IDHash [16]byte
	// PayloadHash tells a copy from another event under the same id.
	PayloadHash [8]byte
	Result      RoutedResult
	// Webhooks is how many it was routed to.
	Webhooks int
}

// Routed is a record of routed: the events of one partition that one
// transaction finished, in the order of their offsets. It is the log of what
// was decided, and what the dedup window is read back from (P3).
//
// Value: 16 bytes topic id of events, then as unsigned varints the first offset
// and the number of entries; then for each entry the offset's distance from the
// one before as a varint, 16 bytes id hash, 8 bytes payload hash, 1 byte result,
// and the number of webhooks as a varint.
type Routed struct {
	EventsTopic [16]byte
	Partition   int32 // of events, and of this record
	Entries     []RoutedEntry
}

// DedupHash is SHA-256 of organization and id, each behind its length, cut to 16 bytes.
func DedupHash(organization, id string) [16]byte {
	buf := make([]byte, 0, 96)
	buf = binary.AppendUvarint(buf, uint64(len(organization)))
	buf = append(buf, organization...)
	buf = append(buf, id...)
	sum := sha256.Sum256(buf)
	return [16]byte(sum[:16])
}

// PayloadHash is SHA-256 of a payload cut to 8 bytes.
func PayloadHash(payload []byte) [8]byte {
	sum := sha256.Sum256(payload)
	return [8]byte(sum[:8])
}

// Record returns the record, its partition set by hand.
func (r *Routed) Record(topic string) *kgo.Record {
	const entrySize = 3 + 16 + 8 + 1 + 2
	value := make([]byte, 0, 32+entrySize*len(r.Entries))
	value = append(value, r.EventsTopic[:]...)
	var last int64
	if len(r.Entries) > 0 {
		last = r.Entries[0].Offset
	}
	value = binary.AppendUvarint(value, uint64(last))
	value = binary.AppendUvarint(value, uint64(len(r.Entries)))
	for i := range r.Entries {
		e := &r.Entries[i]
		value = binary.AppendUvarint(value, uint64(e.Offset-last)) //nolint:gosec // ascending
		last = e.Offset
		value = append(value, e.IDHash[:]...)
		value = append(value, e.PayloadHash[:]...)
		value = append(value, byte(e.Result))
		value = binary.AppendUvarint(value, uint64(e.Webhooks)) //nolint:gosec // a count
	}
	return &kgo.Record{Topic: topic, Partition: r.Partition, Value: value, Headers: []kgo.RecordHeader{versionHeader()}}
}

// DecodeRouted reads a record of routed. The error is *UnknownVersionError or holds a *ValidationError.
func DecodeRouted(rec *kgo.Record) (Routed, error) {
	if err := checkVersion(rec); err != nil {
		return Routed{}, err
	}
	r := Routed{Partition: rec.Partition}
	b := &byteReader{rest: rec.Value}
	copy(r.EventsTopic[:], b.take(16))
	last := int64(b.uvarint()) //nolint:gosec // checked below
	n := b.uvarint()
	const smallestEntry = 1 + 16 + 8 + 1 + 1
	if b.bad || last < 0 || n > uint64(len(b.rest)/smallestEntry) {
		return Routed{}, fmt.Errorf("decoding routed record: %w", Invalid(CodeInvalidRecord, "#", "truncated or garbled"))
	}
	r.Entries = make([]RoutedEntry, n)
	for i := range r.Entries {
		e := &r.Entries[i]
		last += int64(b.uvarint()) //nolint:gosec // checked below
		e.Offset = last
		copy(e.IDHash[:], b.take(16))
		copy(e.PayloadHash[:], b.take(8))
		if result := b.take(1); !b.bad {
			e.Result = RoutedResult(result[0])
		}
		e.Webhooks = int(b.uvarint()) //nolint:gosec // checked below
		if b.bad || last < 0 || e.Webhooks < 0 || e.Result < RoutedMatched || e.Result > RoutedRejected {
			return Routed{}, fmt.Errorf("decoding routed record: entry %d: %w", i, Invalid(CodeInvalidRecord, "#", "truncated or garbled"))
		}
	}
	if len(b.rest) > 0 {
		return Routed{}, fmt.Errorf("decoding routed record: %w", Invalid(CodeInvalidRecord, "#", "longer than its entries"))
	}
	return r, nil
}

// byteReader cuts pieces off; past the end it is bad and gives nothing.
type byteReader struct {
	rest []byte
	bad  bool
}

func (b *byteReader) take(n int) []byte {
	if len(b.rest) < n {
		b.bad, b.rest = true, nil
		return nil
	}
	piece := b.rest[:n]
	b.rest = b.rest[n:]
	return piece
}

func (b *byteReader) uvarint() uint64 {
	v, n := binary.Uvarint(b.rest)
	if n <= 0 {
		b.bad, b.rest = true, nil
		return 0
	}
	b.rest = b.rest[n:]
	return v
}
