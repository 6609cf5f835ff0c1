package verify

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// What is known of a delivery: a byte for each offset of a partition of deliveries.
const (
	isThere   byte = 1 << iota // its record
	isScoped                   // it is asked for, and can be read
	isEnded                    // an outcome that ends it
	isWaiting                  // a record of it with work left, in a tier or held
	isOdd                      // more than one of these: what is true is looked at once more
	isAudited                  // the audit has passed its end
	hasRow                     // a row of its states
	hasEndRow                  // a row that says it has ended
)

// deliveryScan is all of one partition: of deliveries, what waits, and outcomes.
type deliveryScan struct {
	*run

	partition int32
	place     kafka.Place // of deliveries
	id        [16]byte    // the topic's
	from      int64
	flags     []byte // by offset less from
	pings     []int64
	// older are those that the log no longer has and that the audit does not know to
	// have ended, with what is found of them.
	older  map[int64]byte
	odd    int // flags with isOdd
	mark   schemas.Mark
	counts *Report
	sums   *balance
	first  time.Time // when the first delivery that is looked at was written
}

// flagBytes bounds what is known of deliveries at once, a byte each, unless a single
// partition has more. The audit's states, which are in no order of partitions, are
// read once for as many partitions as fit.
const flagBytes = 256 << 20

// checkDeliveries checks all partitions of deliveries.
func (r *run) checkDeliveries(ctx context.Context) error {
	for partition := int32(0); partition < r.snap.deliveries; {
		var group []*deliveryScan
		size := 0
		for ; partition < r.snap.deliveries; partition++ {
			n := r.snap.deliveriesOf(partition)
			if len(group) > 0 && size+n > flagBytes {
				break
			}
			size += n
			group = append(group, r.newDeliveryScan(partition))
		}
		if err := r.checkGroup(ctx, group); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) checkGroup(ctx context.Context, group []*deliveryScan) error {
	n := int32(len(group)) //nolint:gosec // at most all partitions
	if err := r.each(ctx, n, func(ctx context.Context, i int32) error { return group[i].readLog(ctx) }); err != nil {
		return err
	}
	if r.rows != nil {
		if err := r.readStates(ctx, group); err != nil {
			return err
		}
	}
	return r.each(ctx, n, func(ctx context.Context, i int32) error { return group[i].judgeAll(ctx) })
}

// deliveriesOf is how many offsets of a partition are looked at.
func (s *snapshot) deliveriesOf(partition int32) int {
	place := kafka.Place{Topic: s.topics.Deliveries, Partition: partition}
	return int(max(s.ends[place]-s.from(place), 0))
}

func (r *run) newDeliveryScan(partition int32) *deliveryScan {
	place := kafka.Place{Topic: r.snap.topics.Deliveries, Partition: partition}
	return &deliveryScan{
		run: r, partition: partition, place: place, id: r.snap.ids[place.Topic],
		from: r.snap.from(place), flags: make([]byte, r.snap.deliveriesOf(partition)),
		older: make(map[int64]byte), mark: r.snap.marks[place], counts: newCounts(), sums: new(balance),
	}
}

// readLog learns what the log knows.
func (s *deliveryScan) readLog(ctx context.Context) error {
	for _, step := range []func(context.Context) error{s.readOlder, s.readDeliveries, s.readOutcomes, s.readWaiting} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// judgeAll says what is missing.
func (s *deliveryScan) judgeAll(ctx context.Context) error {
	if err := s.readPings(ctx); err != nil {
		return err
	}
	if err := s.lookAgain(ctx); err != nil {
		return err
	}
	s.judge()
	s.judgeOlder()
	s.finish(s.counts, s.sums)
	s.flags, s.sums = nil, nil
	return nil
}

// flag returns what is known of a delivery, nil where it is not looked at.
func (s *deliveryScan) flag(id schemas.DeliveryID) *byte {
	i := id.Offset - s.from
	if id.Topic != s.id || id.Partition != s.partition || i < 0 || i >= int64(len(s.flags)) {
		return nil
	}
	return &s.flags[i]
}

// readDeliveries learns which deliveries there are, and takes them off their events.
func (s *deliveryScan) readDeliveries(ctx context.Context) error {
	take := s.balancer(func(h hash, _ int64) { s.sums.add(h, -1) })
	return s.readAll(ctx, s.place, s.from, s.from+int64(len(s.flags)), func(record *kgo.Record) error {
		g := schemas.GlanceDelivery(record)
		flag := &s.flags[record.Offset-s.from]
		*flag |= isThere
		if s.first.IsZero() || record.Timestamp.Before(s.first) {
			s.first = record.Timestamp
		}
		if g.Newer {
			s.note("a record of deliveries of a version that is not known here, from %s/%d@%d on: its event is not balanced", record.Topic, record.Partition, record.Offset)
		}
		if s.asked(&g, record) {
			*flag |= isScoped
			if g.Cause == schemas.CausePing && g.Known {
				s.pings = append(s.pings, record.Offset)
			}
		}
		take(&g, record.Offset)
		return nil
	})
}

// asked says whether a delivery is asked for.
func (r *run) asked(g *schemas.Glance, record *kgo.Record) bool {
	at := g.AcceptedAt
	if at.IsZero() {
		at = record.Timestamp
	}
	return r.within(at) && (r.cfg.Organization == "" || string(g.Organization) == r.cfg.Organization)
}

// balancer returns what gives the hash of an event for each of its deliveries that
// counts: those of events before the moment.
func (s *deliveryScan) balancer(give func(h hash, offset int64)) func(g *schemas.Glance, offset int64) {
	stable := s.snap.stable[s.place]
	return func(g *schemas.Glance, offset int64) {
		if !g.Known || g.Cause != schemas.CauseEvent || !s.balanced(g.AcceptedAt) || !s.within(g.AcceptedAt) {
			return
		}
		if s.cfg.Organization != "" && string(g.Organization) != s.cfg.Organization {
			return
		}
		h := schemas.DedupHash(string(g.Organization), string(g.EventID))
		if s.begun(h) {
			return
		}
		if offset >= stable {
			if _, before := s.tail[h]; !before { // events are through: nobody writes to it any more
				return
			}
		}
		give(h, offset)
	}
}

// begun counts a delivery of an event in whose fan-out the router stands.
func (s *deliveryScan) begun(h hash) bool {
	if len(s.partial) == 0 { // written to by events only, which are through
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.partial[h]
	if t != nil {
		t.made++
	}
	return t != nil
}

// readOutcomes learns which deliveries have ended.
func (s *deliveryScan) readOutcomes(ctx context.Context) error {
	place := kafka.Place{Topic: s.snap.topics.Outcomes, Partition: s.partition}
	from, end := s.snap.from(place), s.snap.ends[place]
	var rows *span
	if s.rows != nil {
		rows = s.newSpan(rowsOfOutcomes, s.partition, from, end)
	}
	audited := s.snap.audit[place]
	err := s.readAll(ctx, place, from, end, func(record *kgo.Record) error {
		if rows != nil {
			if err := rows.reach(ctx, record.Offset); err != nil {
				return err
			}
		}
		return s.takeOutcome(record, rows, audited)
	})
	if err != nil || rows == nil {
		return err
	}
	if err := rows.finish(ctx); err != nil {
		return err
	}
	s.counts.Rows.Outcomes = rows.rows
	s.counts.Rows.Lag += rows.lag
	return nil
}

func (s *deliveryScan) takeOutcome(record *kgo.Record, rows *span, audited int64) error {
	o, err := schemas.GlanceOutcome(record)
	if err != nil {
		if rows != nil {
			rows.mark(record.Offset, record.Timestamp, spanKnown)
		}
		if schemas.IsNewer(err) {
			s.note("outcomes of a version that is not known here, from %s/%d@%d on", record.Topic, record.Partition, record.Offset)
		}
		return nil // the audit sets it aside
	}
	flag := s.flag(o.ID)
	mine := s.cfg.Organization == "" || string(o.Organization) == s.cfg.Organization
	wanted := mine && (flag != nil && *flag&isScoped != 0 || flag == nil && s.snap.since == nil)
	refused := s.refusedRows.has(kafka.Place{Topic: record.Topic, Partition: record.Partition}, record.Offset)
	if rows != nil {
		if wanted && !refused {
			rows.mark(record.Offset, record.Timestamp, spanKnown|spanWanted)
		} else {
			rows.mark(record.Offset, record.Timestamp, spanKnown)
		}
	}
	if wanted {
		s.counts.Deliveries.Outcomes++
	}
	switch {
	case flag == nil:
		s.takeForeignOutcome(&o, record, mine)
	case *flag&isThere == 0:
		if mine {
			s.found.add(Finding{
				Kind: OutcomeWithoutDelivery, DeliveryID: o.ID.String(), Organization: string(o.Organization),
				Topic: record.Topic, Partition: record.Partition, Offset: record.Offset,
				Expected: fmt.Sprintf("a delivery at %s/%d@%d", s.place.Topic, o.ID.Partition, o.ID.Offset), Found: "none",
			})
		}
	case o.Ends():
		s.takeEnd(&o, flag, record, record.Offset < audited && !refused)
	}
	return nil
}

// takeForeignOutcome takes an outcome of a delivery that this scan does not hold.
func (s *deliveryScan) takeForeignOutcome(o *schemas.OutcomeGlance, record *kgo.Record, mine bool) {
	if _, asked := s.older[o.ID.Offset]; asked && o.ID.Topic == s.id && o.ID.Partition == s.partition && o.Ends() {
		s.older[o.ID.Offset] |= isEnded
	}
	// Of an older log of deliveries, or of before what is read, nothing can be said.
	behind := o.ID.Partition == s.partition && o.ID.Offset >= s.from+int64(len(s.flags))
	if !mine || o.ID.Topic != s.id || o.ID.Partition == s.partition && !behind {
		return
	}
	found := "a delivery of another partition: its webhook is not with one sender"
	if behind {
		found = "none: the log ends before"
	}
	s.found.add(Finding{
		Kind: OutcomeWithoutDelivery, DeliveryID: o.ID.String(), Organization: string(o.Organization),
		Topic: record.Topic, Partition: record.Partition, Offset: record.Offset,
		Expected: fmt.Sprintf("a delivery in %s/%d", s.place.Topic, s.partition), Found: found,
	})
}

func (s *deliveryScan) takeEnd(o *schemas.OutcomeGlance, flag *byte, record *kgo.Record, audited bool) {
	switch {
	case *flag&isEnded != 0:
		if *flag&isScoped != 0 {
			s.found.add(Finding{
				Kind: TwoEnds, DeliveryID: o.ID.String(), Organization: string(o.Organization),
				Topic: record.Topic, Partition: record.Partition, Offset: record.Offset,
				Expected: "one end", Found: "a further one: " + string(o.Result),
			})
		}
		return
	case s.mark.Live(o.ID.Offset):
		s.oddOne(flag)
	}
	*flag |= isEnded
	if audited {
		*flag |= isAudited
	}
	if *flag&isScoped != 0 {
		s.counts.Deliveries.Ended[string(o.Result)]++
	}
}

func (s *deliveryScan) oddOne(flag *byte) {
	if *flag&isOdd == 0 {
		*flag |= isOdd
		s.odd++
	}
}

// readWaiting learns which deliveries wait.
func (s *deliveryScan) readWaiting(ctx context.Context) error {
	for _, topic := range s.snap.topics.Waiting() {
		where := strings.TrimPrefix(topic, s.snap.topics.Deliveries+".")
		err := s.eachWaiting(ctx, topic, s.snap.marks, func(id schemas.DeliveryID, record *kgo.Record) {
			s.takeWaiting(id, record, where)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// eachWaiting gives each record of a topic that has work left where marks say the senders are.
func (s *deliveryScan) eachWaiting(ctx context.Context, topic string, marks map[kafka.Place]schemas.Mark, each func(schemas.DeliveryID, *kgo.Record)) error {
	place := kafka.Place{Topic: topic, Partition: s.partition}
	mark := marks[place]
	return s.readAll(ctx, place, max(mark.Low(), s.snap.starts[place]), s.snap.ends[place], func(record *kgo.Record) error {
		if !mark.Live(record.Offset) {
			return nil
		}
		// A record without an id is no delivery's: the sender sets it aside.
		if id := schemas.GlanceDelivery(record).ID; id != (schemas.DeliveryID{}) {
			each(id, record)
		}
		return nil
	})
}

func (s *deliveryScan) takeWaiting(id schemas.DeliveryID, record *kgo.Record, where string) {
	flag := s.flag(id)
	g := schemas.GlanceDelivery(record)
	switch {
	case flag == nil:
		s.takeOlderWaiting(id, &g)
	case *flag&isThere == 0:
		if s.asked(&g, record) {
			s.found.add(Finding{
				Kind: WaitingWithoutDelivery, DeliveryID: id.String(), Organization: string(g.Organization), WebhookID: string(g.Webhook),
				Topic: record.Topic, Partition: record.Partition, Offset: record.Offset,
				Expected: fmt.Sprintf("a delivery at %s/%d@%d", s.place.Topic, id.Partition, id.Offset), Found: "none",
			})
		}
	default:
		if *flag&(isEnded|isWaiting) != 0 || s.mark.Live(id.Offset) {
			s.oddOne(flag)
		}
		if *flag&(isEnded|isWaiting) == 0 && *flag&isScoped != 0 {
			s.counts.Deliveries.Pending[where]++
		}
		*flag |= isWaiting
	}
}

// takeOlderWaiting takes a record that waits whose delivery's own is gone.
func (s *deliveryScan) takeOlderWaiting(id schemas.DeliveryID, g *schemas.Glance) {
	if id.Topic != s.id || id.Partition != s.partition || id.Offset >= s.from {
		return
	}
	if flag, asked := s.older[id.Offset]; asked {
		s.older[id.Offset] = flag | isWaiting
	}
	if s.snap.since == nil && (s.cfg.Organization == "" || string(g.Organization) == s.cfg.Organization) {
		s.counts.Deliveries.Older++
	}
}

// lookAgain looks once more at the deliveries that seemed to be in two places:
// between the moment and the logs' ends a sender may have gone on with them. If it
// has, it has committed that by now, as both are of one transaction.
func (s *deliveryScan) lookAgain(ctx context.Context) error {
	if s.odd == 0 {
		return nil
	}
	marks, err := kafka.Marks(ctx, s.cl, s.snap.topics)
	if err != nil {
		return err
	}
	waits := make([]byte, len(s.flags)) // how many records wait, up to two
	for _, topic := range s.snap.topics.Waiting() {
		err := s.eachWaiting(ctx, topic, marks, func(id schemas.DeliveryID, _ *kgo.Record) {
			if flag := s.flag(id); flag != nil {
				waits[id.Offset-s.from] = min(waits[id.Offset-s.from]+1, 2)
			}
		})
		if err != nil {
			return err
		}
	}
	mark := marks[s.place]
	for i, flag := range s.flags {
		if flag&isOdd == 0 || flag&isScoped == 0 {
			continue
		}
		n := int(waits[i])
		if mark.Live(s.from + int64(i)) {
			n++
		}
		switch {
		case flag&isEnded != 0 && n > 0:
			s.addDelivery(EndAndWaiting, i, "an end, or a record that waits", "both")
		case n > 1:
			s.addDelivery(TwoWaiting, i, "one record that waits", "more")
		}
	}
	return nil
}

func (s *deliveryScan) addDelivery(kind Kind, i int, expected, found string) {
	offset := s.from + int64(i)
	s.found.add(Finding{
		Kind: kind, DeliveryID: s.idOf(offset).String(), Topic: s.place.Topic, Partition: s.partition, Offset: offset,
		Expected: expected, Found: found,
	})
}

func (s *deliveryScan) idOf(offset int64) schemas.DeliveryID {
	return schemas.DeliveryID{Topic: s.id, Partition: s.partition, Offset: offset}
}

// judge goes through all deliveries: each is to have its end, or to wait.
func (s *deliveryScan) judge() {
	outcomes := kafka.Place{Topic: s.snap.topics.Outcomes, Partition: s.partition}
	endsExpire := s.snap.starts[outcomes] > 0
	audited := s.snap.audit[s.place]
	for i, flag := range s.flags {
		if flag&isScoped == 0 {
			if flag&hasRow != 0 && flag&isThere == 0 {
				s.addDelivery(DeliveryRowOnly, i, "a record", "none")
			}
			continue
		}
		offset := s.from + int64(i)
		s.counts.Deliveries.Total++
		isAside := s.setAside.has(s.place, offset)
		switch {
		case flag&(isEnded|isWaiting) != 0:
		case s.mark.Live(offset):
			s.counts.Deliveries.Pending["deliveries"]++
		case isAside:
			s.counts.Deliveries.SetAside++
		case endsExpire && flag&hasEndRow != 0:
			s.counts.Deliveries.Ended["expired"]++ // the log of outcomes no longer has it
		default:
			s.addDelivery(NoEnd, i, "an end, or a record that waits", "neither")
		}
		switch {
		case s.rows == nil || isAside || s.refusedRows.has(s.place, offset):
		case offset >= audited:
			s.counts.Rows.Lag++
		case offset >= s.rowsFrom[s.partition]:
			s.judgeRow(i, flag)
		}
	}
}

func (s *deliveryScan) judgeRow(i int, flag byte) {
	switch {
	case flag&hasRow == 0:
		s.addDelivery(DeliveryRowMissing, i, "a row in delivery_states", "none")
	case flag&isAudited != 0 && flag&hasEndRow == 0:
		s.addDelivery(DeliveryRowBehind, i, "a row in delivery_states with its end", "none with an end")
	}
}

// judgeOlder looks at deliveries that the log no longer has: what the audit knows
// to be unfinished has to wait, or to have ended since.
func (s *deliveryScan) judgeOlder() {
	for offset, flag := range s.older {
		if flag&(isEnded|isWaiting) == 0 {
			s.found.add(Finding{
				Kind: NoEnd, DeliveryID: s.idOf(offset).String(), Topic: s.place.Topic, Partition: s.partition, Offset: offset,
				Expected: "an end, or a record that waits (the audit knows of no end, and the log no longer has the delivery)", Found: "neither",
			})
		}
	}
}
