// Package deliveries provides what the audit knows of deliveries, and makes new
// ones of those that have ended: of one, or, as a job, of all of a webhook's that
// died within a time. Writing them is publish's, and the registry's for jobs.
//
// ClickHouse.Run watches ClickHouse; Jobs.Run looks for jobs, and runs a
// goroutine for each that is this replica's.
package deliveries

import (
	"context"
	"errors"
	"time"

	"github.com/postrider/postrider/schemas"
)

// Errors of an Audit.
var (
	// ErrNotFound means that the audit has no such delivery (yet).
	ErrNotFound = errors.New("no such delivery")
	// ErrUnavailable means that ClickHouse is away, or did not answer in time.
	ErrUnavailable = errors.New("the audit is not available")
)

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
	Attempt       int       `json:"attempt"`
	StatusCode    int       `json:"status_code,omitempty"`
	Result        string    `json:"result"`
	Reason        string    `json:"reason,omitempty"`
	URL           string    `json:"url,omitempty"`
	StartedAt     time.Time `json:"started_at"`
	DurationMS    float64   `json:"duration_ms"`
	NextAttemptAt time.Time `json:"next_attempt_at,omitzero"`
	ResponseBytes int64     `json:"response_bytes,omitempty"`
	// ResponseHead and ResponseBody are the target's words, for who may read payloads.
	ResponseHead string `json:"response_head,omitempty"`
	ResponseBody []byte `json:"response_body,omitempty"`
}

// Filter says which deliveries are meant; what is empty does not narrow it.
type Filter struct {
	Organization, WebhookID, Event, Status string
	// Since and Until bound the time of the latest result: from Since on, and before Until.
	Since, Until time.Time
	// RoutedBefore leaves out what was made at that time or later.
	RoutedBefore time.Time
}

// Place is where a delivery stands in an order by a time, then by id. The zero Place is before all.
type Place struct {
	At time.Time
	ID string
}

// Audit is what is asked of ClickHouse. Its times are of milliseconds. Errors are
// ErrNotFound or ErrUnavailable.
type Audit interface {
	// Deliveries returns up to limit deliveries, the newest (by RoutedAt) first, behind a place.
	Deliveries(ctx context.Context, f Filter, after Place, limit int) ([]Delivery, error)
	// Delivery returns a delivery of an organization (of any if it is empty).
	Delivery(ctx context.Context, organization, id string) (Delivery, error)
	// Outcomes returns a delivery's outcomes in their order.
	Outcomes(ctx context.Context, d *Delivery) ([]Outcome, error)
	// Count counts deliveries.
	Count(ctx context.Context, f Filter) (int, error)
	// Ended returns up to limit deliveries by the time of their latest result, behind a place.
	Ended(ctx context.Context, f Filter, after Place, limit int) ([]Delivery, error)
	// Events returns the events of deliveries of one organization, in their order, nil
	// for one whose body is not kept. Where they would be too large together it
	// returns those of the first deliveries only.
	Events(ctx context.Context, of []Delivery) ([]*schemas.Event, error)
}

// Again returns the delivery that sends the event of an ended one again, to the webhook as it is now.
func Again(ended *Delivery, e *schemas.Event, w *schemas.Webhook, at time.Time) schemas.Delivery {
	return schemas.Delivery{
		WebhookID: w.ID, WebhookRevision: w.Revision,
		EventID: e.ID, Event: e.Name, Organization: e.Organization, Account: e.Account,
		EventTime: e.Time, AcceptedAt: ended.AcceptedAt, RoutedAt: at,
		Cause:  schemas.CauseRetry,
		Format: w.Format,
		Body:   schemas.AppendFormatted(nil, w.Format, e),
	}
}
