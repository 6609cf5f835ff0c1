package api

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/filter"
)

// filterTest asks whether an event would pass a filter.
type filterTest struct {
	Filter string          `json:"filter"`
	Event  json.RawMessage `json:"event"` // plain, as POST /v1/events takes it
}

// filterResult is the answer.
type filterResult struct {
	Matches bool `json:"matches"`
	// Error is why the filter comes to no decision on this event, which therefore does not pass.
	Error *filterError `json:"error,omitempty"`
}

type filterError struct {
	Kind   filter.Kind `json:"kind"`
	Detail string      `json:"detail"`
}

// testFilter has the router's own matcher decide on a sample.
func (s *Server) testFilter(_ context.Context, c *call) error {
	body, err := c.jsonBody()
	if err != nil {
		return err
	}
	f, e, err := sample(c.who, body)
	if err != nil {
		return err
	}
	matches, err := f.Match(filter.NewEvent(&e, now()))
	result := filterResult{Matches: matches}
	if undecided, ok := errors.AsType[*filter.Error](err); ok {
		result.Error = &filterError{undecided.Kind, undecided.Error()}
	} else if err != nil {
		return err
	}
	return c.answer(fasthttp.StatusOK, result)
}

// sample reads the filter and the event it is to be tried on.
func sample(who principal, body []byte) (*filter.Filter, schemas.Event, error) {
	const pointerEvent = "#/event"
	var test filterTest
	if err := schemas.DecodeStrict(body, &test, "filter", "event"); err != nil {
		return nil, schemas.Event{}, err
	}
	f, err := filter.Compile(test.Filter)
	var e schemas.Event
	eventErr := error(schemas.Invalid(schemas.CodeRequired, pointerEvent, "missing: the event that the filter is tried on"))
	if test.Event != nil {
		e, eventErr = admit(who, test.Event, form{name: "#/event", decode: schemas.DecodePlainEvent}, 0)
		if invalid, ok := errors.AsType[*schemas.ValidationError](eventErr); ok {
			eventErr = &schemas.ValidationError{Fields: under(pointerEvent, invalid.Fields)}
		}
	}
	return f, e, joinFields(err, eventErr)
}

// checkFilter says what is wrong with a webhook's filter, if it has one.
func checkFilter(expression string) error {
	if expression == "" {
		return nil
	}
	_, err := filter.Compile(expression)
	return err
}
