package schemas

import (
	"bytes"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Glance is what counting needs of a delivery's record, in deliveries or wherever
// it waits: a tenth of the cost of DecodeDelivery. Its texts alias the record.
type Glance struct {
	// ID is the delivery's where the record names it; zero in deliveries.
	ID                             DeliveryID
	Organization, EventID, Webhook []byte
	Cause                          Cause
	AcceptedAt                     time.Time
	// Known says that the record is of this version and names what a delivery must
	// name; only then are the other members to be trusted, but for ID.
	Known bool
	// Newer says that it is of a version that is not known here.
	Newer bool
}

// GlanceDelivery reads the headers that counting needs.
func GlanceDelivery(r *kgo.Record) Glance {
	var g Glance
	versioned := false
	for i := range r.Headers {
		h := &r.Headers[i]
		switch h.Key {
		case HeaderVersion:
			versioned = string(h.Value) == Version
			g.Newer = !versioned
		case headerOrganization:
			g.Organization = h.Value
		case headerEventID:
			g.EventID = h.Value
		case headerWebhookID:
			g.Webhook = h.Value
		case headerCause:
			g.Cause = glanceCause(h.Value)
		case headerAcceptedAt:
			if us, err := strconv.ParseInt(string(h.Value), 10, 64); err == nil {
				g.AcceptedAt = time.UnixMicro(us)
			}
		case headerDeliveryID:
			g.ID, _ = parseDeliveryID(h.Value)
		}
	}
	g.Known = versioned && len(g.Organization) > 0 && len(g.EventID) > 0 && len(g.Webhook) > 0 && g.Cause != ""
	return g
}

// glanceCause is empty for what is no cause.
func glanceCause(text []byte) Cause {
	for _, c := range [...]Cause{CauseEvent, CausePing, CauseRetry, CauseReplay} {
		if string(text) == string(c) {
			return c
		}
	}
	return ""
}

// OutcomeGlance is what counting needs of an outcome. Organization aliases the record.
type OutcomeGlance struct {
	ID           DeliveryID
	Organization []byte
	Result       Result
}

// Ends reports whether the outcome is its delivery's end.
func (o *OutcomeGlance) Ends() bool { return o.Result != ResultRetry && o.Result != ResultHeld }

// GlanceOutcome reads an outcome as DecodeOutcome does, and returns the same errors,
// at a tenth of its cost where the record is as Postrider writes it.
func GlanceOutcome(r *kgo.Record) (OutcomeGlance, error) {
	if checkVersion(r) == nil {
		// A quote within a JSON text stands behind a backslash, so that these are names. They are in this order.
		organization, rest := memberOf(r.Value, `"organization":"`)
		id, rest := memberOf(rest, `"delivery_id":"`)
		result, _ := memberOf(rest, `"result":"`)
		parsed, ok := parseDeliveryID(id)
		if ok && knownResult(Result(result)) && len(organization) > 0 && bytes.IndexByte(organization, '\\') < 0 {
			return OutcomeGlance{ID: parsed, Organization: organization, Result: Result(result)}, nil
		}
	}
	o, err := DecodeOutcome(r)
	return OutcomeGlance{ID: o.DeliveryID, Organization: []byte(o.Organization), Result: o.Result}, err
}

func knownResult(r Result) bool {
	switch r {
	case ResultDelivered, ResultRetry, ResultDead, ResultDiscarded, ResultHeld:
		return true
	}
	return false
}

// memberOf returns the text behind the first place of name, up to the next quote, and what is behind it.
func memberOf(value []byte, name string) (text, rest []byte) {
	_, behind, found := bytes.Cut(value, []byte(name))
	text, rest, closed := bytes.Cut(behind, []byte{'"'})
	if !found || !closed {
		return nil, nil
	}
	return text, rest
}
