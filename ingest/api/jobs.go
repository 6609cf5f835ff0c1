package api

import (
	"context"
	"fmt"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/deliveries"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

// startJob begins to retry all of a webhook's deliveries that died within a time.
func (s *Server) startJob(ctx context.Context, c *call) error {
	body, err := c.jsonBody()
	if err != nil {
		return err
	}
	job, err := newJob(body)
	if err != nil {
		return err
	}
	w, err := s.visible(ctx, c, c.id)
	if err != nil {
		return err
	}
	job.Organization, job.WebhookID, job.Runner = w.Organization, w.ID, s.Instance
	if job.Total, err = s.Audit.Count(ctx, deliveries.DeadOf(&job)); err != nil {
		return err
	}
	started, err := s.Registry.StartJob(ctx, c.actor(), job)
	if err != nil {
		return err
	}
	c.http.Response.Header.Set(fasthttp.HeaderLocation, pathWebhooks+"/"+w.ID+"/"+actionRetry+"/"+started.ID)
	return c.answer(fasthttp.StatusAccepted, registry.ViewJob(&started))
}

const (
	defaultRate = 100
	// maxAhead is how far ahead of ours the clock may be that until was read from.
	maxAhead = time.Minute
)

// retryBody begins a job.
type retryBody struct {
	Since string  `json:"since"`
	Until *string `json:"until"`
	Rate  int     `json:"rate"`
}

// newJob reads the body that begins a job.
func newJob(body []byte) (schemas.Job, error) {
	create := retryBody{Rate: defaultRate}
	if err := schemas.DecodeStrict(body, &create, "since", "until", "rate"); err != nil {
		return schemas.Job{}, err
	}
	at := now()
	since, err := parseTime("#/since", create.Since)
	until := at
	var untilErr, rateErr error
	if create.Until != nil {
		until, untilErr = parseTime("#/until", *create.Until)
	}
	switch {
	case err != nil || untilErr != nil:
	case until.After(at.Add(maxAhead)):
		untilErr = schemas.Invalid(schemas.CodeInvalidValue, "#/until", "in the future: what ends later is another job's")
	case !since.Before(until):
		untilErr = schemas.Invalid(schemas.CodeInvalidValue, "#/since", "must be before until, which is now where it is left out")
	case until.After(at):
		until = at
	}
	if create.Rate < 1 || create.Rate > deliveries.MaxRate {
		rateErr = schemas.Invalid(schemas.CodeInvalidValue, "#/rate", fmt.Sprintf("must be from 1 to %d, a second", deliveries.MaxRate))
	}
	if err := joinFields(err, untilErr, rateErr); err != nil {
		return schemas.Job{}, err
	}
	return schemas.Job{
		ID: schemas.NewJobID(), State: schemas.JobRunning, Since: since, Until: until, Rate: create.Rate,
		MovedAt: at, CreatedAt: at, Revision: 1,
	}, nil
}

// parseTime reads a time to the millisecond, as the audit keeps it.
func parseTime(pointer, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, schemas.Invalid(schemas.CodeRequired, pointer, "missing or empty")
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, schemas.Invalid(schemas.CodeInvalidValue, pointer, timeRule)
	}
	return at.UTC().Truncate(time.Millisecond), nil
}

// getJob shows a job, also one of a webhook that was deleted since.
func (s *Server) getJob(ctx context.Context, c *call) error {
	if err := s.Registry.Fresh(ctx); err != nil {
		return err
	}
	job, err := s.Registry.Job(ctx, c.job)
	if err != nil {
		return err
	}
	if err := c.checkJob(job); err != nil {
		return err
	}
	return c.answer(fasthttp.StatusOK, registry.ViewJob(job))
}

// checkJob says whether a job is there for the call.
func (c *call) checkJob(job *schemas.Job) error {
	if job == nil || job.WebhookID != c.id || !c.who.sees(job.Organization) {
		return registry.ErrNotFound
	}
	return nil
}

// cancelJob ends a job. What it has made stays made.
func (s *Server) cancelJob(ctx context.Context, c *call) error {
	_, err := s.Registry.ChangeJob(ctx, c.actor(), "cancelled", c.job, func(old *schemas.Job) (*schemas.Job, error) {
		if err := c.checkJob(old); err != nil {
			return nil, err
		}
		if !old.Running() {
			return nil, conflict(codeJobEnded, "the job is "+string(old.State))
		}
		job := *old
		job.Revision++
		job.State, job.MovedAt = schemas.JobCancelled, now()
		job.EndedAt = job.MovedAt
		return &job, nil
	})
	if err != nil {
		return err
	}
	c.http.SetStatusCode(fasthttp.StatusNoContent)
	return nil
}
