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
	// cursorBytes is what a cursor asks for at once; it holds two such answers, unpacked.
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
	place   Place
	end     int64
	next    int64 // the offset behind what was returned by fetch
	records []kgo.Record
	at      int

	answers chan cursorAnswer
	cancel  context.CancelFunc
	skipped int
}

type cursorAnswer struct {
	records []kgo.Record
	next    int64
	skipped int
	err     error
}

// NewCursor returns a cursor over [from, end) of a partition. What retention takes
// meanwhile is passed over. The caller closes it.
func NewCursor(ctx context.Context, cl *kgo.Client, place Place, from, end int64) *Cursor {
	c := &Cursor{place: place, end: end, next: from, answers: make(chan cursorAnswer), cancel: func() {}}
	if from >= end {
		close(c.answers)
		return c
	}
	ctx, c.cancel = context.WithCancel(ctx)
	go c.fetchAll(ctx, cl, from)
	return c
}

// Next returns the next record, nil behind the last one. The record is the caller's.
func (c *Cursor) Next() (*kgo.Record, error) {
	for c.at == len(c.records) {
		a, open := <-c.answers
		if !open {
			return nil, nil //nolint:nilnil // no record and no error is the end
		}
		if a.err != nil {
			return nil, a.err
		}
		c.records, c.at, c.next = a.records, 0, a.next
		c.skipped += a.skipped
	}
	r := &c.records[c.at]
	c.at++
	return r, nil
}

// Skipped is the number of batches so far that inflate beyond all bounds.
func (c *Cursor) Skipped() int { return c.skipped }

// Close ends the fetching.
func (c *Cursor) Close() {
	c.cancel()
	for range c.answers { // until the goroutine has ended
		continue
	}
}

// fetchAll sends answers until the end, an error or ctx.
func (c *Cursor) fetchAll(ctx context.Context, cl *kgo.Client, from int64) {
	defer close(c.answers)
	f := fetcher{cl: cl, place: c.place, next: from, decompressor: decompressorOf(cl), names: make(map[string]string)}
	for f.next < c.end {
		a := f.fetch(ctx)
		for len(a.records) > 0 && a.records[len(a.records)-1].Offset >= c.end {
			a.records = a.records[:len(a.records)-1]
		}
		if a.err == nil && len(a.records) == 0 && a.skipped == 0 {
			continue
		}
		select {
		case c.answers <- a:
		case <-ctx.Done():
			return
		}
		if a.err != nil {
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
	cl           *kgo.Client
	place        Place
	decompressor kgo.Decompressor
	topic        topicMetadata
	next         int64
	known        bool              // topic is
	names        map[string]string // of headers seen: a handful
	lastCount    int               // records of the last answer
}

// fetch returns what comes next, at least something, unless nothing comes for cursorPatience.
func (f *fetcher) fetch(ctx context.Context) cursorAnswer {
	deadline := time.Now().Add(cursorPatience)
	last := errStandsStill
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, maxPause) {
		before := f.next
		a, err := f.fetchOnce(ctx)
		if err == nil && (len(a.records) > 0 || f.next > before) {
			return a
		}
		if err != nil {
			last = err
			f.known = false
		}
		if err != nil && !passing(err) && !movable(err) || time.Now().After(deadline) || !process.Pause(ctx, wait) {
			err := because(ctx.Err(), last)
			return cursorAnswer{err: fmt.Errorf("reading %s/%d@%d: %w", f.place.Topic, f.place.Partition, f.next, err)}
		}
	}
}

// movable says of an error that another leader, or another offset, may do.
func movable(err error) bool {
	return errors.Is(err, kerr.NotLeaderForPartition) || errors.Is(err, kerr.OffsetOutOfRange) || errors.Is(err, kerr.FencedLeaderEpoch)
}

func (f *fetcher) fetchOnce(ctx context.Context) (cursorAnswer, error) {
	if !f.known {
		described, err := describe(ctx, f.cl, []string{f.place.Topic})
		if err != nil {
			return cursorAnswer{}, err
		}
		f.topic, f.known = described[f.place.Topic], true
	}
	leader, err := f.topic.leader(f.place)
	if err != nil {
		return cursorAnswer{}, err
	}
	req := probeRequest(f.place, f.topic.id, f.next)
	req.MaxBytes, req.MaxWaitMillis, req.MinBytes = cursorBytes, int32(cursorWait/time.Millisecond), 1
	req.Topics[0].Partitions[0].PartitionMaxBytes = cursorBytes
	resp, err := req.RequestWith(ctx, f.cl.Broker(int(leader)))
	if err != nil {
		return cursorAnswer{}, err //nolint:wrapcheck // the caller says where it reads
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return cursorAnswer{}, err //nolint:wrapcheck // the caller says where it reads
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return cursorAnswer{}, nil // so answers a broker that throttles
	}
	return f.take(ctx, &resp.Topics[0].Partitions[0])
}

// take reads an answer's records and moves on behind them.
func (f *fetcher) take(ctx context.Context, p *kmsg.FetchResponseTopicPartition) (cursorAnswer, error) {
	if errors.Is(kerr.ErrorForCode(p.ErrorCode), kerr.OffsetOutOfRange) {
		starts, err := listOffsets(ctx, f.cl, []Place{f.place}, atEarliest, readUncommitted)
		if err != nil {
			return cursorAnswer{}, err
		}
		if start := starts[f.place]; start > f.next {
			f.next = start
			return cursorAnswer{next: start}, nil
		}
		return cursorAnswer{}, kerr.OffsetOutOfRange
	}
	u := unpacker{
		place: f.place, decompressor: f.decompressor, next: f.next, names: f.names,
		aborted: abortedOf(p), records: make([]kgo.Record, 0, f.lastCount),
	}
	if err := u.unpack(p.RecordBatches); err != nil {
		return cursorAnswer{}, err
	}
	f.lastCount = len(u.records)
	f.next = u.next
	return cursorAnswer{records: u.records, next: u.next, skipped: u.skipped}, nil
}
