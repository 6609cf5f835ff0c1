package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas/process"
)

const (
	minPause = 100 * time.Millisecond
	maxPause = time.Second

	// askerMetadataAge is how long end offsets are asked of the leaders last
	// known. One that is no longer leader says so, and is asked for anew at once.
	askerMetadataAge = 5 * time.Second

	// askEvery is how often the end is asked for while the follower is at it: a
	// quarter of the second after which a replica counts as cut off.
	askEvery = 250 * time.Millisecond
	// askBehind is how long a position may stand still below the end before the
	// partition is looked at for what kgo does not show.
	askBehind = 20 * time.Millisecond
	// askTimeout bounds one question.
	askTimeout = 2 * time.Second

	// fetchWait bounds how long a fetch of a topic without news stays at the
	// broker: metadata and offsets that a change of leaders brings wait for it.
	fetchWait = 250 * time.Millisecond
	// fetchBytes bounds what the broker answers at once, and so what is held.
	fetchBytes = 16 << 20
)

// errOtherLog says that the log is not the one whose records were applied.
var errOtherLog = errors.New("the log is not the one that was read before")

// reading is one load of a follower and what follows it, on one consumer. It is
// owned by the goroutine of Run; the two others send to it.
type reading struct {
	f        *Follower
	consumer *kgo.Client
	starts   map[Place]int64
	applied  map[string]int64 // records of each topic given to apply in this load
	pending  *answer          // ends asked for that the positions have not reached yet
	loaded   bool
	// tombstones is how long the topics keep one at least.
	tombstones time.Duration
	fetches    chan kgo.Fetches
	answers    chan answer
}

// answer is what the watching goroutine learned.
type answer struct {
	at     time.Time // when the question went out
	before map[Place]int64
	ends   map[Place]int64
	err    error

	skip map[Place]skipped // nothing to read between these offsets
}

type skipped struct{ from, to int64 }

// follow reads the topics from the start and on, until ctx ends or it must be
// done again; began says whether it came to reading.
func (f *Follower) follow(ctx context.Context) (began bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, places, err := f.open(ctx)
	if err != nil {
		return false, err
	}
	defer r.consumer.Close()
	f.beginLoad(maps.Clone(r.starts), places)

	var senders sync.WaitGroup
	defer senders.Wait()
	defer cancel()
	senders.Go(func() { r.poll(ctx) })
	senders.Go(func() { r.watch(ctx) })
	for {
		select {
		case <-ctx.Done():
			return true, context.Cause(ctx)
		case fetches := <-r.fetches:
			err = r.take(fetches)
		case a := <-r.answers:
			err = r.learn(a)
		}
		if err != nil {
			return true, err
		}
	}
}

// open asks where the topics' partitions start and makes the consumer.
func (f *Follower) open(ctx context.Context) (*reading, []Place, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	places, err := placesOf(ctx, f.asker, f.topics)
	if err != nil {
		return nil, nil, err
	}
	starts, err := listOffsets(ctx, f.asker, places, atEarliest, readUncommitted)
	if err != nil {
		return nil, nil, err
	}
	from := make(map[string]map[int32]kgo.Offset)
	for place, start := range starts {
		if from[place.Topic] == nil {
			from[place.Topic] = make(map[int32]kgo.Offset)
		}
		from[place.Topic][place.Partition] = kgo.NewOffset().At(start)
	}
	consumer, err := f.cfg.NewClient(f.clientID,
		kgo.ConsumePartitions(from),
		// Out of range is an error to be shown, not a jump: the table must be
		// emptied before anything more goes into it.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// Commit and abort markers move the position.
		kgo.KeepControlRecords(),
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMaxBytes(fetchBytes),
	)
	if err != nil {
		return nil, nil, err
	}
	return &reading{
		f: f, consumer: consumer, starts: starts, tombstones: tombstoneRetention(ctx, f.asker, f.topics),
		applied: make(map[string]int64),
		fetches: make(chan kgo.Fetches),
		answers: make(chan answer),
	}, places, nil
}

// poll sends what is fetched. A partition's fatal error is returned by every
// poll at once (26,000 times in 1.2 s, measured), so errors slow it down.
func (r *reading) poll(ctx context.Context) {
	for wait := minPause; ; {
		fetches := r.consumer.PollFetches(ctx)
		select {
		case r.fetches <- fetches:
		case <-ctx.Done():
			return
		}
		if len(fetches.Errors()) == 0 {
			wait = minPause
			continue
		}
		if !process.Pause(ctx, wait) {
			return
		}
		wait = min(2*wait, maxPause)
	}
}

// take applies what was fetched.
func (r *reading) take(fetches kgo.Fetches) error {
	var fatal error
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		place := Place{p.Topic, p.Partition}
		next, applied := r.f.position(place), int64(0)
		for _, record := range p.Records {
			// What was fetched before skip moved the consumer comes twice: applied
			// again, it would put the table back in time.
			if record.Offset < next {
				continue
			}
			next = record.Offset + 1
			if record.Attrs.IsControl() {
				continue
			}
			r.f.apply(record)
			applied++
		}
		r.applied[p.Topic] += applied
		r.f.advance(place, next, applied)
		if p.Err != nil && fatal == nil {
			fatal = r.fetchError(place, p.Err)
		}
	})
	if fatal != nil {
		return fatal
	}
	if err := r.outlived(); err != nil {
		return err
	}
	r.settle()
	return nil
}

// fetchError decides on a partition's error: what it returns ends the reading.
func (r *reading) fetchError(place Place, err error) error {
	var loss *kgo.ErrDataLoss
	var bomb *kgo.ErrDecompressTooLarge
	switch {
	case errors.Is(err, context.Canceled):
	case errors.Is(err, kerr.OffsetOutOfRange), errors.As(err, &loss),
		errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InconsistentTopicID):
		return fmt.Errorf("reading %s/%d: %w: %w", place.Topic, place.Partition, errOtherLog, err)
	case errors.As(err, &bomb):
		r.f.log.Warn("a batch that inflates beyond all bounds is skipped", slog.String("topic", place.Topic),
			slog.Int("partition", int(place.Partition)), slog.Int64("offset", bomb.Offset), slog.Int("bound_bytes", maxDecompressedBatch))
		r.skip(place, bomb.NextOffset)
	default:
		r.f.fail(fmt.Errorf("reading %s/%d: %w", place.Topic, place.Partition, err))
	}
	return nil
}

// skip moves the position and the consumer over offsets with nothing to read.
func (r *reading) skip(place Place, next int64) {
	r.f.advance(place, next, 0)
	r.consumer.SetOffsets(map[string]map[int32]kgo.EpochOffset{
		place.Topic: {place.Partition: {Epoch: -1, Offset: next}},
	})
}

// learn takes what the watching goroutine sent.
func (r *reading) learn(a answer) error {
	if a.err != nil {
		r.f.fail(a.err)
		return nil //nolint:nilerr // it is told, and asked again
	}
	positions := r.f.Positions().next
	for place, s := range a.skip {
		if positions[place] == s.from {
			r.skip(place, s.to)
		}
	}
	for place, end := range a.ends {
		// A leader never answers with less than its predecessor has shown
		// (OFFSET_NOT_AVAILABLE is for that), so the records were lost.
		if a.before[place] > end {
			return fmt.Errorf("reading %s/%d: %w: it was read to %d and ends at %d",
				place.Topic, place.Partition, errOtherLog, a.before[place], end)
		}
	}
	// Ends not yet reached stay: under steady writes the newest are never
	// reached when the next come.
	if r.pending == nil && a.ends != nil {
		r.pending = &a
	}
	if err := r.outlived(); err != nil {
		return err
	}
	r.settle()
	return nil
}

// settle sees whether the positions have reached the ends last asked for.
func (r *reading) settle() {
	if r.pending == nil || !(Offsets{next: r.pending.ends}).reached(r.f.Positions().next) {
		return
	}
	reached := r.pending
	r.pending = nil
	if !r.loaded {
		if err := r.emptied(reached.ends); err != nil {
			r.f.fail(err)
			return
		}
		r.loaded = true
		r.f.endLoad()
	}
	r.f.upToDate(reached.at)
}

// outlived is an error if the follower was not at the end for as long as tombstones
// are kept, as that of a process that was frozen or cut off: one may have come and
// gone meanwhile, and what it removed would stay for good.
func (r *reading) outlived() error {
	if gap := r.f.away(); r.loaded && gap >= r.tombstones {
		return fmt.Errorf("reading %q: %w: it was last at its end %v ago, and tombstones are kept for %v", r.f.topics, errOtherLog, gap, r.tombstones)
	}
	return nil
}

// emptied is an error if a topic holds nothing any more, though it did: its log
// starts and ends at one place that is not zero, or an earlier load of it had
// records. Compaction never leaves that behind (it spares the active segment),
// an operator who deletes records or makes the topic anew does; and a router
// without webhooks would take every event for one that nobody wants. Any record
// makes the topic whole again, as the operator's word that this was meant.
func (r *reading) emptied(ends map[Place]int64) error {
	for _, topic := range r.f.topics {
		var starts, size int64
		for place, start := range r.starts {
			if place.Topic == topic {
				starts += start
				size += ends[place] - start
			}
		}
		if r.applied[topic] == 0 && (r.f.had[topic] || starts > 0 && size == 0) {
			return fmt.Errorf("reading %s: it held records and holds none now; if that was meant, write a record to it (a tombstone of any key will do)", topic)
		}
	}
	for topic, n := range r.applied {
		if n > 0 {
			r.f.had[topic] = true
		}
	}
	return nil
}

// watch asks for the ends again and again, and looks at partitions whose
// position stands still below theirs.
func (r *reading) watch(ctx context.Context) {
	for {
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		at := time.Now()
		before, ends, err := r.f.ends(asking)
		cancel()
		a := answer{at: at, before: before.next, ends: ends.next, err: err}
		if !r.send(ctx, a) {
			return
		}
		behind := err == nil && !ends.reached(a.before)
		wait := askEvery
		if behind {
			wait = askBehind
		}
		if !process.Pause(ctx, wait) {
			return
		}
		if behind && !r.send(ctx, r.probeAll(ctx, a)) {
			return
		}
	}
}

func (r *reading) send(ctx context.Context, a answer) bool {
	select {
	case r.answers <- a:
		return true
	case <-ctx.Done():
		return false
	}
}

// probeAll looks at every partition that stands where it stood before the
// question, below the end.
func (r *reading) probeAll(ctx context.Context, a answer) answer {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	found := answer{at: time.Now(), skip: make(map[Place]skipped)}
	for place, position := range r.f.Positions().next {
		if position != a.before[place] || position >= a.ends[place] {
			continue
		}
		next, err := probe(ctx, r.f.asker, place, position)
		if err != nil {
			found.err = err
			return found
		}
		if next > position {
			found.skip[place] = skipped{position, next}
		}
	}
	return found
}
