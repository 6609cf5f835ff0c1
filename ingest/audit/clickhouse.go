package audit

import (
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
	// maxExport bounds an export, which whoever asked may stop at any time.
	maxExport = time.Hour
	// maxExports run at once; each holds a connection, of ten, and a block of rows.
	maxExports = 4
	// exportRows are in a block: some 4 MiB of deliveries.
	exportRows = 8192
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
	rest    string // ORDER BY, LIMIT and the like
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
	ctx, cancel := context.WithTimeout(ctx, maxQuery)
	defer cancel()
	start := time.Now()
	defer func() {
		c.observe(q, start, err)
		if err != nil {
			err = c.failed(q, err)
		}
	}()
	rows, err := c.conn.Query(ch.Context(ctx, ch.WithSettings(readOnly(maxQuery))), q.text(c.database), q.args...)
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

// export begins a query whose rows are handed on as they come. ctx holds until
// they have ended.
func export[T any](ctx context.Context, c *ClickHouse, q *query, scan func(driver.Rows, *T) error) (Rows[T], error) {
	select {
	case c.exports <- struct{}{}:
	default:
		return nil, c.failed(q, fmt.Errorf("%d exports run here already", maxExports))
	}
	settings := readOnly(maxExport)
	settings["max_block_size"], settings["max_threads"] = exportRows, 2
	start := time.Now()
	rows, err := c.conn.Query(ch.Context(ctx, ch.WithSettings(settings)), q.text(c.database), q.args...)
	c.observe(q, start, err)
	if err != nil {
		<-c.exports
		return nil, c.failed(q, err)
	}
	return &exported[T]{c, q, rows, scan}, nil
}

// exported are the rows of an export in ClickHouse.
type exported[T any] struct {
	of   *ClickHouse
	q    *query
	rows driver.Rows
	scan func(driver.Rows, *T) error
}

// Each implements Rows.
func (e *exported[T]) Each(fn func(row *T) error) (err error) {
	defer func() {
		if closing := e.rows.Close(); closing != nil && err == nil {
			err = e.of.failed(e.q, closing)
		}
		<-e.of.exports
	}()
	for e.rows.Next() {
		var row T
		if err := e.scan(e.rows, &row); err != nil {
			return e.of.failed(e.q, err)
		}
		if err := fn(&row); err != nil {
			return err
		}
	}
	if err := e.rows.Err(); err != nil {
		return e.of.failed(e.q, err)
	}
	return nil
}

// known is a time, zero where the audit says 1970: it is not known.
func known(t time.Time) time.Time {
	if t.UnixMilli() == 0 {
		return time.Time{}
	}
	return t
}
