package audit

import (
	"context"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/postrider/postrider/schemas"
)

// maxEventBytes bounds the bodies that are read together: of one event there may be 1 MiB.
const maxEventBytes = 4 << 20

// eventKey finds an event of an organization: after the dedup window an id may come again.
type eventKey struct {
	id         string
	acceptedAt int64 // milliseconds
}

func keyOf(d *Delivery) eventKey { return eventKey{d.EventID, d.AcceptedAt.UnixMilli()} }

// bodiesQuery asks for the events of deliveries.
func bodiesQuery(name, columns string, of []Delivery) *query {
	q := &query{name: name, columns: columns, from: "event_log"}
	ids := make([]string, len(of))
	from, to := of[0].AcceptedAt, of[0].AcceptedAt
	for i := range of {
		ids[i] = of[i].EventID
		if at := of[i].AcceptedAt; at.Before(from) {
			from = at
		} else if at.After(to) {
			to = at
		}
	}
	q.and("organization = ?", of[0].Organization)
	q.andTime("accepted_at >= ?", from) // the table's order
	q.andTime("accepted_at <= ?", to)
	q.and("event_id IN (?)", ids)
	return q
}

// EventsOf implements Audit.
func (c *ClickHouse) EventsOf(ctx context.Context, of []Delivery) ([]*schemas.Event, error) {
	if len(of) == 0 {
		return nil, nil
	}
	sizes := map[eventKey]int{}
	err := c.ask(ctx, bodiesQuery("event_sizes", "event_id, accepted_at, body_bytes", of), func(rows driver.Rows) error {
		var (
			id   string
			at   time.Time
			size uint32
		)
		if err := rows.Scan(&id, &at, &size); err != nil {
			return err
		}
		sizes[eventKey{id, at.UnixMilli()}] = int(size)
		return nil
	})
	if err != nil {
		return nil, err
	}
	of = of[:fitting(of, sizes)]
	found, err := c.kept(ctx, of)
	if err != nil {
		return nil, err
	}
	events := make([]*schemas.Event, len(of))
	for i := range of {
		events[i] = found[keyOf(&of[i])]
	}
	return events, nil
}

// fitting returns how many deliveries, at least one, have bodies that are not too large together.
func fitting(of []Delivery, sizes map[eventKey]int) int {
	left := maxEventBytes
	for i := range of {
		if left -= sizes[keyOf(&of[i])]; left < 0 && i > 0 {
			return i
		}
	}
	return len(of)
}

// kept returns the events of deliveries whose bodies are kept.
func (c *ClickHouse) kept(ctx context.Context, of []Delivery) (map[eventKey]*schemas.Event, error) {
	found := map[eventKey]*schemas.Event{}
	const columns = "event_id, toString(event), toString(cause), organization, account, toString(source), subject, event_time, accepted_at, body"
	err := c.ask(ctx, bodiesQuery("bodies", columns, of), func(rows driver.Rows) error {
		var (
			e          schemas.Event
			cause      string
			acceptedAt time.Time
			body       string
		)
		if err := rows.Scan(&e.ID, &e.Name, &cause, &e.Organization, &e.Account, &e.Source, &e.Subject, &e.Time, &acceptedAt, &body); err != nil {
			return err
		}
		e.Time = known(e.Time)
		if body == "" {
			return nil // its time is over
		}
		// A ping has no payload, and its body is that of its webhook's format.
		payload, ok := schemas.CutPayload([]byte(body), &e)
		if !ok && cause != string(schemas.CausePing) {
			return nil
		}
		e.Payload = payload
		found[eventKey{e.ID, acceptedAt.UnixMilli()}] = &e
		return nil
	})
	return found, err
}
