package audit

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// place is where a record stands in Kafka. A topic made again under the same
// name has another id, so places never name two records.
type place struct {
	topic     [16]byte
	partition int32
	offset    int64
}

func (p place) at() place { return p }

// bounds are the offsets [begin, end) of one partition that go in together.
type bounds struct {
	topic      [16]byte
	partition  int32
	begin, end int64
}

// block is what a partition inserts at once. Its bounds stand in Kafka before
// any of its rows is sent, and never change after.
type block struct {
	bounds
	rows rows
	// eventsEnd is, for a block of routed, the first offset of events behind it.
	eventsEnd int64

	// done holds the tables that have the block, unknown those that may have it.
	done, unknown tableSet
	// fence is the deadline of the insert that left its tables unknown, by
	// ClickHouse's clock: what has not shown by then will never show.
	fence time.Time
}

// tableSet is a set of tables, by their position in the list of tables.
type tableSet uint16

func (s tableSet) has(table int) bool { return s&(1<<table) != 0 }
func (s *tableSet) add(table int)     { *s |= 1 << table }
func (s *tableSet) remove(table int)  { *s &^= 1 << table }

// token is an insert's insert_deduplication_token: the same for the same rows,
// whoever inserts them, and for no other. It is a function of the bounds, in
// whatever order, and of the number of rows, which is another where a lookup
// found some of them. Many partitions make a long list, so it is hashed.
func token(schema int, table string, list []bounds, rows int) string {
	sorted := slices.SortedFunc(slices.Values(list), func(a, b bounds) int {
		return cmp.Or(slices.Compare(a.topic[:], b.topic[:]), cmp.Compare(a.partition, b.partition), cmp.Compare(a.begin, b.begin))
	})
	h := sha256.New()
	var buf [20]byte
	for _, b := range sorted {
		h.Write(b.topic[:])
		binary.BigEndian.PutUint32(buf[:], uint32(b.partition)) //nolint:gosec // bits
		binary.BigEndian.PutUint64(buf[4:], uint64(b.begin))    //nolint:gosec // bits
		binary.BigEndian.PutUint64(buf[12:], uint64(b.end))     //nolint:gosec // bits
		h.Write(buf[:])
	}
	return fmt.Sprintf("postrider/%d/%s/%d/%s", schema, table, rows, hex.EncodeToString(h.Sum(nil)))
}

// pending is what a commit's metadata says of the block behind the committed
// offset: its end, and the deadline of its insert by ClickHouse's clock.
type pending struct {
	end      int64
	deadline time.Time
}

// metadataVersion begins every metadata text that names a block.
const metadataVersion = "1"

var errBadMetadata = errors.New("commit metadata is not an audit writer's")

// text is the metadata that names the block: "1 <end> <deadline in ms since 1970>".
func (p pending) text() string {
	if p.end == 0 {
		return ""
	}
	return metadataVersion + " " + strconv.FormatInt(p.end, 10) + " " + strconv.FormatInt(p.deadline.UnixMilli(), 10)
}

// parsePending reads a commit's metadata; empty names no block.
func parsePending(committed int64, text string) (pending, error) {
	if text == "" {
		return pending{}, nil
	}
	fields := strings.Split(text, " ")
	if len(fields) != 3 || fields[0] != metadataVersion {
		return pending{}, fmt.Errorf("reading %.80q: %w", text, errBadMetadata)
	}
	end, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || end <= committed {
		return pending{}, fmt.Errorf("reading end in %.80q behind offset %d: %w", text, committed, errBadMetadata)
	}
	deadline, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return pending{}, fmt.Errorf("reading deadline in %.80q: %w", text, errBadMetadata)
	}
	return pending{end, time.UnixMilli(deadline)}, nil
}
