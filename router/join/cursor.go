package join

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/router/table"
)

// A cursor says how far the fan-out of one event has come: to the webhook last written, in order of ids. It is zero before the first and after the last.
type cursor struct {
	last  string
	count int // webhooks written so far
}

// position is where the next transaction of a partition begins: at an offset, or in the middle of the fan-out of the event that stands there.
type position struct {
	offset int64
	cursor cursor
}

// cursorPrefix names the form of the commit metadata that holds a cursor: "fan-out/1 <count> <webhook id>". Other text is no cursor.
const (
	cursorKind   = "fan-out/"
	cursorPrefix = cursorKind + "1 "
)

var errCursor = errors.New("commit metadata is no fan-out cursor that this version knows")

// metadata is the cursor as the text of an offset commit; empty for the zero cursor. A webhook's id is at most 64 characters, the metadata 4,096.
func (c cursor) metadata() string {
	if c == (cursor{}) {
		return ""
	}
	return cursorPrefix + strconv.Itoa(c.count) + " " + c.last
}

// parseCursor reads what metadata wrote. A cursor of a newer form is an error: to start over would repeat deliveries.
func parseCursor(text string) (cursor, error) {
	if !strings.HasPrefix(text, cursorKind) {
		return cursor{}, nil
	}
	rest, known := strings.CutPrefix(text, cursorPrefix)
	digits, last, whole := strings.Cut(rest, " ")
	count, err := strconv.Atoi(digits)
	if !known || !whole || err != nil || count < 1 || last == "" {
		return cursor{}, fmt.Errorf("reading %.100q: %w", text, errCursor)
	}
	return cursor{last: last, count: count}, nil
}

// rest returns the targets, in order of ids, that the cursor has not come to.
func (c cursor) rest(targets []*table.Webhook) []*table.Webhook {
	i, found := slices.BinarySearchFunc(targets, c.last, func(w *table.Webhook, last string) int { return strings.Compare(w.ID, last) })
	if found {
		i++
	}
	return targets[i:]
}

// fetchedPositions reads the positions of a topic's partitions out of an answer to OffsetFetch.
func fetchedPositions(topic string, id [16]byte, resp *kmsg.OffsetFetchResponse) (map[int32]position, error) {
	positions := make(map[int32]position)
	for _, g := range resp.Groups {
		for _, t := range g.Topics {
			if t.Topic != topic && t.TopicID != id {
				continue
			}
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 {
					continue // shown by the next poll
				}
				at := position{offset: p.Offset}
				if p.Metadata != nil {
					var err error
					if at.cursor, err = parseCursor(*p.Metadata); err != nil {
						return nil, fmt.Errorf("reading commit of %s/%d@%d: %w", topic, p.Partition, p.Offset, err)
					}
				}
				positions[p.Partition] = at
			}
		}
	}
	return positions, nil
}

// commitOnly makes a commit one of these positions and no others: the client's own are where polling has come to, the transaction's where it has.
func commitOnly(req *kmsg.TxnOffsetCommitRequest, topic string, id [16]byte, positions map[int32]position) {
	t := kmsg.NewTxnOffsetCommitRequestTopic()
	t.Topic, t.TopicID = topic, id
	for partition, at := range positions {
		p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset = partition, at.offset
		p.Metadata = new(at.cursor.metadata())
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = []kmsg.TxnOffsetCommitRequestTopic{t}
}
