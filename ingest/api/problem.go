package api

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/ingest/publish"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

// Codes of refusals beside those that a record's fields have.
const (
	codeMalformedRequest schemas.Code = "malformed_request"
	codeTimeout          schemas.Code = "timeout"
	codeUnauthorized     schemas.Code = "unauthorized"
	codeScopeMissing     schemas.Code = "scope_missing"
	codeForbidden        schemas.Code = "organization_forbidden"
	codeMethodNotAllowed schemas.Code = "method_not_allowed"
	codeReadOnly         schemas.Code = "read_only"
	codeInvalidParameter schemas.Code = "invalid_parameter"
	codeRevisionMismatch schemas.Code = "revision_mismatch"
	codeTooManyWebhooks  schemas.Code = "too_many_webhooks"
	codeTooManySecrets   schemas.Code = "too_many_secrets"
	codeNotEnded         schemas.Code = "not_ended"
	codeWebhookDeleted   schemas.Code = "webhook_deleted"
	codeBodyNotKept      schemas.Code = "body_not_kept"
	codeJobRunning       schemas.Code = "job_running"
	codeJobEnded         schemas.Code = "job_ended"
	codeInvalidWebhook   schemas.Code = "invalid_webhook"
	codeKeyReused        schemas.Code = "idempotency_key_reused"
	codeKeyRunning       schemas.Code = "idempotency_key_running"
	codeRateLimited      schemas.Code = "rate_limited"
	codeUnavailable      schemas.Code = "unavailable"
	codeUnknownEnd       schemas.Code = "outcome_unknown"
	codeInternal         schemas.Code = "internal"
)

const (
	// retryAfterSeconds is told with each 503: an outage of seconds is over by the
	// second or third try, and a client that backs off lengthens it itself.
	retryAfterSeconds = "1"
	// maxProblemFields bounds an answer: a batch may have thousands of faults.
	maxProblemFields = 100

	wholeDocument       = "#"
	pointerOrganization = "#/organization"
)

var (
	errPanic   = errors.New("the request ended in a panic")
	errNotOpen = errors.New("not ready: Kafka is away, or its topics are not as they must be")
)

// requestError is a refusal that is not about a field's value.
type requestError struct {
	status  int
	code    schemas.Code
	pointer string // "#" if empty
	detail  string
	allow   string // of 405
}

// Error returns the detail.
func (e *requestError) Error() string { return e.detail }

func tooLarge() *requestError {
	return &requestError{
		status: fasthttp.StatusRequestEntityTooLarge, code: schemas.CodeTooLarge,
		detail: "a body is at most 1 MiB, a batch of events 5 MiB with 1 MiB and 1,000 events",
	}
}

func foreignOrganization() *requestError {
	return &requestError{
		status: fasthttp.StatusForbidden, code: codeForbidden,
		pointer: pointerOrganization, detail: "this key belongs to another organization",
	}
}

func invalidParameter(name, allowed string) *requestError {
	return &requestError{
		status: fasthttp.StatusUnprocessableEntity, code: codeInvalidParameter,
		detail: "query parameter " + name + " must be " + allowed,
	}
}

// problemOf is the one place where an error becomes an HTTP status and its
// words. What it does not know is a 500, and told to nobody outside.
func problemOf(err error) schemas.Problem {
	var (
		invalid *schemas.ValidationError
		batch   *batchError
		request *requestError
	)
	switch {
	case errors.As(err, &batch):
		return problem(fasthttp.StatusUnprocessableEntity, batch.Error(), batch.fields...)
	case errors.As(err, &invalid):
		return problem(statusOf(invalid), invalid.Fields[0].Detail, invalid.Fields...)
	case errors.As(err, &request):
		pointer := request.pointer
		if pointer == "" {
			pointer = wholeDocument
		}
		return problem(request.status, request.detail, schemas.FieldError{Code: request.code, Pointer: pointer, Detail: request.detail})
	case errors.Is(err, registry.ErrNotFound), errors.Is(err, audit.ErrNotFound):
		return whole(fasthttp.StatusNotFound, schemas.CodeNotFound, "there is no such thing here")
	case errors.Is(err, registry.ErrTooMany):
		return whole(fasthttp.StatusUnprocessableEntity, codeTooManyWebhooks, "this organization has as many webhooks as it may: delete one, or ask the operator")
	case errors.Is(err, registry.ErrJobRunning):
		return whole(fasthttp.StatusConflict, codeJobRunning, "a job of this webhook is running: wait for its end, or cancel it")
	case errors.Is(err, audit.ErrUnavailable):
		return whole(fasthttp.StatusServiceUnavailable, codeUnavailable,
			"ClickHouse is away, or this takes it too long: try again, or ask for less (organization, webhook)")
	case errors.Is(err, publish.ErrTooLarge):
		return problemOf(tooLarge())
	case errors.Is(err, registry.ErrUnknownEnd):
		return whole(fasthttp.StatusServiceUnavailable, codeUnknownEnd, "the change may have been made or not: look before trying again")
	case errors.Is(err, publish.ErrNotDurable):
		return whole(fasthttp.StatusServiceUnavailable, codeUnavailable,
			"Kafka did not acknowledge in time: send it again; with the same id and organization it is routed once")
	case errors.Is(err, publish.ErrOverloaded), errors.Is(err, registry.ErrUnavailable), errors.Is(err, errNotOpen):
		return whole(fasthttp.StatusServiceUnavailable, codeUnavailable, "Kafka is away, not ready or not keeping up: send it again")
	default:
		return whole(fasthttp.StatusInternalServerError, codeInternal, "something went wrong here; the log knows it by the instance")
	}
}

// statusOf returns 400 for what cannot be parsed, 413 and 415 for what is wrong
// with the body as a whole, and 422 for what does not validate.
func statusOf(invalid *schemas.ValidationError) int {
	status := fasthttp.StatusUnprocessableEntity
	for _, f := range invalid.Fields {
		switch {
		case f.Code == schemas.CodeInvalidJSON, f.Code == schemas.CodeTooDeep:
			return fasthttp.StatusBadRequest
		case f.Code == schemas.CodeTooLarge && f.Pointer == wholeDocument:
			status = fasthttp.StatusRequestEntityTooLarge
		case f.Code == schemas.CodeUnsupportedContent && f.Pointer == wholeDocument:
			status = fasthttp.StatusUnsupportedMediaType
		}
	}
	return status
}

func whole(status int, code schemas.Code, detail string) schemas.Problem {
	return problem(status, detail, schemas.FieldError{Code: code, Pointer: wholeDocument, Detail: detail})
}

func problem(status int, detail string, fields ...schemas.FieldError) schemas.Problem {
	fields = fields[:min(len(fields), maxProblemFields)]
	return schemas.Problem{Type: "about:blank", Title: fasthttp.StatusMessage(status), Status: status, Detail: detail, Errors: fields}
}

// problemAt is the problem of one request.
func problemAt(requestID string, err error) schemas.Problem {
	p := problemOf(err)
	p.Instance = "urn:postrider:request:" + requestID
	return p
}

// refuse answers with a problem. What nobody outside may see of it goes to the log.
func (s *Server) refuse(c *call, err error) {
	p := problemAt(c.requestID(), err)
	var request *requestError
	if errors.As(err, &request) && request.allow != "" {
		c.http.Response.Header.Set(fasthttp.HeaderAllow, request.allow)
	}
	switch p.Status {
	case fasthttp.StatusUnauthorized:
		c.http.Response.Header.Set(fasthttp.HeaderWWWAuthenticate, `Bearer realm="postrider"`)
	case fasthttp.StatusServiceUnavailable:
		c.http.Response.Header.Set(fasthttp.HeaderRetryAfter, retryAfterSeconds)
		s.Log.Debug("refusing a request for now", "request_id", c.requestID(), "error", err)
	case fasthttp.StatusInternalServerError:
		s.Log.Error("answering a request", "request_id", c.requestID(), "error", err)
	}
	body, err := json.Marshal(p)
	if err != nil {
		panic("BUG: a problem that JSON cannot say: " + err.Error())
	}
	c.http.Response.ResetBody()
	c.http.SetStatusCode(p.Status)
	c.http.SetContentType(schemas.ProblemContentType)
	c.http.SetBody(body)
}

// under puts the pointers of a part of a body under its own: of #/3, #/event becomes #/3/event.
func under(pointer string, fields []schemas.FieldError) []schemas.FieldError {
	moved := make([]schemas.FieldError, len(fields))
	for i, f := range fields {
		f.Pointer = pointer + strings.TrimPrefix(f.Pointer, wholeDocument)
		moved[i] = f
	}
	return moved
}
