package api

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/postrider/postrider/schemas"
)

// patterns are a webhook's events: one string, or an array of them.
type patterns []string

// UnmarshalJSON reads either.
func (p *patterns) UnmarshalJSON(b []byte) error {
	var one *string
	if err := json.Unmarshal(b, &one); err == nil && one != nil {
		*p = patterns{*one}
		return nil
	}
	var many []*string
	if err := json.Unmarshal(b, &many); err != nil || many == nil {
		return schemas.Invalid(schemas.CodeWrongType, "#/events", "expected a string or an array of strings")
	}
	*p = make(patterns, len(many))
	for i, one := range many {
		if one == nil {
			return schemas.Invalid(schemas.CodeWrongType, schemas.PointerAt("#/events", i), "expected a string, got null")
		}
		(*p)[i] = *one
	}
	return nil
}

// removable is a member's text in a merge patch; nil where it is null, which takes the member away.
type removable struct{ text *string }

// UnmarshalJSON reads either.
func (r *removable) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &r.text) }

// newWebhook reads the body that creates a webhook, and returns the secret it signs
// with, too. Of an idempotency key that is not empty the id is made.
func (s *Server) newWebhook(who principal, body []byte, key string) (w schemas.Webhook, secret []byte, err error) {
	create := struct {
		Organization string            `json:"organization"`
		Account      string            `json:"account"`
		Active       bool              `json:"active"`
		URL          string            `json:"url"`
		Events       patterns          `json:"events"`
		Description  string            `json:"description"`
		Metadata     map[string]string `json:"metadata"`
		Filter       string            `json:"filter"`
		Format       schemas.Format    `json:"format"`
		Headers      []headerBody      `json:"headers"`
		Auth         *authBody         `json:"auth"`
		Signatures   []string          `json:"signatures"`
		Secret       *string           `json:"secret"`
		schemas.Handling
	}{Active: true}
	known := append([]string{"organization", "account", "active", "url", "events", "description", "metadata", "filter", "format", "headers", "auth", "signatures", "secret"}, handlingMembers()...)
	err = schemas.DecodeStrict(body, &create, known...)
	if err != nil {
		return w, nil, err
	}
	organization, err := who.organizationFor(create.Organization)
	if err != nil {
		return w, nil, err
	}
	secret, secretErr := secretOf(create.Secret)
	at, id := now(), schemas.NewWebhookID()
	if key != "" {
		id = schemas.WebhookIDOf(organization, key)
	}
	w = schemas.Webhook{
		ID:           id,
		Organization: organization,
		Account:      create.Account,
		Active:       create.Active,
		URL:          create.URL,
		Events:       create.Events,
		Description:  create.Description,
		Metadata:     create.Metadata,
		Filter:       create.Filter,
		Format:       create.Format,
		Handling:     create.Handling,
		Signatures:   create.Signatures,
		Generation:   1,
		Revision:     1,
		CreatedAt:    at,
		UpdatedAt:    at,
	}
	err = joinFields(s.setTarget(&w), s.setHeaders(&w, create.Headers), s.setAuth(&w, create.Auth), secretErr, checkCredentials(&w), checkFilter(w.Filter), schemas.Validate(&w))
	if err != nil {
		return w, nil, err
	}
	return w, secret, s.addSecret(&w, secret, 0)
}

// setTarget puts a webhook's URL into its canonical form, in which the sender
// will check it again.
func (s *Server) setTarget(w *schemas.Webhook) error {
	if w.URL == "" {
		return nil // missing, which validation says
	}
	target, err := s.Targets.ParseTarget(w.URL)
	if refused, ok := errors.AsType[*schemas.TargetError](err); ok {
		return schemas.Invalid(schemas.CodeInvalidTarget, "#/url", refused.Detail)
	}
	if err != nil {
		return err
	}
	w.URL = target.URL
	return nil
}

// joinFields makes one refusal of several, a field being told once.
func joinFields(errs ...error) error {
	var fields []schemas.FieldError
	told := map[string]bool{}
	for _, err := range errs {
		var invalid *schemas.ValidationError
		if err == nil {
			continue
		}
		if !errors.As(err, &invalid) {
			return err
		}
		for _, f := range invalid.Fields {
			if !told[f.Pointer] {
				fields = append(fields, f)
			}
			told[f.Pointer] = true
		}
	}
	if len(fields) == 0 {
		return nil
	}
	return &schemas.ValidationError{Fields: fields}
}

// setter does to a webhook what a member of a patch says.
type setter func(*schemas.Webhook) error

// parsePatch reads a JSON merge patch (RFC 7396) into what it does to a webhook.
// null takes a member away, where there can be none.
func (s *Server) parsePatch(body []byte) ([]setter, error) {
	var members map[string]json.RawMessage
	readOnly := []string{"id", "organization", "account", "state", "disabled_at", "disabled_reason", "failing_since", "public_keys", "generation", "revision", "created_at", "updated_at", "secret"}
	known := slices.Concat([]string{"active", "url", "events", "description", "metadata", "filter", "format", "headers", "auth", "signatures"}, handlingMembers(), readOnly)
	if err := schemas.DecodeStrict(body, &members, known...); err != nil {
		return nil, err
	}
	var (
		patch []setter
		errs  []error
	)
	for _, name := range known {
		raw, ok := members[name]
		if !ok {
			continue
		}
		set, err := s.parseMember(name, raw)
		patch, errs = append(patch, set), append(errs, err)
	}
	return patch, joinFields(errs...)
}

func (s *Server) parseMember(name string, raw json.RawMessage) (setter, error) {
	switch name {
	case "headers":
		headers, err := member[[]headerBody](name, raw)
		return func(w *schemas.Webhook) error { return s.setHeaders(w, headers) }, err
	case "auth":
		auth, err := member[*authBody](name, raw)
		return func(w *schemas.Webhook) error { return s.setAuth(w, auth) }, err
	}
	set, err := s.parsePlain(name, raw)
	return func(w *schemas.Webhook) error {
		set(w)
		return nil
	}, err
}

// parsePlain reads a member that can be set whatever the webhook is like.
func (s *Server) parsePlain(name string, raw json.RawMessage) (func(*schemas.Webhook), error) {
	switch name {
	case "active":
		active, err := required[bool](name, raw)
		return func(w *schemas.Webhook) {
			switch {
			case !active:
				w.Active = false
			case !s.Registry.Enabled(w):
				s.Registry.Enable(w)
			}
		}, err
	case "url":
		text, err := required[string](name, raw)
		target := schemas.Webhook{URL: text}
		if err == nil {
			err = s.setTarget(&target)
		}
		return func(w *schemas.Webhook) { w.URL = target.URL }, err
	case "events":
		events, err := required[patterns](name, raw)
		return func(w *schemas.Webhook) { w.Events = events }, err
	case "description":
		text, err := member[string](name, raw)
		return func(w *schemas.Webhook) { w.Description = text }, err
	case "metadata":
		metadata, err := member[map[string]removable](name, raw)
		return func(w *schemas.Webhook) { patchMetadata(w, metadata) }, err
	case "filter":
		expression, err := member[string](name, raw)
		if err == nil {
			err = checkFilter(expression)
		}
		return func(w *schemas.Webhook) { w.Filter = expression }, err
	case "format":
		format, err := member[schemas.Format](name, raw)
		return func(w *schemas.Webhook) { w.Format = format }, err
	case "signatures":
		schemes, err := member[[]string](name, raw)
		return func(w *schemas.Webhook) { w.Signatures = schemes }, err
	default:
		return parseHandling(name, raw)
	}
}

// handlingMembers are the names of schemas.Handling.
func handlingMembers() []string {
	return []string{"timeout_ms", "retry_schedule", "max_concurrency", "rate_limit", "success", "final_statuses"}
}

// parseHandling reads a member of how a target is served; null gives it its default.
func parseHandling(name string, raw json.RawMessage) (func(*schemas.Webhook), error) {
	switch name {
	case "timeout_ms":
		ms, err := member[*int](name, raw)
		return func(w *schemas.Webhook) { w.TimeoutMS = ms }, err
	case "retry_schedule":
		delays, err := member[[]string](name, raw)
		return func(w *schemas.Webhook) { w.RetrySchedule = delays }, err
	case "max_concurrency":
		most, err := member[*int](name, raw)
		return func(w *schemas.Webhook) { w.MaxConcurrency = most }, err
	case "rate_limit":
		limit, err := member[*schemas.RateLimit](name, raw)
		return func(w *schemas.Webhook) { w.RateLimit = limit }, err
	case "success":
		success, err := member[string](name, raw)
		return func(w *schemas.Webhook) { w.Success = success }, err
	case "final_statuses":
		statuses, err := member[[]int](name, raw)
		return func(w *schemas.Webhook) { w.FinalStatuses = statuses }, err
	default:
		return nil, schemas.Invalid(codeReadOnly, "#/"+name, "cannot be changed")
	}
}

// patchMetadata sets members, or takes away those that are nil; nil as a whole takes away all.
func patchMetadata(w *schemas.Webhook, metadata map[string]removable) {
	if metadata == nil {
		w.Metadata = nil
		return
	}
	if w.Metadata == nil {
		w.Metadata = make(map[string]string, len(metadata))
	}
	for key, value := range metadata {
		if value.text == nil {
			delete(w.Metadata, key)
		} else {
			w.Metadata[key] = *value.text
		}
	}
}

// member reads a member's value; null gives the zero value.
func member[T any](name string, raw json.RawMessage) (v T, err error) {
	if !isNull(raw) {
		err = schemas.DecodeMember(raw, "#/"+name, &v)
	}
	return v, err
}

// required reads a member that cannot be taken away.
func required[T any](name string, raw json.RawMessage) (T, error) {
	if isNull(raw) {
		var none T
		return none, schemas.Invalid(schemas.CodeRequired, "#/"+name, "cannot be taken away")
	}
	return member[T](name, raw)
}

func isNull(raw json.RawMessage) bool { return strings.TrimSpace(string(raw)) == "null" }
