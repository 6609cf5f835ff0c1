package filter

import (
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/postrider/postrider/schemas"
)

// What an expression may look at.
const (
	varEvent        = "event"        // the event's name, a string
	varOrganization = "organization" // a string
	varAccount      = "account"      // a string, "" for an event of the organization itself
	varSubject      = "subject"      // a string, "" where the event has none
	varTime         = "time"         // a timestamp: when it happened, or was accepted where nobody said
	varPayload      = "payload"      // a map, empty where the event has none
)

// Event is an event as filters see it. All filters of an event share it, so that
// each part of its payload is parsed once; it is one goroutine's.
type Event struct {
	event      *schemas.Event
	acceptedAt time.Time
	payload    ref.Val
}

// NewEvent returns the event for filters to look at, accepted at the given time.
func NewEvent(e *schemas.Event, acceptedAt time.Time) *Event {
	return &Event{event: e, acceptedAt: acceptedAt}
}

// ResolveName implements cel.Activation.
func (e *Event) ResolveName(name string) (any, bool) {
	switch name {
	case varEvent:
		return types.String(e.event.Name), true
	case varOrganization:
		return types.String(e.event.Organization), true
	case varAccount:
		return types.String(e.event.Account), true
	case varSubject:
		return types.String(e.event.Subject), true
	case varTime:
		at := e.event.Time
		if at.IsZero() {
			at = e.acceptedAt
		}
		return types.Timestamp{Time: at.UTC()}, true
	case varPayload:
		if e.payload == nil {
			e.payload = parsed(e.event.Payload)
		}
		return e.payload, true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (e *Event) Parent() cel.Activation { return nil }
