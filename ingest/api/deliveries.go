package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/deliveries"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

// deliveryWithOutcomes is the answer to a look at one delivery.
type deliveryWithOutcomes struct {
	deliveries.Delivery
	Outcomes []deliveries.Outcome `json:"outcomes"`
}

func (s *Server) listDeliveries(ctx context.Context, c *call) error {
	organization, cursor, limit, err := c.page()
	if err != nil {
		return err
	}
	after, err := placeOf(cursor)
	if err != nil {
		return err
	}
	f, err := c.deliveryFilter(organization)
	if err != nil {
		return err
	}
	// One more says whether there is another page.
	found, err := s.Audit.Deliveries(ctx, f, after, limit+1)
	if err != nil {
		return err
	}
	page := list[deliveries.Delivery]{Data: found[:min(limit, len(found))]}
	if page.Data == nil {
		page.Data = []deliveries.Delivery{}
	}
	if len(found) > limit {
		last := &page.Data[limit-1]
		page.Next = cursorOf(strconv.FormatInt(last.RoutedAt.UnixMilli(), 10) + "/" + last.ID)
	}
	return c.answer(fasthttp.StatusOK, page)
}

// placeOf reads what a cursor of deliveries holds.
func placeOf(cursor string) (deliveries.Place, error) {
	if cursor == "" {
		return deliveries.Place{}, nil
	}
	at, id, _ := strings.Cut(cursor, "/")
	ms, err := strconv.ParseInt(at, 10, 64)
	if _, bad := schemas.ParseDeliveryID(id); err != nil || bad != nil {
		return deliveries.Place{}, invalidCursor()
	}
	return deliveries.Place{At: time.UnixMilli(ms).UTC(), ID: id}, nil
}

func (c *call) deliveryFilter(organization string) (f deliveries.Filter, err error) {
	query := c.http.QueryArgs()
	f = deliveries.Filter{
		Organization: organization,
		WebhookID:    string(query.Peek("webhook")),
		Event:        string(query.Peek("event")),
		Status:       string(query.Peek("status")),
	}
	if f.Event != "" && !schemas.ValidName(f.Event) {
		return f, invalidParameter("event", "an event's name, <service>.<method>")
	}
	statuses := []string{deliveries.StatusPending}
	for _, result := range schemas.Results() {
		statuses = append(statuses, string(result))
	}
	if f.Status != "" && !slices.Contains(statuses, f.Status) {
		return f, invalidParameter("status", "one of "+strings.Join(statuses, ", "))
	}
	for name, at := range map[string]*time.Time{"since": &f.Since, "until": &f.Until} {
		text := string(query.Peek(name))
		if text == "" {
			continue
		}
		if *at, err = time.Parse(time.RFC3339, text); err != nil {
			return f, invalidParameter(name, timeRule)
		}
	}
	return f, nil
}

const timeRule = "a time of RFC 3339, such as 2026-11-25T12:00:00Z"

// delivery returns the delivery in the path, if c's key may know of it.
func (s *Server) delivery(ctx context.Context, c *call) (deliveries.Delivery, error) {
	if _, err := schemas.ParseDeliveryID(c.id); err != nil {
		return deliveries.Delivery{}, deliveries.ErrNotFound
	}
	return s.Audit.Delivery(ctx, c.who.organization, c.id)
}

func (s *Server) getDelivery(ctx context.Context, c *call) error {
	d, err := s.delivery(ctx, c)
	if err != nil {
		return err
	}
	outcomes, err := s.Audit.Outcomes(ctx, &d)
	if err != nil {
		return err
	}
	if outcomes == nil {
		outcomes = []deliveries.Outcome{}
	}
	if !c.who.may(schemas.ScopePayloadsRead) {
		for i := range outcomes {
			outcomes[i].ResponseHead, outcomes[i].ResponseBody = "", nil
		}
	}
	return c.answer(fasthttp.StatusOK, deliveryWithOutcomes{d, outcomes})
}

func conflict(code schemas.Code, detail string) *requestError {
	return &requestError{status: fasthttp.StatusConflict, code: code, detail: detail}
}

// retryDelivery makes a new delivery of the event of one that has ended, for the
// same webhook as it is now.
func (s *Server) retryDelivery(ctx context.Context, c *call) error {
	if err := s.Registry.Fresh(ctx); err != nil {
		return err
	}
	d, err := s.delivery(ctx, c)
	if err != nil {
		return err
	}
	if !d.Ended() {
		return conflict(codeNotEnded, "the delivery is "+d.Status+": it has not ended, and will be attempted by itself")
	}
	w, err := s.Registry.Webhook(ctx, d.WebhookID)
	if errors.Is(err, registry.ErrNotFound) {
		return conflict(codeWebhookDeleted, "the webhook of this delivery is deleted")
	}
	if err != nil {
		return err
	}
	events, err := s.Audit.Events(ctx, []deliveries.Delivery{d})
	if err != nil {
		return err
	}
	if len(events) == 0 || events[0] == nil {
		return conflict(codeBodyNotKept, "the audit keeps no body of this event (any more)")
	}
	made := deliveries.Again(&d, events[0], w, now())
	record := made.Record(s.Topics.Deliveries)
	if errs := s.Publisher.Publish(ctx, record); errs != nil {
		return errs[0]
	}
	id := schemas.DeliveryID{Topic: s.DeliveriesID(), Partition: record.Partition, Offset: record.Offset}.String()
	c.http.Response.Header.Set(fasthttp.HeaderLocation, pathDeliveries+"/"+id)
	return c.answer(fasthttp.StatusAccepted, accepted{id})
}

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
