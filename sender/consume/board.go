package consume

import (
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

// place names a partition.
type place struct {
	topic     string
	partition int32
}

// noTier is the tier of deliveries and held: what is there is due.
const noTier = -1

// source is a partition that this member works. The board's mutex guards it.
type source struct {
	place

	tier    int
	held    bool
	passAt  time.Time // of held: what was written before is looked at again
	tracker tracker
	next    int64           // the offset behind the last that was polled
	end     int64           // the log's, as far as it is known; see idle
	unread  unread          // records not polled yet
	queue   []*kgo.Record   // polled and not started
	broken  map[int64]error // of records in queue that stand for what could not be read
	bytes   int             // of queue
	head    *item           // queue[0], once it was looked at
	wake    time.Time       // when the head leaves its tier or is due; zero: not known
	credit  credit
	running int // attempts

	listed   bool // in the board's active
	restored bool // its committed offset and metadata are known
	alive    bool // owned: its results count
	stopping bool // nothing of it is started any more
	paused   bool // its fetching is
	stalls   bool // there is something to fetch, and nothing comes: see stalled

	asked int64 // next, when the ends were asked for last
}

// result is what a started record came to: the records that say so, to be
// committed with the offset being finished.
type result struct {
	item    *item
	records []*kgo.Record
}

// end is what became of a started delivery.
type end struct {
	records []*kgo.Record // what says so; none: nothing, it is to be repeated by the next owner
	verdict deliver.Verdict
	webhook *inForce // nil if it was not asked
}

// mark is what a partition commits.
type mark struct {
	place

	offset int64
	text   string
}

// batch is what one transaction commits.
type batch struct {
	results    []result
	states     []*lane       // whose conditions are in records
	records    []*kgo.Record // of webhook-states
	marks      []mark
	member     string
	generation int32
}

// board holds everything the sender's loops share, under one mutex: the
// partitions it works, the lanes, and the results not committed yet. It knows
// neither clients nor clocks, and blocks on nothing.
type board struct {
	effects *effects
	table   table
	budget  int64 // bytes that may be in flight

	mu         sync.Mutex // guards the rest
	sources    map[place]*source
	active     []*source // sources with something to do, in turn
	lanes      map[string]*lane
	paced      map[*lane]struct{} // lanes whose first in queue waits for its time
	dirty      map[*lane]struct{} // lanes whose condition is to be written
	results    []result
	inFlight   int64 // bytes of everything started and not committed
	running    int   // attempts, those of partitions given up included
	waiting    int   // in lanes
	blocked    bool  // something waits for an attempt to end or for a commit
	member     string
	generation int32
	// assignments counts them: what was asked under an earlier one may be of
	// before its last owner's writes.
	assignments int
	known       int // the assignment as of which the states of webhooks are known: see stated
}

// table is what a board asks of webhooks. It must not block.
type table struct {
	bounds func(webhookID string) laneBounds
	state  func(webhookID string) (schemas.WebhookState, bool)
}

func newBoard(e *effects, t table, budget int64) *board {
	return &board{
		effects: e, table: t, budget: budget,
		sources: make(map[place]*source), lanes: make(map[string]*lane), paced: make(map[*lane]struct{}),
		dirty: make(map[*lane]struct{}), generation: -1,
	}
}

// assign begins to work partitions, under a membership that all that is
// finished from now on belongs to. Their records count from restore on.
func (b *board) assign(places []place, member string, generation int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.member, b.generation = member, generation
	b.assignments++
	for _, p := range places {
		b.sources[p] = &source{
			place: p, tier: b.effects.tierOf(p.topic), held: p.topic == b.effects.topics.Held, end: unknownEnd, alive: true, asked: -1,
		}
	}
	b.forgetStatesLocked()
}

// restore says what a partition committed last.
func (b *board) restore(p place, offset int64, text string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	src := b.sources[p]
	if src == nil {
		return nil // not worked: see whole
	}
	t, err := restore(offset, text)
	if err != nil {
		return err
	}
	src.tracker, src.restored = t, true
	src.next = max(src.next, offset)
	b.listLocked(src) // its end may have been known before
	return nil
}

// push takes what was polled of a partition, markers of transactions too; the
// caller still blocks rebalances.
func (b *board) push(p place, records []*kgo.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	src := b.sources[p]
	if src == nil || !src.restored || len(records) == 0 {
		return
	}
	b.listLocked(src)
	src.next = records[len(records)-1].Offset + 1
	for _, r := range records {
		if !r.Attrs.IsControl() {
			src.queue = append(src.queue, r)
			src.bytes += len(r.Value)
			src.unread.read(r.Offset)
		}
	}
}

// pushUnreadable takes a record in the place of what is from one offset to
// another and cannot be read; the caller still blocks rebalances.
func (b *board) pushUnreadable(p place, from, to int64, why error) {
	b.push(p, []*kgo.Record{{Topic: p.topic, Partition: p.partition, Offset: from}})
	b.mu.Lock()
	defer b.mu.Unlock()
	src := b.sources[p]
	if src == nil || src.next != from+1 {
		return // not worked: see push
	}
	if src.broken == nil {
		src.broken = make(map[int64]error)
	}
	src.broken[from], src.next = why, to
}

// listLocked has admit look at a source.
func (b *board) listLocked(src *source) {
	if !src.listed {
		src.listed = true
		b.active = append(b.active, src)
	}
}

// stop begins to give partitions up: nothing of them is started any more. nil means all.
func (b *board) stop(places []place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, src := range b.selectLocked(places) {
		src.stopping = true
	}
	for _, l := range b.lanes {
		for _, it := range l.drop(func(it *item) bool { return it.source.stopping }) {
			b.waiting--
			b.inFlight -= it.size
		}
	}
}

// runningOf is how many attempts of partitions run. nil means all that are worked.
func (b *board) runningOf(places []place) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, src := range b.selectLocked(places) {
		n += src.running
	}
	return n
}

// giveUp forgets partitions: what is finished of them from now on has no effect. nil means all.
func (b *board) giveUp(places []place) {
	b.stop(places)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, src := range b.selectLocked(places) {
		src.alive, src.queue, src.bytes, src.head = false, nil, 0, nil
		delete(b.sources, src.place)
	}
	kept := b.active[:0]
	for _, src := range b.active {
		if src.alive {
			kept = append(kept, src)
		}
	}
	clear(b.active[len(kept):])
	b.active = kept
	b.dropDeadLocked()
	b.forgetStatesLocked()
}

func (b *board) selectLocked(places []place) (found []*source) {
	if places == nil {
		for _, src := range b.sources {
			found = append(found, src)
		}
		return found
	}
	for _, p := range places {
		if src := b.sources[p]; src != nil {
			found = append(found, src)
		}
	}
	return found
}

// dropDeadLocked drops results of partitions given up: the next owner repeats them.
func (b *board) dropDeadLocked() {
	kept := b.results[:0]
	for _, r := range b.results {
		if r.item.source.alive {
			kept = append(kept, r)
			continue
		}
		b.inFlight -= r.item.size
	}
	clear(b.results[len(kept):])
	b.results = kept
}

// ended is what follows from an attempt's end.
type ended struct {
	begin   []*item // to be attempted now
	pending int     // results that wait to be committed
	blocked bool    // a head may go on now
	disable string  // why the webhook was disabled; empty: it was not
}

// finish notes what a started delivery came to.
func (b *board) finish(it *item, e end, now time.Time) (next ended) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running--
	it.source.running--
	if it.source.alive && len(e.records) > 0 {
		if e.webhook != nil {
			e.records, next.disable = b.observeLocked(it, e, now)
		}
		b.results = append(b.results, result{it, e.records})
	} else {
		b.inFlight -= it.size
	}
	l := it.lane
	l.bound(b.table.bounds(it.delivery.WebhookID))
	if !it.aside {
		next.begin = l.end(it, e.verdict, now)
		b.waiting -= len(next.begin)
		for _, begun := range next.begin {
			b.begunLocked(begun)
		}
	}
	next.pending, next.blocked = len(b.results), b.blocked
	if l.waits(now) {
		b.paced[l] = struct{}{}
		next.blocked = true // admit knows when to wake
	}
	return next
}

// begunLocked notes an item whose attempt begins.
func (b *board) begunLocked(it *item) {
	b.running++
	it.source.running++
}

// take takes all results for a transaction, with what their partitions commit.
func (b *board) take() batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := batch{results: b.results, member: b.member, generation: b.generation}
	b.results = nil
	if len(t.results) == 0 {
		return t
	}
	touched := make(map[*source]struct{})
	for _, r := range t.results {
		// Should the transaction abort, the offset stays finished here: its result
		// is put back and goes with the next one, before which nothing is committed.
		r.item.source.tracker.finish(r.item.record.Offset)
		touched[r.item.source] = struct{}{}
	}
	for l := range b.dirty {
		if r, err := l.condition.record(b.effects.topics.WebhookStates); err == nil { // it is a plain struct
			t.records, t.states = append(t.records, r), append(t.states, l)
		}
		l.condition.dirty, l.condition.kept = false, true
	}
	clear(b.dirty)
	for src := range touched {
		offset, text := src.tracker.mark()
		t.marks = append(t.marks, mark{src.place, offset, text})
	}
	return t
}

// putBack returns the results of a transaction that was aborted for certain, to go first into the next.
func (b *board) putBack(t batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.results = append(t.results, b.results...)
	for _, l := range t.states {
		if l.condition.known { // else it was given up meanwhile
			l.condition.dirty = true
			b.dirty[l] = struct{}{}
		}
	}
	b.dropDeadLocked()
}

// release says that a transaction's results need no more room: they are
// committed (see wrote), or without effect.
func (b *board) release(t batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range t.results {
		b.inFlight -= r.item.size
	}
}

// outstanding reports whether any attempt that was begun is not committed yet.
func (b *board) outstanding() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.running > 0 || len(b.results) > 0
}

// sweep forgets lanes that had nothing to do for a long time, and that nothing is known to come back to.
func (b *board) sweep(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	heads := make(map[*lane]bool)
	for _, src := range b.active {
		if src.head != nil {
			heads[src.head.lane] = true
		}
	}
	for id, l := range b.lanes {
		keeps := l.condition.dirty || !l.condition.FailingSince.IsZero() && !l.condition.kept || l.breaker.open()
		if l.depth() == 0 && !heads[l] && !keeps && now.Sub(l.progress) > laneIdle && now.After(l.backlog) {
			delete(b.lanes, id)
		}
	}
}
