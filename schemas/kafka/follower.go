package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas/process"
)

// Errors of waiting on a Follower.
var (
	// ErrRebuilt says that the topics were read anew since the offsets were
	// asked for, which may now never be reached: ask again. Barrier does.
	ErrRebuilt = errors.New("the topics are read anew since the offsets were asked for")
	// ErrStopped says that Run has returned.
	ErrStopped = errors.New("the follower has stopped")
)

// A Reporter is told whether a Follower is whole and up to date; a
// *process.Dependency is one. Its methods may be called again and again.
type Reporter interface {
	Up()
	Down(err error)
}

// A Follower reads compacted topics whole and follows them: read committed, all
// partitions, without a group. Its positions move through control records and
// over what compaction or aborts left empty, so that they reach a read-committed
// end whatever stands there. It gives every record to apply, in order for each
// partition.
//
// A log that turns out not to be the one that was read (offset out of range,
// records lost, topic made anew) is read again from its start: see OnRebuild.
// Until it has been, WaitFor lets nobody pass.
type Follower struct {
	cfg      Config
	clientID string
	topics   []string
	log      *slog.Logger
	apply    func(*kgo.Record)
	begin    func()
	done     func()
	reporter Reporter

	opened  chan struct{} // closed by Run when asker and places are set
	ready   chan struct{} // closed by Run when the topics have been read once
	stopped chan struct{} // closed by Run when it returns

	// asker carries every question (metadata, end offsets, probes). It is not the
	// consumer: a broker answers a connection's requests one after the other, so
	// a question behind a fetch would wait for as long as the fetch does.
	asker *kgo.Client

	once sync.Once       // closes ready
	had  map[string]bool // topics a load of which had records; for Run only

	mu        sync.Mutex // guards the rest
	places    []Place
	positions map[Place]int64
	load      int           // counts the loads begun, from 1
	loading   bool          // the load is not complete: positions count for nobody
	changed   chan struct{} // closed when the above changed; nil while nobody waits
	known     time.Time     // when the positions were last known to be at the end
	records   int64         // given to apply in this load
	err       error         // what keeps the follower from being up to date
}

// NewFollower returns a follower of topics, which apply is given the records of,
// tombstones too and control records not, all from the goroutine that calls Run.
// apply may keep the record.
func NewFollower(cfg Config, clientID string, log *slog.Logger, topics []string, apply func(*kgo.Record)) (*Follower, error) {
	if _, err := cfg.options(clientID); err != nil {
		return nil, fmt.Errorf("making follower of %q: %w", topics, err)
	}
	return &Follower{
		cfg: cfg, clientID: clientID, topics: topics, log: log, apply: apply,
		begin:    nil,
		done:     func() {},
		reporter: &logReporter{log: log},
		opened:   make(chan struct{}),
		ready:    make(chan struct{}),
		stopped:  make(chan struct{}),
		had:      make(map[string]bool),
		loading:  true,
	}, nil
}

// OnRebuild says what to do when the topics must be read again from the start;
// it is called before Run. begin is called before the first record of each load
// but the first: from then on records belong to a new, empty table. done is
// called when it is whole, before anyone who waits passes: it is the moment to
// put the new table in the place of the old, which was in force until then. Both
// are called from the goroutine of Run, and done may be nil. Without OnRebuild,
// Run returns an error when the topics must be read again.
func (f *Follower) OnRebuild(begin, done func()) {
	f.begin = begin
	if done != nil {
		f.done = done
	}
}

// ReportTo says who is told whether the follower is whole and up to date; it is
// called before Run. Without it the changes are logged.
func (f *Follower) ReportTo(r Reporter) { f.reporter = r }

// Run reads and follows the topics until ctx ends, and then returns nil. It
// waits for brokers and topics that are not there yet. It is called once.
func (f *Follower) Run(ctx context.Context) error {
	defer close(f.stopped)
	asker, err := f.cfg.NewClient(f.clientID, kgo.MetadataMinAge(askerMetadataAge), kgo.RetryBackoffFn(askerBackoff))
	if err != nil {
		return fmt.Errorf("following %q: %w", f.topics, err)
	}
	defer asker.Close()
	f.asker = asker

	for wait := minPause; ; wait = min(2*wait, maxPause) {
		began, err := f.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		f.fail(err)
		if began {
			wait = minPause
			if f.begin == nil {
				return fmt.Errorf("following %q: %w", f.topics, err)
			}
		}
		if !process.Pause(ctx, wait) {
			return nil
		}
	}
}

// askerBackoff is how long the asker waits before it asks another leader. Each
// batch of the router waits with it after a change of leaders; kgo's own 250 ms
// and more is for clients with more to send than a question.
func askerBackoff(fails int) time.Duration {
	return min(5*time.Millisecond<<min(fails, 10), 250*time.Millisecond)
}

// Ready is closed when the topics have been read whole once.
func (f *Follower) Ready() <-chan struct{} { return f.ready }

// EndOffsets asks for the read-committed end offset of every partition, now:
// everything that a read-committed reader could see before the call is before
// them. It takes one request to each leader, asks again what is answered with an
// error that may pass, and returns an error when ctx ends before all have
// answered.
func (f *Follower) EndOffsets(ctx context.Context) (Offsets, error) {
	for {
		before, ends, err := f.ends(ctx)
		if err != nil {
			return Offsets{}, err
		}
		if before.reached(ends.next) {
			return ends, nil
		}
		// The log has lost what was read from it, which the watching goroutine is
		// about to find out. Until then nobody may pass: the old positions are
		// past the new log's end.
		if !process.Pause(ctx, askBehind) {
			return Offsets{}, fmt.Errorf("asking for the end of %q: %w: %w", f.topics, ctx.Err(), errOtherLog)
		}
	}
}

// ends returns the ends, and where the positions were before they were asked for.
func (f *Follower) ends(ctx context.Context) (before, ends Offsets, err error) {
	select {
	case <-f.opened:
	case <-f.stopped:
		return Offsets{}, Offsets{}, fmt.Errorf("asking for the end of %q: %w", f.topics, ErrStopped)
	case <-ctx.Done():
		return Offsets{}, Offsets{}, fmt.Errorf("asking for the end of %q: %w", f.topics, because(ctx.Err(), f.Err()))
	}
	f.mu.Lock()
	places := f.places
	before = f.positionsLocked()
	f.mu.Unlock()
	next, err := listOffsets(ctx, f.asker, places, atLatest, readCommitted)
	if err != nil {
		return Offsets{}, Offsets{}, err
	}
	return before, Offsets{next: next, load: before.load}, nil
}

// WaitFor blocks until the records before offsets have been applied, or ctx
// ends. It costs a lock where they have been. It returns ErrRebuilt when the
// topics were read anew since, and ErrStopped when Run has returned.
func (f *Follower) WaitFor(ctx context.Context, offsets Offsets) error {
	load := offsets.load
	for {
		f.mu.Lock()
		if load == 0 {
			load = f.load
		}
		if load != f.load {
			f.mu.Unlock()
			return fmt.Errorf("waiting for %q: %w", f.topics, ErrRebuilt)
		}
		if !f.loading && offsets.reached(f.positions) {
			f.mu.Unlock()
			return nil
		}
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		changed := f.changed
		f.mu.Unlock()

		select {
		case <-changed:
		case <-f.stopped:
			return fmt.Errorf("waiting for %q: %w", f.topics, ErrStopped)
		case <-ctx.Done():
			return fmt.Errorf("waiting for %q: %w", f.topics, because(ctx.Err(), f.Err()))
		}
	}
}

// Barrier blocks until everything that a read-committed reader could see before
// the call has been applied, or ctx ends.
func (f *Follower) Barrier(ctx context.Context) error {
	for {
		ends, err := f.EndOffsets(ctx)
		if err != nil {
			return err
		}
		if err := f.WaitFor(ctx, ends); !errors.Is(err, ErrRebuilt) {
			return err
		}
	}
}

// Staleness is how long ago the follower last knew that it had applied
// everything a read-committed reader could see: at most about 0.3 s while all is
// well. It is the longest Duration there is before the first load is complete.
func (f *Follower) Staleness() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known.IsZero() {
		return math.MaxInt64
	}
	return time.Since(f.known)
}

// away is how long ago the follower was last at the end, by the clock on the wall:
// the other one stands still while a machine sleeps.
func (f *Follower) away() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Round(0).Sub(f.known.Round(0))
}

// Err is what keeps the follower from being up to date; nil if nothing does.
func (f *Follower) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Positions are the next offset of each partition; empty before the first load.
func (f *Follower) Positions() Offsets {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.positionsLocked()
}

func (f *Follower) positionsLocked() Offsets {
	return Offsets{next: maps.Clone(f.positions), load: f.load}
}

func (f *Follower) position(place Place) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.positions[place]
}

// Records is how many records have been applied since the topics were last read
// from their start.
func (f *Follower) Records() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.records
}

// beginLoad is called by Run with the partitions' start offsets.
func (f *Follower) beginLoad(starts map[Place]int64, places []Place) {
	f.mu.Lock()
	f.places, f.positions, f.records = places, starts, 0
	f.loading = true
	f.load++
	first := f.load == 1
	f.wakeLocked()
	f.mu.Unlock()
	if first {
		close(f.opened)
		return
	}
	f.begin()
}

// endLoad makes the positions count. The owner's new table is in its place
// before the first waiter can see that.
func (f *Follower) endLoad() {
	if f.load > 1 {
		f.done()
	}
	f.mu.Lock()
	f.loading = false
	f.wakeLocked()
	f.mu.Unlock()
	f.once.Do(func() { close(f.ready) })
}

// advance moves a position forward, after what is before next was applied.
func (f *Follower) advance(place Place, next, records int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records += records
	if next > f.positions[place] {
		f.positions[place] = next
		f.wakeLocked()
	}
}

func (f *Follower) wakeLocked() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// upToDate is called when the positions were at the end at a time.
func (f *Follower) upToDate(at time.Time) {
	f.mu.Lock()
	f.known, f.err = at, nil
	f.mu.Unlock()
	f.reporter.Up()
}

func (f *Follower) fail(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	f.reporter.Down(err)
}

// logReporter logs the changes.
type logReporter struct {
	log  *slog.Logger
	down bool
}

func (r *logReporter) Up() {
	if r.down {
		r.log.Info("compacted topics are followed again")
	}
	r.down = false
}

func (r *logReporter) Down(err error) {
	if !r.down {
		r.log.Warn("compacted topics cannot be followed", slog.Any("error", err))
	}
	r.down = true
}
