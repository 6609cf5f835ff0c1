package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Attributes of a batch (Kafka protocol, record batch version 2).
const (
	batchCodec         = 0b111
	batchLogAppendTime = 1 << 3
	batchTransactional = 1 << 4

	batchLastDeltaAt = 23 // of the last record's offset, less the first's
)

var errBatch = errors.New("a batch of records is not of version 2, or broken")

// unpacker reads the committed records of answers, one batch at a time. kgo does it
// too, with some allocations for each header of each record, which are two thirds of
// what it takes to count a record: here all batches of a cursor share a few.
type unpacker struct {
	place        Place
	decompressor kgo.Decompressor
	next         int64 // the first offset not passed
	names        map[string]string
	// aborted holds, by producer, the first offsets of its aborted transactions that have not ended yet.
	aborted map[int64][]int64

	rest     []byte // of the answer
	inflated []byte
	records  []kgo.Record
	headers  []kgo.RecordHeader
}

// take begins an answer.
func (u *unpacker) take(p *kmsg.FetchResponseTopicPartition) {
	u.rest, u.aborted = p.RecordBatches, abortedOf(p)
	u.records, u.headers = u.records[:0], u.headers[:0]
}

// batch reads the next batch, which may have no records that count; it is false if
// there is none. The last batch of an answer may be cut, and then is none.
func (u *unpacker) batch() (bool, error) {
	u.records, u.headers = u.records[:0], u.headers[:0]
	first, size, whole := batchAt(u.rest)
	if !whole {
		return false, nil
	}
	var batch kmsg.RecordBatch
	if u.rest[batchMagicAt] != 2 || batch.ReadFrom(u.rest[:size]) != nil {
		return false, fmt.Errorf("reading %s/%d@%d: %w", u.place.Topic, u.place.Partition, first, errBatch)
	}
	u.rest = u.rest[size:]
	if err := u.unpackBatch(&batch); err != nil {
		return false, fmt.Errorf("reading %s/%d@%d: %w", u.place.Topic, u.place.Partition, first, err)
	}
	u.next = max(u.next, batch.FirstOffset+int64(batch.LastOffsetDelta)+1)
	return true, nil
}

// batchAt reads where a batch begins and ends.
func batchAt(in []byte) (first int64, size int, whole bool) {
	if len(in) <= batchLastDeltaAt+4 {
		return 0, 0, false
	}
	prefix := kbin.Reader{Src: in}
	first, size = prefix.Int64(), batchPrefix+int(prefix.Int32())
	return first, size, size > batchLastDeltaAt+4 && size <= len(in)
}

// afterBatches returns the offset behind the last whole batch of an answer, 0 if there is none.
func afterBatches(in []byte) (next int64) {
	for first, size, whole := batchAt(in); whole; first, size, whole = batchAt(in) {
		delta := kbin.Reader{Src: in[batchLastDeltaAt:]}
		next = first + int64(delta.Int32()) + 1
		in = in[size:]
	}
	return next
}

func abortedOf(p *kmsg.FetchResponseTopicPartition) map[int64][]int64 {
	if len(p.AbortedTransactions) == 0 {
		return nil
	}
	aborted := make(map[int64][]int64)
	for _, t := range p.AbortedTransactions {
		aborted[t.ProducerID] = append(aborted[t.ProducerID], t.FirstOffset)
	}
	for _, first := range aborted {
		slices.Sort(first)
	}
	return aborted
}

func (u *unpacker) unpackBatch(batch *kmsg.RecordBatch) error {
	if batch.Attributes&batchIsControl != 0 {
		return u.end(batch)
	}
	pending := u.aborted[batch.ProducerID]
	if batch.Attributes&batchTransactional != 0 && len(pending) > 0 && batch.FirstOffset >= pending[0] {
		return nil
	}
	if batch.FirstOffset+int64(batch.LastOffsetDelta) < u.next || batch.NumRecords <= 0 {
		return nil
	}
	raw, err := u.inflate(batch)
	if errors.Is(err, kgo.ErrMaxDecompress) {
		return nil // whoever reads it for its records has it rejected
	}
	if err != nil {
		return fmt.Errorf("inflating a batch: %w", err)
	}
	in := reader{rest: raw}
	for range batch.NumRecords {
		u.record(batch, &in)
		if in.bad {
			return errBatch
		}
	}
	return nil
}

// inflate returns a batch's records as they stand. What our own clients write, plain
// snappy, goes into a buffer that is used again.
func (u *unpacker) inflate(batch *kmsg.RecordBatch) ([]byte, error) {
	codec := kgo.CompressionCodecType(batch.Attributes & batchCodec)
	if codec == 0 {
		return batch.Records, nil
	}
	if codec == kgo.CodecSnappy {
		// Java's clients write blocks of snappy behind a header, which has no length that makes sense.
		if n, err := s2.DecodedLen(batch.Records); err == nil && n <= maxDecompressedBatch {
			if plain, err := s2.Decode(u.inflated[:cap(u.inflated)], batch.Records); err == nil {
				u.inflated = plain
				return plain, nil
			}
		}
	}
	return u.decompressor.Decompress(batch.Records, codec) //nolint:wrapcheck // the caller says what it does
}

// end takes the marker of a transaction.
func (u *unpacker) end(batch *kmsg.RecordBatch) error {
	in := kbin.Reader{Src: batch.Records}
	_, _, _, _ = in.Varint(), in.Int8(), in.Varlong(), in.Varint() // length, attributes, time, offset
	key := kbin.Reader{Src: in.VarintBytes()}
	_ = key.Int16() // version
	const abort = 0
	isAbort := key.Int16() == abort
	if !in.Ok() || !key.Ok() {
		return errBatch
	}
	if pending := u.aborted[batch.ProducerID]; isAbort && len(pending) > 0 && batch.FirstOffset >= pending[0] {
		u.aborted[batch.ProducerID] = pending[1:]
	}
	return nil
}

// record reads one record.
func (u *unpacker) record(batch *kmsg.RecordBatch, in *reader) {
	_ = in.varint() // length
	_ = in.take(1)  // attributes: none are in use
	at := batch.FirstTimestamp + in.varint()
	if batch.Attributes&batchLogAppendTime != 0 {
		at = batch.MaxTimestamp
	}
	offset := batch.FirstOffset + in.varint()
	key, value := in.bytes(), in.bytes()
	begin := len(u.headers)
	for n := in.varint(); n > 0 && !in.bad; n-- {
		u.headers = append(u.headers, kgo.RecordHeader{Key: u.name(len(u.headers)-begin, in.bytes()), Value: in.bytes()})
	}
	if offset < u.next || in.bad {
		return
	}
	u.records = append(u.records, kgo.Record{
		Key: key, Value: value, Headers: u.headers[begin:len(u.headers):len(u.headers)],
		Timestamp: time.UnixMilli(at), Topic: u.place.Topic, Partition: u.place.Partition, Offset: offset,
	})
}

// name returns the key of a record's i-th header, kept once for all records: most
// often that of the record before. Whoever writes events may make up many: those
// beyond a thousand are not kept.
func (u *unpacker) name(i int, text []byte) string {
	const most = 1000
	if n := len(u.records); n > 0 && i < len(u.records[n-1].Headers) && u.records[n-1].Headers[i].Key == string(text) {
		return u.records[n-1].Headers[i].Key
	}
	if known, ok := u.names[string(text)]; ok {
		return known
	}
	name := string(text)
	if len(u.names) < most {
		u.names[name] = name
	}
	return name
}

// reader cuts pieces off records; past their end it is bad and gives nothing. It does
// what kbin's does, in half the time for the lengths of one byte that most are.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) varint() int64 {
	if len(r.rest) > 0 && r.rest[0] < 0x80 {
		v := int64(r.rest[0])
		r.rest = r.rest[1:]
		return v>>1 ^ -(v & 1)
	}
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.bad, r.rest = true, nil
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) take(n int64) []byte {
	if n < 0 || n > int64(len(r.rest)) {
		r.bad, r.rest = true, nil
		return nil
	}
	piece := r.rest[:n:n]
	r.rest = r.rest[n:]
	return piece
}

// bytes reads what stands behind its length; a length of -1 is nothing at all.
func (r *reader) bytes() []byte {
	n := r.varint()
	if n == -1 {
		return nil
	}
	return r.take(n)
}
