package schemas

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Headers of rejected, behind the bad record's own.
const (
	headerRejectedReason    = "rejected_reason"
	headerRejectedDetail    = "rejected_detail"
	headerRejectedTopic     = "rejected_topic"
	headerRejectedPartition = "rejected_partition"
	headerRejectedOffset    = "rejected_offset"
	headerRejectedCut       = "rejected_cut"
)

// ErrRowRefused says that ClickHouse will never take the row of a record, which is
// good otherwise.
var ErrRowRefused = errors.New("ClickHouse refuses its row")

// Rejected says of a bad record where it stood and why it was refused. The
// record's key, value and headers are the bad one's, as far as they fit.
type Rejected struct {
	Reason    Code
	Detail    string
	Topic     string
	Partition int32
	Offset    int64
	// Cut says that the value or headers are not whole: they were too large.
	Cut bool
}

// RejectedRecord returns what goes to the topic rejected for a bad record: the
// record itself and err as the reason. It always fits the topic's limit.
func RejectedRecord(topic string, bad *kgo.Record, err error) *kgo.Record {
	reason, detail := CodeInvalidRecord, err.Error()
	var invalid *ValidationError
	var version *UnknownVersionError
	switch {
	case errors.As(err, &invalid):
		reason, detail = invalid.Code(), invalid.Error()
	case errors.As(err, &version):
		reason = CodeUnknownVersion
	case errors.Is(err, ErrRowRefused):
		reason = CodeRowRefused
	}
	if len(detail) > 1024 {
		detail = detail[:1024]
	}

	value, headers, cut := fit(bad)
	headers = append(headers, versionHeader())
	headers = appendText(headers, headerRejectedReason, string(reason))
	headers = appendText(headers, headerRejectedDetail, detail)
	headers = appendText(headers, headerRejectedTopic, bad.Topic)
	headers = appendText(headers, headerRejectedPartition, strconv.Itoa(int(bad.Partition)))
	headers = appendText(headers, headerRejectedOffset, strconv.FormatInt(bad.Offset, 10))
	if cut {
		headers = appendText(headers, headerRejectedCut, "true")
	}
	key := bad.Key
	if len(key) > 1024 {
		key = key[:1024]
	}
	return &kgo.Record{Topic: topic, Key: key, Value: value, Headers: headers}
}

// fit cuts what would not fit beside our own headers: a record that cannot be
// quarantined would stop its partition for ever.
func fit(bad *kgo.Record) (value []byte, headers []kgo.RecordHeader, cut bool) {
	const (
		headerRoom = 64 << 10
		valueRoom  = MaxRecordBytes - headerRoom - 16<<10
		perHeader  = 16 // what the format itself may take: lengths
	)
	value = bad.Value
	if len(value) > valueRoom {
		value, cut = value[:valueRoom], true
	}
	room := headerRoom
	headers = make([]kgo.RecordHeader, 0, len(bad.Headers)+7)
	for _, h := range bad.Headers {
		size := len(h.Key) + len(h.Value) + perHeader
		if size > room {
			cut = true
			continue
		}
		room -= size
		headers = append(headers, h)
	}
	return value, headers, cut
}

// DecodeRejected reads what RejectedRecord wrote.
func DecodeRejected(r *kgo.Record) (Rejected, error) {
	var (
		out  Rejected
		read headerReader
	)
	for _, h := range r.Headers {
		switch h.Key {
		case headerRejectedReason:
			out.Reason = Code(h.Value)
		case headerRejectedDetail:
			out.Detail = string(h.Value)
		case headerRejectedTopic:
			out.Topic = string(h.Value)
		case headerRejectedPartition:
			out.Partition = int32(read.count(h.Key, h.Value)) //nolint:gosec // at most 1<<30
		case headerRejectedOffset:
			out.Offset = read.integer(h.Key, h.Value)
		case headerRejectedCut:
			out.Cut = true
		}
	}
	if read.err != nil {
		return Rejected{}, fmt.Errorf("decoding rejected record: %w", read.err)
	}
	if out.Reason == "" || out.Topic == "" {
		return Rejected{}, fmt.Errorf("decoding rejected record: %w", Invalid(CodeInvalidRecord, "#/"+headerRejectedReason, "header missing"))
	}
	return out, nil
}

// SetAside tells which delivery a record of rejected has taken out of the senders'
// way: the bad record is its own, of the topic deliveries that has the id, or one of
// it that waited.
func SetAside(r *kgo.Record, topics Topics, deliveries [16]byte) (id DeliveryID, is bool) {
	bad, err := DecodeRejected(r)
	switch {
	case err != nil || bad.Reason == CodeRowRefused:
		return id, false
	case bad.Topic == topics.Deliveries:
		return DeliveryID{Topic: deliveries, Partition: bad.Partition, Offset: bad.Offset}, true
	case slices.Contains(topics.Waiting(), bad.Topic):
		id = GlanceDelivery(r).ID
		return id, id.Topic == deliveries
	default:
		return id, false
	}
}
