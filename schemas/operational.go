package schemas

import (
	"encoding/json"
	"fmt"
	"time"
)

// Names of operational events. They are events like any other and reach the
// webhooks of their organization that name them; none is made about one of them.
const (
	WebhookCreated    = "webhook.created"
	WebhookUpdated    = "webhook.updated"
	WebhookDeleted    = "webhook.deleted"
	WebhookDisabled   = "webhook.disabled"   // by its owner or by the sender
	WebhookEnabled    = "webhook.enabled"    // again
	DeliveryFailing   = "delivery.failing"   // after FailingAfter attempts
	DeliveryDead      = "delivery.dead"      // after the last
	DeliveryRecovered = "delivery.recovered" // delivered after it was failing
)

// FailingAfter is how many attempts of a delivery fail before it is called failing.
const FailingAfter = 4

// OperationalSource is the source of operational events. What has their names and
// another source is somebody else's, and rejected.
const OperationalSource = "urn:postrider:operational"

// DeliveryReport is the payload of operational events about a delivery.
type DeliveryReport struct {
	WebhookID     string     `json:"webhook_id"`
	DeliveryID    DeliveryID `json:"delivery_id"`
	MessageID     string     `json:"message_id"`
	EventID       string     `json:"event_id"`
	Event         string     `json:"event"`
	Attempt       int        `json:"attempt"`
	Reason        string     `json:"reason,omitempty"` // of the last failure
	StatusCode    int        `json:"status_code,omitempty"`
	NextAttemptAt time.Time  `json:"next_attempt_at,omitzero"`
}

// WebhookReport is the payload of webhook.disabled where the sender disabled it.
type WebhookReport struct {
	ID         string `json:"id"`
	Generation int64  `json:"generation"`
	// Reason is gone (410), unwanted (its target asked for it) or failing.
	Reason       string    `json:"reason"`
	FailingSince time.Time `json:"failing_since,omitzero"`
	DisabledAt   time.Time `json:"disabled_at"`
}

// Operational returns an operational event. Its id is a function of its name and
// what it is about, so that the same one twice is routed once.
func Operational(name, about, organization, account string, at time.Time, payload any) (Event, error) {
	body, err := json.Marshal(payload)
	if err != nil {
		return Event{}, fmt.Errorf("encoding payload of %s: %w", name, err)
	}
	return Event{
		ID: about + "." + name, Name: name, Organization: organization, Account: account,
		Source: OperationalSource, Subject: about, Time: at.UTC(), Payload: body,
	}, nil
}
