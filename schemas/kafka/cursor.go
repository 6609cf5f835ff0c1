package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas/process"
)

const (
	// cursorBytes is what a cursor asks for at once; it holds up to three such answers, as they came.
	cursorBytes = 2 << 20
	// cursorWait is how long the broker may wait for a record that is not there yet.
	cursorWait = 100 * time.Millisecond
	// cursorPatience is how long a cursor may stand still: longer than the broker
	// lets a transaction of ours hang, whose end it waits for.
	cursorPatience = time.Minute
)

// errStandsStill says that a partition gives no more, though it has more.
var errStandsStill = errors.New("nothing more can be read: is a transaction open that does not end?")

// Cursor reads the committed records of one partition from an offset up to
// another, and knows when it is there, whatever the log's tail is made of. It
// fetches one answer ahead, on a goroutine that Close ends.
type Cursor struct {
	end    int64
	unpack unpacker
	at     int // of unpack's records

	answers chan cursorAnswer
	cancel  context.CancelFunc
	// ended is why there is no more: nil at the end. It is set before answers is closed.
	ended error
}

// cursorAnswer is what a broker answered; nil where there is an error.
type cursorAnswer struct {
	partition *kmsg.FetchResponseTopicPartition
	err       error
}

// NewCursor returns a cursor over [from, end) of a partition. What retention takes
// meanwhile is passed over, and so are batches that inflate beyond all bounds. The
// caller closes it.
func NewCursor(ctx context.Context, cl *kgo.Client, place Place, from, end int64) *Cursor {
	c := &Cursor{
		end: end, unpack: unpacker{place: place, next: from, names: make(map[string]string)},
		answers: make(chan cursorAnswer), cancel: func() {},
	}
	if from >= end {
		close(c.answers)
		return c
	}
	c.unpack.decompressor = decompressorOf(cl)
	ctx, c.cancel = context.WithCancel(ctx)
	go c.fetchAll(ctx, &fetcher{cl: cl, place: place, next: from, end: end})
	return c
}

// ReadAll gives each committed record of [from, end) of a partition, until each
// returns an error. A record is its own only until each returns.
func ReadAll(ctx context.Context, cl *kgo.Client, place Place, from, end int64, each func(*kgo.Record) error) error {
	c := NewCursor(ctx, cl, place, from, end)
	defer c.Close()
	for {
		r, err := c.Next()
		if err == nil && r != nil {
			err = each(r)
		}
		if err != nil || r == nil {
			return err
		}
	}
}

// Next returns the next record, nil behind the last one. It and all it holds are
// the caller's until Next is called again.
func (c *Cursor) Next() (*kgo.Record, error) {
	for c.at == len(c.unpack.records) {
		more, err := c.unpack.batch()
		if err == nil && !more {
			more, err = c.receive()
		}
		if err != nil || !more {
			return nil, err
		}
		c.at = 0
	}
	r := &c.unpack.records[c.at]
	if r.Offset >= c.end {
		return nil, nil //nolint:nilnil // no record and no error is the end
	}
	c.at++
	return r, nil
}

// receive takes the next answer, which is to be unpacked; false at the end.
func (c *Cursor) receive() (bool, error) {
	a, open := <-c.answers
	switch {
	case !open:
		return false, c.ended
	case a.err != nil:
		return false, a.err
	}
	c.unpack.take(a.partition)
	return true, nil
}

// Close ends the fetching.
func (c *Cursor) Close() {
	c.cancel()
	for range c.answers { // until the goroutine has ended
		continue
	}
}

// fetchAll sends answers until the end, an error or ctx.
func (c *Cursor) fetchAll(ctx context.Context, f *fetcher) {
	defer close(c.answers)
	for f.next < c.end {
		partition, err := f.fetch(ctx)
		select {
		case c.answers <- cursorAnswer{partition, err}:
		case <-ctx.Done():
			c.ended = fmt.Errorf("reading %s/%d@%d: %w", f.place.Topic, f.place.Partition, f.next, context.Cause(ctx))
			return
		}
		if err != nil {
			return
		}
	}
}

// decompressorOf returns the client's own, which is bounded.
func decompressorOf(cl *kgo.Client) kgo.Decompressor {
	if d, ok := cl.OptValue(kgo.WithDecompressor).(kgo.Decompressor); ok {
		return d
	}
	return kgo.DefaultDecompressor()
}

// fetcher asks a partition's leader, which it looks for again where another answers.
type fetcher struct {
	cl    *kgo.Client
	place Place
	topic topicMetadata
	next  int64
	end   int64
	known bool // topic is
}

// fetch returns an answer that has something behind next, and moves on behind it; an
// empty one where retention has taken all up to the end. It is an error if there is
// nothing for cursorPatience.
func (f *fetcher) fetch(ctx context.Context) (*kmsg.FetchResponseTopicPartition, error) {
	deadline := time.Now().Add(cursorPatience)
	last := errStandsStill
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, maxPause) {
		partition, err := f.fetchOnce(ctx)
		if err == nil {
			if next := afterBatches(partition.RecordBatches); next > f.next {
				f.next = next
				return partition, nil
			}
		} else {
			last = err
			f.known = false
		}
		if f.next >= f.end {
			return &kmsg.FetchResponseTopicPartition{}, nil
		}
		if err != nil && !passing(err) && !movable(err) || time.Now().After(deadline) || !process.Pause(ctx, wait) {
			return nil, fmt.Errorf("reading %s/%d@%d: %w", f.place.Topic, f.place.Partition, f.next, because(context.Cause(ctx), last))
		}
	}
}

// movable says of an error that another leader, or another offset, may do.
func movable(err error) bool {
	return errors.Is(err, kerr.NotLeaderForPartition) || errors.Is(err, kerr.OffsetOutOfRange) || errors.Is(err, kerr.FencedLeaderEpoch)
}

func (f *fetcher) fetchOnce(ctx context.Context) (*kmsg.FetchResponseTopicPartition, error) {
	if !f.known {
		described, err := describe(ctx, f.cl, []string{f.place.Topic})
		if err != nil {
			return nil, err
		}
		f.topic, f.known = described[f.place.Topic], true
	}
	leader, err := f.topic.leader(f.place)
	if err != nil {
		return nil, err
	}
	req := probeRequest(f.place, f.topic.id, f.next)
	req.MaxBytes, req.MaxWaitMillis, req.MinBytes = cursorBytes, int32(cursorWait/time.Millisecond), 1
	req.Topics[0].Partitions[0].PartitionMaxBytes = cursorBytes
	resp, err := req.RequestWith(ctx, f.cl.Broker(int(leader)))
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller says where it reads
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, err //nolint:wrapcheck // the caller says where it reads
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return &kmsg.FetchResponseTopicPartition{}, nil // so answers a broker that throttles
	}
	partition := &resp.Topics[0].Partitions[0]
	err = kerr.ErrorForCode(partition.ErrorCode)
	if errors.Is(err, kerr.OffsetOutOfRange) {
		err = f.skipRemoved(ctx, err)
	}
	return partition, err
}

// skipRemoved moves on to where the log starts. The error asks for another try there.
func (f *fetcher) skipRemoved(ctx context.Context, outOfRange error) error {
	starts, err := listOffsets(ctx, f.cl, []Place{f.place}, atEarliest, readUncommitted)
	if err != nil {
		return err
	}
	f.next = max(f.next, starts[f.place])
	return outOfRange
}
