package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// ready returns the code and the body of /readyz, without the times.
func ready(t *testing.T, h *Health) (int, readiness) {
	t.Helper()
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil))
	var body readiness
	if err := json.Unmarshal(answer.Body.Bytes(), &body); err != nil {
		t.Fatalf("reading %q: %v", answer.Body, err)
	}
	for i := range body.Dependencies {
		if body.Dependencies[i].Since.IsZero() {
			t.Errorf("%s: no time", body.Dependencies[i].Name)
		}
		body.Dependencies[i].Since = time.Time{}
	}
	return answer.Code, body
}

func TestReadyz(t *testing.T) {
	h := NewHealth(slog.New(slog.DiscardHandler))
	var kafka, again, clickhouse *Dependency
	steps := []struct {
		name string
		do   func()
		code int
		want readiness
	}{
		{"without dependencies", func() {}, 503, readiness{"unready", []dependencyReport{}}},
		{"starting", func() {
			kafka, clickhouse = h.Dependency("kafka", Required), h.Dependency("clickhouse", Degradable)
		}, 503, readiness{"unready", []dependencyReport{{Name: "kafka", Required: true, State: "starting"}, {Name: "clickhouse", State: "starting"}}}},
		{"degraded", func() { kafka.Up(); clickhouse.Down(errors.New("refused")) }, 200, readiness{
			"degraded",
			[]dependencyReport{{Name: "kafka", Required: true, State: "up"}, {Name: "clickhouse", State: "down", Error: "refused"}},
		}},
		{"ready", func() { clickhouse.Up() }, 200, readiness{
			"ready",
			[]dependencyReport{{Name: "kafka", Required: true, State: "up"}, {Name: "clickhouse", State: "up"}},
		}},
		{"worst of one name wins", func() { again = h.Dependency("kafka", Degradable); again.Down(errors.New("away")) }, 200, readiness{
			"degraded",
			[]dependencyReport{{Name: "kafka", Required: true, State: "down", Error: "away"}, {Name: "clickhouse", State: "up"}},
		}},
		{"required one down", func() { again.Up(); kafka.Down(errors.New("first")); kafka.Down(errors.New("last")) }, 503, readiness{
			"unready",
			[]dependencyReport{{Name: "kafka", Required: true, State: "down", Error: "last"}, {Name: "clickhouse", State: "up"}},
		}},
		{"stopping", func() { kafka.Up(); h.stop() }, 503, readiness{
			"stopping",
			[]dependencyReport{{Name: "kafka", Required: true, State: "up"}, {Name: "clickhouse", State: "up"}},
		}},
	}
	for _, step := range steps {
		step.do()
		if code, got := ready(t, h); code != step.code || !reflect.DeepEqual(got, step.want) {
			t.Errorf("%s: got %d %+v, want %d %+v", step.name, code, got, step.code, step.want)
		}
	}
}

func TestHealthLogsTurnsOnly(t *testing.T) {
	var log bytes.Buffer
	h := NewHealth(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	one, two := h.Dependency("kafka", Required), h.Dependency("kafka", Required)
	one.Up()
	two.Up()
	two.Up()
	for range 3 {
		one.Down(errors.New("refused"))
		two.Down(errors.New("refused"))
	}
	one.Up()
	two.Up()
	want := "level=INFO msg=\"dependency is up\" dependency=kafka\n" +
		"level=WARN msg=\"dependency is down\" dependency=kafka error=refused\n" +
		"level=INFO msg=\"dependency is up\" dependency=kafka\n"
	if log.String() != want {
		t.Errorf("got %s, want %s", log.String(), want)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestServeAdmin(t *testing.T) {
	p := New(slog.New(slog.DiscardHandler))
	p.Health.Dependency("kafka", Required).Up()
	p.Health.Dependency("clickhouse", Degradable).Down(errors.New("refused"))
	ln, err := Listen(t.Context(), "admin-listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeAdmin(ctx, ln, p) }()
	t.Cleanup(http.DefaultClient.CloseIdleConnections)

	for path, want := range map[string]string{
		"/livez":   `{"status":"alive"}`,
		"/readyz":  `"status":"degraded"`,
		"/metrics": "postrider_process_dependency_up{dependency=\"clickhouse\"} 0\npostrider_process_dependency_up{dependency=\"kafka\"} 1\n",
	} {
		if code, body := get(t, "http://"+ln.Addr().String()+path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: got %d %s, want %q", path, code, body, want)
		}
	}
	_, metrics := get(t, "http://"+ln.Addr().String()+"/metrics")
	for _, name := range []string{"go_goroutines", "process_open_fds", "go_build_info"} {
		if !strings.Contains(metrics, name) {
			t.Errorf("/metrics without %s", name)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stopping: %v", err)
	}
}

func TestServeAdminStopsBesideAHeldConnection(t *testing.T) {
	before := goleak.IgnoreCurrent()
	ln, err := Listen(t.Context(), "admin-listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeAdmin(ctx, ln, New(slog.New(slog.DiscardHandler))) }()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("GET /livez HTTP/1.1\r\n")); err != nil { // and never the rest
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stopping: %v", err)
	}
	goleak.VerifyNone(t, before)
}

func TestExpectedDependenciesAreWaitedFor(t *testing.T) {
	h := NewHealth(slog.New(slog.DiscardHandler))
	h.Expect("table")
	h.Dependency("topics", Required).Up()
	if got := h.report().Status; got != "unready" {
		t.Errorf("before the table was asked for: %s, want unready", got)
	}
	table := h.Dependency("table", Required)
	if got := h.report().Status; got != "unready" {
		t.Errorf("before the table is up: %s, want unready", got)
	}
	table.Up()
	if got := h.report(); got.Status != "ready" || len(got.Dependencies) != 2 {
		t.Errorf("got %+v, want it ready with two dependencies", got)
	}
}
