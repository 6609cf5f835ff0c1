// Package audit provides what the audit in ClickHouse knows: events, their
// deliveries and outcomes, changes, and statistics of webhooks. It only reads;
// writing the rows is the sender's, making new deliveries of them deliveries'.
//
// ClickHouse.Run watches ClickHouse. Each question is one query, bounded in time
// and rows; an export is one after another.
package audit

import (
	"context"
	"errors"
	"time"

	"github.com/postrider/postrider/schemas"
)

// Errors of an Audit.
var (
	// ErrNotFound means that the audit has no such thing (yet).
	ErrNotFound = errors.New("the audit has no such thing")
	// ErrUnavailable means that ClickHouse is away, or did not answer in time.
	ErrUnavailable = errors.New("the audit is not available")
)

// Place is where a row stands in a list: by a time, then by its place in the log,
// written as DeliveryID writes it. The zero Place is before all.
type Place struct {
	At time.Time
	ID string
}

// Audit is what is asked of ClickHouse. Its times are of milliseconds. Errors are
// ErrNotFound or ErrUnavailable. An organization that is empty means all of them.
// Lists have the newest first, behind a place.
type Audit interface {
	// Deliveries returns up to limit deliveries, by RoutedAt.
	Deliveries(ctx context.Context, f Filter, after Place, limit int) ([]Delivery, error)
	// ExportDeliveries returns all deliveries, by organization, webhook and id.
	ExportDeliveries(ctx context.Context, f Filter) (Rows[Delivery], error)
	// Delivery returns a delivery of an organization.
	Delivery(ctx context.Context, organization, id string) (Delivery, error)
	// Outcomes returns a delivery's outcomes in their order.
	Outcomes(ctx context.Context, d *Delivery) ([]Outcome, error)
	// Count counts deliveries.
	Count(ctx context.Context, f Filter) (int, error)
	// Ended returns up to limit deliveries by the time of their latest result, the oldest first, behind a place.
	Ended(ctx context.Context, f Filter, after Place, limit int) ([]Delivery, error)
	// EventsOf returns the events of deliveries of one organization, in their order, nil
	// for one whose body is not kept. Where they would be too large together it
	// returns those of the first deliveries only.
	EventsOf(ctx context.Context, of []Delivery) ([]*schemas.Event, error)

	// Events returns up to limit events, by AcceptedAt.
	Events(ctx context.Context, f EventFilter, after Place, limit int) ([]Event, error)
	// ExportEvents returns all events, by organization and AcceptedAt.
	ExportEvents(ctx context.Context, f EventFilter) (Rows[Event], error)
	// Event returns the newest event with an id, with its payload where it is asked for and kept.
	Event(ctx context.Context, organization, id string, payload bool) (Event, error)

	// Changes returns up to limit changes, by At.
	Changes(ctx context.Context, f ChangeFilter, after Place, limit int) ([]Change, error)
	// ExportChanges returns all changes, by organization, object and At.
	ExportChanges(ctx context.Context, f ChangeFilter) (Rows[Change], error)

	// Stats counts the outcomes of a webhook that were started from since on and before until.
	Stats(ctx context.Context, organization, webhookID string, since, until time.Time) (Stats, error)
}

// Rows are the rows of an export, read page by page: what is there all the while
// comes once. Each hands them on as they come, and ends at the first error, its own
// or fn's, and with ctx; it must be called, once, and frees what they hold. fn's row is its own.
type Rows[T any] interface {
	Each(ctx context.Context, fn func(row *T) error) error
}
