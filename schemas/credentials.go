package schemas

import (
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Header is one of a webhook's own, sent with each of its requests: in clear, or
// sealed under HeaderIdentity where it is sensitive.
type Header struct {
	Name   string        `json:"name" validate:"headername"`
	Value  string        `json:"value,omitempty" validate:"headervalue"`
	Sealed *SealedSecret `json:"sealed,omitempty"`
}

// HeaderIdentity is the associated data that a header's value is sealed with.
func (w *Webhook) HeaderIdentity(name string) string {
	return "webhook/" + w.ID + "/header/" + strings.ToLower(name)
}

// Auth is how a webhook's requests authenticate to its target (RFC 7617, RFC 6750).
type Auth struct {
	Type     string       `json:"type" validate:"oneof=basic bearer"`
	Username string       `json:"username,omitempty" validate:"max=255,text,excludes=:"` // of basic
	Sealed   SealedSecret `json:"sealed"`                                                // the password or token, under AuthIdentity
}

// Types of Auth.
const (
	AuthBasic  = "basic"
	AuthBearer = "bearer"
)

// AuthIdentity is the associated data that the password or token is sealed with.
func (w *Webhook) AuthIdentity() string { return "webhook/" + w.ID + "/auth" }

const (
	maxHeaderName  = 100
	maxHeaderValue = 4096
)

// ValidHeaderName reports whether a webhook may have a header of this name: a
// token of RFC 9110 that neither frames the message nor is Postrider's own.
func ValidHeaderName(name string) bool {
	lower := strings.ToLower(name)
	for _, prefix := range []string{"webhook-", "postrider-", "proxy-", "content-"} {
		if strings.HasPrefix(lower, prefix) {
			return false
		}
	}
	forbidden := []string{
		"connection", "date", "expect", "host", "keep-alive", "te", "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade", "user-agent", "via",
	}
	return len(name) <= maxHeaderName && httpguts.ValidHeaderFieldName(name) && !slices.Contains(forbidden, lower)
}

// HeaderValueRule is what ValidHeaderValue holds a text to, in words.
const HeaderValueRule = "at most 4,096 bytes without line breaks and control characters"

// ValidHeaderValue reports whether a text can be a header's value: without line
// breaks, NUL and other control characters.
func ValidHeaderValue(value string) bool {
	return len(value) <= maxHeaderValue && isText(value) && httpguts.ValidHeaderFieldValue(value)
}

// validHeaders holds the rule over all headers: no name twice.
func validHeaders(headers []Header) bool {
	names := make(map[string]struct{}, len(headers))
	for _, h := range headers {
		names[strings.ToLower(h.Name)] = struct{}{}
	}
	return len(names) == len(headers)
}
