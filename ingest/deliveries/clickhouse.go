package deliveries

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// maxQuery bounds a question, within the 5 s that any request may take.
	maxQuery = 4 * time.Second
	// maxOutcomes is more than a schedule's 51 attempts have, each with up to 16 KiB of a response.
	maxOutcomes = 200
	// maxEventBytes bounds the bodies that are read together: of one event there may be 1 MiB.
	maxEventBytes = 4 << 20
	// checkEvery is how often ClickHouse is asked whether it is there.
	checkEvery = 2 * time.Second
)

// ClickHouse is the Audit in ClickHouse, read through its documented views.
type ClickHouse struct {
	conn     driver.Conn
	database string
	health   kafka.Reporter
	duration *prometheus.HistogramVec
}

// Open returns the audit. It does not connect yet; Run says how it is.
func Open(cfg clickhouse.Config, health kafka.Reporter, metrics prometheus.Registerer) (*ClickHouse, error) {
	conn, err := cfg.Open()
	if err != nil {
		return nil, err
	}
	c := &ClickHouse{
		conn: conn, database: cfg.DatabaseName(), health: health,
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "postrider_ingest_audit_query_duration_seconds",
			Help:    "Of questions to ClickHouse, by what is asked and whether it was answered.",
			Buckets: []float64{.002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5},
		}, []string{"query", "result"}),
	}
	metrics.MustRegister(c.duration)
	return c, nil
}

// Run tells whether ClickHouse can be asked until ctx ends, then closes the connections.
func (c *ClickHouse) Run(ctx context.Context) error {
	defer c.conn.Close()
	for {
		err := c.check(ctx)
		if err == nil {
			c.health.Up()
		} else if ctx.Err() == nil {
			c.health.Down(err)
		}
		if !process.Pause(ctx, checkEvery) {
			return nil
		}
	}
}

func (c *ClickHouse) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, maxQuery)
	defer cancel()
	version, err := clickhouse.Version(ctx, c.conn, c.database)
	if err != nil {
		return fmt.Errorf("checking ClickHouse's schema: %w", err)
	}
	if need := clickhouse.Latest(); version < need {
		return fmt.Errorf("schema of ClickHouse database %s is version %d, this binary reads version %d: run postrider clickhouse migrate", c.database, version, need)
	}
	return nil
}

// query is a SELECT as it is put together.
type query struct {
	name    string // in metrics
	columns string
	view    string
	where   []string
	args    []any
	rest    string // ORDER BY and LIMIT
}

func (q *query) and(condition string, args ...any) {
	q.where = append(q.where, condition)
	q.args = append(q.args, args...)
}

// andTime adds a bound on a time, unless it is zero. Drivers bind times to seconds.
func (q *query) andTime(condition string, at time.Time) {
	if !at.IsZero() {
		q.and(strings.ReplaceAll(condition, "?", "fromUnixTimestamp64Milli(?, 'UTC')"), at.UnixMilli())
	}
}

func (q *query) andText(column, value string) {
	if value != "" {
		q.and(column+" = ?", value)
	}
}

func (q *query) filter(f Filter) {
	q.andText("organization", f.Organization)
	q.andText("webhook_id", f.WebhookID)
	q.andText("event", f.Event)
	q.andText("state", f.Status)
	q.andTime("updated_at >= ?", f.Since)
	q.andTime("updated_at < ?", f.Until)
	q.andTime("routed_at < ?", f.RoutedBefore)
}

// ask runs a query and hands each row to scan.
func (c *ClickHouse) ask(ctx context.Context, q *query, scan func(driver.Rows) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, maxQuery)
	defer cancel()
	start := time.Now()
	defer func() {
		result := "answered"
		if err != nil {
			result = "error"
			err = fmt.Errorf("asking ClickHouse for %s: %w: %w", q.name, ErrUnavailable, err)
		}
		c.duration.WithLabelValues(q.name, result).Observe(time.Since(start).Seconds())
	}()
	where := ""
	if len(q.where) > 0 {
		where = " WHERE " + strings.Join(q.where, " AND ")
	}
	text := "SELECT " + q.columns + " FROM " + c.database + "." + q.view + where + " " + q.rest
	rows, err := c.conn.Query(ch.Context(ctx, ch.WithSettings(ch.Settings{
		"readonly": 2, "max_execution_time": int(maxQuery / time.Second),
	})), text, q.args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

const deliveryColumns = `delivery_id, message_id, organization, account, webhook_id, event_id, toString(event), toString(cause),
	toString(state), toString(reason), attempts, status_code, event_time, accepted_at, routed_at, updated_at, next_attempt_at`

func (c *ClickHouse) deliveries(ctx context.Context, q *query) ([]Delivery, error) {
	q.columns, q.view = deliveryColumns, "deliveries"
	var found []Delivery
	err := c.ask(ctx, q, func(rows driver.Rows) error {
		var (
			d                    Delivery
			attempts, statusCode uint16
			next                 *time.Time
		)
		err := rows.Scan(&d.ID, &d.MessageID, &d.Organization, &d.Account, &d.WebhookID, &d.EventID, &d.Event, &d.Cause,
			&d.Status, &d.Reason, &attempts, &statusCode, &d.EventTime, &d.AcceptedAt, &d.RoutedAt, &d.UpdatedAt, &next)
		if err != nil {
			return err
		}
		d.Attempts, d.StatusCode = int(attempts), int(statusCode)
		d.EventTime, d.AcceptedAt = known(d.EventTime), known(d.AcceptedAt)
		if next != nil {
			d.NextAttemptAt = *next
		}
		found = append(found, d)
		return nil
	})
	return found, err
}

// known is a time, zero where the audit says 1970: it is not known.
func known(t time.Time) time.Time {
	if t.UnixMilli() == 0 {
		return time.Time{}
	}
	return t
}

// Deliveries implements Audit.
func (c *ClickHouse) Deliveries(ctx context.Context, f Filter, after Place, limit int) ([]Delivery, error) {
	q := &query{name: "deliveries", rest: fmt.Sprintf("ORDER BY routed_at DESC, delivery_id DESC LIMIT %d", limit)}
	q.filter(f)
	if after.ID != "" {
		q.andTime("routed_at <= ?", after.At) // by which months are left out
		q.and("(routed_at, delivery_id) < (fromUnixTimestamp64Milli(?, 'UTC'), ?)", after.At.UnixMilli(), after.ID)
	}
	return c.deliveries(ctx, q)
}

// Ended implements Audit.
func (c *ClickHouse) Ended(ctx context.Context, f Filter, after Place, limit int) ([]Delivery, error) {
	q := &query{name: "ended", rest: fmt.Sprintf("ORDER BY updated_at, delivery_id LIMIT %d", limit)}
	q.filter(f)
	if after.ID != "" {
		q.and("(updated_at, delivery_id) > (fromUnixTimestamp64Milli(?, 'UTC'), ?)", after.At.UnixMilli(), after.ID)
	}
	return c.deliveries(ctx, q)
}

// Count implements Audit.
func (c *ClickHouse) Count(ctx context.Context, f Filter) (int, error) {
	q := &query{name: "count", columns: "count()", view: "deliveries"}
	q.filter(f)
	var n uint64
	err := c.ask(ctx, q, func(rows driver.Rows) error { return rows.Scan(&n) })
	return int(n), err
}

// Delivery implements Audit.
func (c *ClickHouse) Delivery(ctx context.Context, organization, id string) (Delivery, error) {
	q := &query{name: "delivery", rest: "LIMIT 1"}
	q.and("delivery_id = ?", id)
	q.andText("organization", organization)
	found, err := c.deliveries(ctx, q)
	if err != nil {
		return Delivery{}, err
	}
	if len(found) == 0 {
		return Delivery{}, ErrNotFound
	}
	return found[0], nil
}

// Outcomes implements Audit.
func (c *ClickHouse) Outcomes(ctx context.Context, d *Delivery) ([]Outcome, error) {
	q := &query{
		name: "outcomes", view: "outcomes",
		columns: `attempt, status_code, toString(result), toString(reason), url, started_at, duration_ms, next_attempt_at,
			response_head, response_body, response_bytes`,
		rest: fmt.Sprintf("ORDER BY offset LIMIT %d", maxOutcomes), // a delivery's are in one partition
	}
	q.andText("organization", d.Organization)
	q.andText("webhook_id", d.WebhookID)
	q.andText("delivery_id", d.ID)
	var found []Outcome
	err := c.ask(ctx, q, func(rows driver.Rows) error {
		var (
			o                   Outcome
			attempt, statusCode uint16
			duration            float32
			body                string
		)
		err := rows.Scan(&attempt, &statusCode, &o.Result, &o.Reason, &o.URL, &o.StartedAt, &duration, &o.NextAttemptAt,
			&o.ResponseHead, &body, &o.ResponseBytes)
		if err != nil {
			return err
		}
		o.Attempt, o.StatusCode, o.DurationMS = int(attempt), int(statusCode), float64(duration)
		o.NextAttemptAt, o.ResponseBody = known(o.NextAttemptAt), []byte(body)
		found = append(found, o)
		return nil
	})
	return found, err
}

// eventKey finds an event of an organization: after the dedup window an id may come again.
type eventKey struct {
	id         string
	acceptedAt int64 // milliseconds
}

func keyOf(d *Delivery) eventKey { return eventKey{d.EventID, d.AcceptedAt.UnixMilli()} }

// eventsQuery asks for the events of deliveries.
func eventsQuery(name, columns string, of []Delivery) *query {
	q := &query{name: name, columns: columns, view: "events"}
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

// Events implements Audit.
func (c *ClickHouse) Events(ctx context.Context, of []Delivery) ([]*schemas.Event, error) {
	if len(of) == 0 {
		return nil, nil
	}
	sizes := map[eventKey]int{}
	err := c.ask(ctx, eventsQuery("event_sizes", "event_id, accepted_at, body_bytes", of), func(rows driver.Rows) error {
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
	found, err := c.events(ctx, of)
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

func (c *ClickHouse) events(ctx context.Context, of []Delivery) (map[eventKey]*schemas.Event, error) {
	found := map[eventKey]*schemas.Event{}
	const columns = "event_id, toString(event), toString(cause), organization, account, toString(source), subject, event_time, accepted_at, body"
	err := c.ask(ctx, eventsQuery("events", columns, of), func(rows driver.Rows) error {
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
