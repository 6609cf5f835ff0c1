package api

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/publish"
	"github.com/postrider/postrider/schemas"
)

// Results of an event, in metrics.
const (
	resultAccepted    = "accepted"
	resultForbidden   = "forbidden"
	resultInvalid     = "invalid"
	resultTooLarge    = "too_large"
	resultUnavailable = "unavailable"
)

// form is one of those in which events come (CloudEvents HTTP binding 1.0.2,
// section 3, and the users' own).
type form struct {
	batch  bool
	name   string // JSON Pointer of the event's name
	key    string // Idempotency-Key, of which ids are made; empty: they are made up
	decode func(data []byte) (schemas.Event, error)
}

// accepted is the answer for one event.
type accepted struct {
	ID string `json:"id"`
}

// itemResult is the answer for one event of a batch.
type itemResult struct {
	ID     string           `json:"id"`
	Status int              `json:"status"`
	Error  *schemas.Problem `json:"error,omitempty"`
}

type batchResult struct {
	Results []itemResult `json:"results"`
}

func (s *Server) postEvents(ctx context.Context, c *call) error {
	body, err := c.body()
	if err != nil {
		return err
	}
	f, err := formOf(&c.http.Request.Header, body)
	if err == nil {
		f.key, err = c.idempotencyKey()
	}
	var run func(ask func() error) error
	if err == nil {
		run, err = s.repeats.begin(c, f.key, body)
	}
	if err != nil {
		s.countRefusal(err)
		return err
	}
	return run(func() error { return s.acceptEvents(ctx, c, body, f) })
}

func (s *Server) acceptEvents(ctx context.Context, c *call, body []byte, f form) error {
	if f.batch {
		return s.acceptBatch(ctx, c, body, f)
	}
	id, err := s.accept(ctx, c.who, body, f)
	if err != nil {
		s.countRefusal(err)
		return err
	}
	s.metrics.events.WithLabelValues(resultAccepted).Inc()
	return c.answer(fasthttp.StatusAccepted, accepted{id})
}

// mayBeBatch reports whether a request's body may be a batch, going by its head.
func mayBeBatch(h *fasthttp.RequestHeader) bool {
	contentType := strings.ToLower(string(h.ContentType()))
	structured := strings.HasPrefix(contentType, "application/cloudevents") &&
		!strings.HasPrefix(contentType, schemas.ContentTypeCloudEventBatch)
	return !structured && len(h.Peek("Ce-Specversion")) == 0
}

// formOf tells the forms apart as the HTTP binding says: batch, structured, else
// binary if there are attributes, else plain.
func formOf(h *fasthttp.RequestHeader, body []byte) (form, error) {
	contentType := string(h.ContentType())
	media, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	switch media = strings.TrimSpace(media); {
	case media == schemas.ContentTypeCloudEventBatch:
		return form{batch: true, name: "#/type", decode: schemas.DecodeCloudEvent}, nil
	case media == schemas.ContentTypeCloudEvent:
		return form{name: "#/type", decode: schemas.DecodeCloudEvent}, nil
	case strings.HasPrefix(media, "application/cloudevents"):
		return form{}, unsupportedContent("CloudEvents are read in their JSON format only")
	}
	attributes, err := attributesOf(h)
	if err != nil {
		return form{}, err
	}
	if media != "" && !schemas.IsJSON(media) && (len(body) > 0 || len(attributes) == 0) {
		return form{}, unsupportedContent("an event comes as " + schemas.ContentTypeJSON + ", or as a CloudEvent in JSON")
	}
	if len(attributes) > 0 {
		return form{name: "#/type", decode: func(data []byte) (schemas.Event, error) {
			return schemas.EventFromAttributes(attributes, contentType, data)
		}}, nil
	}
	return form{batch: schemas.IsArray(body), name: "#/event", decode: schemas.DecodePlainEvent}, nil
}

// attributesOf returns a CloudEvent's attributes in binary mode. Header values
// are percent-encoded and may be quoted (HTTP binding 1.0.2, section 3.1.3.2).
func attributesOf(h *fasthttp.RequestHeader) ([]schemas.Attribute, error) {
	var (
		attributes []schemas.Attribute
		fields     []schemas.FieldError
	)
	for key, raw := range h.All() {
		name, ok := strings.CutPrefix(strings.ToLower(string(key)), schemas.HTTPAttributePrefix)
		if !ok {
			continue
		}
		value, err := url.PathUnescape(unquote(string(raw)))
		if err != nil {
			fields = append(fields, schemas.FieldError{
				Code: schemas.CodeInvalidCloudEvent, Pointer: "#/" + name, Detail: "the header is not percent-encoded as it should be",
			})
			continue
		}
		attributes = append(attributes, schemas.Attribute{Name: name, Value: value})
	}
	if len(fields) > 0 {
		return nil, &schemas.ValidationError{Fields: fields}
	}
	return attributes, nil
}

// unquote takes the quotes off a quoted string (RFC 9110, section 5.6.4).
func unquote(value string) string {
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return value
	}
	var b strings.Builder
	inner := value[1 : len(value)-1]
	for i := 0; i < len(inner); i++ {
		if inner[i] == '\\' && i+1 < len(inner) {
			i++
		}
		b.WriteByte(inner[i])
	}
	return b.String()
}

// accept makes one event durable and returns its id.
func (s *Server) accept(ctx context.Context, who principal, body []byte, f form) (id string, err error) {
	e, err := admit(who, body, f, 0)
	if err != nil {
		return "", err
	}
	if errs := s.Publisher.Publish(ctx, e.Record(s.Topics.Events)); errs != nil {
		return "", errs[0]
	}
	return e.ID, nil
}

// admit decodes one event, the item of that number, and decides whether who may
// send it. The event aliases body. With an error, its id is what could be made out.
func admit(who principal, body []byte, f form, item int) (schemas.Event, error) {
	if len(body) > maxSingleBytes {
		return schemas.Event{}, tooLarge()
	}
	e, err := f.decode(body)
	if e.Organization == "" && who.organization != "" {
		e.Organization = who.organization
		err = withoutMissing(err, pointerOrganization)
	}
	switch {
	case err != nil:
		return e, err
	case !who.sees(e.Organization):
		return e, foreignOrganization()
	case schemas.OperationalName(e.Name):
		return e, schemas.Invalid(schemas.CodeReservedName, f.name, "the services webhook and delivery are Postrider's own")
	}
	switch {
	case e.ID != "":
	case f.key == "":
		e.ID = schemas.NewEventID()
	default:
		e.ID = schemas.EventIDOf(e.Organization, f.key, item)
	}
	return e, nil
}

// withoutMissing takes from a refusal that the field at pointer is missing.
func withoutMissing(err error, pointer string) error {
	var invalid *schemas.ValidationError
	if !errors.As(err, &invalid) {
		return err
	}
	fields := slices.DeleteFunc(slices.Clone(invalid.Fields), func(f schemas.FieldError) bool {
		return f.Pointer == pointer && f.Code == schemas.CodeRequired
	})
	if len(fields) == 0 {
		return nil
	}
	return &schemas.ValidationError{Fields: fields}
}

func (s *Server) acceptBatch(ctx context.Context, c *call, body []byte, f form) error {
	items, err := schemas.SplitArray(body, maxBatchEvents)
	if err == nil && len(items) == 0 {
		err = schemas.Invalid(schemas.CodeRequired, wholeDocument, "a batch has at least one event")
	}
	if err != nil {
		s.countRefusal(err)
		return err
	}
	results := make([]itemResult, len(items))
	errs := make([]error, len(items))
	records := make([]*kgo.Record, 0, len(items))
	at := make([]int, 0, len(items)) // of each record among the items
	for i, item := range items {
		var e schemas.Event
		e, errs[i] = admit(c.who, item, f, i)
		results[i].ID = e.ID
		if errs[i] == nil {
			records = append(records, e.Record(s.Topics.Events))
			at = append(at, i)
		}
	}
	if len(records) > 0 {
		for i, err := range s.Publisher.Publish(ctx, records...) {
			errs[at[i]] = err
		}
	}
	if s.judge(results, errs) == 0 {
		return noneAccepted(results, errs)
	}
	return c.answer(fasthttp.StatusAccepted, batchResult{results})
}

// judge sets each item's status and counts it. It returns how many were accepted.
func (s *Server) judge(results []itemResult, errs []error) (good int) {
	for i, err := range errs {
		if err == nil {
			results[i].Status = fasthttp.StatusAccepted
			good++
			continue
		}
		s.countRefusal(err)
		p := problemOf(err)
		p.Errors = under(schemas.PointerAt(wholeDocument, i), p.Errors)
		results[i].Status, results[i].Error = p.Status, &p
	}
	s.metrics.events.WithLabelValues(resultAccepted).Add(float64(good))
	return good
}

// noneAccepted is the answer to a batch of which nothing was taken: 503 if that
// was Kafka's doing, so that it is sent again, else 422 with every fault.
func noneAccepted(results []itemResult, errs []error) error {
	var fields []schemas.FieldError
	for i, r := range results {
		if r.Status == fasthttp.StatusServiceUnavailable {
			return errs[i]
		}
		fields = append(fields, r.Error.Errors...)
	}
	return &batchError{fields: fields}
}

// batchError says that no event of a batch was accepted.
type batchError struct {
	fields []schemas.FieldError
}

// Error says so in words.
func (e *batchError) Error() string { return "no event of the batch was accepted" }

func (s *Server) countRefusal(err error) {
	s.metrics.events.WithLabelValues(resultOf(err)).Inc()
}

func resultOf(err error) string {
	var request *requestError
	switch {
	case errors.Is(err, publish.ErrNotDurable), errors.Is(err, publish.ErrOverloaded):
		return resultUnavailable
	case errors.Is(err, publish.ErrTooLarge):
		return resultTooLarge
	case errors.As(err, &request) && request.status == fasthttp.StatusForbidden:
		return resultForbidden
	case errors.As(err, &request) && request.status == fasthttp.StatusRequestEntityTooLarge:
		return resultTooLarge
	default:
		return resultInvalid
	}
}
