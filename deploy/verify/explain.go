package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// explainAtOnce is about how many events are held to find those that do not balance.
const explainAtOnce = 1_000_000

// explain finds the events of the cells that do not balance, by reading once more.
func (r *run) explain(ctx context.Context) error {
	for _, t := range r.partial {
		if t.made < t.promised {
			r.differs(t)
		}
	}
	bad := r.sums.unbalanced()
	events := max(r.counts.Events.Total, r.counts.Deliveries.Total)
	atOnce := int(max(1, explainAtOnce*cells/max(events, 1)))
	for group := range slices.Chunk(bad, min(atOnce, cells)) {
		if err := r.explainCells(ctx, group); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) explainCells(ctx context.Context, group []int) error {
	var asked [cells]bool
	for _, cell := range group {
		asked[cell] = true
	}
	var mu sync.Mutex
	tallies := make(map[hash]*tally)
	of := func(h hash) *tally {
		if tallies[h] == nil {
			tallies[h] = &tally{}
		}
		return tallies[h]
	}
	promised := func(h hash, n int64, event offsetAt) {
		if !asked[cellOf(h)] {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		t := of(h)
		t.promised += n
		t.event = event
	}
	err := r.each(ctx, r.snap.events, func(ctx context.Context, partition int32) error {
		scan := r.newEventScan(partition)
		scan.promise = promised
		return scan.read(ctx)
	})
	if err != nil {
		return err
	}
	err = r.each(ctx, r.snap.deliveries, func(ctx context.Context, partition int32) error {
		s := &deliveryScan{run: r, partition: partition, place: kafka.Place{Topic: r.snap.topics.Deliveries, Partition: partition}}
		take := s.balancer(func(h hash, offset int64) {
			if !asked[cellOf(h)] {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			t := of(h)
			t.made++
			t.delivery = offsetAt{partition, offset}
		})
		return r.readAll(ctx, s.place, r.snap.from(s.place), r.snap.ends[s.place], func(record *kgo.Record) error {
			g := schemas.GlanceDelivery(record)
			take(&g, record.Offset)
			return nil
		})
	})
	for _, t := range tallies {
		if t.promised != t.made {
			r.differs(t)
		}
	}
	return err
}

// differs adds the finding of an event that has other deliveries than promised.
func (r *run) differs(t *tally) {
	f := Finding{
		Kind:     DeliveriesDiffer,
		Expected: fmt.Sprintf("%d deliveries, as %s says", t.promised, r.snap.topics.Routed), Found: fmt.Sprintf("%d", t.made),
	}
	if t.promised > 0 {
		f.Topic, f.Partition, f.Offset = r.snap.topics.Events, t.event.partition, t.event.offset
	} else {
		f.Topic, f.Partition, f.Offset = r.snap.topics.Deliveries, t.delivery.partition, t.delivery.offset
		f.DeliveryID = schemas.DeliveryID{Topic: r.snap.ids[f.Topic], Partition: f.Partition, Offset: f.Offset}.String()
	}
	r.found.add(f)
}

// describe says of the listed findings whose they are, as far as the log tells.
func (r *run) describe(ctx context.Context) error {
	topics := r.snap.topics
	for i := range r.found.list {
		f := &r.found.list[i]
		var err error
		switch f.Topic {
		case topics.Events:
			err = r.describeAt(ctx, f, kafka.Place{Topic: f.Topic, Partition: f.Partition}, f.Offset, describeEvent)
		case topics.Deliveries:
			err = r.describeAt(ctx, f, kafka.Place{Topic: f.Topic, Partition: f.Partition}, f.Offset, describeDelivery)
		case topics.Outcomes:
			err = r.describeAt(ctx, f, kafka.Place{Topic: f.Topic, Partition: f.Partition}, f.Offset, describeOutcome)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) describeAt(ctx context.Context, f *Finding, place kafka.Place, offset int64, by func(*Finding, *kgo.Record)) error {
	record, err := r.firstOf(ctx, place, offset, offset+1)
	if err == nil && record != nil {
		by(f, record)
	}
	return err
}

func describeEvent(f *Finding, record *kgo.Record) {
	if e, err := schemas.DecodeEvent(record); err == nil {
		f.EventID, f.Organization = e.ID, e.Organization
	}
}

func describeDelivery(f *Finding, record *kgo.Record) {
	g := schemas.GlanceDelivery(record)
	f.EventID, f.Organization, f.WebhookID = string(g.EventID), string(g.Organization), string(g.Webhook)
}

func describeOutcome(f *Finding, record *kgo.Record) {
	if o, err := schemas.DecodeOutcome(record); err == nil {
		f.DeliveryID, f.EventID, f.Organization, f.WebhookID = o.DeliveryID.String(), o.EventID, o.Organization, o.WebhookID
	}
}

// checkBeyondHorizon balances, in ClickHouse, the events of which routed says
// nothing any more. Sums find the cells that do not balance, as in the log.
func (r *run) checkBeyondHorizon(ctx context.Context) error {
	if r.horizon.IsZero() {
		return nil
	}
	if r.rows == nil {
		r.note("the deliveries of events accepted up to %s: routed has expired, and ClickHouse was not asked", r.horizon.Format("2006-01-02T15:04:05Z07:00"))
		return nil
	}
	if at, behind := r.auditBehind(ctx); behind {
		r.note("the deliveries of events accepted up to %s: the audit is behind at %s", r.horizon.Format("2006-01-02T15:04:05Z07:00"), at)
		return nil
	}
	where, args := r.beyond()
	sums := make(map[uint16]uint64)
	add := func(sign uint64) func(driver.Rows) error {
		return func(found driver.Rows) error {
			var cell uint16
			var sum uint64
			err := found.Scan(&cell, &sum)
			sums[cell] += sign * sum
			return err //nolint:wrapcheck // stream says what is read
		}
	}
	const h = "cityHash64(organization, event_id)"
	db := r.rows.database
	err := errors.Join(
		r.rows.stream(ctx, "SELECT toUInt16("+h+" % 4096) AS cell, sum("+h+" * assumeNotNull(matches)) FROM "+db+".event_log WHERE cause = 'event' AND matches IS NOT NULL AND "+where+" GROUP BY cell", args, add(1)),
		r.rows.stream(ctx, "SELECT toUInt16("+h+" % 4096) AS cell, sum("+h+") FROM "+db+".delivery_states FINAL WHERE cause = 'event' AND "+where+" GROUP BY cell", args, add(^uint64(0))),
	)
	if err != nil {
		return err
	}
	var bad []string
	for cell, sum := range sums {
		if sum != 0 {
			bad = append(bad, fmt.Sprint(cell))
		}
	}
	slices.Sort(bad)
	for group := range slices.Chunk(bad, 64) {
		if err := r.explainBeyond(ctx, strings.Join(group, ", "), where, args); err != nil {
			return err
		}
	}
	return nil
}

// beyond is what of ClickHouse's rows is looked at.
func (r *run) beyond() (where string, args []any) {
	const moment = "fromUnixTimestamp64Milli(toInt64(?), 'UTC')" // a time itself would be cut to its second
	where, args = "accepted_at <= "+moment, []any{r.horizon.UnixMilli()}
	if !r.cfg.Since.IsZero() {
		where += " AND accepted_at >= " + moment
		args = append(args, r.cfg.Since.UnixMilli())
	}
	if !r.cfg.Until.IsZero() {
		where += " AND accepted_at < " + moment
		args = append(args, r.cfg.Until.UnixMilli())
	}
	if r.cfg.Organization != "" {
		where += " AND organization = ?"
		args = append(args, r.cfg.Organization)
	}
	return where, args
}

// auditBehind says whether the audit lacks deliveries of before the horizon, and where.
func (r *run) auditBehind(ctx context.Context) (string, bool) {
	for p := range r.snap.deliveries {
		place := kafka.Place{Topic: r.snap.topics.Deliveries, Partition: p}
		next, err := r.firstOf(ctx, place, max(r.snap.audit[place], r.snap.starts[place]), r.snap.ends[place])
		if err != nil || next != nil && !next.Timestamp.After(r.horizon.Add(sinceSlack)) {
			return fmt.Sprintf("%s/%d@%d", place.Topic, p, r.snap.audit[place]), true
		}
	}
	return "", false
}

// explainBeyond finds the events of some cells whose deliveries differ. Of an event
// with a row that does not know its matches nothing can be said.
func (r *run) explainBeyond(ctx context.Context, group, where string, args []any) error {
	const h = "cityHash64(organization, event_id)"
	db := r.rows.database
	query := `SELECT organization, event_id, sum(promised), sum(made), max(unknown), any(part), any(off) FROM (
		SELECT organization, event_id, toInt64(ifNull(matches, 0)) AS promised, toInt64(0) AS made, toUInt8(matches IS NULL) AS unknown, partition AS part, offset AS off
		FROM ` + db + `.event_log WHERE cause = 'event' AND ` + where + ` AND ` + h + ` % 4096 IN (` + group + `)
		UNION ALL
		SELECT organization, event_id, toInt64(0), toInt64(1), toUInt8(0), partition, offset
		FROM ` + db + `.delivery_states FINAL WHERE cause = 'event' AND ` + where + ` AND ` + h + ` % 4096 IN (` + group + `)
	) GROUP BY organization, event_id HAVING sum(promised) != sum(made) AND max(unknown) = 0`
	return r.rows.stream(ctx, query, append(slices.Clone(args), args...), func(found driver.Rows) error {
		f := Finding{Kind: DeliveriesDiffer, Topic: r.snap.topics.Events}
		var promised, made int64
		var unknown uint8
		err := found.Scan(&f.Organization, &f.EventID, &promised, &made, &unknown, &f.Partition, &f.Offset)
		f.Expected, f.Found = fmt.Sprintf("%d deliveries, as event_log says", promised), fmt.Sprintf("%d in delivery_states", made)
		r.found.add(f)
		return err //nolint:wrapcheck // stream says what is read
	})
}
