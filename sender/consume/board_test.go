package consume

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/deliver"
	"github.com/postrider/postrider/sender/retry"
)

// delivered is what became of a delivery that its target took.
var delivered = end{ //nolint:gochecknoglobals // a constant
	records: []*kgo.Record{{}}, verdict: deliver.Verdict{Action: deliver.Delivered, Health: deliver.Well},
}

func TestLaneTake(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	tests := []struct {
		name    string
		lane    lane
		waiting int
		free    int
		bytes   int64
		want    verdict
	}{
		{"idle", lane{}, 0, 1000, 1 << 20, begin},
		{"idle, hardly any room", lane{}, 0, 1, 1, begin},
		{"places left", lane{running: 3, progress: now}, 0, 1000, 1 << 20, begin},
		{"all places taken", lane{running: 4, pace: 100 * time.Millisecond, progress: now}, 3, 1000, 1 << 20, queue},
		{"a long queue", lane{running: 4, pace: time.Second, progress: now}, turnsQueued - 1, 1000, 1 << 20, queue},
		{"too long a queue", lane{running: 4, pace: time.Second, progress: now}, turnsQueued, 1000, 1 << 20, park},
		{"a queue of a target that fails", lane{running: 4, pace: time.Second, progress: now, breaker: breaker{failures: 1}}, 4, 1000, 1 << 20, park},
		{"nothing ends any more", lane{running: 4, pace: time.Millisecond, progress: now.Add(-2 * time.Second)}, 0, 1000, 1 << 20, park},
		{"its time has not come", lane{laneBounds: laneBounds{interval: time.Second / 2}, nextAt: now.Add(time.Second / 2)}, 0, 1000, 1 << 20, queue},
		{"its time is far", lane{laneBounds: laneBounds{interval: time.Minute}, nextAt: now.Add(time.Minute)}, 0, 1000, 1 << 20, queue},
		{"others wait for their time", lane{laneBounds: laneBounds{interval: time.Second / 2}, nextAt: now.Add(time.Second / 2)}, turnsQueued, 1000, 1 << 20, park},
		{"quiet as the target asked", lane{nextAt: now.Add(time.Minute)}, 0, 1000, 1 << 20, park},
		{"over its share, quick", lane{running: 4, pace: time.Millisecond, progress: now}, 6, 40, 1 << 20, hold},
		{"over its share, failing", lane{running: 4, pace: time.Minute, progress: now, breaker: breaker{failures: 1}}, 6, 40, 1 << 20, park},
		{"over its share of bytes", lane{running: 1, bytes: 1 << 18, progress: now}, 0, 1000, 1 << 20, hold},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := test.lane
			l.most, l.places = 4, 4
			l.queue = make([]*item, test.waiting)
			if got := l.take(&item{size: 500}, now, test.free, test.bytes); got != test.want {
				t.Errorf("verdict %d, want %d", got, test.want)
			}
		})
	}
}

func TestCreditIsATenthInTheLongRun(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var c credit
	var held time.Duration
	for range 100 { // 100 s, in each of which the head waits as long as it may
		until := c.wait(now)
		held += until.Sub(now)
		c.move(until)
		now = now.Add(time.Second)
	}
	if low, high := 9*time.Second, 11*time.Second; held < low || held > high {
		t.Errorf("held for %v of 100 s, want from %v to %v", held, low, high)
	}
}

// TestRateLimitIsNeverExceeded lets a lane work off what it has, on a clock whose
// timers are late now and then, and counts the attempts of each second.
func TestRateLimitIsNeverExceeded(t *testing.T) {
	for _, count := range []int{1, 5, 60, 1000} {
		limit := &schemas.RateLimit{Count: count, Per: "second"}
		s := startStage(t, 64<<20)
		s.table.bounds = func(string) laneBounds { return laneBounds{most: 32, interval: interval(limit)} }
		var begun []time.Time
		late := time.Duration(0)
		for end := s.now.Add(10 * time.Second); s.now.Before(end); {
			if len(s.sources[place{s.effects.topics.Deliveries, 0}].queue) == 0 {
				s.poll(s.effects.topics.Deliveries, "w", 100, nil)
			}
			r := s.admit(s.now)
			for _, it := range r.begin {
				begun = append(begun, s.now)
				s.finish(it, delivered, s.now)
			}
			s.release(s.take())
			next := s.now.Add(recheck)
			if !r.wake.IsZero() && r.wake.Before(next) {
				next = r.wake
			}
			late = (late + 3*time.Millisecond) % (25 * time.Millisecond)
			s.now = laterOf(next, s.now.Add(time.Millisecond/4)).Add(late)
		}
		for i := range begun {
			if i >= count && begun[i].Sub(begun[i-count]) < time.Second {
				t.Fatalf("%d a second: %d attempts in %v", count, count+1, begun[i].Sub(begun[i-count]))
			}
		}
		if least := count * 10 * 3 / 4; count <= 60 && len(begun) < least {
			t.Errorf("%d a second: %d attempts in 10 s, want at least %d", count, len(begun), least)
		}
	}
}

func TestLaneIsBoundAnew(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	l := newLane(32, now)
	for range 8 {
		l.begin(&item{lane: l, size: 1}, now)
	}
	l.queue = []*item{{lane: l, size: 1}}
	l.bytes = 9
	l.bound(laneBounds{most: 2})
	for running := 7; running > 1; running-- {
		if begun := l.end(&item{lane: l, size: 1, started: now}, delivered.verdict, now); len(begun) != 0 {
			t.Fatalf("begun with %d running, want none while 2 are allowed", running)
		}
	}
	if begun := l.end(&item{lane: l, size: 1, started: now}, delivered.verdict, now); len(begun) != 1 {
		t.Error("want the one that waits begun when there is a place")
	}
}

func TestLaneLearns(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	tests := []struct {
		name    string
		took    func(running int) time.Duration
		low, up int
	}{
		{"a target with room", func(int) time.Duration { return 50 * time.Millisecond }, 32, 32},
		{"one that does one after the other", func(running int) time.Duration { return time.Duration(running) * 20 * time.Millisecond }, 4, 8},
		{"one that hangs", func(int) time.Duration { return 15 * time.Second }, 8, 32},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newLane(32, now)
			l.queue = make([]*item, 1)
			learn := func(running int) { l.learn(&item{started: now}, delivered.verdict, now.Add(test.took(running))) }
			learn(1)
			for range 500 {
				learn(l.limit())
			}
			if got := l.limit(); got < test.low || got > test.up {
				t.Errorf("%d places, want from %d to %d", got, test.low, test.up)
			}
		})
	}
}

// stage is a board with one partition of deliveries and of the first tier.
type stage struct {
	*board

	now     time.Time
	offsets map[string]int64
}

func startStage(t *testing.T, budget int64) *stage {
	t.Helper()
	topics := schemas.NewTopics("")
	b := newBoard(&effects{topics: topics, topicID: [16]byte{1}, schedule: retry.DefaultSchedule(), instance: "a"}, table{
		bounds: func(string) laneBounds { return laneBounds{most: 4, retries: 9} },
		state:  func(string) (schemas.WebhookState, bool) { return schemas.WebhookState{}, false },
	}, budget)
	s := &stage{board: b, now: time.Unix(1_700_000_000, 0), offsets: make(map[string]int64)}
	places := []place{{topics.Deliveries, 0}, {topics.Retry[0], 0}}
	b.assign(places, "member", 1)
	b.stated(b.assignments, nil, s.now)
	for _, p := range places {
		if err := b.restore(p, 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestTierIsIdleWhicheverIsKnownFirst knows the end before the committed offset.
func TestTierIsIdleWhicheverIsKnownFirst(t *testing.T) {
	s := startStage(t, 64<<20)
	tier := place{s.effects.topics.Retry[0], 0}
	s.assign([]place{tier}, "member", 2)
	s.stated(s.assignment(), nil, s.now)
	at := kafka.Place{Topic: tier.topic}
	s.logEnds(s.assignment(), map[kafka.Place]int64{at: 0}, map[kafka.Place]int64{at: 7})
	s.settle()
	if err := s.restore(tier, 7, ""); err != nil {
		t.Fatal(err)
	}
	if r := s.settle(); len(r.pause) != 1 || r.pause[0] != tier {
		t.Errorf("paused %v, want the tier that was read to its end", r.pause)
	}
}

// poll gives the board n deliveries of a webhook.
func (s *stage) poll(topic, webhook string, n int, change func(*schemas.Delivery)) {
	var records []*kgo.Record
	for range n {
		d := schemas.Delivery{
			WebhookID: webhook, EventID: "e", Event: "labs.created", Organization: "org", Cause: schemas.CauseEvent, Body: []byte("{}"),
		}
		if change != nil {
			change(&d)
		}
		r := d.Record(topic)
		r.Offset, r.Timestamp = s.offsets[topic], s.now
		s.offsets[topic]++
		records = append(records, r)
	}
	s.push(place{topic, 0}, records)
}

// settle looks at the heads until nothing more can be started now.
func (s *stage) settle() (total round) {
	for {
		r := s.admit(s.now)
		total.begin = append(total.begin, r.begin...)
		total.pause = append(total.pause, r.pause...)
		total.resume = append(total.resume, r.resume...)
		total.parked += r.parked
		total.wake, total.pending = r.wake, r.pending
		if r.wake.IsZero() || r.wake.After(s.now) {
			return total
		}
	}
}

func TestBoardParksOnlyTheStuckLane(t *testing.T) {
	s := startStage(t, 64<<20)
	topic := s.effects.topics.Deliveries
	s.poll(topic, "stuck", 600, nil)
	s.poll(topic, "quick", 1, nil)
	r := s.settle()
	if len(r.begin) != 4 || r.parked != 0 {
		t.Fatalf("%d attempts and %d parked at once, want 4 and none", len(r.begin), r.parked)
	}
	s.now = s.now.Add(holdBurst)
	r = s.settle()
	if len(r.begin) != 1 || r.begin[0].delivery.WebhookID != "quick" {
		t.Fatalf("%d attempts begun after the head has waited for %v, want that of the quick webhook", len(r.begin), holdBurst)
	}
	for _, result := range s.take().results {
		parked := result.records[0]
		if want := s.effects.topics.Retry[0]; parked.Topic != want {
			t.Fatalf("parked in %s, want %s", parked.Topic, want)
		}
	}
}

func TestBoardKeepsItsBudget(t *testing.T) {
	s := startStage(t, 10*overhead)
	for i := range 50 {
		s.poll(s.effects.topics.Deliveries, fmt.Sprintf("webhook-%d", i), 1, nil)
	}
	r := s.settle()
	if len(r.begin) != 10 {
		t.Fatalf("%d attempts, want the 10 that fit", len(r.begin))
	}
	for _, it := range r.begin {
		s.finish(it, delivered, s.now)
	}
	if r = s.settle(); len(r.begin) != 0 {
		t.Fatalf("%d attempts before the results are committed, want none", len(r.begin))
	}
	s.release(s.take())
	if r = s.settle(); len(r.begin) != 10 {
		t.Errorf("%d attempts after it, want 10", len(r.begin))
	}
}

func TestTierIsFirstInFirstOut(t *testing.T) {
	s := startStage(t, 64<<20)
	tier := s.effects.topics.Retry[0] // 1 s
	id := schemas.DeliveryID{Topic: [16]byte{1}, Offset: 7}
	due := func(d time.Duration) func(*schemas.Delivery) {
		return func(x *schemas.Delivery) { x.ID, x.Attempt, x.DueAt = id, 1, s.now.Add(d) }
	}
	s.poll(tier, "w", 1, due(1300*time.Millisecond)) // its rest is waited for here
	s.poll(tier, "w", 1, due(9*time.Second))         // it hops on
	entered := s.now
	r := s.settle()
	if len(r.pause) != 1 || !r.wake.Equal(entered.Add(time.Second)) {
		t.Fatalf("paused %v, wake after %v; want the tier paused for 1 s", r.pause, r.wake.Sub(entered))
	}
	s.now = entered.Add(time.Second)
	if r = s.settle(); len(r.begin) != 0 || !r.wake.Equal(entered.Add(1300*time.Millisecond)) {
		t.Fatalf("%d attempts, wake after %v; want none and 1.3 s", len(r.begin), r.wake.Sub(entered))
	}
	s.now = entered.Add(1300 * time.Millisecond)
	r = s.settle()
	if len(r.begin) != 1 || r.pending != 1 || len(r.resume) != 1 {
		t.Fatalf("%d attempts, %d settled, %d resumed; want one each", len(r.begin), r.pending, len(r.resume))
	}
	hop := s.take().results[0].records[0]
	if want := s.effects.topics.Retry[3]; hop.Topic != want || hop.Partition != 0 || !hop.Timestamp.Equal(s.now) { // of 7.7 s
		t.Errorf("hopped to %s at %v, want %s at %v", hop.Topic, hop.Timestamp, want, s.now)
	}
}

func TestWhatWaitsIsCounted(t *testing.T) {
	s := startStage(t, 64<<20)
	tier := place{s.effects.topics.Retry[5], 0}
	s.assign([]place{tier}, "member", 2)
	s.stated(s.assignment(), nil, s.now)
	if err := s.restore(tier, 10, ""); err != nil {
		t.Fatal(err)
	}
	at := kafka.Place{Topic: tier.topic}
	s.logEnds(s.assignment(), map[kafka.Place]int64{at: 0}, map[kafka.Place]int64{at: 15})
	check := func(when string, count int, due time.Time) {
		t.Helper()
		if got := s.waits()[5]; got.count != count || !got.due.Equal(due) {
			t.Errorf("%s: %d wait, the first until %v; want %d until %v", when, got.count, got.due, count, due)
		}
	}
	check("at first", 5, time.Time{})
	due := s.now.Add(30 * time.Second).Truncate(time.Millisecond)
	s.offsets[tier.topic] = 10
	s.poll(tier.topic, "w", 2, func(d *schemas.Delivery) {
		d.ID, d.DueAt = schemas.DeliveryID{Topic: [16]byte{1}, Offset: 7}, due
	})
	check("two polled", 5, due)
	s.wrote(batch{results: []result{{records: []*kgo.Record{{Topic: tier.topic, Offset: 16}, {Topic: tier.topic, Offset: 17}}}}}, s.now)
	check("two written", 7, due)
	s.offsets[tier.topic] = 16
	s.poll(tier.topic, "w", 1, func(d *schemas.Delivery) {
		d.ID, d.DueAt = schemas.DeliveryID{Topic: [16]byte{1}, Offset: 8}, due.Add(time.Second)
	})
	check("one of these polled", 7, due)
}

func TestResultsOfPartitionsGivenUpAreDropped(t *testing.T) {
	s := startStage(t, 64<<20)
	s.poll(s.effects.topics.Deliveries, "w", 10, nil)
	r := s.settle()
	if len(r.begin) != 4 {
		t.Fatalf("%d attempts, want 4", len(r.begin))
	}
	next := s.finish(r.begin[0], delivered, s.now).begin
	s.giveUp(nil)
	s.finish(r.begin[1], delivered, s.now)
	if got := s.take(); len(got.results) != 0 {
		t.Errorf("%d results are left", len(got.results))
	}
	for _, it := range append(r.begin[2:], next...) {
		if e := s.finish(it, end{}, s.now); len(e.begin) != 0 {
			t.Error("a delivery of a partition given up was begun")
		}
	}
	if got := s.snapshot(); got.running != 0 || got.inFlight != 0 || got.waiting != 0 {
		t.Errorf("left: %+v", got)
	}
}

// TestTooLargeIsRejected is what only compression lets into the topic: Kafka would not take it back.
func TestTooLargeIsRejected(t *testing.T) {
	s := startStage(t, 64<<20)
	for _, size := range []int{schemas.MaxPayloadBytes, schemas.MaxRecordBytes} {
		s.poll(s.effects.topics.Deliveries, "w", 1, func(d *schemas.Delivery) { d.Body = make([]byte, size) })
	}
	if r := s.settle(); len(r.begin) != 1 || r.pending != 1 {
		t.Fatalf("%d attempts begun and %d settled, want one each", len(r.begin), r.pending)
	}
	if why, err := schemas.DecodeRejected(s.take().results[0].records[0]); err != nil || why.Reason != schemas.CodeTooLarge || why.Offset != 1 {
		t.Errorf("rejected %+v, error %v", why, err)
	}
}

func TestSweepKeepsLanesThatAreNeeded(t *testing.T) {
	s := startStage(t, 64<<20)
	at := s.now
	s.laneLocked("idle", at)
	s.laneLocked("owes", at).backlog = at.Add(time.Hour)
	s.poll(s.effects.topics.Deliveries, "head", 1, nil)
	src := s.sources[place{s.effects.topics.Deliveries, 0}]
	var r round
	s.lookLocked(src, at, &r)
	s.sweep(at.Add(time.Minute))
	if len(s.lanes) != 3 {
		t.Fatalf("%d lanes after a minute, want 3", len(s.lanes))
	}
	s.sweep(at.Add(2 * laneIdle))
	if s.lanes["idle"] != nil || s.lanes["owes"] == nil || s.lanes["head"] != src.head.lane {
		t.Errorf("lanes left: %v", s.lanes)
	}
}

func TestFencedTwiceIsFatal(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	other, slow := fmt.Errorf("committing: %w", kerr.ProducerFenced), fmt.Errorf("%w: %w", errSlow, kerr.InvalidProducerEpoch)
	for _, test := range []struct {
		name   string
		first  error
		after  time.Duration
		second error
		fatal  bool
	}{
		{"by another, twice", other, 30 * time.Second, other, true},
		{"by another, twice in a long time", other, 2 * time.Minute, other, false},
		{"by the broker, which was slow", slow, 30 * time.Second, slow, false},
		{"no fence", errUnknownEnd, time.Second, errUnknownEnd, false},
	} {
		var f fence
		if err := f.check(test.first, now); err != nil {
			t.Errorf("%s: %v the first time", test.name, err)
		}
		if err := f.check(test.second, now.Add(test.after)); errors.Is(err, process.ErrFenced) != test.fatal {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestSplit(t *testing.T) {
	whole, broken := split(map[string][]int32{"a": {0, 1}, "b": {0}}, []string{"a", "b"})
	if len(whole) != 2 || len(broken) != 1 || broken[0] != (place{"a", 1}) {
		t.Errorf("whole %v, broken %v", whole, broken)
	}
}

func TestTiersAreFetchedOnlyBelowTheirEnds(t *testing.T) {
	s := startStage(t, 64<<20)
	topics := s.effects.topics
	tier := place{topics.Retry[0], 0}
	if r := s.settle(); len(r.pause) != 0 {
		t.Fatalf("paused %v, want nothing while no end is known", r.pause)
	}
	starts := map[kafka.Place]int64{{Topic: tier.topic}: 5, {Topic: topics.Deliveries}: 0}
	ends := map[kafka.Place]int64{{Topic: tier.topic}: 5, {Topic: topics.Deliveries}: 0}
	s.logEnds(s.assignment()-1, starts, ends)
	if r := s.settle(); len(r.pause) != 0 {
		t.Fatalf("paused %v by ends asked for under the assignment before, want nothing", r.pause)
	}
	s.logEnds(s.assignment(), starts, ends)
	if r := s.settle(); len(r.pause) != 1 || r.pause[0] != tier {
		t.Fatalf("paused %v, want the empty tier and never deliveries", r.pause)
	}

	written := &kgo.Record{Topic: tier.topic, Offset: 5}
	s.wrote(batch{results: []result{{records: []*kgo.Record{written}}}}, s.now)
	if r := s.settle(); len(r.resume) != 1 || r.resume[0] != tier {
		t.Fatalf("resumed %v after a write, want the tier", r.resume)
	}
	s.push(tier, []*kgo.Record{{Topic: tier.topic, Offset: 5}})
	if r := s.settle(); len(r.pause) != 1 || r.pause[0] != tier {
		t.Fatalf("paused %v at the end, want the tier", r.pause)
	}
	s.wrote(batch{results: []result{{records: []*kgo.Record{{Topic: tier.topic, Offset: -1}}}}}, s.now)
	if r := s.settle(); len(r.resume) != 1 {
		t.Fatalf("resumed %v after a write whose offset nobody said, want the tier", r.resume)
	}
	ends[kafka.Place{Topic: tier.topic}] = 6
	s.logEnds(s.assignment(), starts, ends)
	if r := s.settle(); len(r.pause) != 1 {
		t.Fatalf("paused %v when its end is known again, want the tier", r.pause)
	}
	ends[kafka.Place{Topic: tier.topic}] = 5
	s.logEnds(s.assignment(), starts, ends)
	if r := s.settle(); len(r.resume) != 1 {
		t.Fatalf("resumed %v when the log was cut, want the tier", r.resume)
	}
	ends[kafka.Place{Topic: tier.topic}] = 6
	s.logEnds(s.assignment(), starts, ends)
	if r := s.settle(); len(r.pause) != 1 {
		t.Fatalf("paused %v when it has grown again, want the tier", r.pause)
	}
	// The marker of that transaction is found by asking.
	ends[kafka.Place{Topic: tier.topic}] = 7
	s.logEnds(s.assignment(), starts, ends)
	if r := s.settle(); len(r.resume) != 1 {
		t.Fatalf("resumed %v below the end, want the tier", r.resume)
	}
}

// TestStalledIsFetchedAnew: a partition of which nothing comes although its log goes on.
func TestStalledIsFetchedAnew(t *testing.T) {
	s := startStage(t, 64<<20)
	tier := place{s.effects.topics.Retry[0], 0}
	at := kafka.Place{Topic: tier.topic}
	ask := func(end int64) map[string]map[int32]kgo.EpochOffset {
		s.logEnds(s.assignment(), map[kafka.Place]int64{at: 0}, map[kafka.Place]int64{at: end})
		s.settle()
		return s.stalled()
	}
	s.push(tier, []*kgo.Record{{Topic: tier.topic, Offset: 6}})
	s.settle() // it is rejected: nothing waits
	for i, want := range []bool{false, false, false, true, false, true} {
		end := int64(7)
		if i >= 2 { // something is written, of which nothing comes
			end = 8
		}
		if i == 4 { // one question after another record has come
			s.push(tier, []*kgo.Record{{Topic: tier.topic, Offset: 7}})
			s.settle()
		}
		if i >= 4 {
			end = 9
		}
		got := ask(end)
		if at, stalled := got[tier.topic][0]; stalled != want || stalled && at.Offset != end-1 {
			t.Errorf("question %d: fetched anew %v, want %t from %d", i, got, want, end-1)
		}
	}
}
