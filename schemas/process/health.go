package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// A Kind says what the loss of a dependency means.
type Kind int

// Kinds of dependencies.
const (
	Required   Kind = iota // without it the main work cannot be done: /readyz is 503
	Degradable             // without it less is done: /readyz is 200 and says degraded
)

// Health knows the state of everything a process depends on. It logs when a dependency is lost and found, so its owner need not.
type Health struct {
	log  *slog.Logger
	desc *prometheus.Desc

	mu           sync.Mutex // guards the rest, and the fields of each dependency
	dependencies []*Dependency
	stopping     bool
}

// A Dependency is something a part of the process needs, such as Kafka. Its methods may be called from any goroutine, as often as one likes.
type Dependency struct {
	health *Health
	name   string
	kind   Kind
	state  state
	err    string
	since  time.Time
	// expected stands for one that its part has not asked for yet.
	expected bool
}

// state is in order of badness: over several dependencies of one name the highest counts.
type state int

const (
	up state = iota
	starting
	down
)

func (s state) String() string {
	return [...]string{"up", "starting", "down"}[s]
}

// NewHealth returns a health that is not ready until it has a dependency.
func NewHealth(log *slog.Logger) *Health {
	return &Health{
		log:  log,
		desc: prometheus.NewDesc("postrider_process_dependency_up", "Whether the dependency can be used (1) or not (0).", []string{"dependency"}, nil),
	}
}

// Dependency adds a dependency, which is down ("starting") until Up is called. A part of the process asks once for each thing it needs.
// Several parts may name the same thing: it is shown once, in the worst state anyone reports, and required if it is so for anyone.
func (h *Health) Dependency(name string, kind Kind) *Dependency {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.addLocked(name, kind)
}

func (h *Health) addLocked(name string, kind Kind) *Dependency {
	h.dependencies = slices.DeleteFunc(h.dependencies, func(d *Dependency) bool { return d.expected && d.name == name })
	d := &Dependency{health: h, name: name, kind: kind, state: starting, since: time.Now()}
	h.dependencies = append(h.dependencies, d)
	return d
}

// Expect names dependencies that parts of the process are about to ask for. Where
// several parts start one after the other, the first to be ready would else make the process so.
func (h *Health) Expect(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range names {
		h.addLocked(name, Required).expected = true
	}
}

// Up says that the dependency can be used.
func (d *Dependency) Up() {
	d.set(up, "")
}

// Down says that it cannot, and why. Repeating it keeps the time since when, and shows the last error.
func (d *Dependency) Down(err error) {
	text := "unknown"
	if err != nil {
		text = err.Error()
	}
	d.set(down, text)
}

func (d *Dependency) set(to state, err string) {
	h := d.health
	h.mu.Lock()
	before := h.worstLocked(d.name)
	if d.state != to {
		d.state, d.since = to, time.Now()
	}
	d.err = err
	after := h.worstLocked(d.name)
	h.mu.Unlock()

	switch {
	case before == after:
	case after == up:
		h.log.Info("dependency is up", "dependency", d.name)
	case after == down:
		h.log.Warn("dependency is down", "dependency", d.name, "error", err)
	}
}

func (h *Health) worstLocked(name string) state {
	worst := up
	for _, d := range h.dependencies {
		if d.name == name {
			worst = max(worst, d.state)
		}
	}
	return worst
}

// stop makes the process unready for the time it takes to stop, so that nothing new is sent to it.
func (h *Health) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopping = true
}

// Describe is for the registry.
func (h *Health) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- h.desc
}

// Collect is for the registry.
func (h *Health) Collect(metrics chan<- prometheus.Metric) {
	for _, d := range h.report().Dependencies {
		value := 0.0
		if d.State == up.String() {
			value = 1
		}
		metrics <- prometheus.MustNewConstMetric(h.desc, prometheus.GaugeValue, value, d.Name)
	}
}

// readiness is the body of /readyz.
type readiness struct {
	Status       string             `json:"status"` // ready, degraded, unready or stopping
	Dependencies []dependencyReport `json:"dependencies"`
}

type dependencyReport struct {
	Name     string    `json:"name"`
	Required bool      `json:"required"`
	State    string    `json:"state"`
	Error    string    `json:"error,omitempty"`
	Since    time.Time `json:"since"`

	worst state
}

func (h *Health) report() readiness {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Nobody has said yet what the process needs: it cannot be ready.
	unready, degraded := len(h.dependencies) == 0, false
	reports := make([]dependencyReport, 0, len(h.dependencies))
	places := make(map[string]int, len(h.dependencies))
	for _, d := range h.dependencies {
		if d.state != up {
			unready = unready || d.kind == Required
			degraded = true
		}
		place, known := places[d.name]
		if !known {
			place = len(reports)
			places[d.name] = place
			reports = append(reports, dependencyReport{Name: d.name, worst: -1})
		}
		reports[place].add(d)
	}
	status := "ready"
	switch {
	case h.stopping:
		status = "stopping"
	case unready:
		status = "unready"
	case degraded:
		status = "degraded"
	}
	return readiness{Status: status, Dependencies: reports}
}

func (r *dependencyReport) add(d *Dependency) {
	r.Required = r.Required || d.kind == Required
	if d.state > r.worst {
		r.worst, r.State, r.Error, r.Since = d.state, d.state.String(), d.err, d.since
	}
}

// ServeHTTP answers /readyz: 503 where the main work cannot be done, else 200.
func (h *Health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	body := h.report()
	code := http.StatusOK
	if body.Status == "unready" || body.Status == "stopping" {
		code = http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // an error may hold a command, to be run as it stands
	if err := encoder.Encode(body); err != nil {
		h.log.Debug("answering /readyz", "error", err)
	}
}

// ServeAdmin serves /livez, /readyz and /metrics until ctx ends. It closes ln.
func ServeAdmin(ctx context.Context, ln net.Listener, p *Process) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"status":"alive"}` + "\n")) // the caller has gone
	})
	mux.Handle("GET /readyz", p.Health)
	errorLog := slog.NewLogLogger(p.Log.Handler(), slog.LevelWarn)
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.Metrics, promhttp.HandlerOpts{ErrorLog: errorLog, Registry: p.Metrics}))
	// Answers are small and made at once: whoever takes longer than this holds a connection for nothing.
	server := &http.Server{
		Handler: mux, ErrorLog: errorLog,
		ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()

	select {
	case err := <-served:
		return fmt.Errorf("serving health and metrics on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	// A second is enough for an answer under way; a caller that holds on to its connection must not delay the end of the process.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if ended := <-served; err == nil && !errors.Is(ended, http.ErrServerClosed) {
		err = ended
	}
	if err != nil {
		return fmt.Errorf("closing health and metrics on %s: %w", ln.Addr(), err)
	}
	return nil
}
