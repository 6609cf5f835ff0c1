package dedup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

const (
	// firstSpan is how many offsets of a partition are read at first: at one event a transaction 2,048 ids (every second offset is a commit
	// marker), at a hundred events and more the whole window.
	firstSpan = 4096
	// spanFactor makes each further reading so much longer that all the shorter ones before it cost an eighth.
	spanFactor = 8
)

// A Log is where windows are read back from.
type Log struct {
	NewClient func(opts ...kgo.Opt) (*kgo.Client, error)
	Topic     string // routed
	Logger    *slog.Logger
	Age       time.Duration // of the windows it fills
}

// span is the part of a partition that is read: from its first offset, to before its last.
type span struct {
	earliest, from, to int64
}

// Windows returns for each partition the window that its tail of the log holds, of at most limit ids. It reads committed records to the end the log has now,
// transactions that are still open included: it waits for their end, since the one that moved the partition's offset may be among them.
func (l Log) Windows(ctx context.Context, partitions []int32, limit int) (map[int32]*Window, error) {
	if len(partitions) == 0 {
		return nil, nil
	}
	spans, err := l.spans(ctx, partitions)
	if err != nil {
		return nil, err
	}
	windows := make(map[int32]*Window, len(partitions))
	for length := int64(firstSpan); len(spans) > 0; length *= spanFactor {
		for p, s := range spans {
			s.from = max(s.earliest, s.to-length)
			spans[p] = s
			windows[p] = NewWindow(limit, l.Age)
		}
		if err := l.read(ctx, spans, windows); err != nil {
			return nil, err
		}
		for p, s := range spans {
			if s.from == s.earliest || windows[p].Len() >= limit {
				delete(spans, p)
			}
		}
	}
	return windows, nil
}

// spans asks where the partitions begin and end. A record older than the window's age is of no use. The ends are those of a reader of uncommitted
// records: after a commit the markers reach __consumer_offsets and this topic in any order, so the record of what moved the offset may not be committed yet.
func (l Log) spans(ctx context.Context, partitions []int32) (map[int32]span, error) {
	cl, err := l.NewClient()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	admin := kadm.NewClient(cl)
	starts, err := admin.ListOffsetsAfterMilli(ctx, time.Now().Add(-l.Age).UnixMilli(), l.Topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("asking for first offsets of %s: %w", l.Topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, l.Topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("asking for end offsets of %s: %w", l.Topic, err)
	}
	spans := make(map[int32]span, len(partitions))
	for _, p := range partitions {
		start, known := starts.Lookup(l.Topic, p)
		end, alsoKnown := ends.Lookup(l.Topic, p)
		if !known || !alsoKnown {
			return nil, fmt.Errorf("reading %s/%d: %w", l.Topic, p, errNoPartition)
		}
		spans[p] = span{earliest: start.Offset, to: end.Offset}
	}
	return spans, nil
}

var errNoPartition = errors.New("no such partition: it must have as many as events")

// read adds what stands in the spans to the windows.
func (l Log) read(ctx context.Context, spans map[int32]span, windows map[int32]*Window) error {
	open := make(map[int32]int64, len(spans)) // where the partitions not yet read end
	from := make(map[int32]kgo.Offset, len(spans))
	for p, s := range spans {
		if s.from < s.to {
			open[p] = s.to
			from[p] = kgo.NewOffset().At(s.from)
		}
	}
	if len(open) == 0 {
		return nil
	}
	cl, err := l.NewClient(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{l.Topic: from}),
		kgo.KeepControlRecords(), // the last offset is mostly a commit marker's
		kgo.FetchMaxWait(100*time.Millisecond),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	for len(open) > 0 {
		fetches := cl.PollFetches(ctx)
		for _, e := range fetches.Errors() {
			bomb, isBomb := errors.AsType[*kgo.ErrDecompressTooLarge](e.Err)
			if !isBomb {
				return fmt.Errorf("reading %s/%d: %w", e.Topic, e.Partition, e.Err)
			}
			l.skip(cl, bomb)
			if bomb.NextOffset >= open[e.Partition] {
				delete(open, e.Partition)
			}
		}
		for r := range fetches.RecordsAll() {
			end, reading := open[r.Partition]
			if !reading {
				continue
			}
			if err := l.take(windows[r.Partition], r); err != nil {
				return err
			}
			if r.Offset+1 >= end {
				delete(open, r.Partition)
			}
		}
	}
	return nil
}

// skip passes a batch that inflates beyond all bounds: no router wrote it, and none could start otherwise.
func (l Log) skip(cl *kgo.Client, bomb *kgo.ErrDecompressTooLarge) {
	l.Logger.Error("batch in log of routed events inflates beyond all bounds: its ids are not remembered",
		"topic", bomb.Topic, "partition", bomb.Partition, "offset", bomb.Offset)
	cl.SetOffsets(map[string]map[int32]kgo.EpochOffset{
		bomb.Topic: {bomb.Partition: {Epoch: -1, Offset: bomb.NextOffset}},
	})
}

// take adds the ids of one record of routed.
func (l Log) take(w *Window, r *kgo.Record) error {
	if r.Attrs.IsControl() {
		return nil
	}
	routed, err := schemas.DecodeRouted(r)
	if schemas.IsNewer(err) {
		return fmt.Errorf("reading %s/%d@%d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	if err != nil {
		l.Logger.Error("bad record in log of routed events: its ids are not remembered",
			"topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
		return nil
	}
	for i := range routed.Entries {
		// A duplicate's id stands there already, a rejected event's is free.
		if e := &routed.Entries[i]; e.Result == schemas.RoutedMatched {
			w.Add(e.IDHash, e.PayloadHash, r.Timestamp)
		}
	}
	w.Settle(r.Timestamp)
	return nil
}
