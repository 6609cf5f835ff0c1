package verify

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
)

// rows are the audit's tables.
type rows struct {
	conn     driver.Conn
	database string
	// keep is how long each table keeps its rows; what is older may be gone.
	keep map[string]time.Duration
}

// openRows connects to ClickHouse. Where it is away, the report says so.
func (r *run) openRows(ctx context.Context) {
	if r.cfg.LogOnly {
		r.note("the log against ClickHouse: it was not asked for")
		return
	}
	rows, err := newRows(ctx, r.cfg.ClickHouse)
	if err != nil {
		r.note("the log against ClickHouse: %v", err)
		return
	}
	r.rows = rows
	if r.rowsFrom, err = r.keptDeliveries(ctx); err != nil {
		r.note("the log against ClickHouse: %v", err)
		r.rows = nil
	}
}

// keptDeliveries looks for where rows of deliveries begin that are sure to be kept.
func (r *run) keptDeliveries(ctx context.Context) (map[int32]int64, error) {
	since := r.rows.kept("delivery_states", r.snap.at)
	from := make(map[int32]int64)
	if r.snap.at.Sub(since) > 2*schemas.DeliveriesRetention {
		return from, nil
	}
	at, err := kafka.OffsetsAt(ctx, r.cl, since, r.snap.topics.Deliveries)
	for place, offset := range at {
		if offset < 0 {
			offset = r.snap.ends[place]
		}
		from[place.Partition] = offset
	}
	return from, err //nolint:wrapcheck // it says what it did
}

func newRows(ctx context.Context, cfg clickhouse.Config) (*rows, error) {
	conn, err := cfg.Open()
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what it did
	}
	r := &rows{conn: conn, database: cfg.DatabaseName(), keep: make(map[string]time.Duration)}
	version, err := clickhouse.Version(ctx, conn, r.database)
	if err == nil && version < clickhouse.Latest() {
		err = fmt.Errorf("schema of database %s is version %d, not %d: %w", r.database, version, clickhouse.Latest(), errOldSchema)
	}
	if err == nil {
		err = r.readKeeping(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return r, nil
}

var errOldSchema = errors.New("run postrider clickhouse migrate")

func (r *rows) close() {
	_ = r.conn.Close() // nothing was written
}

// readKeeping learns how long rows are kept.
func (r *rows) readKeeping(ctx context.Context) error {
	pattern := regexp.MustCompile(`TTL inserted_at \+ toInterval(Day|Year)\((\d+)\)`)
	for _, table := range []string{"outcomes", "delivery_states", "event_log", "event_copies"} {
		var engine string
		err := r.conn.QueryRow(ctx, "SELECT engine_full FROM system.tables WHERE database = ? AND name = ?", r.database, table).Scan(&engine)
		if err != nil {
			return fmt.Errorf("asking how long %s keeps rows: %w", table, err)
		}
		if m := pattern.FindStringSubmatch(engine); m != nil {
			n, _ := strconv.Atoi(m[2]) // digits
			days := n
			if m[1] == "Year" {
				days = 365 * n
			}
			r.keep[table] = time.Duration(days) * 24 * time.Hour
		}
	}
	return nil
}

// kept says from when on a table has all rows.
func (r *rows) kept(table string, now time.Time) time.Time {
	if keep, limited := r.keep[table]; limited {
		return now.Add(-keep)
	}
	return time.Time{}
}

// stream calls each for every row of a query.
func (r *rows) stream(ctx context.Context, query string, args []any, each func(driver.Rows) error) (err error) {
	ctx = ch.Context(ctx, ch.WithSettings(ch.Settings{"max_block_size": 65_536, "max_threads": 2}))
	found, err := r.conn.Query(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("asking ClickHouse: %w", err)
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	for found.Next() {
		if err := each(found); err != nil {
			return fmt.Errorf("reading ClickHouse's answer: %w", err)
		}
	}
	if err := found.Err(); err != nil {
		return fmt.Errorf("reading ClickHouse's answer: %w", err)
	}
	return nil
}

// What a span knows of an offset.
const (
	spanKnown  byte = 1 << iota // a record
	spanWanted                  // that must have a row
	spanSeen                    // a row
)

// spanOffsets is how many offsets a span compares at once: a megabyte.
const spanOffsets = 1 << 20

// rowSource says which rows a topic's records make.
type rowSource struct {
	topic func(schemas.Topics) string
	// tables hold them; each record has a row in one.
	tables               []string
	missing, twice, only Kind
}

//nolint:gochecknoglobals // constants
var (
	rowsOfOutcomes = rowSource{
		topic: func(t schemas.Topics) string { return t.Outcomes }, tables: []string{"outcomes"},
		missing: OutcomeRowMissing, twice: OutcomeRowTwice, only: OutcomeRowOnly,
	}
	rowsOfEvents = rowSource{
		topic: func(t schemas.Topics) string { return t.Events }, tables: []string{"event_log", "event_copies"},
		missing: EventRowMissing, twice: EventRowTwice, only: EventRowOnly,
	}
)

// span compares a partition's records with their rows, by place, some offsets at a time.
type span struct {
	*run

	source  rowSource
	place   kafka.Place
	from    int64 // of flags
	end     int64 // of the partition
	audited int64 // the audit has passed what is before
	kept    time.Time
	flags   []byte
	rows    int64 // of ClickHouse
	lag     int64 // records that the audit has not come to
}

func (r *run) newSpan(source rowSource, partition int32, from, end int64) *span {
	place := kafka.Place{Topic: source.topic(r.snap.topics), Partition: partition}
	return &span{
		run: r, source: source, place: place, from: from, end: end, audited: max(r.snap.audit[place], 0),
		kept: r.rows.kept(source.tables[0], r.snap.at), flags: make([]byte, min(spanOffsets, max(end-from, 0))),
	}
}

// reach compares what lies before an offset that is about to be marked.
func (s *span) reach(ctx context.Context, offset int64) error {
	for offset >= s.from+int64(len(s.flags)) && len(s.flags) > 0 {
		if err := s.compare(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mark says what a record is.
func (s *span) mark(offset int64, at time.Time, flag byte) {
	if at.Before(s.kept) {
		flag &^= spanWanted
	}
	s.flags[offset-s.from] |= flag
	if offset >= s.audited && flag&spanWanted != 0 {
		s.lag++
	}
}

// finish compares what is left.
func (s *span) finish(ctx context.Context) error {
	for s.from < s.end {
		if err := s.compare(ctx); err != nil {
			return err
		}
	}
	return nil
}

// compare asks for the rows of the span, and moves on.
func (s *span) compare(ctx context.Context) error {
	end := min(s.from+int64(len(s.flags)), s.end, s.audited)
	if s.from < end {
		if err := s.compareRows(ctx, end); err != nil {
			return err
		}
	}
	for i, flag := range s.flags {
		if offset := s.from + int64(i); offset < end && flag&spanWanted != 0 && flag&spanSeen == 0 {
			s.add(s.source.missing, offset, "a row", "none")
		}
	}
	s.from += int64(len(s.flags))
	clear(s.flags)
	return nil
}

func (s *span) compareRows(ctx context.Context, end int64) error {
	query, args := "", []any(nil)
	for i, table := range s.source.tables {
		if i > 0 {
			query += " UNION ALL "
		}
		query += "SELECT offset FROM " + s.run.rows.database + "." + table + " WHERE topic_id = ? AND partition = ? AND offset >= ? AND offset < ?"
		args = append(args, uuid.UUID(s.snap.ids[s.place.Topic]).String(), s.place.Partition, s.from, end)
		if s.cfg.Organization != "" {
			query += " AND organization = ?"
			args = append(args, s.cfg.Organization)
		}
	}
	return s.run.rows.stream(ctx, query, args, func(found driver.Rows) error {
		var offset int64
		if err := found.Scan(&offset); err != nil {
			return err //nolint:wrapcheck // stream says what is read
		}
		s.rows++
		flag := &s.flags[offset-s.from]
		switch {
		case *flag&spanKnown == 0:
			s.add(s.source.only, offset, "a record", "none")
		case *flag&spanSeen != 0:
			s.add(s.source.twice, offset, "one row", "a further one")
		}
		*flag |= spanSeen
		return nil
	})
}

func (s *span) add(kind Kind, offset int64, expected, found string) {
	s.found.add(Finding{Kind: kind, Topic: s.place.Topic, Partition: s.place.Partition, Offset: offset, Expected: expected, Found: found})
}

// ended is what the audit's states say of a delivery that has ended.
const ended = "state IN ('delivered', 'dead', 'discarded')"

// stateSlack is by how much the record of a delivery may be older than the time in it.
const stateSlack = time.Hour

// readStates learns which deliveries of some partitions have rows.
func (r *run) readStates(ctx context.Context, group []*deliveryScan) error {
	scans := make(map[int32]*deliveryScan, len(group))
	partitions := make([]int32, len(group))
	var first time.Time
	for i, s := range group {
		scans[s.partition], partitions[i] = s, s.partition
		if first.IsZero() || !s.first.IsZero() && s.first.Before(first) {
			first = s.first
		}
	}
	if first.IsZero() {
		return nil // there are no deliveries
	}
	// The time leaves out months of before the log; what has none is in 1970.
	query := "SELECT delivery_id, toUInt8(" + ended + ") FROM " + r.rows.database +
		".delivery_states WHERE (routed_at >= ? OR routed_at = toDateTime64(0, 3, 'UTC')) AND partition IN (?)"
	args := []any{first.Add(-stateSlack), partitions}
	if r.cfg.Organization != "" {
		query += " AND organization = ?"
		args = append(args, r.cfg.Organization)
	}
	var text string
	var over uint8
	return r.rows.stream(ctx, query, args, func(found driver.Rows) error {
		if err := found.Scan(&text, &over); err != nil {
			return err //nolint:wrapcheck // stream says what is read
		}
		id, err := schemas.ParseDeliveryID(text)
		if err != nil {
			return err //nolint:wrapcheck // it says what it did
		}
		s := scans[id.Partition]
		if s == nil {
			return nil
		}
		if flag := s.flag(id); flag != nil {
			s.counts.Rows.Deliveries++
			*flag |= hasRow
			if over != 0 {
				*flag |= hasEndRow
			}
		}
		return nil
	})
}

// readPings compares the events of pings, which are in no other topic.
func (s *deliveryScan) readPings(ctx context.Context) error {
	if len(s.pings) == 0 || s.rows == nil {
		return nil
	}
	end := min(s.from+int64(len(s.flags)), max(s.snap.audit[s.place], 0))
	there := make(map[int64]int)
	query := "SELECT offset FROM " + s.rows.database + ".event_log WHERE topic_id = ? AND partition = ? AND offset >= ? AND offset < ?"
	err := s.rows.stream(ctx, query, []any{uuid.UUID(s.id).String(), s.partition, s.from, end}, func(found driver.Rows) error {
		var offset int64
		err := found.Scan(&offset)
		there[offset]++
		return err //nolint:wrapcheck // stream says what is read
	})
	if err != nil {
		return err
	}
	for _, offset := range s.pings {
		aside := s.setAside.has(s.place, offset) || s.refusedRows.has(s.place, offset)
		switch n := there[offset]; {
		case offset >= end || aside:
		case n == 0:
			s.addDelivery(EventRowMissing, int(offset-s.from), "a row in event_log", "none")
		case n > 1:
			s.addDelivery(EventRowTwice, int(offset-s.from), "one row in event_log", strconv.Itoa(n))
		}
	}
	return nil
}

// readOlder learns which deliveries of before the log the audit knows to be unfinished.
func (s *deliveryScan) readOlder(ctx context.Context) error {
	if s.rows == nil || s.snap.starts[s.place] == 0 || s.from > s.snap.starts[s.place] {
		return nil
	}
	query := "SELECT delivery_id, accepted_at, routed_at FROM " + s.rows.database + ".delivery_states FINAL WHERE partition = ? AND delivery_id >= ? AND delivery_id < ? AND NOT " + ended
	args := []any{s.partition, s.idOf(0).String(), s.idOf(s.from).String()}
	if s.cfg.Organization != "" {
		query += " AND organization = ?"
		args = append(args, s.cfg.Organization)
	}
	return s.rows.stream(ctx, query, args, func(found driver.Rows) error {
		var text string
		var accepted, routed time.Time
		if err := found.Scan(&text, &accepted, &routed); err != nil {
			return err //nolint:wrapcheck // stream says what is read
		}
		if accepted.Unix() == 0 {
			accepted = routed
		}
		id, err := schemas.ParseDeliveryID(text)
		if err == nil && s.within(accepted) {
			s.older[id.Offset] = 0
		}
		return err //nolint:wrapcheck // it says what it did
	})
}
