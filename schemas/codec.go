package schemas

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Version is the version of every record format that this binary writes. A
// change that an older binary would misread gets a new one.
const Version = "1"

// HeaderVersion is the header that carries it.
const HeaderVersion = "version"

// ErrTombstone is what decoding a compacted topic's tombstone returns: the key is deleted.
var ErrTombstone = errors.New("tombstone")

// UnknownVersionError says that a record was written by a newer binary. It is no
// bad record: it is kept for a binary that knows it.
type UnknownVersionError struct {
	Topic, Version string
}

// Error names the version and where it was met.
func (e *UnknownVersionError) Error() string {
	return fmt.Sprintf("record version %.20q in %s is not known here (known: %s)", e.Version, e.Topic, Version)
}

// IsNewer reports whether an error says so.
func IsNewer(err error) bool {
	_, is := errors.AsType[*UnknownVersionError](err)
	return is
}

func versionHeader() kgo.RecordHeader {
	return kgo.RecordHeader{Key: HeaderVersion, Value: []byte(Version)}
}

// checkVersion returns nil for Version, *UnknownVersionError for any other
// version, and a *ValidationError if there is none.
func checkVersion(r *kgo.Record) error {
	for _, h := range r.Headers {
		if h.Key != HeaderVersion {
			continue
		}
		if string(h.Value) == Version {
			return nil
		}
		return &UnknownVersionError{Topic: r.Topic, Version: string(h.Value)}
	}
	return Invalid(CodeInvalidRecord, "#/version", "no version header: not written by Postrider")
}

// RecordSize is the least that a record takes of its topic's limit, in bytes: its key, value and headers with their lengths.
func RecordSize(r *kgo.Record) int {
	const lengths = 2 // of a header's key and value
	size := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		size += len(h.Key) + len(h.Value) + lengths
	}
	return size
}

// CheckRecordSize refuses what compression has carried past a limit, which the
// broker holds to a batch as it was sent. It returns a *ValidationError.
func CheckRecordSize(r *kgo.Record, most int) error {
	if size := RecordSize(r); size > most {
		return Invalid(CodeTooLarge, "#", fmt.Sprintf("the record has %d bytes, at most %d are allowed", size, most))
	}
	return nil
}

// appendText appends a text header unless it is empty.
func appendText(headers []kgo.RecordHeader, key, value string) []kgo.RecordHeader {
	if value == "" {
		return headers
	}
	return append(headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
}

// appendInt appends a decimal header unless it is zero.
func appendInt(headers []kgo.RecordHeader, key string, value int64) []kgo.RecordHeader {
	if value == 0 {
		return headers
	}
	return append(headers, kgo.RecordHeader{Key: key, Value: strconv.AppendInt(nil, value, 10)})
}

// appendTime appends a time as decimal microseconds since 1970 UTC, unless it is zero.
func appendTime(headers []kgo.RecordHeader, key string, t time.Time) []kgo.RecordHeader {
	if t.IsZero() {
		return headers
	}
	return append(headers, kgo.RecordHeader{Key: key, Value: strconv.AppendInt(nil, t.UnixMicro(), 10)})
}

// headerReader reads headers into fields and remembers the first that is broken.
type headerReader struct {
	err *ValidationError
}

func (h *headerReader) integer(key string, value []byte) int64 {
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil && h.err == nil {
		h.err = Invalid(CodeInvalidRecord, "#/"+key, "not a decimal number")
	}
	return n
}

func (h *headerReader) count(key string, value []byte) int {
	n := h.integer(key, value)
	if (n < 0 || n > 1<<30) && h.err == nil {
		h.err = Invalid(CodeInvalidRecord, "#/"+key, "not a count")
	}
	return int(n)
}

func (h *headerReader) time(key string, value []byte) time.Time {
	return time.UnixMicro(h.integer(key, value)).UTC()
}
