// Package k6 holds the k6 scripts, and their tests: on standalone, which is what
// they are for, and on something that loses and repeats, which they must notice.
package k6

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

func TestMain(m *testing.M) { pipeline.Main(m) }

const (
	adminKey = "k6-admin-key-0123456789-0123456789"

	// thresholdsFailed is k6's exit code for it (errext/exitcodes); scriptFailed that for an exception.
	thresholdsFailed = 99
	scriptFailed     = 107
)

// TestEventsScript runs the script as `make k6` does.
func TestEventsScript(t *testing.T) {
	standalone := pipeline.Start(t, "standalone", "--data="+t.TempDir(), "--kafka-listen="+pipeline.FreeAddr(t),
		"--clickhouse-http-listen="+pipeline.FreeAddr(t), "--clickhouse-native-listen="+pipeline.FreeAddr(t),
		"--admin-key="+adminKey, "--allow-targets=127.0.0.0/8")
	standalone.WaitReady(t)
	target := receiver.Start(t, receiver.Config{})
	out, code := run(t, target, "BASE_URL=http://"+standalone.Listen, "EVENTS=200", "VUS=4")
	if code != 0 {
		t.Errorf("exit code: got %d, want 0\n%s", code, out)
	}
	if n := target.Count("/hook"); n != 201 {
		t.Errorf("requests at the receiver: got %d, want 200 events and a last one", n)
	}
}

// TestEventsScriptNotices runs it on a service that does not keep its promises.
func TestEventsScriptNotices(t *testing.T) {
	for _, test := range []struct {
		name    string
		answer  receiver.Answer
		service service
		code    int
		crossed string // a threshold's metric, which k6 names
	}{
		{"nothing wrong", receiver.Answer{}, service{}, 0, ""},
		{"one lost", receiver.Answer{}, service{lose: true}, thresholdsFailed, "delivered_once"},
		{"one repeated", receiver.Answer{}, service{repeat: true}, thresholdsFailed, "delivered_once"},
		{"one refused", receiver.Answer{}, service{refuse: true}, thresholdsFailed, "checks"},
		{"a receiver that drops", receiver.Answer{Drop: true}, service{}, thresholdsFailed, "delivered_once"},
		{"a receiver that fails", receiver.Status(503), service{}, thresholdsFailed, "delivered_once"},
		{"no webhook", receiver.Answer{}, service{away: true}, scriptFailed, "creating webhook"},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := receiver.Start(t, receiver.Config{})
			target.Answers("/hook", test.answer)
			test.service.target = target.URL("/hook")
			base := httptest.NewServer(test.service)
			defer base.Close()
			out, code := run(t, target, "BASE_URL="+base.URL, "EVENTS=5", "VUS=1", "MAX_WAIT=1")
			if code != test.code || !strings.Contains(out, test.crossed) {
				t.Errorf("got exit code %d, want %d, and %q in:\n%s", code, test.code, test.crossed, out)
			}
		})
	}
}

// run runs the script to its end.
func run(t *testing.T, target *receiver.Receiver, environ ...string) (output string, code int) {
	t.Helper()
	asked := httptest.NewServer(target.RequestsHandler())
	defer asked.Close()
	cmd := exec.CommandContext(t.Context(), binary(t), "run", "--quiet", "--no-usage-report", "--address=", "events.js")
	cmd.Env = append(os.Environ(), append(environ, "ADMIN_KEY="+adminKey, "TARGET="+target.URL("/hook"), "RECEIVER="+asked.URL)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("running k6: %v", err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// binary is the path of k6, which go builds once and keeps in its cache.
func binary(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-n", "k6")
	// Without the workspace: it mixes in older modules, among which k6 has two of one package.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	path, err := cmd.Output()
	if err != nil {
		t.Fatalf("building k6: %v\n%s", err, stderr.String())
	}
	return strings.TrimSpace(string(path))
}

// service takes events as Postrider does, and delivers each before it answers;
// what is said here happens to event number 3.
type service struct {
	target                     string
	lose, repeat, refuse, away bool
}

func (s service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	switch {
	case err != nil || s.away:
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.URL.Path == "/webhook-events":
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id":"wh_1"}`)
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	default:
		s.accept(r.Context(), w, body)
	}
}

func (s service) accept(ctx context.Context, w http.ResponseWriter, body []byte) {
	var event struct {
		ID string `json:"id"`
	}
	times := 1
	if err := json.Unmarshal(body, &event); err == nil && strings.HasSuffix(event.ID, "-3") {
		switch {
		case s.lose:
			times = 0
		case s.repeat:
			times = 2
		case s.refuse:
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
	}
	for range times {
		s.deliver(ctx, body)
	}
	w.WriteHeader(http.StatusAccepted)
}

// deliver posts once; that a receiver may drop it is what is tested.
func (s service) deliver(ctx context.Context, body []byte) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.target, bytes.NewReader(body))
	if err != nil {
		return
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_ = resp.Body.Close()
	}
}
