package api

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

// webhookCreated is the answer to a webhook's creation.
type webhookCreated struct {
	registry.WebhookView
	Secret string `json:"secret"` // shown this once
}

// postWebhookEvents takes both bodies of the webhook contract: what names a
// webhook is a ping, everything else makes one.
func (s *Server) postWebhookEvents(ctx context.Context, c *call) error {
	body, err := c.jsonBody()
	if err != nil {
		return err
	}
	var names map[string]json.RawMessage
	if err := json.Unmarshal(body, &names); err == nil {
		if _, ok := names["webhook"]; ok {
			return s.pingByBody(ctx, c, body)
		}
	}
	return s.createWebhook(ctx, c, body)
}

func (s *Server) postWebhooks(ctx context.Context, c *call) error {
	body, err := c.jsonBody()
	if err != nil {
		return err
	}
	return s.createWebhook(ctx, c, body)
}

func (s *Server) createWebhook(ctx context.Context, c *call, body []byte) error {
	key, err := c.idempotencyKey()
	if err != nil {
		return err
	}
	run, err := s.repeats.begin(c, key, body)
	if err != nil {
		return err
	}
	return run(func() error { return s.create(ctx, c, body, key) })
}

func (s *Server) create(ctx context.Context, c *call, body []byte, key string) error {
	w, secret, err := s.newWebhook(c.who, body, key)
	if err != nil {
		return err
	}
	existed := false
	made, err := s.Registry.ChangeWebhook(ctx, c.actor(), "created", w.ID, func(old *schemas.Webhook) (*schemas.Webhook, error) {
		switch existed = old != nil; {
		case !existed:
			return &w, nil
		case key == "":
			return nil, errors.New("BUG: a new webhook's id is taken")
		default:
			return old, s.repeated(old, &w)
		}
	})
	if err == nil && existed { // its secret is the one that was told
		secret, err = s.KeyRing.Open(made.SecretIdentity(), made.Secrets[0])
	}
	if err != nil {
		return err
	}
	c.http.Response.Header.Set(fasthttp.HeaderLocation, pathWebhooks+"/"+made.ID)
	c.setETag(made.Revision)
	return c.answer(fasthttp.StatusCreated, webhookCreated{s.Registry.ViewWebhook(&made), schemas.FormatSecret(secret)})
}

// repeated says whether a webhook is what a repeated request asks for, as it was
// made a short while ago: then the answer is given once more, with the secret.
func (s *Server) repeated(made, asked *schemas.Webhook) error {
	was, now := s.Registry.ViewWebhook(made), s.Registry.ViewWebhook(asked)
	was.CreatedAt, was.UpdatedAt, was.PublicKeys = now.CreatedAt, now.UpdatedAt, now.PublicKeys
	if !reflect.DeepEqual(was, now) || asked.CreatedAt.Sub(made.CreatedAt) > rememberFor {
		return &requestError{
			status: fasthttp.StatusUnprocessableEntity, code: codeKeyReused,
			detail: "a webhook was made under this Idempotency-Key, by another request, or more than " + rememberFor.String() + " ago, or it was changed since",
		}
	}
	return nil
}

func (s *Server) listWebhooks(ctx context.Context, c *call) error {
	p, organization, after := c.page(webhookParameters...)
	keep := s.webhookQuery(p)
	if p.err != nil {
		return p.err
	}
	if err := s.Registry.Fresh(ctx); err != nil {
		return err
	}
	rows, more, err := s.Registry.Webhooks(organization, after, p.limit, keep)
	if err != nil {
		return err
	}
	page := list[registry.WebhookView]{Data: make([]registry.WebhookView, len(rows))}
	for i := range rows {
		page.Data[i] = s.Registry.ViewWebhook(&rows[i])
	}
	if more {
		page.Next = p.next(c, rows[len(rows)-1].ID)
	}
	return c.answer(fasthttp.StatusOK, page)
}

// visible returns a webhook that c's key may know of.
func (s *Server) visible(ctx context.Context, c *call, id string) (*schemas.Webhook, error) {
	if err := s.Registry.Fresh(ctx); err != nil {
		return nil, err
	}
	w, err := s.Registry.Webhook(ctx, id)
	if err != nil {
		return nil, err
	}
	if !c.who.sees(w.Organization) {
		return nil, registry.ErrNotFound
	}
	return w, nil
}

func (s *Server) getWebhook(ctx context.Context, c *call) error {
	w, err := s.visible(ctx, c, c.id)
	if err != nil {
		return err
	}
	return s.answerWebhook(c, w)
}

func (s *Server) answerWebhook(c *call, w *schemas.Webhook) error {
	c.setETag(w.Revision)
	return c.answer(fasthttp.StatusOK, s.Registry.ViewWebhook(w))
}

func (s *Server) patchWebhook(ctx context.Context, c *call) error {
	body, err := c.jsonBody()
	if err != nil {
		return err
	}
	patch, err := s.parsePatch(body)
	if err != nil {
		return err
	}
	return s.change(ctx, c, "updated", func(w *schemas.Webhook) error {
		var errs []error
		for _, set := range patch {
			errs = append(errs, set(w))
		}
		return joinFields(append(errs, checkCredentials(w), s.pairKey(w, false))...)
	})
}

// change makes a change of the webhook in the path and answers with what it is then.
func (s *Server) change(ctx context.Context, c *call, action string, set func(*schemas.Webhook) error) error {
	changed, err := s.changeWebhook(ctx, c, action, set)
	if err != nil {
		return err
	}
	return s.answerWebhook(c, &changed)
}

// changeWebhook makes a change of the webhook in the path, if it is the revision
// that is meant. What changes nothing writes nothing; what leaves a webhook with
// settings that make no sense is refused.
func (s *Server) changeWebhook(ctx context.Context, c *call, action string, set func(*schemas.Webhook) error) (schemas.Webhook, error) {
	who, match := c.who, c.ifMatch()
	return s.Registry.ChangeWebhook(ctx, c.actor(), action, c.id, func(old *schemas.Webhook) (*schemas.Webhook, error) {
		if err := check(who, match, old); err != nil {
			return nil, err
		}
		w := *old
		w.Metadata = maps.Clone(old.Metadata)
		w.Invalid = ""
		if err := joinFields(set(&w), schemas.Validate(&w)); err != nil {
			return nil, err
		}
		if registry.Same(&w, old) {
			return old, nil
		}
		w.Revision++
		w.UpdatedAt = now()
		return &w, nil
	})
}

// Changes of a webhook's state, as they stand in its path.
const (
	actionPause  = "pause"  // its deliveries are held, until
	actionResume = "resume" // they are let go
	actionEnable = "enable" // it is disabled no longer, whoever has done it
)

// setState returns the endpoint of one of them.
func (s *Server) setState(action string) func(ctx context.Context, c *call) error {
	return func(ctx context.Context, c *call) error {
		return s.change(ctx, c, action+"d", func(w *schemas.Webhook) error {
			switch {
			case action == actionPause:
				w.Paused = true
			case action == actionEnable:
				s.Registry.Enable(w)
			case w.Paused:
				w.Paused, w.ResumedAt = false, now()
			}
			return nil
		})
	}
}

func (s *Server) deleteWebhook(ctx context.Context, c *call) error {
	who, match := c.who, c.ifMatch()
	_, err := s.Registry.ChangeWebhook(ctx, c.actor(), "deleted", c.id, func(old *schemas.Webhook) (*schemas.Webhook, error) {
		return nil, check(who, match, old)
	})
	if err != nil {
		return err
	}
	c.http.SetStatusCode(fasthttp.StatusNoContent)
	return nil
}

// check says whether a webhook is there for who, in the revision that the change is meant for.
func check(who principal, match string, w *schemas.Webhook) error {
	if w == nil || !who.sees(w.Organization) {
		return registry.ErrNotFound
	}
	if !matches(match, w.Revision) {
		return &requestError{
			status: fasthttp.StatusPreconditionFailed, code: codeRevisionMismatch,
			detail: "the webhook is at revision " + strconv.FormatInt(w.Revision, 10) + ": read it again",
		}
	}
	return nil
}

func (c *call) ifMatch() string { return string(c.http.Request.Header.Peek(fasthttp.HeaderIfMatch)) }

func etagOf(revision int64) string { return `"` + strconv.FormatInt(revision, 10) + `"` }

func (c *call) setETag(revision int64) {
	c.http.Response.Header.Set(fasthttp.HeaderETag, etagOf(revision))
}

// matches says whether If-Match lets a change of this revision through. Tags are
// compared strongly: a weak one is never the same (RFC 9110, section 13.1.1).
func matches(ifMatch string, revision int64) bool {
	if ifMatch == "" {
		return true
	}
	for tag := range strings.SplitSeq(ifMatch, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || tag == etagOf(revision) {
			return true
		}
	}
	return false
}

func (s *Server) pingWebhook(ctx context.Context, c *call) error {
	return s.ping(ctx, c, c.id)
}

func (s *Server) pingByBody(ctx context.Context, c *call, body []byte) error {
	type pingBody struct { // pointers of what is refused begin behind the type's name
		Webhook string `json:"webhook" validate:"required,max=64"`
		Event   string `json:"event" validate:"required"`
	}
	var ping pingBody
	if err := schemas.DecodeStrict(body, &ping, "webhook", "event"); err != nil {
		return err
	}
	if err := schemas.Validate(&ping); err != nil {
		return err
	}
	if ping.Event != schemas.PingName {
		return schemas.Invalid(schemas.CodeInvalidValue, "#/event", `only "ping" can be sent to one webhook`)
	}
	err := s.ping(ctx, c, ping.Webhook)
	if errors.Is(err, registry.ErrNotFound) {
		return &requestError{
			status: fasthttp.StatusNotFound, code: schemas.CodeNotFound, pointer: "#/webhook", detail: "there is no such webhook",
		}
	}
	return err
}

// ping writes a delivery for this webhook and no other, whatever its patterns,
// also while it is disabled: no router is asked. With settings that make no sense
// nothing can be sent.
func (s *Server) ping(ctx context.Context, c *call, id string) error {
	w, err := s.visible(ctx, c, id)
	if err != nil {
		return err
	}
	if w.Invalid != "" {
		return &requestError{
			status: fasthttp.StatusConflict, code: codeInvalidWebhook, detail: "nothing can be sent with settings that make no sense: " + w.Invalid,
		}
	}
	at := now()
	e := schemas.Event{
		ID: schemas.NewEventID(), Name: schemas.PingName, Organization: w.Organization, Account: w.Account, Time: at,
	}
	d := schemas.Delivery{
		WebhookID: w.ID, WebhookRevision: w.Revision,
		EventID: e.ID, Event: e.Name, Organization: e.Organization, Account: e.Account,
		EventTime: at, AcceptedAt: at, RoutedAt: at,
		Cause:  schemas.CausePing,
		Format: w.Format,
		Body:   schemas.AppendFormatted(nil, w.Format, &e),
	}
	if errs := s.Publisher.Publish(ctx, d.Record(s.Topics.Deliveries)); errs != nil {
		return errs[0]
	}
	return c.answer(fasthttp.StatusAccepted, accepted{e.ID})
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
