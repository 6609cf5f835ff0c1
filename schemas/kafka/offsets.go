package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas/process"
)

// Special times of ListOffsets (KIP-79), and its isolation levels (KIP-98).
const (
	atLatest   int64 = -1
	atEarliest int64 = -2

	readUncommitted int8 = 0
	readCommitted   int8 = 1
)

// Place names a partition of a topic.
type Place struct {
	Topic     string
	Partition int32
}

// Offsets are a next offset for each of some partitions: everything before it
// is meant. They belong to one load of the Follower that returned them.
type Offsets struct {
	next map[Place]int64
	// load is the Follower's load they were asked in; 0 is the one that is in
	// force when they are waited for.
	load int
}

// Through returns offsets that are reached when each of the records (as
// acknowledged, with its partition and offset) has been read.
func Through(records ...*kgo.Record) Offsets {
	next := make(map[Place]int64, len(records))
	for _, r := range records {
		place := Place{r.Topic, r.Partition}
		next[place] = max(next[place], r.Offset+1)
	}
	return Offsets{next: next}
}

// At returns the next offset of a partition, and whether there is one.
func (o Offsets) At(topic string, partition int32) (next int64, ok bool) {
	next, ok = o.next[Place{topic, partition}]
	return next, ok
}

// All returns the next offset of each partition.
func (o Offsets) All() map[Place]int64 {
	return maps.Clone(o.next)
}

// reached says whether positions are at or past every one of these offsets.
func (o Offsets) reached(positions map[Place]int64) bool {
	for place, next := range o.next {
		if position, ok := positions[place]; !ok || position < next {
			return false
		}
	}
	return true
}

var errNoAnswer = errors.New("no answer for the partition")

// listOffsets asks the leaders for an offset of each place: one request to each
// leader, and no other while the client has the leaders cached. What a
// partition answers with an error that may pass is asked again until ctx ends:
// OFFSET_NOT_AVAILABLE after a change of leaders is not an offset of zero.
func listOffsets(ctx context.Context, cl *kgo.Client, places []Place, timestamp int64, isolation int8) (map[Place]int64, error) {
	found := make(map[Place]int64, len(places))
	var last error
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		last = listOffsetsOnce(ctx, cl, places, timestamp, isolation, found)
		if len(found) == len(places) {
			return found, nil
		}
		if !passing(last) || !process.Pause(ctx, wait) {
			return nil, fmt.Errorf("asking for offsets of %v: %w", missing(places, found), because(ctx.Err(), last))
		}
	}
}

// Bounds returns for each partition of topics the offset at which its log starts
// and the one behind its last record, be that committed or not.
func Bounds(ctx context.Context, cl *kgo.Client, topics ...string) (starts, ends map[Place]int64, err error) {
	places, err := placesOf(ctx, cl, topics)
	if err != nil {
		return nil, nil, err
	}
	if starts, err = listOffsets(ctx, cl, places, atEarliest, readUncommitted); err != nil {
		return nil, nil, err
	}
	ends, err = listOffsets(ctx, cl, places, atLatest, readUncommitted)
	return starts, ends, err
}

// StableEnds returns for each partition of topics the offset before which every
// transaction has ended: what a read-committed reader comes to.
func StableEnds(ctx context.Context, cl *kgo.Client, topics ...string) (map[Place]int64, error) {
	places, err := placesOf(ctx, cl, topics)
	if err != nil {
		return nil, err
	}
	return listOffsets(ctx, cl, places, atLatest, readCommitted)
}

// OffsetsAt returns for each partition of topics the offset of the first record
// that was written at a time or later; -1 where there is none.
func OffsetsAt(ctx context.Context, cl *kgo.Client, at time.Time, topics ...string) (map[Place]int64, error) {
	places, err := placesOf(ctx, cl, topics)
	if err != nil {
		return nil, err
	}
	return listOffsets(ctx, cl, places, max(at.UnixMilli(), 0), readUncommitted)
}

// listOffsetsOnce asks for the places not yet found, and returns an error that
// one of those still not found was answered with: one that will not pass, if
// there is such.
func listOffsetsOnce(ctx context.Context, cl *kgo.Client, places []Place, timestamp int64, isolation int8, found map[Place]int64) error {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	req.IsolationLevel = isolation
	for _, place := range missing(places, found) {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = place.Partition, timestamp
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != place.Topic {
			t := kmsg.NewListOffsetsRequestTopic()
			t.Topic = place.Topic
			req.Topics = append(req.Topics, t)
		}
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, p)
	}

	last := errNoAnswer
	keep := func(err error) {
		if passing(last) {
			last = err
		}
	}
	for _, shard := range cl.RequestSharded(ctx, req) {
		if shard.Err != nil {
			keep(shard.Err)
			continue
		}
		resp, ok := shard.Resp.(*kmsg.ListOffsetsResponse)
		if !ok || resp.Version < 2 {
			// Below version 2 the isolation level is dropped in silence, and the
			// answer would be past what a read-committed reader can see.
			return kerr.UnsupportedVersion
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					keep(fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err))
					continue
				}
				found[Place{t.Topic, p.Partition}] = p.Offset
			}
		}
	}
	return last
}

// passing says whether a question that was answered so is worth asking again.
// Whatever is no word of a broker (a connection lost, a broker away) is, and so
// is the one word by which a broker says that it does not know.
func passing(err error) bool {
	if errors.Is(err, kgo.ErrClientClosed) {
		return false
	}
	var word *kerr.Error
	return !errors.As(err, &word) || word.Retriable || errors.Is(word, kerr.UnknownServerError)
}

func missing(places []Place, found map[Place]int64) []Place {
	if len(found) == 0 {
		return places
	}
	var left []Place
	for _, place := range places {
		if _, ok := found[place]; !ok {
			left = append(left, place)
		}
	}
	return left
}

// because joins an error with what is known of its reason, in one line.
func because(err, reason error) error {
	switch {
	case err == nil:
		return reason
	case reason == nil:
		return err
	default:
		return fmt.Errorf("%w: %w", err, reason)
	}
}

// topicMetadata is what a broker says of one topic.
type topicMetadata struct {
	id      [16]byte
	leaders []int32 // by partition; -1 where there is none
}

// leader returns the leader of a partition.
func (d topicMetadata) leader(place Place) (int32, error) {
	switch {
	case int(place.Partition) >= len(d.leaders):
		return -1, fmt.Errorf("%s/%d: %w", place.Topic, place.Partition, kerr.UnknownTopicOrPartition)
	case d.leaders[place.Partition] < 0:
		return -1, fmt.Errorf("%s/%d: %w", place.Topic, place.Partition, kerr.LeaderNotAvailable)
	default:
		return d.leaders[place.Partition], nil
	}
}

// describe asks for topics, all of which must exist.
func describe(ctx context.Context, cl *kgo.Client, topics []string) (map[string]topicMetadata, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, topic := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = new(topic)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, fmt.Errorf("describing %d topics, among them %q: %w", len(topics), topics[:min(len(topics), 3)], err)
	}
	described := make(map[string]topicMetadata, len(topics))
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue // only an answer to a question by id has none
		}
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return nil, fmt.Errorf("describing topic %q: %w", *t.Topic, err)
		}
		leaders := make([]int32, len(t.Partitions))
		for _, p := range t.Partitions {
			if int(p.Partition) >= len(leaders) {
				return nil, fmt.Errorf("describing topic %q: partition %d of %d", *t.Topic, p.Partition, len(leaders))
			}
			leaders[p.Partition] = p.Leader
		}
		described[*t.Topic] = topicMetadata{id: t.TopicID, leaders: leaders}
	}
	for _, topic := range topics {
		if _, ok := described[topic]; !ok {
			return nil, fmt.Errorf("describing topic %q: %w", topic, kerr.UnknownTopicOrPartition)
		}
	}
	return described, nil
}

// TopicIDs returns the ids of topics, all of which must exist.
func TopicIDs(ctx context.Context, cl *kgo.Client, topics ...string) (map[string][16]byte, error) {
	described, err := describe(ctx, cl, topics)
	if err != nil {
		return nil, err
	}
	ids := make(map[string][16]byte, len(described))
	for topic, d := range described {
		ids[topic] = d.id
	}
	return ids, nil
}
