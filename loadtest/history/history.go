// Package history provides years of what an audit may hold, made by ClickHouse
// itself in minutes, and holds what is asked of it to account: REST and SQL, on a
// real ClickHouse, with rows that are known.
package history

import (
	"fmt"
	"strings"
	"time"
)

// Size says how much there is.
type Size struct {
	// Deliveries each have an event of their own, two states and one outcome; every
	// hundredth is dead instead of delivered.
	Deliveries int
	// Changes are revisions of webhooks, every hundredth of them refused.
	Changes int
	// Webhooks share all of these, of Organizations organizations; the first has every tenth delivery more.
	Webhooks, Organizations int
	// Until is when the last was made; the first Days before.
	Until time.Time
	Days  int
}

// Organization is the name of one, from 0.
func Organization(n int) string { return fmt.Sprintf("org-%d", n) }

// WebhookID is a webhook of the organization n % Organizations.
func WebhookID(n int) string { return fmt.Sprintf("wh_%026d", n) }

// EventID is the event of the delivery n.
func EventID(n int) string { return fmt.Sprintf("evt_%026d", n) }

// Statements fill a migrated database, in the order in which rows would come.
func (s Size) Statements(database string) []string {
	deliveries, changes := s.rows(database, s.Deliveries, 10), s.rows(database, s.Changes, s.Changes)
	state := []string{
		"organization", "webhook_id", "delivery_id", "message_id", "event_id", "event", "cause='event'", "event_time=at", "accepted_at=at",
		"routed_at=at", "topic_id=toUUID('01010101-0101-0101-0101-010101010101')", "partition=p", "offset=n",
	}
	return []string{
		changes.insert("changes", "organization", "at", "actor=concat('key_', toString(n % 50))", "action='updated'", "object='webhook'", "object_id=webhook_id",
			"request_id=hex(n)", `before='{"active":true}'`, `after='{"active":false}'`, "error=if(dead, 'refused', '')", "offset=n"),
		changes.insert("webhooks", "organization", "webhook_id", "revision=n", "generation=1", "active=true", "url='https://example.com/hook'", "events=['*']",
			"created_at=at", "changed_at=at", "offset=n"),
		deliveries.insert("event_log", "organization", "event_id", "event", "cause='event'", "source='/clinic'", "event_time=at", "accepted_at=at", "routed_at=at",
			`body=concat('{"id":"', event_id, '","event":"', event, '","payload":{"n":', toString(n), '}}')`, "body_bytes=90", "matches=toUInt32(n % 1000 != 7)", "partition=p", "offset=n"),
		deliveries.insert("delivery_states", append(state, "state='pending'", "updated_at=at", "version=0")...),
		deliveries.insert("delivery_states", append(state, "state=if(dead, 'dead', 'delivered')", "reason=if(dead, 'status', '')", "attempts=1",
			"status_code=if(dead, 500, 200)", "updated_at=at + toIntervalMillisecond(20)", "version=n + 1")...),
		deliveries.insert("outcomes", "organization", "webhook_id", "webhook_revision=1", "delivery_id", "message_id", "event_id", "event", "cause='event'", "attempt=1",
			"status_code=if(dead, 500, 200)", "result=if(dead, 'dead', 'delivered')", "reason=if(dead, 'status', '')", "url='https://example.com/hook'",
			"started_at=at + toIntervalMillisecond(10)", "duration_ms", "first_byte_ms=duration_ms - 1", "event_time=at", "accepted_at=at", "routed_at=at",
			"response_head='HTTP/1.1 200 OK'", "sender=concat('sender-', toString(p % 3))", "partition=p", "offset=n"),
	}
}

// rows are n rows to choose columns of.
type rows struct {
	database, with, from string
}

// rows are n, of which the first webhook has every so manieth more than its share.
func (s Size) rows(database string, n, every int) rows {
	span := int64(s.Days) * 24 * time.Hour.Milliseconds()
	// base32 in ClickHouse has the letters first (RFC 4648, section 6), an id the digits (section 7).
	with := fmt.Sprintf(`WITH number AS n,
	if(n %% %[6]d = 0, 0, cityHash64(n) %% %[1]d) AS w, toInt32(w %% 24) AS p, concat('org-', toString(w %% %[2]d)) AS organization,
	concat('wh_', leftPad(toString(w), 26, '0')) AS webhook_id, concat('evt_', leftPad(toString(n), 26, '0')) AS event_id,
	concat('msg_', leftPad(toString(n), 26, '0')) AS message_id, concat('service-', toString(n %% 40), '.created') AS event,
	concat('dlv_', translate(trim(TRAILING '=' FROM base32Encode(concat(repeat('\1', 16), unhex(leftPad(hex(toUInt32(p)), 8, '0')),
		unhex(leftPad(hex(n), 16, '0'))))), 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567', '0123456789abcdefghijklmnopqrstuv')) AS delivery_id,
	fromUnixTimestamp64Milli(toInt64(%[3]d + intDiv(n * %[4]d, %[5]d)), 'UTC') AS at,
	toFloat32(5 + n %% 50) AS duration_ms, n %% 100 = 99 AS dead`,
		s.Webhooks, s.Organizations, s.Until.UnixMilli()-span, span, n, every)
	return rows{database, with, fmt.Sprintf(" FROM numbers(%d)", n)}
}

// insert fills a table: columns are names, or names with what they are.
func (r rows) insert(table string, columns ...string) string {
	var names, values []string
	for _, column := range columns {
		name, value, is := strings.Cut(column, "=")
		if !is {
			value = name
		}
		names, values = append(names, name), append(values, value+" AS _"+name)
	}
	return "INSERT INTO " + r.database + "." + table + " (" + strings.Join(names, ", ") + ")\n" + r.with + "\nSELECT " + strings.Join(values, ", ") + r.from
}
