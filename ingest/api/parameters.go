package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/schemas"
)

// Bounds of texts to look for, in characters: what is longer is nowhere.
const (
	maxID           = 64
	maxEventID      = 256
	maxOrganization = 128
	maxURL          = 2048
	maxMetadata     = 64 + 1 + 512 // a key, a colon and its value
	// maxCursor is more than a cursor has.
	maxCursor = 128

	defaultLimit, maxLimit = 100, 1000
)

const timeRule = "a time of RFC 3339, such as 2026-11-25T12:00:00Z"

// parameters are those of a request's query, each taken with its rule. The first
// that breaks one is err.
type parameters struct {
	values map[string]string
	err    error
	// cursor and limit are those of a list.
	cursor string
	limit  int
}

// parameters reads the query, which may have those of every list and those named,
// each once: one that is misspelt must not widen a question in silence.
func (c *call) parameters(named ...string) *parameters {
	p := &parameters{values: map[string]string{}, limit: defaultLimit}
	named = append([]string{"limit", "cursor"}, named...)
	for key, value := range c.http.QueryArgs().All() {
		name := string(key)
		_, twice := p.values[name]
		switch {
		case name == "" && len(value) == 0: // as in ?&limit=1
		case !slices.Contains(named, name):
			p.refuse(&requestError{
				status: fasthttp.StatusUnprocessableEntity, code: codeInvalidParameter,
				detail: fmt.Sprintf("there is no query parameter %.64q here; there are %s", name, strings.Join(named, ", ")),
			})
		case twice:
			p.refuse(invalidParameter(name, "given once"))
		default:
			p.values[name] = string(value)
		}
	}
	p.cursor = p.text("cursor", maxCursor)
	if text, given := p.values["limit"]; given {
		limit, err := strconv.Atoi(text)
		if err != nil || limit < 1 || limit > maxLimit {
			p.refuse(invalidParameter("limit", "a number from 1 to 1,000"))
		}
		p.limit = limit
	}
	return p
}

func (p *parameters) refuse(err error) {
	if p.err == nil {
		p.err = err
	}
}

// text returns a text of at most so many characters, empty where it is left out.
func (p *parameters) text(name string, most int) string {
	value := p.values[name]
	if utf8.RuneCountInString(value) > most || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
		p.refuse(invalidParameter(name, fmt.Sprintf("a text of at most %d characters, none of them a control character", most)))
	}
	return value
}

// organization returns the organization that a question is about; empty: all.
func (p *parameters) organization(who principal) string {
	organization, err := who.organizationFor(p.text("organization", maxOrganization))
	if err != nil {
		p.refuse(err)
	}
	return organization
}

func (p *parameters) eventName(name string) string {
	value := p.values[name]
	if value != "" && !schemas.ValidName(value) {
		p.refuse(invalidParameter(name, "an event's name, <service>.<method>"))
	}
	return value
}

func (p *parameters) oneOf(name string, allowed ...string) string {
	value := p.values[name]
	if value != "" && !slices.Contains(allowed, value) {
		p.refuse(invalidParameter(name, "one of "+strings.Join(allowed, ", ")))
	}
	return value
}

// flag returns nil where the parameter is left out.
func (p *parameters) flag(name string) *bool {
	value := p.oneOf(name, "true", "false")
	if value == "" {
		return nil
	}
	return new(value == "true")
}

// span returns the times since and until, zero where they are left out.
func (p *parameters) span() (since, until time.Time) {
	since, until = p.time("since"), p.time("until")
	if !since.IsZero() && !until.IsZero() && !since.Before(until) {
		p.refuse(invalidParameter("since", "before until"))
	}
	return since, until
}

// time reads a time to the millisecond, as the audit keeps it, within what its type can hold.
func (p *parameters) time(name string) time.Time {
	text := p.values[name]
	if text == "" {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339, text)
	switch {
	case err != nil:
		p.refuse(invalidParameter(name, timeRule))
	case at.Before(time.Unix(0, 0)), at.After(time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)):
		p.refuse(invalidParameter(name, "a time from 1970-01-01T00:00:00Z to 2200-01-01T00:00:00Z"))
	}
	return at.UTC().Truncate(time.Millisecond)
}

// question is what a list was asked, but for the page: a cursor is of one question.
func (p *parameters) question(c *call) string { return p.questionOf(string(c.http.Path()), c.who) }

func (p *parameters) questionOf(path string, who principal) string {
	names := make([]string, 0, len(p.values))
	for name := range p.values {
		if name != "cursor" && name != "limit" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var text strings.Builder
	text.WriteString(path + "\n" + who.organization)
	for _, name := range names {
		text.WriteString("\n" + name + "=" + p.values[name]) // which has no line's end in it
	}
	return text.String()
}

// A cursor says where a page ended, with a checksum over that and the question. It
// is no secret and gives no right: the organization that is looked in is the key's,
// whatever the cursor says. The checksum finds what was changed by mistake, and
// cursors of other questions, which would leave out what they should not.
const cursorSum = 8

//nolint:gochecknoglobals // a constant; strict: one cursor, one text
var cursorEncoding = base64.RawURLEncoding.Strict()

func sealCursor(text, question string) *string {
	sum := sha256.Sum256([]byte(question + "\n" + text))
	return new(cursorEncoding.EncodeToString(append(sum[:cursorSum:cursorSum], text...)))
}

// openCursor reads what sealCursor wrote for the same question; of no cursor, nothing.
func openCursor(cursor, question string) (text string, err error) {
	if cursor == "" {
		return "", nil
	}
	raw, err := cursorEncoding.DecodeString(cursor)
	if err != nil || len(raw) < cursorSum {
		return "", errCursor
	}
	text = string(raw[cursorSum:])
	sum := sha256.Sum256([]byte(question + "\n" + text))
	if subtle.ConstantTimeCompare(sum[:cursorSum], raw[:cursorSum]) != 1 {
		return "", errCursor
	}
	return text, nil
}

var errCursor = &requestError{
	status: fasthttp.StatusBadRequest, code: codeInvalidParameter,
	detail: "query parameter cursor must be what next was on the page before, with the other parameters as they were",
}

// cursorAt is the cursor of a page of the audit that ended at a place.
func cursorAt(place audit.Place, question string) *string {
	return sealCursor(strconv.FormatInt(place.At.UnixMilli(), 10)+"/"+place.ID, question)
}

// placeAt reads what cursorAt wrote for the same question.
func placeAt(cursor, question string) (audit.Place, error) {
	text, err := openCursor(cursor, question)
	if text == "" || err != nil {
		return audit.Place{}, err
	}
	at, id, _ := strings.Cut(text, "/")
	ms, err := strconv.ParseInt(at, 10, 64)
	if _, bad := schemas.ParseDeliveryID(id); err != nil || bad != nil {
		return audit.Place{}, errCursor
	}
	return audit.Place{At: time.UnixMilli(ms).UTC(), ID: id}, nil
}

// page reads the parameters of a list of what the registry has, which may have more
// than those of every list. A page begins after a row's id.
func (c *call) page(more ...string) (p *parameters, organization, after string) {
	p = c.parameters(append(more, "organization")...)
	organization = p.organization(c.who)
	after, err := openCursor(p.cursor, p.question(c))
	if err != nil {
		p.refuse(err)
	}
	return p, organization, after
}

// next is the cursor of the page after a row's id.
func (p *parameters) next(c *call, id string) *string { return sealCursor(id, p.question(c)) }
