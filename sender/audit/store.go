package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"github.com/postrider/postrider/schemas/clickhouse"
)

// store speaks to ClickHouse. Its methods may be called at once for different tables.
type store struct {
	conn     driver.Conn
	database string
	timeout  time.Duration // of an insert
	metrics  *metrics
}

// errUnknown says that an insert's rows may be in the table, or come yet.
var errUnknown = errors.New("answer not known")

// oldSchemaError says that the database must be migrated first.
type oldSchemaError struct {
	database  string
	has, need int
}

func (e *oldSchemaError) Error() string {
	return fmt.Sprintf("schema of ClickHouse database %s is version %d, this binary writes version %d: run postrider clickhouse migrate",
		e.database, e.has, e.need)
}

// checkSchema returns *oldSchemaError where the schema is older than this binary's.
func (s *store) checkSchema(ctx context.Context) error {
	version, err := clickhouse.Version(ctx, s.conn, s.database)
	if err != nil {
		return fmt.Errorf("checking ClickHouse's schema: %w", err)
	}
	if need := clickhouse.Latest(); version < need {
		return &oldSchemaError{s.database, version, need}
	}
	return nil
}

// queryPrefix begins the id of every insert; its deadline in milliseconds since
// 1970 follows, so that an insert that outlived it can be seen.
const queryPrefix = "postrider_audit"

// clock returns ClickHouse's time, and whether an insert whose deadline has
// passed is still at work there: its part may yet appear.
func (s *store) clock(ctx context.Context) (now time.Time, busy bool, err error) {
	var overdue uint64
	err = s.conn.QueryRow(ctx, `SELECT now64(3, 'UTC'), (SELECT count() FROM system.processes
		WHERE startsWith(query_id, '`+queryPrefix+`-') AND toInt64OrZero(splitByChar('-', query_id)[2]) <= toUnixTimestamp64Milli(now64(3)))`,
	).Scan(&now, &overdue)
	if err != nil {
		return time.Time{}, false, fmt.Errorf("asking ClickHouse for its time: %w", err)
	}
	return now, overdue > 0, nil
}

// insert sends one table's rows of some blocks as one insert, one block, one
// part. The rows are in when it returns nil, errUnknown says that nobody knows,
// and any other error that they are not.
func (s *store) insert(ctx context.Context, t table, blocks []*block, deadline time.Time) error {
	list := make([]bounds, len(blocks))
	count := 0
	for i, b := range blocks {
		list[i] = b.bounds
		count += t.count(&b.rows)
	}
	id := queryPrefix + "-" + strconv.FormatInt(deadline.UnixMilli(), 10) + "-" + strings.ReplaceAll(uuid.NewString(), "-", "")
	ctx = ch.Context(ctx, ch.WithQueryID(id), ch.WithSettings(ch.Settings{
		"insert_deduplicate":         1,
		"insert_deduplication_token": token(clickhouse.Latest(), t.name, list, count),
		// An asynchronous insert would answer before the rows are there.
		"async_insert": 0,
		// A writer that was stopped behind the header would be at work here until its
		// data came, which the deadline then refuses: half its time is enough to send.
		"receive_timeout": max(1, int(s.timeout/time.Second)/2),
		// Months of a table come from records' times: strange ones must not stop it.
		"max_partitions_per_insert_block": 0,
	}))
	columns := strings.Join(t.columns, ", ")
	if t.fenced {
		columns += ", insert_by"
	}
	batch, err := s.conn.PrepareBatch(ctx, "INSERT INTO "+s.database+"."+t.name+" ("+columns+")")
	if err != nil {
		return fmt.Errorf("beginning insert into %s: %w", t.name, err)
	}
	defer batch.Close() //nolint:errcheck // after Send it does nothing, and before it nothing has been sent
	for _, b := range blocks {
		if err := t.append(batch, &b.rows); err != nil {
			return fmt.Errorf("filling insert into %s: %w", t.name, err)
		}
	}
	if t.fenced {
		if err := batch.Column(len(t.columns)).Append(slices.Repeat([]time.Time{deadline}, count)); err != nil {
			return fmt.Errorf("filling insert into %s: %w", t.name, err)
		}
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("inserting %d rows into %s: %w: %w", count, t.name, errUnknown, err)
	}
	return nil
}

// dropPresent asks which of a block's rows the table has, and drops them from the block.
func (s *store) dropPresent(ctx context.Context, t table, b *block) error {
	places := t.places(&b.rows)
	if len(places) == 0 {
		return nil
	}
	// All places of a block's rows in one table are of one partition, in order.
	first, last := places[0], places[len(places)-1]
	where := " FROM " + s.database + "." + t.name + " WHERE topic_id = ? AND partition = ? AND offset >= ? AND offset <= ?"
	args := []any{uuid.UUID(first.topic).String(), first.partition, first.offset, last.offset}
	var found uint64
	if err := s.conn.QueryRow(ctx, "SELECT count()"+where, args...).Scan(&found); err != nil {
		return fmt.Errorf("looking up offsets %d to %d of partition %d in %s: %w", first.offset, last.offset, first.partition, t.name, err)
	}
	switch {
	case found == 0:
		s.metrics.lookups.WithLabelValues(t.name, "none").Inc()
		return nil
	case found == uint64(len(places)):
		s.metrics.lookups.WithLabelValues(t.name, "all").Inc()
		t.drop(&b.rows, placeSet(places))
		return nil
	}
	s.metrics.lookups.WithLabelValues(t.name, "some").Inc()
	present, err := s.offsets(ctx, "SELECT offset"+where, args)
	if err != nil {
		return fmt.Errorf("looking up offsets %d to %d of partition %d in %s: %w", first.offset, last.offset, first.partition, t.name, err)
	}
	there := make(map[place]struct{}, len(present))
	for _, offset := range present {
		there[place{first.topic, first.partition, offset}] = struct{}{}
	}
	t.drop(&b.rows, there)
	return nil
}

func placeSet(places []place) map[place]struct{} {
	set := make(map[place]struct{}, len(places))
	for _, p := range places {
		set[p] = struct{}{}
	}
	return set
}

func (s *store) offsets(ctx context.Context, query string, args []any) (offsets []int64, err error) {
	found, err := s.conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	for found.Next() {
		var offset int64
		if err := found.Scan(&offset); err != nil {
			return nil, err
		}
		offsets = append(offsets, offset)
	}
	return offsets, found.Err()
}

// answered reports whether an error is ClickHouse's own word: the query has ended.
func answered(err error) bool {
	var exception *ch.Exception
	return errors.As(err, &exception)
}
