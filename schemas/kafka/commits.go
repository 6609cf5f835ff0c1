package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

// Commit is what a group has committed of a partition; an Offset of -1 says that it has nothing.
type Commit struct {
	Offset   int64
	Metadata string
}

// Commits returns what a group has committed of topics. The commits of one
// partition number are of one moment over all topics, and of one at which no
// transaction that commits to them was under way: they stand in one answer of the
// coordinator, in which none of them is marked unstable.
func Commits(ctx context.Context, cl *kgo.Client, group string, topics ...string) (map[Place]Commit, error) {
	described, err := describe(ctx, cl, topics)
	if err != nil {
		return nil, err
	}
	q := commitsQuestion{group: group, topics: described, names: make(map[[16]byte]string), found: make(map[Place]Commit)}
	for _, topic := range topics {
		q.names[described[topic].id] = topic
		for p := range described[topic].leaders {
			q.missing = append(q.missing, Place{topic, int32(p)})
		}
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := q.ask(ctx, cl)
		switch {
		case len(q.missing) == 0:
			return q.found, nil
		case !passing(err), !process.Pause(ctx, wait):
			return nil, fmt.Errorf("asking for the commits of group %q on %s/%d: %w",
				group, q.missing[0].Topic, q.missing[0].Partition, because(ctx.Err(), err))
		}
	}
}

// Marks returns where the senders stand in each partition of their sources.
func Marks(ctx context.Context, cl *kgo.Client, topics schemas.Topics) (map[Place]schemas.Mark, error) {
	commits, err := Commits(ctx, cl, topics.SenderGroup, topics.Sources()...)
	if err != nil {
		return nil, err
	}
	marks := make(map[Place]schemas.Mark, len(commits))
	for place, c := range commits {
		if marks[place], err = schemas.ParseMark(max(c.Offset, 0), c.Metadata); err != nil {
			return nil, fmt.Errorf("reading the sender's commit of %s/%d@%d: %w", place.Topic, place.Partition, c.Offset, err)
		}
	}
	return marks, nil
}

// commitsQuestion is a question that is asked until all of it is answered.
type commitsQuestion struct {
	group   string
	topics  map[string]topicMetadata
	names   map[[16]byte]string
	missing []Place // those of a topic together
	found   map[Place]Commit
}

// ask takes the commits of partition numbers that are stable in all topics, and
// returns why others are missing.
func (q *commitsQuestion) ask(ctx context.Context, cl *kgo.Client) error {
	resp, err := q.request().RequestWith(ctx, cl)
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was asked
	}
	answered := make(map[Place]Commit)
	unstable := make(map[int32]bool)
	last := errNoAnswer
	for i := range resp.Groups {
		err := kerr.ErrorForCode(resp.Groups[i].ErrorCode)
		if errors.Is(err, kerr.GroupIDNotFound) {
			for _, place := range q.missing {
				q.found[place] = Commit{Offset: -1}
			}
			q.missing = nil
			return nil
		}
		if err != nil {
			return err //nolint:wrapcheck // the caller says what was asked
		}
		for _, t := range resp.Groups[i].Topics {
			topic := t.Topic
			if topic == "" {
				topic = q.names[t.TopicID]
			}
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					last, unstable[p.Partition] = fmt.Errorf("%s/%d: %w", topic, p.Partition, err), true
					continue
				}
				c := Commit{Offset: p.Offset}
				if p.Metadata != nil {
					c.Metadata = *p.Metadata
				}
				answered[Place{topic, p.Partition}] = c
			}
		}
	}
	q.missing = slices.DeleteFunc(q.missing, func(place Place) bool {
		c, ok := answered[place]
		if ok = ok && !unstable[place.Partition]; ok {
			q.found[place] = c
		}
		return ok
	})
	return last
}

func (q *commitsQuestion) request() *kmsg.OffsetFetchRequest {
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = q.group
	for _, place := range q.missing {
		if n := len(g.Topics); n == 0 || g.Topics[n-1].Topic != place.Topic {
			t := kmsg.NewOffsetFetchRequestGroupTopic()
			t.Topic, t.TopicID = place.Topic, q.topics[place.Topic].id
			g.Topics = append(g.Topics, t)
		}
		t := &g.Topics[len(g.Topics)-1]
		t.Partitions = append(t.Partitions, place.Partition)
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	req.Groups = append(req.Groups, g)
	return req
}
