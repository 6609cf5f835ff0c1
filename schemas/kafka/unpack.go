package kafka

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Attributes of a batch (Kafka protocol, record batch version 2).
const (
	batchCodec         = 0b111
	batchLogAppendTime = 1 << 3
	batchTransactional = 1 << 4
)

var errBatch = errors.New("a batch of records is not of version 2, or broken")

// unpacker reads the committed records of a fetch's answer. kgo does it too, with
// some allocations for each header of each record, which are two thirds of what it
// takes to count a record: here all records of an answer share a few.
type unpacker struct {
	place        Place
	decompressor kgo.Decompressor
	next         int64 // the first offset not passed
	names        map[string]string
	// aborted holds, by producer, the first offsets of its aborted transactions that have not ended yet.
	aborted map[int64][]int64

	records []kgo.Record
	headers []kgo.RecordHeader
	skipped int // batches that inflate beyond all bounds
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

// unpack reads whole batches; the last one of an answer may be cut.
func (u *unpacker) unpack(in []byte) error {
	for len(in) > batchMagicAt {
		prefix := kbin.Reader{Src: in}
		first, length := prefix.Int64(), prefix.Int32()
		size := batchPrefix + int(length)
		if length < 0 || size > len(in) {
			return nil
		}
		var batch kmsg.RecordBatch
		if in[batchMagicAt] != 2 || batch.ReadFrom(in[:size]) != nil {
			return fmt.Errorf("%w: at offset %d", errBatch, first)
		}
		in = in[size:]
		if err := u.unpackBatch(&batch); err != nil {
			return fmt.Errorf("%w: at offset %d", err, first)
		}
		u.next = max(u.next, batch.FirstOffset+int64(batch.LastOffsetDelta)+1)
	}
	return nil
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
	raw := batch.Records
	if codec := kgo.CompressionCodecType(batch.Attributes & batchCodec); codec != 0 {
		var err error
		if raw, err = u.decompressor.Decompress(raw, codec); errors.Is(err, kgo.ErrMaxDecompress) {
			u.skipped++
			return nil
		} else if err != nil {
			return fmt.Errorf("inflating a batch: %w", err)
		}
	}
	in := kbin.Reader{Src: raw}
	for range batch.NumRecords {
		u.record(batch, &in)
		if !in.Ok() {
			return errBatch
		}
	}
	return nil
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

// record reads one record; whether in was broken is looked at behind the last.
func (u *unpacker) record(batch *kmsg.RecordBatch, in *kbin.Reader) {
	_, _ = in.Varint(), in.Int8() // length, attributes: none are in use
	at := batch.FirstTimestamp + in.Varlong()
	if batch.Attributes&batchLogAppendTime != 0 {
		at = batch.MaxTimestamp
	}
	offset := batch.FirstOffset + int64(in.Varint())
	key, value := in.VarintBytes(), in.VarintBytes()
	begin := len(u.headers)
	for range max(in.Varint(), 0) {
		if !in.Ok() {
			return
		}
		u.headers = append(u.headers, kgo.RecordHeader{Key: u.name(in.VarintBytes()), Value: in.VarintBytes()})
	}
	if offset < u.next {
		return
	}
	u.records = append(u.records, kgo.Record{
		Key: key, Value: value, Headers: u.headers[begin:len(u.headers):len(u.headers)],
		Timestamp: time.UnixMilli(at), Topic: u.place.Topic, Partition: u.place.Partition, Offset: offset,
	})
}

// name returns a header's key, kept once for all records. Whoever writes events
// may make up many: those beyond a thousand are not kept.
func (u *unpacker) name(text []byte) string {
	const most = 1000
	if known, ok := u.names[string(text)]; ok {
		return known
	}
	name := string(text)
	if len(u.names) < most {
		u.names[name] = name
	}
	return name
}
