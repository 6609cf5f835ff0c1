package api

import (
	"context"
	"maps"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/schemas"
)

const (
	// defaultStats and maxStats are how long a time statistics are about.
	defaultStats = 24 * time.Hour
	maxStats     = 366 * 24 * time.Hour
	// maxMatched is how many deliveries an event is shown with.
	maxMatched = 100
)

// auditEndpoints are those of what happened.
func (s *Server) auditEndpoints(c *call, path string) []endpoint {
	const get, look = fasthttp.MethodGet, schemas.ScopeDeliveriesRead
	if path == pathChanges {
		return []endpoint{{"changes", get, look, s.listChanges}}
	}
	if id, ok := eventIDIn(string(c.http.URI().PathOriginal())); ok {
		c.id = id
		return []endpoint{{"event", get, look, s.getEvent}}
	}
	if rest, ok := strings.CutPrefix(path, pathDeliveries+"/"); ok {
		id, action, _ := strings.Cut(rest, "/")
		switch c.id = id; {
		case id == "":
		case rest == id:
			return []endpoint{{"delivery", get, look, s.getDelivery}}
		case action == actionRetry:
			return []endpoint{{"delivery_retry", fasthttp.MethodPost, schemas.ScopeDeliveriesRetry, s.retryDelivery}}
		}
	}
	return nil
}

func (s *Server) listEvents(ctx context.Context, c *call) error {
	p := c.parameters("organization", "account", "event", "webhook", "matched", "since", "until")
	f := audit.EventFilter{
		Organization: p.organization(c.who),
		Account:      p.text("account", maxOrganization),
		Event:        p.eventName("event"),
		WebhookID:    p.text("webhook", maxID),
		Matched:      p.flag("matched"),
	}
	f.Since, f.Until = p.span()
	return serveList(ctx, c, p, listed[audit.Event]{
		page: func(ctx context.Context, after audit.Place, limit int) ([]audit.Event, error) {
			return s.Audit.Events(ctx, f, after, limit)
		},
		all:   func(ctx context.Context) (audit.Rows[audit.Event], error) { return s.Audit.ExportEvents(ctx, f) },
		place: (*audit.Event).Place,
	})
}

// eventIDIn returns the event's id at the end of a path as it was sent: an id may
// hold what paths are made of, percent-encoded.
func eventIDIn(path string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(path, pathEvents+"/")
	if !ok || strings.Contains(rest, "/") {
		return "", false
	}
	id, err := url.PathUnescape(rest)
	return id, err == nil && id != ""
}

// eventWithDeliveries is the answer to a look at one event.
type eventWithDeliveries struct {
	audit.Event

	// Deliveries are what matched it, the newest first: at most maxMatched.
	Deliveries []audit.Delivery `json:"deliveries"`
	// Next is where GET /v1/deliveries?event_id=… goes on; nil: these are all.
	Next *string `json:"next"`
}

func (s *Server) getEvent(ctx context.Context, c *call) error {
	p := c.parameters("organization")
	organization := p.organization(c.who)
	if p.err != nil {
		return p.err
	}
	if len(c.id) > maxEventID*4 { // bytes of so many characters
		return audit.ErrNotFound
	}
	e, err := s.Audit.Event(ctx, organization, c.id, c.who.may(schemas.ScopePayloadsRead))
	if err != nil {
		return err
	}
	f := audit.Filter{Organization: e.Organization, EventID: e.ID}
	found, err := s.Audit.Deliveries(ctx, f, audit.Place{}, maxMatched+1)
	if err != nil {
		return err
	}
	shown := eventWithDeliveries{Event: e, Deliveries: found[:min(maxMatched, len(found))]}
	if shown.Deliveries == nil {
		shown.Deliveries = []audit.Delivery{}
	}
	if len(found) > maxMatched {
		more := parameters{values: maps.Clone(p.values)} // organization, where it was named
		more.values["event_id"] = e.ID
		shown.Next = cursorAt(placeOfDelivery(&found[maxMatched-1]), more.questionOf(pathDeliveries, c.who))
	}
	return c.answer(fasthttp.StatusOK, shown)
}

func (s *Server) listChanges(ctx context.Context, c *call) error {
	p := c.parameters("organization", "actor", "action", "object", "object_id", "failed", "since", "until")
	f := audit.ChangeFilter{
		Organization: p.organization(c.who),
		Actor:        p.text("actor", maxEventID),
		Action:       p.text("action", maxID),
		Object:       p.text("object", maxID),
		ObjectID:     p.text("object_id", maxEventID),
		Failed:       p.flag("failed"),
	}
	f.Since, f.Until = p.span()
	return serveList(ctx, c, p, listed[audit.Change]{
		page: func(ctx context.Context, after audit.Place, limit int) ([]audit.Change, error) {
			return s.Audit.Changes(ctx, f, after, limit)
		},
		all:   func(ctx context.Context) (audit.Rows[audit.Change], error) { return s.Audit.ExportChanges(ctx, f) },
		place: (*audit.Change).Place,
		hide:  hideFrom(c.who),
	})
}

// hideFrom takes out what things were and became, unless who may see such a thing itself.
func hideFrom(who principal) func(*audit.Change) {
	return func(change *audit.Change) {
		scope := schemas.ScopeWebhooksRead
		if change.Object == "key" {
			scope = schemas.ScopeKeysWrite
		}
		if !who.may(scope) {
			change.Before, change.After = nil, nil
		}
	}
}

func (s *Server) getStats(ctx context.Context, c *call) error {
	p := c.parameters("since", "until")
	since, until := p.span()
	if until.IsZero() {
		until = now()
	}
	if since.IsZero() {
		since = until.Add(-defaultStats)
	}
	switch {
	case !since.Before(until):
		p.refuse(invalidParameter("since", "before until, which is now where it is left out"))
	case until.Sub(since) > maxStats:
		p.refuse(invalidParameter("since", "at most 366 days before until"))
	}
	if p.err != nil {
		return p.err
	}
	w, err := s.visible(ctx, c, c.id)
	if err != nil {
		return err
	}
	stats, err := s.Audit.Stats(ctx, w.Organization, w.ID, since, until)
	if err != nil {
		return err
	}
	return c.answer(fasthttp.StatusOK, stats)
}
