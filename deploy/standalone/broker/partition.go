package broker

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Attributes of a record batch (Kafka's protocol, "Record Batch").
const (
	transactional = 0x10
	control       = 0x20
)

// indexEntry is the size of an entry of kfake's index, which has one for each
// batch: version, checksum, leader epoch, a timestamp that loading computes
// anew, and whether the batch was written in a transaction.
const indexEntry = 15

// A partition is one partition's files: segments of record batches as Kafka has
// them on the wire, and beside each its index.
type partition struct {
	dir  string
	base int64 // of the last segment, which is appended to
	end  int64 // the next record's offset
	last batch
	// open holds the producers in a transaction, with the epoch they write under;
	// undone is what the last batch, a marker, took out of it.
	open   map[int64]int16
	undone bool
	aborts bool // there is a transaction in it that was aborted
}

type batch struct {
	at          int64 // where it begins in its segment
	index       int   // which one of its segment it is
	leaderEpoch int32
	attributes  int16
	producer    int64
	epoch       int16
	stamped     int64 // its greatest timestamp, in milliseconds
	commit      bool  // of a marker
}

func (b batch) marker() bool { return b.attributes&control != 0 }

// readPartition reads the files. What a kill cut off in the middle of a write it
// cuts off as well: nobody was told that it is there.
func readPartition(dir string) (*partition, error) {
	bases, err := segments(dir)
	if err != nil {
		return nil, err
	}
	p := &partition{dir: dir, open: make(map[int64]int16)}
	for _, base := range bases {
		p.base = base
		if err := p.readSegment(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func segments(dir string) ([]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading partition: %w", err)
	}
	var bases []int64
	for _, entry := range entries {
		name, isSegment := strings.CutSuffix(entry.Name(), ".dat")
		if base, err := strconv.ParseInt(name, 10, 64); isSegment && err == nil {
			bases = append(bases, base)
		}
	}
	slices.SortFunc(bases, cmp.Compare[int64])
	return bases, nil
}

func (p *partition) segmentPath() string { return p.path(".dat") }
func (p *partition) indexPath() string   { return p.path(".idx") }

func (p *partition) path(ending string) string {
	return filepath.Join(p.dir, strconv.FormatInt(p.base, 10)+ending)
}

func (p *partition) readSegment() error {
	raw, err := os.ReadFile(p.segmentPath())
	if err != nil {
		return fmt.Errorf("reading segment: %w", err)
	}
	var index []byte
	at := 0
	for {
		rb, size, ok := readBatch(raw[at:])
		if !ok {
			break
		}
		p.add(rb, int64(at), len(index)/indexEntry)
		index = append(index, p.last.indexEntry()...)
		at += size
	}
	if at < len(raw) {
		if err := os.Truncate(p.segmentPath(), int64(at)); err != nil {
			return fmt.Errorf("cutting off an unfinished write: %w", err)
		}
	}
	return p.mendIndex(index)
}

// readBatch reads the first batch of a segment's rest.
func readBatch(raw []byte) (rb kmsg.RecordBatch, size int, ok bool) {
	const head = 61 // up to the records
	if len(raw) < head {
		return rb, 0, false
	}
	size = 12 + int(binary.BigEndian.Uint32(raw[8:]))
	if size < head || size > len(raw) || binary.BigEndian.Uint32(raw[17:]) != checksum(raw[21:size]) {
		return rb, 0, false
	}
	return rb, size, rb.ReadFrom(raw[:size]) == nil
}

func checksum(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

func (p *partition) add(rb kmsg.RecordBatch, at int64, index int) {
	p.end = rb.FirstOffset + int64(rb.LastOffsetDelta) + 1
	p.last = batch{
		at: at, index: index, leaderEpoch: rb.PartitionLeaderEpoch, attributes: rb.Attributes,
		producer: rb.ProducerID, epoch: rb.ProducerEpoch, stamped: rb.MaxTimestamp,
	}
	p.undone = false
	switch {
	case p.last.marker():
		p.last.commit = isCommit(rb)
		_, p.undone = p.open[rb.ProducerID]
		p.aborts = p.aborts || p.undone && !p.last.commit
		delete(p.open, rb.ProducerID)
	case rb.Attributes&transactional != 0:
		p.open[rb.ProducerID] = rb.ProducerEpoch
	}
}

func isCommit(rb kmsg.RecordBatch) bool {
	var record kmsg.Record
	var key kmsg.ControlRecordKey
	return record.ReadFrom(rb.Records) == nil && key.ReadFrom(record.Key) == nil && key.Type == kmsg.ControlRecordKeyTypeCommit
}

func (b batch) indexEntry() []byte {
	entry := make([]byte, indexEntry)
	entry[0] = logVersion
	binary.LittleEndian.PutUint32(entry[2:], uint32(b.leaderEpoch)) //nolint:gosec // the same bits
	binary.LittleEndian.PutUint64(entry[6:], uint64(b.stamped))     //nolint:gosec // the same bits
	if b.attributes&transactional != 0 && !b.marker() {
		entry[14] = 1
	}
	entry[1] = byte(checksum(entry[2:])) //nolint:gosec // the lowest eight bits are what is meant
	return entry
}

// mendIndex gives the index an entry for each batch. kfake takes a batch without
// one for written outside of any transaction, and all later ones for each other's.
func (p *partition) mendIndex(want []byte) error {
	info, err := os.Stat(p.indexPath())
	if err == nil && info.Size() == int64(len(want)) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading index: %w", err)
	}
	if err := os.WriteFile(p.indexPath(), want, 0o600); err != nil {
		return fmt.Errorf("mending index: %w", err)
	}
	return nil
}

// takeBack removes the last batch, a marker.
func (p *partition) takeBack() error {
	if err := os.Truncate(p.indexPath(), int64(p.last.index)*indexEntry); err != nil {
		return fmt.Errorf("taking back a marker's index: %w", err)
	}
	if err := os.Truncate(p.segmentPath(), p.last.at); err != nil {
		return fmt.Errorf("taking back a marker: %w", err)
	}
	p.end--
	if p.undone {
		p.open[p.last.producer] = p.last.epoch
	}
	return nil
}

// abort appends the marker that ends a producer's transaction as aborted.
func (p *partition) abort(producer int64, epoch int16) error {
	key := kmsg.ControlRecordKey{Type: kmsg.ControlRecordKeyTypeAbort}
	var end kmsg.EndTxnMarker
	record := kmsg.Record{Key: key.AppendTo(nil), Value: end.AppendTo(nil)}
	record.Length = int32(len(record.AppendTo(nil)) - 1) //nolint:gosec // some bytes; its own varint is one
	now := time.Now().UnixMilli()
	rb := kmsg.RecordBatch{
		FirstOffset: p.end, PartitionLeaderEpoch: p.last.leaderEpoch, Magic: 2, Attributes: control | transactional,
		FirstTimestamp: now, MaxTimestamp: now, ProducerID: producer, ProducerEpoch: epoch,
		FirstSequence: -1, NumRecords: 1, Records: record.AppendTo(nil),
	}
	raw := rb.AppendTo(nil)
	rb.Length = int32(len(raw) - 12)   //nolint:gosec // some bytes
	rb.CRC = int32(checksum(raw[21:])) //nolint:gosec // the same bits
	if err := appendFile(p.segmentPath(), rb.AppendTo(nil)); err != nil {
		return fmt.Errorf("aborting a transaction: %w", err)
	}
	p.add(rb, 0, 0)
	if err := appendFile(p.indexPath(), p.last.indexEntry()); err != nil {
		return fmt.Errorf("aborting a transaction: %w", err)
	}
	return nil
}

// appendFile appends to a file and sees to it that it is on disk.
func appendFile(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // standalone's own folder
	if err != nil {
		return fmt.Errorf("opening file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("appending: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	return nil
}
