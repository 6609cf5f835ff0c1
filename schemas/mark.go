package schemas

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds of what a partition's commit says. Kafka keeps 4,096 characters of
// metadata (offset.metadata.max.bytes); in base64 that is 3,072 bytes. A
// difference under 2^21 takes 3 bytes, one under 2^28 takes 4, and within a span
// of 2^27 there are at most 64 of 2^21 or more: (999 + 1) × 3 + 64 bytes fit.
const (
	MaxUnfinished  = 1000
	MaxMarkSpan    = 1 << 27
	MaxMarkText    = 4096
	markTextPrefix = "1:"
)

// ErrMark is returned for commit metadata that is no mark of a version known here.
var ErrMark = errors.New("commit metadata is not of version 1")

// Mark is what the sender commits of a partition: every offset below Next is
// finished, but for those in Unfinished. The committed offset is the first of
// these, or Next where there is none.
type Mark struct {
	Unfinished []int64 // ascending
	Next       int64
}

// Live reports whether the record at an offset has work left.
func (m *Mark) Live(offset int64) bool {
	if offset >= m.Next {
		return true
	}
	_, unfinished := slices.BinarySearch(m.Unfinished, offset)
	return unfinished
}

// Low is the offset to commit: the low-water mark.
func (m *Mark) Low() int64 {
	if len(m.Unfinished) > 0 {
		return m.Unfinished[0]
	}
	return m.Next
}

// Text is the metadata to commit: the distances from Low to each further
// unfinished offset and to Next. With nothing unfinished there is nothing to say.
func (m *Mark) Text() string {
	if len(m.Unfinished) == 0 {
		return ""
	}
	b := make([]byte, 0, 3*len(m.Unfinished)+8)
	at := m.Unfinished[0]
	for _, offset := range append(m.Unfinished[1:len(m.Unfinished):len(m.Unfinished)], m.Next) {
		b = binary.AppendUvarint(b, uint64(offset-at)) //nolint:gosec // ascending
		at = offset
	}
	return markTextPrefix + base64.RawStdEncoding.EncodeToString(b)
}

// ParseMark reads a partition's committed offset and metadata. The error wraps ErrMark.
func ParseMark(offset int64, text string) (Mark, error) {
	if text == "" {
		return Mark{Next: offset}, nil
	}
	bad := func() (Mark, error) { return Mark{}, fmt.Errorf("reading %.32q: %w", text, ErrMark) }
	encoded, ok := strings.CutPrefix(text, markTextPrefix)
	if !ok || offset < 0 {
		return bad()
	}
	b, err := base64.RawStdEncoding.DecodeString(encoded)
	if err != nil {
		return bad()
	}
	m := Mark{Next: offset}
	for {
		m.Unfinished = append(m.Unfinished, m.Next)
		step, n := binary.Uvarint(b)
		if n <= 0 || step == 0 || step > MaxMarkSpan || len(m.Unfinished) > MaxUnfinished {
			return bad()
		}
		m.Next += int64(step)
		if b = b[n:]; len(b) == 0 {
			return m, nil
		}
	}
}
