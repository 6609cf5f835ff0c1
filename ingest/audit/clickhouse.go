package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// maxQuery bounds a question, within the 5 s that any request may take.
	maxQuery = 4 * time.Second
	// maxExportQuery bounds one of an export's: where few rows match, it looks through many.
	maxExportQuery = time.Minute
	// maxExports run at once; each holds a connection, of ten, and a page of rows.
	maxExports = 4
	// exportRows are in a page: some 3 MiB of deliveries.
	exportRows = 5000
	// checkEvery is how often ClickHouse is asked whether it is there.
	checkEvery = 2 * time.Second
)

// ClickHouse is the Audit in ClickHouse.
type ClickHouse struct {
	conn     driver.Conn
	database string
	health   kafka.Reporter
	duration *prometheus.HistogramVec
	exports  chan struct{} // a place for each that runs
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
			Help:    "Of questions to ClickHouse, by what is asked and whether it was answered; of exports, until their first rows.",
			Buckets: []float64{.002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5},
		}, []string{"query", "result"}),
		exports: make(chan struct{}, maxExports),
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
	from    string // a table or view
	where   []string
	args    []any
	rest    string        // ORDER BY, LIMIT and the like
	most    time.Duration // maxQuery if 0
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

// text is the query in a database.
func (q *query) text(database string) string {
	where := ""
	if len(q.where) > 0 {
		where = " WHERE " + strings.Join(q.where, " AND ")
	}
	return "SELECT " + q.columns + " FROM " + database + "." + q.from + where + " " + q.rest
}

// readOnly are settings with which a query changes nothing and ends in time. All
// states of a delivery are in the partition of one month: none is looked for in others.
func readOnly(limit time.Duration) ch.Settings {
	return ch.Settings{
		"readonly": 2, "max_execution_time": int(limit / time.Second),
		"do_not_merge_across_partitions_select_final": 1,
	}
}

func (c *ClickHouse) failed(q *query, err error) error {
	return fmt.Errorf("asking ClickHouse for %s: %w: %w", q.name, ErrUnavailable, err)
}

func (c *ClickHouse) observe(q *query, start time.Time, err error) {
	result := "answered"
	if err != nil {
		result = "error"
	}
	c.duration.WithLabelValues(q.name, result).Observe(time.Since(start).Seconds())
}

// ask runs a query and hands each row to scan.
func (c *ClickHouse) ask(ctx context.Context, q *query, scan func(driver.Rows) error) (err error) {
	most := cmp.Or(q.most, maxQuery)
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	start := time.Now()
	defer func() {
		c.observe(q, start, err)
		if err != nil {
			err = c.failed(q, err)
		}
	}()
	rows, err := c.conn.Query(ch.Context(ctx, ch.WithSettings(readOnly(most))), q.text(c.database), q.args...)
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

// list runs a query and returns its rows.
func list[T any](ctx context.Context, c *ClickHouse, q *query, scan func(driver.Rows, *T) error) ([]T, error) {
	var found []T
	err := c.ask(ctx, q, func(rows driver.Rows) error {
		var row T
		if err := scan(rows, &row); err != nil {
			return err
		}
		found = append(found, row)
		return nil
	})
	return found, err
}

// export begins to read all rows, by pages in the order of their table: next makes
// the query for the page behind a row, nil for the first, which is a question like
// any. Of the others each is read to its end also when nobody wants it any more, as
// ClickHouse's library does not always outlive a query that is broken off.
func export[T any](ctx context.Context, c *ClickHouse, next func(after *T) *query, scan func(driver.Rows, *T) error) (Rows[T], error) {
	select {
	case c.exports <- struct{}{}:
	default:
		return nil, c.failed(next(nil), fmt.Errorf("%d exports run here already", maxExports))
	}
	e := &exported[T]{of: c, next: next, scan: scan}
	if err := e.read(ctx, next(nil)); err != nil {
		<-c.exports
		return nil, err
	}
	return e, nil
}

// exported are the rows of an export in ClickHouse.
type exported[T any] struct {
	of   *ClickHouse
	next func(after *T) *query
	scan func(driver.Rows, *T) error
	page []T // that was read, and not handed on
}

func (e *exported[T]) read(ctx context.Context, q *query) (err error) {
	q.rest += fmt.Sprintf(" LIMIT %d", exportRows)
	e.page, err = list(ctx, e.of, q, e.scan)
	return err
}

// Each implements Rows.
func (e *exported[T]) Each(ctx context.Context, fn func(row *T) error) error {
	defer func() { <-e.of.exports }()
	for {
		for i := range e.page {
			if err := fn(&e.page[i]); err != nil {
				return err
			}
		}
		if len(e.page) < exportRows {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		q := e.next(&e.page[exportRows-1])
		q.most = maxExportQuery
		if err := e.read(context.WithoutCancel(ctx), q); err != nil {
			return err
		}
	}
}

// known is a time, zero where the audit says 1970: it is not known.
func known(t time.Time) time.Time {
	if t.UnixMilli() == 0 {
		return time.Time{}
	}
	return t
}
