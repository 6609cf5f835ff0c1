package api

import (
	"context"
	"errors"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/ingest/deliveries"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

// deliveryWithOutcomes is the answer to a look at one delivery.
type deliveryWithOutcomes struct {
	audit.Delivery
	Outcomes []audit.Outcome `json:"outcomes"`
}

func (s *Server) listDeliveries(ctx context.Context, c *call) error {
	p := c.parameters("organization", "account", "webhook", "event", "event_id", "status", "since", "until")
	f := audit.Filter{
		Organization: p.organization(c.who),
		Account:      p.text("account", maxOrganization),
		WebhookID:    p.text("webhook", maxID),
		EventID:      p.text("event_id", maxEventID),
		Event:        p.eventName("event"),
		Status:       p.oneOf("status", statuses()...),
	}
	f.Since, f.Until = p.span()
	return serveList(ctx, c, p, listed[audit.Delivery]{
		page: func(ctx context.Context, after audit.Place, limit int) ([]audit.Delivery, error) {
			return s.Audit.Deliveries(ctx, f, after, limit)
		},
		all:   func(ctx context.Context) (audit.Rows[audit.Delivery], error) { return s.Audit.ExportDeliveries(ctx, f) },
		place: placeOfDelivery,
	})
}

func placeOfDelivery(d *audit.Delivery) audit.Place { return audit.Place{At: d.RoutedAt, ID: d.ID} }

// statuses are those that a delivery may have.
func statuses() []string {
	all := []string{audit.StatusPending}
	for _, result := range schemas.Results() {
		all = append(all, string(result))
	}
	return all
}

// delivery returns the delivery in the path, if c's key may know of it.
func (s *Server) delivery(ctx context.Context, c *call) (audit.Delivery, error) {
	if _, err := schemas.ParseDeliveryID(c.id); err != nil {
		return audit.Delivery{}, audit.ErrNotFound
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
		outcomes = []audit.Outcome{}
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
	events, err := s.Audit.EventsOf(ctx, []audit.Delivery{d})
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
