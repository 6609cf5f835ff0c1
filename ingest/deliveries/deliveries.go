// Package deliveries makes new deliveries of those that have ended: of one, or,
// as a job, of all of a webhook's that died within a time. What has ended it asks
// of the audit; writing is publish's, and the registry's for jobs.
//
// Jobs.Run looks for jobs, and runs a goroutine for each that is this replica's.
package deliveries

import (
	"time"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/schemas"
)

// Again returns the delivery that sends the event of an ended one again, to the webhook as it is now.
func Again(ended *audit.Delivery, e *schemas.Event, w *schemas.Webhook, at time.Time) schemas.Delivery {
	return schemas.Delivery{
		WebhookID: w.ID, WebhookRevision: w.Revision,
		EventID: e.ID, Event: e.Name, Organization: e.Organization, Account: e.Account,
		EventTime: e.Time, AcceptedAt: ended.AcceptedAt, RoutedAt: at,
		Cause:  schemas.CauseRetry,
		Format: w.Format,
		Body:   schemas.AppendFormatted(nil, w.Format, e),
	}
}
