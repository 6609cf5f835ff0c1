package join

import (
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/router/table"
	"github.com/postrider/postrider/schemas"
)

// progress is how far a part has come: to an item, and into its fan-out.
type progress struct {
	item   int
	cursor cursor
	rest   []*table.Webhook // of the item, after the cursor; nil if not asked for yet
}

// limits end a transaction that has reached one of them.
type limits struct {
	records int
	bytes   int
}

// tally counts what a transaction did.
type tally struct {
	matched, unmatched, duplicate, rejected, deliveries int
}

// transaction writes records of a batch until it is full. It decides nothing else: what it calls is given to it.
type transaction struct {
	topics   schemas.Topics
	eventsID [16]byte
	limits   limits
	routedAt time.Time
	match    func(*item) []*table.Webhook // valid until the next call
	emit     func(*kgo.Record)

	records, bytes int
	moved          []movement
	tally          tally
}

// movement is what a transaction does to a part.
type movement struct {
	part *part
	to   progress
}

func (t *transaction) full() bool { return t.records >= t.limits.records || t.bytes >= t.limits.bytes }

// fill writes what is left of the batch, or as much as fits.
func (t *transaction) fill(b *batch) {
	for _, p := range b.parts {
		if p.at.item < len(p.items) && !t.full() {
			t.fillPart(p)
		}
	}
}

func (t *transaction) fillPart(p *part) {
	routed := schemas.Routed{EventsTopic: t.eventsID, Partition: p.number}
	to := p.at
	for to.item < len(p.items) && !t.full() {
		it := &p.items[to.item]
		if !t.route(it, &to) {
			break
		}
		routed.Entries = append(routed.Entries, it.entry)
		to = progress{item: to.item + 1}
	}
	if len(routed.Entries) > 0 {
		t.write(routed.Record(t.topics.Routed))
	}
	t.moved = append(t.moved, movement{p, to})
}

// route writes what becomes of one event, and says whether that is all of it. If it is not, to says how far it has come.
func (t *transaction) route(it *item, to *progress) bool {
	switch it.entry.Result {
	case schemas.RoutedRejected:
		t.tally.rejected++
		t.write(schemas.RejectedRecord(t.topics.Rejected, it.record, it.reason))
		return true
	case schemas.RoutedDuplicate:
		t.tally.duplicate++
		return true
	case schemas.RoutedMatched:
	}
	rest := to.rest
	if rest == nil {
		rest = to.cursor.rest(t.match(it))
	}
	written := t.deliver(it, rest)
	to.cursor.count += written
	if written < len(rest) {
		to.cursor.last = rest[written-1].ID
		to.rest = slices.Clone(rest[written:])
		return false
	}
	if it.entry.Webhooks = to.cursor.count; it.entry.Webhooks > 0 {
		t.tally.matched++
	} else {
		t.tally.unmatched++
	}
	return true
}

// deliver writes the event's deliveries to targets until the transaction is full, at least one, and returns how many. All of a format share one body.
func (t *transaction) deliver(it *item, targets []*table.Webhook) (written int) {
	if len(targets) == 0 {
		return 0
	}
	e := &it.event
	d := schemas.Delivery{
		EventID: e.ID, Event: e.Name, Organization: e.Organization, Account: e.Account,
		EventTime: e.Time, AcceptedAt: it.record.Timestamp, RoutedAt: t.routedAt,
		Cause: schemas.CauseEvent,
	}
	var plain, cloud []byte
	for written < len(targets) && !t.full() {
		to := targets[written]
		d.WebhookID, d.WebhookRevision, d.Format = to.ID, to.Revision, to.Format
		body := &plain
		if to.Format == schemas.FormatCloudEvents {
			body = &cloud
		}
		if *body == nil {
			*body = schemas.AppendFormatted(nil, to.Format, e)
		}
		d.Body = *body
		t.write(d.Record(t.topics.Deliveries))
		written++
	}
	t.tally.deliveries += written
	return written
}

func (t *transaction) write(r *kgo.Record) {
	t.records++
	t.bytes += schemas.RecordSize(r)
	t.emit(r)
}

// positions are where the partitions stand when the transaction has been committed.
func (t *transaction) positions() map[int32]position {
	positions := make(map[int32]position, len(t.moved))
	for _, m := range t.moved {
		positions[m.part.number] = m.part.position(m.to)
	}
	return positions
}

// position is where a part stands that has come as far as progress says.
func (p *part) position(at progress) position {
	if at.item > 0 && at.item == len(p.items) {
		return position{offset: p.items[at.item-1].next}
	}
	return position{offset: p.items[at.item].record.Offset, cursor: at.cursor}
}

// commit makes the movements permanent.
func (t *transaction) commit(limit int) {
	for _, m := range t.moved {
		p := m.part
		p.at, p.partition.at = m.to, p.position(m.to)
		if p.at.item == len(p.items) { // nothing is left that a rollback would have to find
			p.window.SetLimit(limit)
			p.window.Settle(p.items[len(p.items)-1].record.Timestamp)
		}
	}
}
