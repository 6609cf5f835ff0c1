package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

// ErrNoCommits says that a group has no committed offset on any partition. As
// creating the topics commits offset zero, it had some and lost them, or the
// topics were created in another way; nobody but the operator knows where it
// should go on.
var ErrNoCommits = errors.New("the group has no committed offset on any partition: say where it begins with --start-at earliest, latest or an RFC 3339 time")

// StartAt says where a group begins that has no committed offset. The zero value
// says nothing.
type StartAt struct {
	at   int64 // a special time of ListOffsets, or milliseconds since 1970
	text string
}

// ParseStartAt reads "earliest", "latest" or a time as RFC 3339 writes it; an
// empty text gives the zero value.
func ParseStartAt(text string) (StartAt, error) {
	switch text {
	case "":
		return StartAt{}, nil
	case "earliest":
		return StartAt{at: atEarliest, text: text}, nil
	case "latest":
		return StartAt{at: atLatest, text: text}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err == nil && at.UnixMilli() < 0 {
		err = errors.New("it is before 1970")
	}
	if err != nil {
		return StartAt{}, fmt.Errorf("parsing %q as earliest, latest or an RFC 3339 time: %w", text, err)
	}
	return StartAt{at: at.UnixMilli(), text: text}, nil
}

// IsZero says whether nothing was said.
func (s StartAt) IsZero() bool { return s.text == "" }

// String returns the text it was read from.
func (s StartAt) String() string { return s.text }

// Register adds the setting --start-at.
func (s *StartAt) Register(settings *process.Settings) {
	var text string
	settings.String(&text, "start-at", "", "where a consumer group without any committed offset begins: earliest, latest or an RFC 3339 time; it does not start without")
	settings.Check(func() error {
		parsed, err := ParseStartAt(text)
		if err != nil {
			return settings.Invalid("start-at", "earliest, latest or an RFC 3339 time")
		}
		*s = parsed
		return nil
	})
}

// HasCommits says whether a group has a committed offset on any partition of the
// topics.
func HasCommits(ctx context.Context, cl *kgo.Client, group string, topics ...string) (bool, error) {
	var committed kadm.OffsetResponses
	err := untilCoordinated(ctx, func() (err error) {
		committed, err = kadm.NewClient(cl).FetchOffsets(ctx, group)
		if err == nil {
			err = committed.Error()
		}
		return err
	})
	if errors.Is(err, kerr.GroupIDNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking for committed offsets of group %q: %w", group, err)
	}
	for topic, partitions := range committed {
		if !slices.Contains(topics, topic) {
			continue
		}
		for _, o := range partitions {
			if o.At >= 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

// EnsureCommits is called before a group's first member joins. Where the group
// has a committed offset on any partition of the topics, it does nothing. Else
// it commits where at says on every partition, and where at says nothing it
// returns ErrNoCommits.
func EnsureCommits(ctx context.Context, cl *kgo.Client, group string, at StartAt, topics ...string) error {
	has, err := HasCommits(ctx, cl, group, topics...)
	if err != nil || has {
		return err
	}
	if at.IsZero() {
		return fmt.Errorf("starting group %q: %w", group, ErrNoCommits)
	}
	places, err := placesOf(ctx, cl, topics)
	if err != nil {
		return err
	}
	offsets, err := startOffsets(ctx, cl, places, at)
	if err != nil {
		return err
	}
	return commit(ctx, cl, group, offsets)
}

// Evict takes those members out of a group that a client with an id made. A process
// that was killed has left them there, and the group would stand still for their
// session timeout: whoever has its name now knows that they are gone.
func Evict(ctx context.Context, cl *kgo.Client, log *slog.Logger, group, clientID string) error {
	var described kadm.DescribedGroups
	err := untilCoordinated(ctx, func() (err error) {
		described, err = kadm.NewClient(cl).DescribeGroups(ctx, group)
		return err
	})
	if err != nil {
		return fmt.Errorf("asking for members of group %q: %w", group, err)
	}
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = group
	for _, m := range described[group].Members {
		if m.ClientID != clientID {
			continue
		}
		member := kmsg.NewLeaveGroupRequestMember()
		member.MemberID, member.InstanceID = m.MemberID, m.InstanceID
		member.Reason = new("another process has its name")
		req.Members = append(req.Members, member)
	}
	if len(req.Members) == 0 {
		return nil
	}
	resp, err := req.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("taking %d members out of group %q: %w", len(req.Members), group, err)
	}
	// One that is not there any more is gone as well.
	log.Info("members that a process of this name had left were taken out of the group", "group", group, "members", len(req.Members))
	return nil
}

// startOffsets returns the offset of each place at which at is.
func startOffsets(ctx context.Context, cl *kgo.Client, places []Place, at StartAt) (map[Place]int64, error) {
	offsets, err := listOffsets(ctx, cl, places, at.at, readCommitted)
	if err != nil {
		return nil, err
	}
	// A partition without a record as young as the time answers -1: it begins at
	// its end.
	var none []Place
	for place, offset := range offsets {
		if offset < 0 {
			none = append(none, place)
		}
	}
	if len(none) == 0 {
		return offsets, nil
	}
	slices.SortFunc(none, comparePlaces)
	ends, err := listOffsets(ctx, cl, none, atLatest, readCommitted)
	if err != nil {
		return nil, err
	}
	maps.Copy(offsets, ends)
	return offsets, nil
}

// commit writes offsets for a group without members.
func commit(ctx context.Context, cl *kgo.Client, group string, offsets map[Place]int64) error {
	var commits kadm.Offsets
	for place, offset := range offsets {
		commits.AddOffset(place.Topic, place.Partition, offset, -1)
	}
	err := untilCoordinated(ctx, func() error { return kadm.NewClient(cl).CommitAllOffsets(ctx, group, commits) })
	if err != nil {
		return fmt.Errorf("committing first offsets of group %q: %w", group, err)
	}
	return nil
}

// untilCoordinated repeats what a group's coordinator is asked while the broker
// says that this may pass: a new cluster makes the topic of committed offsets at
// the first question, and takes longer for it than kgo is willing to ask.
func untilCoordinated(ctx context.Context, ask func() error) error {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, maxPause) {
		err := ask()
		if !kerr.IsRetriable(err) || !process.Pause(ctx, wait) {
			return err
		}
	}
}

// commitZero commits offset zero for each group that has no committed offset,
// where nothing was ever written to any of its topics. Where something was, the
// group may have lost its offsets, and beginning anew in silence would repeat
// whatever is in the logs.
func commitZero(ctx context.Context, cl *kgo.Client, t schemas.Topics) error {
	for group, topics := range t.GroupTopics() {
		has, err := HasCommits(ctx, cl, group, topics...)
		if err != nil {
			return err
		}
		if has {
			continue
		}
		places, err := placesOf(ctx, cl, topics)
		if err != nil {
			return err
		}
		ends, err := listOffsets(ctx, cl, places, atLatest, readUncommitted)
		if err != nil {
			return err
		}
		written := false
		for _, end := range ends {
			written = written || end > 0
		}
		if written {
			continue
		}
		if err := commit(ctx, cl, group, ends); err != nil {
			return err
		}
	}
	return nil
}
