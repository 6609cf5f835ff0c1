package registry

import (
	"context"
	"math"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// Job returns a job, as Webhook does a webhook.
func (r *Registry) Job(ctx context.Context, id string) (*schemas.Job, error) {
	return find(ctx, r, &r.jobs, id)
}

// Jobs returns all jobs, running or ended, by id.
func (r *Registry) Jobs() ([]schemas.Job, error) {
	rows, _, err := r.jobs.page("", "", math.MaxInt, nil)
	return rows, err
}

// StartJob writes a job that is not there yet, or returns ErrJobRunning: a
// webhook has one at a time.
func (r *Registry) StartJob(ctx context.Context, actor Actor, job schemas.Job) (schemas.Job, error) {
	return submit(ctx, r, &r.jobs, proposal[schemas.Job]{
		actor: actor, action: "created", id: job.ID,
		change:  func(*schemas.Job) (*schemas.Job, error) { return &job, nil },
		allowed: func(batch overlay) error { return r.mayStart(job.WebhookID, batch) },
	})
}

// mayStart looks for a running job of the webhook, also in the same transaction.
func (r *Registry) mayStart(webhookID string, batch overlay) error {
	rows, err := r.Jobs()
	if err != nil {
		return err
	}
	for i := range rows {
		if rows[i].WebhookID == webhookID && rows[i].Running() {
			return ErrJobRunning
		}
	}
	for _, made := range batch {
		if job, ok := made.(*schemas.Job); ok && job != nil && job.WebhookID == webhookID && job.Running() {
			return ErrJobRunning
		}
	}
	return nil
}

// ChangeJob does with a job what ChangeWebhook does with a webhook.
func (r *Registry) ChangeJob(
	ctx context.Context, actor Actor, action, id string, c func(old *schemas.Job) (*schemas.Job, error),
) (schemas.Job, error) {
	return submit(ctx, r, &r.jobs, proposal[schemas.Job]{actor: actor, action: action, id: id, change: c})
}

// StepJob puts a job into the place of the revision before it, in one transaction
// with the deliveries that the step makes: all of it is in force, or nothing. It
// returns ErrJobMoved if the job is no longer at that revision, or has ended. A
// step is told in changes where action says how.
func (r *Registry) StepJob(ctx context.Context, actor Actor, action string, job schemas.Job, deliveries []schemas.Delivery) error {
	_, err := submit(ctx, r, &r.jobs, proposal[schemas.Job]{
		actor: actor, action: action, id: job.ID,
		change: func(old *schemas.Job) (*schemas.Job, error) {
			if old == nil || !old.Running() || old.Revision != job.Revision-1 {
				return nil, ErrJobMoved
			}
			return &job, nil
		},
		further: func() []*kgo.Record {
			records := make([]*kgo.Record, len(deliveries))
			for i := range deliveries {
				records[i] = deliveries[i].Record(r.topics.Deliveries)
			}
			return records
		},
	})
	return err
}

// DropJob deletes a job that has ended. ErrJobMoved says that there is none.
func (r *Registry) DropJob(ctx context.Context, id string) error {
	_, err := submit(ctx, r, &r.jobs, proposal[schemas.Job]{
		id: id,
		change: func(old *schemas.Job) (*schemas.Job, error) {
			if old == nil || old.Running() {
				return nil, ErrJobMoved
			}
			return nil, nil //nolint:nilnil // how a change deletes
		},
	})
	return err
}
