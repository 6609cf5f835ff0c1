package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/postrider/postrider/schemas"
)

// maxOutcomes is more than a schedule's 51 attempts have, each with up to 16 KiB of a response.
const maxOutcomes = 200

// StatusPending is the status of a delivery without a result; the others are schemas.Results.
const StatusPending = "pending"

// Delivery is a delivery in its latest state, as the API shows it.
type Delivery struct {
	ID           string `json:"id"`
	MessageID    string `json:"message_id"`
	Organization string `json:"organization"`
	Account      string `json:"account,omitempty"`
	WebhookID    string `json:"webhook_id"`
	EventID      string `json:"event_id"`
	Event        string `json:"event"`
	Cause        string `json:"cause"`
	// Status is the latest result, or StatusPending.
	Status   string `json:"status"`
	Reason   string `json:"reason,omitempty"`
	Attempts int    `json:"attempts"`
	// StatusCode is that of the last answer; 0: none, or none to trust.
	StatusCode int       `json:"status_code,omitempty"`
	EventTime  time.Time `json:"event_time,omitzero"`
	AcceptedAt time.Time `json:"accepted_at,omitzero"`
	// RoutedAt is when the delivery was made, UpdatedAt the time of its latest result.
	RoutedAt      time.Time `json:"routed_at"`
	UpdatedAt     time.Time `json:"updated_at"`
	NextAttemptAt time.Time `json:"next_attempt_at,omitzero"`
}

// Ended reports whether the delivery has come to its one end.
func (d *Delivery) Ended() bool {
	switch schemas.Result(d.Status) {
	case schemas.ResultDelivered, schemas.ResultDead, schemas.ResultDiscarded:
		return true
	default:
		return false
	}
}

// Outcome is what an attempt, or the decision to make none, came to, as the API shows it.
type Outcome struct {
	Attempt         int       `json:"attempt"`
	StatusCode      int       `json:"status_code,omitempty"`
	Result          string    `json:"result"`
	Reason          string    `json:"reason,omitempty"`
	URL             string    `json:"url,omitempty"`
	WebhookRevision int64     `json:"webhook_revision"` // of the webhook that was in force
	StartedAt       time.Time `json:"started_at"`
	// Durations are in milliseconds. Those of steps that were not taken are left out:
	// an attempt on a connection that was there has no DNS, connect and TLS.
	DurationMS    float64   `json:"duration_ms"`
	DNSMS         float64   `json:"dns_ms,omitempty"`
	ConnectMS     float64   `json:"connect_ms,omitempty"`
	TLSMS         float64   `json:"tls_ms,omitempty"`
	FirstByteMS   float64   `json:"first_byte_ms,omitempty"`
	NextAttemptAt time.Time `json:"next_attempt_at,omitzero"`
	ResponseBytes int64     `json:"response_bytes,omitempty"`
	// ResponseHead and ResponseBody are the target's words, for who may read payloads.
	ResponseHead string `json:"response_head,omitempty"`
	ResponseBody []byte `json:"response_body,omitempty"`
	// Sender is the instance that made the attempt.
	Sender string `json:"sender"`
}

// Filter says which deliveries are meant; what is empty does not narrow it.
type Filter struct {
	Organization, Account, WebhookID, EventID, Event, Status string
	// Since and Until bound the time of the latest result: from Since on, and before Until.
	Since, Until time.Time
	// RoutedBefore leaves out what was made at that time or later.
	RoutedBefore time.Time
}

func (q *query) filter(f Filter) {
	q.andText("organization", f.Organization)
	q.andText("account", f.Account)
	q.andText("webhook_id", f.WebhookID)
	q.andText("event_id", f.EventID)
	q.andText("event", f.Event)
	q.andText("state", f.Status)
	q.andTime("updated_at >= ?", f.Since)
	q.andTime("updated_at < ?", f.Until)
	q.andTime("routed_at < ?", f.RoutedBefore)
}

// deliveriesQuery asks for deliveries in their latest state.
func deliveriesQuery(name, rest string) *query {
	return &query{
		name: name, from: "deliveries", rest: rest,
		columns: `delivery_id, message_id, organization, account, webhook_id, event_id, toString(event), toString(cause),
	toString(state), toString(reason), attempts, status_code, event_time, accepted_at, routed_at, updated_at, next_attempt_at`,
	}
}

func scanDelivery(rows driver.Rows, d *Delivery) error {
	var (
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
	return nil
}

// Deliveries implements Audit.
func (c *ClickHouse) Deliveries(ctx context.Context, f Filter, after Place, limit int) ([]Delivery, error) {
	q := deliveriesQuery("deliveries", fmt.Sprintf("ORDER BY routed_at DESC, delivery_id DESC LIMIT %d", limit))
	q.filter(f)
	if after.ID != "" {
		q.andTime("routed_at <= ?", after.At) // which an index has
		q.and("(routed_at, delivery_id) < (fromUnixTimestamp64Milli(?, 'UTC'), ?)", after.At.UnixMilli(), after.ID)
	}
	return list(ctx, c, q, scanDelivery)
}

// ExportDeliveries implements Audit.
func (c *ClickHouse) ExportDeliveries(ctx context.Context, f Filter) (Rows[Delivery], error) {
	return export(ctx, c, func(after *Delivery) *query {
		q := deliveriesQuery("deliveries_export", "ORDER BY organization, webhook_id, delivery_id")
		q.filter(f)
		if after != nil {
			q.and("(organization, webhook_id, delivery_id) > (?, ?, ?)", after.Organization, after.WebhookID, after.ID)
		}
		return q
	}, scanDelivery)
}

// Ended implements Audit.
func (c *ClickHouse) Ended(ctx context.Context, f Filter, after Place, limit int) ([]Delivery, error) {
	q := deliveriesQuery("ended", fmt.Sprintf("ORDER BY updated_at, delivery_id LIMIT %d", limit))
	q.filter(f)
	if after.ID != "" {
		q.and("(updated_at, delivery_id) > (fromUnixTimestamp64Milli(?, 'UTC'), ?)", after.At.UnixMilli(), after.ID)
	}
	return list(ctx, c, q, scanDelivery)
}

// Count implements Audit.
func (c *ClickHouse) Count(ctx context.Context, f Filter) (int, error) {
	q := &query{name: "count", columns: "count()", from: "deliveries"}
	q.filter(f)
	var n uint64
	err := c.ask(ctx, q, func(rows driver.Rows) error { return rows.Scan(&n) })
	return int(n), err
}

// Delivery implements Audit.
func (c *ClickHouse) Delivery(ctx context.Context, organization, id string) (Delivery, error) {
	q := deliveriesQuery("delivery", "LIMIT 1")
	q.and("delivery_id = ?", id)
	q.andText("organization", organization)
	found, err := list(ctx, c, q, scanDelivery)
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
		name: "outcomes", from: "outcomes",
		columns: `attempt, status_code, toString(result), toString(reason), url, webhook_revision, started_at,
			duration_ms, dns_ms, connect_ms, tls_ms, first_byte_ms, next_attempt_at,
			response_head, response_body, response_bytes, toString(sender)`,
		rest: fmt.Sprintf("ORDER BY offset LIMIT %d", maxOutcomes), // a delivery's are in one partition
	}
	q.andText("organization", d.Organization)
	q.andText("webhook_id", d.WebhookID)
	q.andText("delivery_id", d.ID)
	return list(ctx, c, q, scanOutcome)
}

func scanOutcome(rows driver.Rows, o *Outcome) error {
	var (
		attempt, statusCode                  uint16
		duration, dns, connect, tls, toFirst float32
		body                                 string
	)
	err := rows.Scan(&attempt, &statusCode, &o.Result, &o.Reason, &o.URL, &o.WebhookRevision, &o.StartedAt,
		&duration, &dns, &connect, &tls, &toFirst, &o.NextAttemptAt,
		&o.ResponseHead, &body, &o.ResponseBytes, &o.Sender)
	if err != nil {
		return err
	}
	o.Attempt, o.StatusCode = int(attempt), int(statusCode)
	o.DurationMS, o.DNSMS, o.ConnectMS, o.TLSMS, o.FirstByteMS = ms(duration), ms(dns), ms(connect), ms(tls), ms(toFirst)
	o.NextAttemptAt, o.ResponseBody = known(o.NextAttemptAt), []byte(body)
	return nil
}
