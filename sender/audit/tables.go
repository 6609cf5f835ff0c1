package audit

import (
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
)

// table writes one table's rows, column by column.
type table struct {
	name    string
	columns []string
	// fenced says that rows may stand in the table once only: the insert carries a
	// deadline, and is looked up where its answer is not known. The other table
	// takes a row any number of times.
	fenced bool

	count func(r *rows) int
	// places are the places of the rows, ascending.
	places func(r *rows) []place
	// drop removes the rows that stand in places.
	drop func(r *rows, places map[place]struct{})
	// part are some of the rows, from one number to before another, and of nothing else.
	part   func(r *rows, from, to int) rows
	append func(batch driver.Batch, r *rows) error
}

// tables lists all tables. A block's tableSets mean positions in it.
func tables() []table {
	return []table{
		newTable("outcomes", true, func(r *rows) *[]outcomeRow { return &r.outcomes }, outcomeColumns()),
		newTable("delivery_states", false, func(r *rows) *[]stateRow { return &r.states }, stateColumns()),
		newTable("event_log", true, func(r *rows) *[]eventRow { return &r.events }, eventColumns()),
		newTable("event_copies", true, func(r *rows) *[]copyRow { return &r.copies }, copyColumns()),
		newTable("changes", true, func(r *rows) *[]changeRow { return &r.changes }, changeColumns()),
		newTable("webhooks", true, func(r *rows) *[]webhookRow { return &r.webhooks }, webhookColumns()),
	}
}

// column takes one value out of each row.
type column[R any] struct {
	name   string
	append func(c driver.BatchColumn, rows []R) error
}

func col[R, T any](name string, value func(r *R) T) column[R] {
	return column[R]{name, func(c driver.BatchColumn, rows []R) error {
		values := make([]T, len(rows))
		for i := range rows {
			values[i] = value(&rows[i])
		}
		return c.Append(values)
	}}
}

// moment is a column of times; what the type cannot hold becomes 1970, like none.
func moment[R any](name string, value func(r *R) time.Time) column[R] {
	return col(name, func(r *R) time.Time {
		t := value(r)
		if t.Year() < 1970 || t.Year() > 2200 {
			return time.Unix(0, 0)
		}
		return t
	})
}

func newTable[R interface{ at() place }](name string, fenced bool, of func(r *rows) *[]R, columns []column[R]) table {
	columns = append(columns,
		col("topic_id", func(r *R) uuid.UUID { return (*r).at().topic }),
		col("partition", func(r *R) int32 { return (*r).at().partition }),
		col("offset", func(r *R) int64 { return (*r).at().offset }),
	)
	t := table{name: name, fenced: fenced}
	for _, c := range columns {
		t.columns = append(t.columns, c.name)
	}
	t.count = func(r *rows) int { return len(*of(r)) }
	t.places = func(r *rows) []place {
		places := make([]place, len(*of(r)))
		for i, row := range *of(r) {
			places[i] = row.at()
		}
		return places
	}
	t.drop = func(r *rows, places map[place]struct{}) {
		kept := (*of(r))[:0]
		for _, row := range *of(r) {
			if _, there := places[row.at()]; !there {
				kept = append(kept, row)
			}
		}
		*of(r) = kept
	}
	t.part = func(r *rows, from, to int) (some rows) {
		*of(&some) = (*of(r))[from:to:to]
		return some
	}
	t.append = func(batch driver.Batch, r *rows) error {
		for i, c := range columns {
			if err := c.append(batch.Column(i), *of(r)); err != nil {
				return fmt.Errorf("appending column %s of %s: %w", c.name, name, err)
			}
		}
		return nil
	}
	return t
}

func outcomeColumns() []column[outcomeRow] {
	type row = outcomeRow
	return []column[row]{
		col("organization", func(r *row) string { return r.Organization }),
		col("account", func(r *row) string { return r.Account }),
		col("webhook_id", func(r *row) string { return r.WebhookID }),
		col("webhook_revision", func(r *row) int64 { return r.WebhookRevision }),
		col("delivery_id", func(r *row) string { return r.DeliveryID.String() }),
		col("message_id", func(r *row) string { return r.MessageID }),
		col("event_id", func(r *row) string { return r.EventID }),
		col("event", func(r *row) string { return r.Event }),
		col("cause", func(r *row) string { return string(r.Cause) }),
		col("attempt", func(r *row) uint16 { return small(r.Attempt) }),
		col("status_code", func(r *row) uint16 { return small(r.StatusCode) }),
		col("result", func(r *row) string { return string(r.Result) }),
		col("reason", func(r *row) string { return r.Reason }),
		col("url", func(r *row) string { return r.URL }),
		moment("started_at", func(r *row) time.Time { return r.StartedAt }),
		col("duration_ms", func(r *row) float32 { return float32(r.DurationMS) }),
		col("dns_ms", func(r *row) float32 { return float32(r.DNSMS) }),
		col("connect_ms", func(r *row) float32 { return float32(r.ConnectMS) }),
		col("tls_ms", func(r *row) float32 { return float32(r.TLSMS) }),
		col("first_byte_ms", func(r *row) float32 { return float32(r.FirstByteMS) }),
		moment("next_attempt_at", func(r *row) time.Time { return r.NextAttemptAt }),
		moment("event_time", func(r *row) time.Time { return r.EventTime }),
		moment("accepted_at", func(r *row) time.Time { return r.AcceptedAt }),
		moment("routed_at", func(r *row) time.Time { return r.RoutedAt }),
		col("response_head", func(r *row) string { return r.ResponseHead }),
		col("response_body", func(r *row) []byte { return r.ResponseBody }),
		col("response_bytes", func(r *row) int64 { return r.ResponseBytes }),
		col("sender", func(r *row) string { return r.Sender }),
	}
}

func stateColumns() []column[stateRow] {
	type row = stateRow
	return []column[row]{
		col("organization", func(r *row) string { return r.organization }),
		col("account", func(r *row) string { return r.account }),
		col("webhook_id", func(r *row) string { return r.webhookID }),
		col("delivery_id", func(r *row) string { return r.deliveryID }),
		col("message_id", func(r *row) string { return r.messageID }),
		col("event_id", func(r *row) string { return r.eventID }),
		col("event", func(r *row) string { return r.event }),
		col("cause", func(r *row) string { return r.cause }),
		col("state", func(r *row) string { return r.state }),
		col("reason", func(r *row) string { return r.reason }),
		col("attempts", func(r *row) uint16 { return small(r.attempts) }),
		col("status_code", func(r *row) uint16 { return small(r.statusCode) }),
		moment("event_time", func(r *row) time.Time { return r.eventTime }),
		moment("accepted_at", func(r *row) time.Time { return r.acceptedAt }),
		moment("routed_at", func(r *row) time.Time { return r.routedAt }),
		moment("updated_at", func(r *row) time.Time { return r.updatedAt }),
		moment("next_attempt_at", func(r *row) time.Time { return r.nextAttemptAt }),
		col("version", func(r *row) uint64 { return r.version }),
	}
}

func eventColumns() []column[eventRow] {
	type row = eventRow
	return []column[row]{
		col("organization", func(r *row) string { return r.organization }),
		col("account", func(r *row) string { return r.account }),
		col("event_id", func(r *row) string { return r.eventID }),
		col("event", func(r *row) string { return r.event }),
		col("cause", func(r *row) string { return r.cause }),
		col("source", func(r *row) string { return r.source }),
		col("subject", func(r *row) string { return r.subject }),
		moment("event_time", func(r *row) time.Time { return r.eventTime }),
		moment("accepted_at", func(r *row) time.Time { return r.acceptedAt }),
		moment("routed_at", func(r *row) time.Time { return r.routedAt }),
		col("body", func(r *row) []byte { return r.body }),
		col("body_bytes", func(r *row) uint32 { return uint32(len(r.body)) }), //nolint:gosec // at most a little over 1 MiB
		col("matches", func(r *row) *uint32 { return r.matches }),
	}
}

func copyColumns() []column[copyRow] {
	type row = copyRow
	return []column[row]{
		col("organization", func(r *row) string { return r.organization }),
		col("account", func(r *row) string { return r.account }),
		col("event_id", func(r *row) string { return r.eventID }),
		col("event", func(r *row) string { return r.event }),
		col("result", func(r *row) string { return r.result }),
		moment("event_time", func(r *row) time.Time { return r.eventTime }),
		moment("accepted_at", func(r *row) time.Time { return r.acceptedAt }),
		moment("routed_at", func(r *row) time.Time { return r.routedAt }),
	}
}

// small is a number of a column of two bytes; what is over stays at its end.
func small(n int) uint16 {
	return uint16(min(max(n, 0), 1<<16-1))
}

func changeColumns() []column[changeRow] {
	type row = changeRow
	return []column[row]{
		col("organization", func(r *row) string { return r.Organization }),
		moment("at", func(r *row) time.Time { return r.At }),
		col("actor", func(r *row) string { return r.Actor }),
		col("action", func(r *row) string { return r.Action }),
		col("object", func(r *row) string { return r.Object }),
		col("object_id", func(r *row) string { return r.ObjectID }),
		col("request_id", func(r *row) string { return r.RequestID }),
		col("before", func(r *row) string { return string(r.Before) }),
		col("after", func(r *row) string { return string(r.After) }),
		col("error", func(r *row) string { return r.Error }),
	}
}

func webhookColumns() []column[webhookRow] {
	type row = webhookRow
	return []column[row]{
		col("organization", func(r *row) string { return r.Organization }),
		col("account", func(r *row) string { return r.Account }),
		col("webhook_id", func(r *row) string { return r.ID }),
		col("revision", func(r *row) int64 { return r.Revision }),
		col("generation", func(r *row) int64 { return r.Generation }),
		col("active", func(r *row) bool { return r.Active }),
		col("deleted", func(r *row) bool { return r.deleted }),
		col("url", func(r *row) string { return r.URL }),
		col("events", func(r *row) []string { return r.Events }),
		col("description", func(r *row) string { return r.Description }),
		col("actor", func(r *row) string { return r.actor }),
		moment("created_at", func(r *row) time.Time { return r.CreatedAt }),
		moment("changed_at", func(r *row) time.Time { return r.changedAt }),
	}
}
