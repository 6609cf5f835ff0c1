package schemas

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Result is what an attempt, or the decision to make none, came to.
type Result string

// The results. All but retry and held are a delivery's one end (P5).
const (
	ResultDelivered Result = "delivered" // the target took it
	ResultRetry     Result = "retry"     // it will be attempted again at NextAttemptAt
	ResultDead      Result = "dead"      // its schedule is used up: it is in dead-letters
	ResultDiscarded Result = "discarded" // its webhook is gone or disabled
	ResultHeld      Result = "held"      // its webhook is paused: it is in deliveries.held
)

// Results returns all results.
func Results() []Result {
	return []Result{ResultDelivered, ResultRetry, ResultDead, ResultDiscarded, ResultHeld}
}

// MaxResponseBody is how much of a response's body an outcome keeps.
const MaxResponseBody = 16 << 10

// Outcome is what an attempt, or the decision to make none, came to. The topic
// outcomes is public: members may be added, none changes its meaning.
type Outcome struct {
	Organization    string     `json:"organization"`
	Account         string     `json:"account,omitempty"`
	WebhookID       string     `json:"webhook_id"`
	WebhookRevision int64      `json:"webhook_revision"` // of the webhook that was in force
	DeliveryID      DeliveryID `json:"delivery_id"`
	MessageID       string     `json:"message_id"`
	EventID         string     `json:"event_id"`
	Event           string     `json:"event"`
	Cause           Cause      `json:"cause"`

	// Attempt counts attempts from 1. Where none was made it is the number made before.
	Attempt int `json:"attempt"`
	// StatusCode is the response's, 0 if there was none to trust.
	StatusCode int    `json:"status_code"`
	Result     Result `json:"result"`
	// Reason is from a closed set; empty for delivered.
	Reason string `json:"reason,omitempty"`
	URL    string `json:"url,omitempty"`

	StartedAt time.Time `json:"started_at"`
	// Durations are in milliseconds, with fractions; 0 where the step did not happen.
	DurationMS  float64 `json:"duration_ms"`
	DNSMS       float64 `json:"dns_ms,omitempty"`
	ConnectMS   float64 `json:"connect_ms,omitempty"`
	TLSMS       float64 `json:"tls_ms,omitempty"`
	FirstByteMS float64 `json:"first_byte_ms,omitempty"`

	NextAttemptAt time.Time `json:"next_attempt_at,omitzero"`
	EventTime     time.Time `json:"event_time,omitzero"`
	AcceptedAt    time.Time `json:"accepted_at,omitzero"`
	RoutedAt      time.Time `json:"routed_at,omitzero"`

	// ResponseHead is the status line and headers as far as kept.
	ResponseHead string `json:"response_head,omitempty"`
	// ResponseBody is the first MaxResponseBody bytes; base64 in JSON.
	ResponseBody []byte `json:"response_body,omitempty"`
	// ResponseBytes is the body's length as far as it was read or declared.
	ResponseBytes int64 `json:"response_bytes,omitempty"`

	// Sender is the instance that made the attempt.
	Sender string `json:"sender"`
}

// Ends reports whether the outcome is its delivery's end.
func (o *Outcome) Ends() bool { return o.Result != ResultRetry && o.Result != ResultHeld }

// Record returns the outcome's record, keyed by its webhook.
func (o *Outcome) Record(topic string) (*kgo.Record, error) {
	return jsonRecord(topic, o.WebhookID, o)
}

// DecodeOutcome reads a record of outcomes. The error is *UnknownVersionError or holds a *ValidationError.
func DecodeOutcome(r *kgo.Record) (Outcome, error) {
	var o Outcome
	if err := decodeValue(r, &o); err != nil {
		return Outcome{}, err
	}
	if o.WebhookID == "" || o.DeliveryID == (DeliveryID{}) {
		return Outcome{}, fmt.Errorf("decoding outcome: %w", Invalid(CodeInvalidRecord, "#/delivery_id", "missing"))
	}
	return o, nil
}

// decodeValue reads the JSON value of a record of Postrider's own log topics. An
// outcome a delivery: encoding/json takes twice the time for it.
func decodeValue(r *kgo.Record, v any) error {
	if err := checkVersion(r); err != nil {
		return err
	}
	if err := json.Unmarshal(r.Value, v); err != nil {
		return fmt.Errorf("decoding record of %s: %w", r.Topic, Invalid(CodeInvalidJSON, "#", "not this record's JSON: "+err.Error()))
	}
	return nil
}
