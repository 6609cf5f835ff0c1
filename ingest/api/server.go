// Package api provides the REST listener: it knows who asks, what they may do,
// whether what they send is right, and how to answer. Making events durable is
// publish's, keeping webhooks and keys the registry's.
//
// Serve runs the listener; fasthttp runs a goroutine for each connection.
package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/ingest/publish"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

const (
	// maxSingleBytes bounds every body but a batch of events.
	maxSingleBytes = 1 << 20
	// maxBatchBytes and maxBatchEvents bound a batch.
	maxBatchBytes  = 5 << 20
	maxBatchEvents = 1000
	// maxHeadBytes bounds a request's head; fasthttp's read buffer is that bound.
	maxHeadBytes = 16 << 10

	// maxRequest bounds the work on a request that has been read, so that its
	// answer comes within 5 s whatever Kafka does.
	maxRequest = 4800 * time.Millisecond
	// readTimeout is for head and body together: 5 MiB in 20 s is 2 Mbit/s.
	readTimeout  = 20 * time.Second
	writeTimeout = 10 * time.Second
	idleTimeout  = time.Minute
	// maxDrain is how long a stopping server waits for the requests it has taken.
	maxDrain = 10 * time.Second
	// maxConnections bounds memory: with heads alone 160 MiB. F13 opens 5,000.
	maxConnections = 10000
)

// Options are what a server works with.
type Options struct {
	Topics    schemas.Topics
	Registry  *registry.Registry
	Publisher *publish.Publisher
	// Audit is asked what became of deliveries.
	Audit audit.Audit
	// DeliveriesID returns the id of the topic deliveries, known once Open says so.
	DeliveriesID func() [16]byte
	// Instance is this replica's name: it runs the jobs that are started here.
	Instance string
	// Open says whether the topics have been found to be as they must; until then nothing is taken.
	Open    func() bool
	Targets schemas.TargetPolicy
	KeyRing schemas.KeyRing
	// AdminKey is the bootstrap key; empty: there is none.
	AdminKey string
	// KeyRate is of keys that have no limit of their own; nil: they have none.
	KeyRate *schemas.RateLimit
	// OpenAPI is served at /openapi.yaml.
	OpenAPI []byte
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Server answers requests.
type Server struct {
	Options
	admin   *[sha256.Size]byte // of the admin key, which is not kept itself
	metrics metrics

	limiters *limiters
	repeats  *repeats
}

type metrics struct {
	events   *prometheus.CounterVec
	requests *prometheus.HistogramVec
	panics   prometheus.Counter
}

// New returns a server for Serve to run.
func New(o Options) *Server {
	s := &Server{Options: o, limiters: newLimiters(o.KeyRate), repeats: newRepeats()}
	if o.AdminKey != "" {
		sum := sha256.Sum256([]byte(o.AdminKey))
		s.admin, s.AdminKey = &sum, ""
	}
	s.metrics = metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_ingest_events_total",
			Help: "Events received over HTTP, by what became of them.",
		}, []string{"result"}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "postrider_ingest_request_duration_seconds",
			Help:    "From a request that has been read to its answer.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5},
		}, []string{"route", "status"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postrider_ingest_panics_total",
			Help: "Requests that ended in a panic: each is a bug.",
		}),
	}
	o.Metrics.MustRegister(s.metrics.events, s.metrics.requests, s.metrics.panics)
	return s
}

// Serve answers requests on ln, which it closes, until ctx ends; then it takes
// no more, ends those it has, and returns.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	// A request under way when ctx ends is answered, so its context is not ctx.
	server := s.httpServer(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() { served <- server.Serve(lingeringListener{ln}) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving requests on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxDrain)
	defer cancel()
	if err := server.ShutdownWithContext(drain); err != nil && !errors.Is(err, net.ErrClosed) {
		s.Log.Warn("stopping with requests under way", "error", err)
	}
	// Told to stop before Serve has begun, fasthttp knows of no listener to close, and would serve for good.
	_ = ln.Close() // else closed already
	if err := <-served; err != nil {
		return fmt.Errorf("serving requests on %s: %w", ln.Addr(), err)
	}
	return nil
}

func (s *Server) httpServer(base context.Context) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                      s.handler(base),
		ErrorHandler:                 s.unreadable,
		HeaderReceived:               limits,
		Logger:                       slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		SecureErrorLogMessage:        true,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxRequestBodySize:           maxSingleBytes,
		ReadBufferSize:               maxHeadBytes,
		Concurrency:                  maxConnections,
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		CloseOnShutdown:              true,
	}
}

// limits lets only what may be a batch be as long as one.
func limits(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	if path, _, _ := bytes.Cut(h.RequestURI(), []byte("?")); string(path) == pathEvents && mayBeBatch(h) {
		return fasthttp.RequestConfig{MaxRequestBodySize: maxBatchBytes}
	}
	return fasthttp.RequestConfig{}
}

// handler routes requests and sees to it that each gets one answer.
func (s *Server) handler(base context.Context) fasthttp.RequestHandler {
	return func(h *fasthttp.RequestCtx) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(base, maxRequest)
		defer cancel()
		c := &call{http: h}
		route := routeNone
		defer func() {
			// fasthttp does not recover: one request would end all.
			if p := recover(); p != nil {
				s.metrics.panics.Inc()
				s.Log.Error("answering a request", "route", route, "request_id", c.requestID(),
					"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				s.refuse(c, errPanic)
			}
			s.metrics.requests.WithLabelValues(route, strconv.Itoa(h.Response.StatusCode())).Observe(time.Since(start).Seconds())
		}()
		found, err := s.route(c)
		if err == nil {
			route = found.name
			err = s.serve(ctx, c, found)
		}
		if err != nil {
			s.refuse(c, err)
		}
	}
}

// serve answers a routed request, after finding out who asks.
func (s *Server) serve(ctx context.Context, c *call, e endpoint) error {
	if e.scope != scopeNone {
		if !s.Open() {
			return errNotOpen
		}
		who, err := s.authenticate(ctx, c)
		if err != nil {
			return err
		}
		c.who = who
		if err := s.limit(c); err != nil {
			return err
		}
		if !who.may(e.scope) {
			return &requestError{
				status: fasthttp.StatusForbidden, code: codeScopeMissing,
				detail: "this needs a key with the scope " + e.scope,
			}
		}
	}
	return e.handle(ctx, c)
}

// unreadable answers what did not come in as a request.
func (s *Server) unreadable(h *fasthttp.RequestCtx, err error) {
	var (
		small   *fasthttp.ErrSmallBuffer
		network net.Error
	)
	refusal := &requestError{status: fasthttp.StatusBadRequest, code: codeMalformedRequest, detail: "this is not a request of HTTP/1.1"}
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		refusal = tooLarge()
		linger(h)
	case errors.As(err, &small):
		refusal = &requestError{
			status: fasthttp.StatusRequestHeaderFieldsTooLarge, code: schemas.CodeTooLarge,
			detail: fmt.Sprintf("the request line and headers are over %d bytes", maxHeadBytes),
		}
		linger(h)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		refusal = &requestError{
			status: fasthttp.StatusRequestTimeout, code: codeTimeout,
			detail: fmt.Sprintf("the request did not come in within %s", readTimeout),
		}
	}
	s.refuse(&call{http: h}, refusal)
	s.metrics.requests.WithLabelValues(routeNone, strconv.Itoa(refusal.status)).Observe(0)
}
