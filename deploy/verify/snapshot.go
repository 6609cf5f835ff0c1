package verify

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// snapshot is the moment that is checked. The order in which it is asked for is
// what makes one look enough: first stable, then the groups' commits, which are
// the moment, then the ends. Whatever a group had committed by the moment stands
// before the ends, as the effects of a commit were written before it; and of what
// was committed later nothing stands before stable.
type snapshot struct {
	at     time.Time
	topics schemas.Topics
	ids    map[string][16]byte
	// events and deliveries are numbers of partitions.
	events, deliveries int32

	stable map[kafka.Place]int64 // of deliveries and routed
	marks  map[kafka.Place]schemas.Mark
	router map[kafka.Place]position
	audit  map[kafka.Place]int64
	starts map[kafka.Place]int64
	ends   map[kafka.Place]int64
	// since is where what is asked for begins; empty where all is.
	since map[kafka.Place]int64
}

// position is where the router stands: at an event, to so many of whose webhooks
// it has written deliveries already.
type position struct {
	offset  int64
	written int64
}

// sinceSlack is by how much clocks, and the time from an event to its delivery, may
// put a record before the time it is of.
const sinceSlack = 10 * time.Minute

func takeSnapshot(ctx context.Context, cl *kgo.Client, topics schemas.Topics, since time.Time) (*snapshot, error) {
	s := &snapshot{at: time.Now().UTC(), topics: topics, audit: make(map[kafka.Place]int64)}
	var err error
	if s.ids, err = kafka.TopicIDs(ctx, cl, append(topics.Sources(), topics.Events, topics.Routed, topics.Outcomes, topics.Rejected)...); err != nil {
		return nil, err //nolint:wrapcheck // it says what it did
	}
	if s.stable, err = kafka.StableEnds(ctx, cl, topics.Deliveries, topics.Routed); err != nil {
		return nil, err //nolint:wrapcheck // it says what it did
	}
	if err := s.takeCommits(ctx, cl); err != nil {
		return nil, err
	}
	// What names others before what it names.
	if s.starts, s.ends, err = kafka.Bounds(ctx, cl, append(topics.Waiting(), topics.Outcomes, topics.Rejected)...); err != nil {
		return nil, err //nolint:wrapcheck // it says what it did
	}
	starts, ends, err := kafka.Bounds(ctx, cl, topics.Deliveries, topics.Routed, topics.Events)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what it did
	}
	for place, end := range ends {
		s.starts[place], s.ends[place] = starts[place], end
	}
	if !since.IsZero() {
		s.since, err = kafka.OffsetsAt(ctx, cl, since.Add(-sinceSlack), topics.Events, topics.Routed, topics.Deliveries, topics.Outcomes, topics.Rejected)
		if err != nil {
			return nil, err //nolint:wrapcheck // it says what it did
		}
	}
	return s, s.countPartitions()
}

func (s *snapshot) takeCommits(ctx context.Context, cl *kgo.Client) error {
	router, err := kafka.Commits(ctx, cl, s.topics.RouterGroup, s.topics.Events)
	if err != nil {
		return err //nolint:wrapcheck // it says what it did
	}
	s.router = make(map[kafka.Place]position, len(router))
	for place, c := range router {
		if s.router[place], err = parsePosition(c); err != nil {
			return fmt.Errorf("reading the router's commit of %s/%d@%d: %w", place.Topic, place.Partition, c.Offset, err)
		}
	}
	audit, err := kafka.Commits(ctx, cl, s.topics.AuditGroup, s.topics.Events, s.topics.Deliveries, s.topics.Outcomes)
	if err != nil {
		return err //nolint:wrapcheck // it says what it did
	}
	for place, c := range audit {
		s.audit[place] = c.Offset
	}
	s.marks, err = kafka.Marks(ctx, cl, s.topics)
	return err //nolint:wrapcheck // it says what it did
}

var errCursor = errors.New("commit metadata is no fan-out cursor known here")

// parsePosition reads a commit of the router: in the middle of a fan-out its
// metadata is "fan-out/1 <count> <webhook id>".
func parsePosition(c kafka.Commit) (position, error) {
	at := position{offset: max(c.Offset, 0)}
	if !strings.HasPrefix(c.Metadata, "fan-out/") {
		return at, nil
	}
	fields := strings.Fields(c.Metadata)
	if len(fields) != 3 || fields[0] != "fan-out/1" {
		return at, fmt.Errorf("reading %.100q: %w", c.Metadata, errCursor)
	}
	var err error
	if at.written, err = strconv.ParseInt(fields[1], 10, 64); err != nil || at.written < 1 {
		return at, fmt.Errorf("reading %.100q: %w", c.Metadata, errCursor)
	}
	return at, nil
}

var errPartitions = errors.New("topics that go together have different numbers of partitions (postrider topics check says more)")

// countPartitions sees that partitions of one number go together.
func (s *snapshot) countPartitions() error {
	counts := make(map[string]int32)
	for place := range s.ends {
		counts[place.Topic]++
	}
	s.events, s.deliveries = counts[s.topics.Events], counts[s.topics.Deliveries]
	for _, topic := range append(s.topics.Sources(), s.topics.Outcomes) {
		if counts[topic] != s.deliveries {
			return fmt.Errorf("%w: %d of %s, %d of %s", errPartitions, counts[topic], topic, s.deliveries, s.topics.Deliveries)
		}
	}
	if counts[s.topics.Routed] != s.events {
		return fmt.Errorf("%w: %d of %s, %d of %s", errPartitions, counts[s.topics.Routed], s.topics.Routed, s.events, s.topics.Events)
	}
	return nil
}

// from is where a partition is read from.
func (s *snapshot) from(place kafka.Place) int64 {
	start := s.starts[place]
	if s.since == nil {
		return start
	}
	since, asked := s.since[place]
	if asked && since < 0 { // nothing so young
		return s.ends[place]
	}
	return max(start, since)
}
