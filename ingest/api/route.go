package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
)

const (
	pathWebhookEvents = "/webhook-events"
	pathEvents        = "/v1/events"
	pathWebhooks      = "/v1/webhooks"
	pathDeliveries    = "/v1/deliveries"
	pathChanges       = "/v1/changes"
	pathKeys          = "/v1/keys"
	pathFilterTest    = "/v1/filters/test"
	pathOpenAPI       = "/openapi.yaml"
	pathWebhookKeys   = "/.well-known/webhook-keys"

	actionRetry = "retry"

	routeNone = "none" // in metrics: no route was found

	scopeNone = "" // no key is asked for
)

// endpoint is what a method of a route does.
type endpoint struct {
	name   string // in metrics
	method string
	scope  string
	handle func(ctx context.Context, c *call) error
}

// route finds what a request asks for.
func (s *Server) route(c *call) (endpoint, error) {
	endpoints := s.endpoints(c)
	if endpoints == nil {
		return endpoint{}, &requestError{
			status: fasthttp.StatusNotFound, code: schemas.CodeNotFound, detail: "there is no such path; see " + pathOpenAPI,
		}
	}
	method := string(c.http.Method())
	if method == fasthttp.MethodHead {
		method = fasthttp.MethodGet // fasthttp leaves the body out
	}
	allowed := make([]string, 0, len(endpoints))
	for _, e := range endpoints {
		if e.method == method {
			return e, nil
		}
		allowed = append(allowed, e.method)
	}
	allow := strings.Join(slices.Compact(allowed), ", ")
	return endpoint{}, &requestError{
		status: fasthttp.StatusMethodNotAllowed, code: codeMethodNotAllowed, detail: "this path has " + allow, allow: allow,
	}
}

// endpoints returns those of the request's path, and sets the id that is part of it.
func (s *Server) endpoints(c *call) []endpoint {
	const (
		get, post, remove = fasthttp.MethodGet, fasthttp.MethodPost, fasthttp.MethodDelete
		read, write, keys = schemas.ScopeWebhooksRead, schemas.ScopeWebhooksWrite, schemas.ScopeKeysWrite
		look              = schemas.ScopeDeliveriesRead
	)
	path := string(c.http.Path())
	switch path {
	case pathEvents:
		return []endpoint{{"events", get, look, s.listEvents}, {"events", post, schemas.ScopeEventsWrite, s.postEvents}}
	case pathWebhookEvents:
		return []endpoint{{"webhook_events", post, write, s.postWebhookEvents}}
	case pathWebhooks:
		return []endpoint{{"webhooks", get, read, s.listWebhooks}, {"webhooks", post, write, s.postWebhooks}}
	case pathDeliveries:
		return []endpoint{{"deliveries", get, look, s.listDeliveries}}
	case pathKeys:
		return []endpoint{{"keys", get, keys, s.listKeys}, {"keys", post, keys, s.postKeys}}
	case pathFilterTest:
		return []endpoint{{"filter_test", post, read, s.testFilter}}
	case pathOpenAPI:
		return []endpoint{{"openapi", get, scopeNone, s.getOpenAPI}}
	case pathWebhookKeys:
		return []endpoint{{"webhook_keys", get, scopeNone, s.getWebhookKeys}}
	}
	if rest, ok := strings.CutPrefix(path, pathWebhooks+"/"); ok {
		return s.webhookEndpoints(c, rest)
	}
	if id, ok := strings.CutPrefix(path, pathKeys+"/"); ok && id != "" && !strings.Contains(id, "/") {
		c.id = id
		return []endpoint{{"key", get, keys, s.getKey}, {"key", remove, keys, s.deleteKey}}
	}
	return s.auditEndpoints(c, path)
}

// webhookEndpoints returns those of a path below a webhook's.
func (s *Server) webhookEndpoints(c *call, rest string) []endpoint {
	const (
		get, post, patch, remove = fasthttp.MethodGet, fasthttp.MethodPost, fasthttp.MethodPatch, fasthttp.MethodDelete
		read, write              = schemas.ScopeWebhooksRead, schemas.ScopeWebhooksWrite
		look, retry              = schemas.ScopeDeliveriesRead, schemas.ScopeDeliveriesRetry
	)
	id, action, _ := strings.Cut(rest, "/")
	c.id = id
	switch {
	case id == "":
	case rest == id:
		return []endpoint{
			{"webhook", get, read, s.getWebhook}, {"webhook", patch, write, s.patchWebhook}, {"webhook", remove, write, s.deleteWebhook},
		}
	case action == schemas.PingName:
		return []endpoint{{"webhook_ping", post, write, s.pingWebhook}}
	case action == "secrets":
		return []endpoint{{"webhook_secrets", post, write, s.postSecrets}}
	case action == actionPause, action == actionResume, action == actionEnable:
		return []endpoint{{"webhook_" + action, post, write, s.setState(action)}}
	case action == "stats":
		return []endpoint{{"webhook_stats", get, look, s.getStats}}
	case action == actionRetry:
		return []endpoint{{"webhook_retry", post, retry, s.startJob}}
	case strings.HasPrefix(action, actionRetry+"/"):
		c.job = strings.TrimPrefix(action, actionRetry+"/")
		return []endpoint{{"webhook_retry_job", get, look, s.getJob}, {"webhook_retry_job", remove, retry, s.cancelJob}}
	}
	return nil
}

// call is one request on its way. fasthttp uses its memory again after the
// answer, so what outlives that (records, changes) is made of copies.
type call struct {
	http *fasthttp.RequestCtx
	who  principal
	id   string // of the thing in the path
	job  string // the id behind it, of a job
	rid  string
}

// requestID finds the request in the log, from its answer or from changes.
func (c *call) requestID() string {
	if c.rid == "" {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails since Go 1.24
		c.rid = hex.EncodeToString(b[:])
	}
	return c.rid
}

// jsonBody returns a copy of a body that says it is JSON.
func (c *call) jsonBody() ([]byte, error) {
	if contentType := string(c.http.Request.Header.ContentType()); contentType != "" && !schemas.IsJSON(contentType) {
		return nil, unsupportedContent("the content type of this body is " + schemas.ContentTypeJSON)
	}
	return c.body()
}

func unsupportedContent(detail string) *requestError {
	return &requestError{status: fasthttp.StatusUnsupportedMediaType, code: schemas.CodeUnsupportedContent, detail: detail}
}

// answer writes v as JSON.
func (c *call) answer(status int, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // a URL with & stays readable
	if err := enc.Encode(v); err != nil {
		return err
	}
	c.http.SetStatusCode(status)
	c.http.SetContentType(schemas.ContentTypeJSON)
	c.http.SetBody(b.Bytes())
	return nil
}

// list is the answer of every list.
type list[T any] struct {
	Data []T     `json:"data"`
	Next *string `json:"next"` // cursor of the next page, null on the last
}

func (s *Server) getOpenAPI(_ context.Context, c *call) error {
	c.http.SetContentType("application/yaml")
	c.http.SetBody(s.OpenAPI)
	return nil
}
