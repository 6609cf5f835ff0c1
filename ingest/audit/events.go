package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"github.com/postrider/postrider/schemas"
)

// Event is an event that was routed, as the API shows it.
type Event struct {
	ID           string `json:"id"`
	Event        string `json:"event"`
	Organization string `json:"organization"`
	Account      string `json:"account,omitempty"`
	// Cause is ping for a test event, else event.
	Cause   string `json:"cause"`
	Source  string `json:"source"`
	Subject string `json:"subject,omitempty"`
	// Time is the producer's, AcceptedAt Kafka's, RoutedAt the router's.
	Time       time.Time `json:"time,omitzero"`
	AcceptedAt time.Time `json:"accepted_at"`
	RoutedAt   time.Time `json:"routed_at,omitzero"`
	// Matches counts the webhooks it was routed to; nil: not known (any more).
	Matches *int `json:"matches,omitempty"`
	// Copies counts how often it came again.
	Copies int `json:"copies"`
	// BodyBytes is the length of the contract's body, payload included.
	BodyBytes int `json:"body_bytes"`
	// Payload is shown of one event, to who may read payloads, while it is kept.
	Payload json.RawMessage `json:"payload,omitempty"`

	place string
}

// Place is where the event stands in a list.
func (e *Event) Place() Place { return Place{e.AcceptedAt, e.place} }

// EventFilter says which events are meant; what is empty does not narrow it.
type EventFilter struct {
	Organization, Account, Event string
	// WebhookID leaves what has a delivery to this webhook.
	WebhookID string
	// Matched leaves what has matched some webhook, or none.
	Matched *bool
	// Since and Until bound the time at which the event was accepted: from Since on, and before Until.
	Since, Until time.Time
}

const eventColumns = `event_id, toString(event), organization, account, toString(cause), toString(source), subject,
	event_time, accepted_at, routed_at, matches, body_bytes, topic_id, partition, offset`

func eventsQuery(name, rest string, f EventFilter) *query {
	q := &query{name: name, columns: eventColumns, from: "event_log", rest: rest}
	q.andText("organization", f.Organization)
	q.andText("account", f.Account)
	q.andText("event", f.Event)
	if f.Matched != nil {
		q.and("(matches > 0) = ?", *f.Matched)
	}
	q.andTime("accepted_at >= ?", f.Since)
	q.andTime("accepted_at < ?", f.Until)
	return q
}

// andWebhook leaves the events that have a delivery to a webhook.
func (q *query) andWebhook(database string, f EventFilter) {
	if f.WebhookID == "" {
		return
	}
	of := &query{columns: "organization, event_id, accepted_at", from: "delivery_states"}
	of.andText("organization", f.Organization)
	of.andText("webhook_id", f.WebhookID)
	of.andTime("accepted_at >= ?", f.Since)
	of.andTime("accepted_at < ?", f.Until)
	q.and("(organization, event_id, accepted_at) IN ("+of.text(database)+")", of.args...)
}

func scanEvent(rows driver.Rows, e *Event) error {
	var (
		matches, bodyBytes = (*uint32)(nil), uint32(0)
		topic              uuid.UUID
		at                 schemas.DeliveryID
	)
	err := rows.Scan(&e.ID, &e.Event, &e.Organization, &e.Account, &e.Cause, &e.Source, &e.Subject,
		&e.Time, &e.AcceptedAt, &e.RoutedAt, &matches, &bodyBytes, &topic, &at.Partition, &at.Offset)
	if err != nil {
		return err
	}
	if matches != nil {
		e.Matches = new(int(*matches))
	}
	e.Time, e.RoutedAt, e.BodyBytes = known(e.Time), known(e.RoutedAt), int(bodyBytes)
	at.Topic = topic
	e.place = at.String()
	return nil
}

// behind narrows a query to what stands behind a place, in the order of a time and
// the place in the log, the newest first.
func (q *query) behind(column string, after Place) {
	at, err := schemas.ParseDeliveryID(after.ID)
	if err != nil {
		return // the zero Place
	}
	q.andTime(column+" <= ?", after.At) // which an index has
	q.and("("+column+", topic_id, partition, offset) < (fromUnixTimestamp64Milli(?, 'UTC'), toUUID(?), toInt32(?), toInt64(?))",
		after.At.UnixMilli(), uuid.UUID(at.Topic).String(), at.Partition, at.Offset)
}

// Events implements Audit.
func (c *ClickHouse) Events(ctx context.Context, f EventFilter, after Place, limit int) ([]Event, error) {
	q := eventsQuery("events", fmt.Sprintf("ORDER BY accepted_at DESC, topic_id DESC, partition DESC, offset DESC LIMIT %d", limit), f)
	q.andWebhook(c.database, f)
	q.behind("accepted_at", after)
	found, err := list(ctx, c, q, scanEvent)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found, c.addCopies(ctx, found)
}

// ExportEvents implements Audit. How often an event came again is not told.
func (c *ClickHouse) ExportEvents(ctx context.Context, f EventFilter) (Rows[Event], error) {
	return export(ctx, c, func(after *Event) *query {
		q := eventsQuery("events_export", "ORDER BY organization, accepted_at, topic_id, partition, offset", f)
		q.andWebhook(c.database, f)
		if after != nil {
			at := placeOf(after.place)
			q.and("(organization, accepted_at, topic_id, partition, offset) > (?, fromUnixTimestamp64Milli(?, 'UTC'), toUUID(?), toInt32(?), toInt64(?))",
				after.Organization, after.AcceptedAt.UnixMilli(), uuid.UUID(at.Topic).String(), at.Partition, at.Offset)
		}
		return q
	}, scanEvent)
}

// placeOf reads what scanning a row wrote.
func placeOf(text string) schemas.DeliveryID {
	at, err := schemas.ParseDeliveryID(text)
	if err != nil {
		panic("BUG: a row without its place: " + err.Error())
	}
	return at
}

// Event implements Audit.
func (c *ClickHouse) Event(ctx context.Context, organization, id string, payload bool) (Event, error) {
	q := eventsQuery("event", "ORDER BY accepted_at DESC LIMIT 1", EventFilter{Organization: organization})
	q.and("event_id = ?", id)
	found, err := list(ctx, c, q, scanEvent)
	if err != nil {
		return Event{}, err
	}
	if len(found) == 0 {
		return Event{}, ErrNotFound
	}
	if err := c.addCopies(ctx, found); err != nil {
		return Event{}, err
	}
	e := &found[0]
	if !payload {
		return *e, nil
	}
	of := Delivery{EventID: e.ID, Organization: e.Organization, AcceptedAt: e.AcceptedAt}
	kept, err := c.kept(ctx, []Delivery{of})
	if err != nil {
		return Event{}, err
	}
	if event := kept[keyOf(&of)]; event != nil {
		e.Payload = document(string(event.Payload))
	}
	return *e, nil
}

// addCopies counts how often events came again: rows of their own, which are few.
func (c *ClickHouse) addCopies(ctx context.Context, events []Event) error {
	type key struct{ organization, id string }
	ids, organizations := make([]string, len(events)), make([]string, len(events))
	for i := range events {
		ids[i], organizations[i] = events[i].ID, events[i].Organization
	}
	q := &query{name: "copies", columns: "organization, event_id, count()", from: "event_copies", rest: "GROUP BY organization, event_id"}
	q.and("result = 'duplicate'")
	q.and("organization IN (?)", organizations)
	q.and("event_id IN (?)", ids)
	copies := map[key]int{}
	err := c.ask(ctx, q, func(rows driver.Rows) error {
		var (
			k key
			n uint64
		)
		if err := rows.Scan(&k.organization, &k.id, &n); err != nil {
			return err
		}
		copies[k] = int(n)
		return nil
	})
	for i := range events {
		events[i].Copies = copies[key{events[i].Organization, events[i].ID}]
	}
	return err
}
