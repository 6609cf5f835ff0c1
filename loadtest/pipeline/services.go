package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Service is one of Postrider's own programs as a process.
type Service struct {
	*Process
	// Listen is the address of REST, host:port, where the program has it; Admin
	// that of health and metrics.
	Listen, Admin string
}

// packages are Postrider's programs by name.
func packages() map[string]string {
	const module = "github.com/postrider/postrider/"
	return map[string]string{
		"ingest":     module + "ingest/cmd/ingest",
		"router":     module + "router/cmd/router",
		"sender":     module + "sender/cmd/sender",
		"standalone": module + "deploy/standalone",
		"postrider":  module + "deploy/postrider",
		"receiver":   module + "loadtest/receiver/cmd/receiver",
	}
}

// Binary builds a program by its name, once a test binary, and returns its path.
// With POSTRIDER_TEST_RACE set it is built with the race detector.
func Binary(t testing.TB, name string) string {
	t.Helper()
	s := the(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	if path, ok := s.binaries[name]; ok {
		return path
	}
	pkg, ok := packages()[name]
	if !ok {
		t.Fatalf("building %q: no such program", name)
	}
	path := filepath.Join(s.dir, "bin", name)
	args := []string{"build", "-o", path, pkg}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if os.Getenv("POSTRIDER_TEST_RACE") != "" {
		args = []string{"build", "-race", "-o", path, pkg}
		env = append(os.Environ(), "CGO_ENABLED=1")
	}
	ctx, cancel := context.WithTimeout(t.Context(), toolTime)
	defer cancel()
	cmd := tool(ctx, "go", args...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, out)
	}
	s.binaries[name] = path
	return path
}

// Start starts a program as a process that ends with the test, on free ports
// unless the arguments say which. It does not wait until it is ready: WaitReady
// does. If the test fails, the end of its log is shown.
func Start(t testing.TB, name string, args ...string) *Service {
	t.Helper()
	return StartBy(t, nil, name, Binary(t, name), args...)
}

// StartBy is Start, of a binary of a program that need not be Binary's. If by is not
// empty it is a program with its arguments that makes itself the binary (exec), whose
// path and arguments are added to its own.
func StartBy(t testing.TB, by []string, name, binary string, args ...string) *Service {
	t.Helper()
	s := &Service{}
	s.Admin, args = address(t, "--admin-listen", args)
	if name == "ingest" || name == "standalone" {
		s.Listen, args = address(t, "--listen", args)
	}
	command := append(append(slices.Clone(by), binary), args...)
	s.Process = newProcess(t.TempDir(), name, command[0], command[1:]...)
	if err := s.start(the(t)); err != nil {
		t.Fatal(err)
	}
	s.ownedBy(t)
	if name == "standalone" {
		// Its ClickHouse outlives a killed parent for a moment, in which the test's
		// folder cannot be removed.
		t.Cleanup(func() {
			if s.Running() {
				s.Terminate(t, standaloneEnd)
			}
		})
	}
	return s
}

// standaloneEnd is how long standalone may take to end in order: its sender's
// drain, and its ClickHouse's end.
const standaloneEnd = 40 * time.Second

// address finds the value of a flag (`--flag value` or `--flag=value`), or adds it with a free port.
func address(t testing.TB, flag string, args []string) (string, []string) {
	t.Helper()
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, flag+"="); ok {
			return value, args
		}
		if arg == flag && i+1 < len(args) {
			return args[i+1], args
		}
	}
	addr := FreeAddr(t)
	return addr, append([]string{flag + "=" + addr}, args...)
}

// WaitReady waits until /readyz answers 200, and returns the service. A process
// that ends meanwhile fails the test at once.
func (s *Service) WaitReady(t testing.TB) *Service {
	t.Helper()
	const limit = time.Minute
	err := wait(t.Context(), limit, s.Done(), func() error {
		status, text, err := get(t.Context(), "http://"+s.Admin+"/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", status, text)
		}
		return err
	})
	if err != nil {
		t.Fatalf("waiting for %s to be ready: not within %v: %v", s.name, limit, err)
	}
	return s
}

// Readyz asks the service how it is: the answer's status and body, or 0 and the
// reason if there was no answer.
func (s *Service) Readyz(t testing.TB) (status int, body string) {
	t.Helper()
	status, body, err := get(t.Context(), "http://"+s.Admin+"/readyz")
	if err != nil {
		return 0, err.Error()
	}
	return status, body
}

// Metrics is the text of the service's /metrics.
func (s *Service) Metrics(t testing.TB) string {
	t.Helper()
	status, body, err := get(t.Context(), "http://"+s.Admin+"/metrics")
	if err != nil || status != http.StatusOK {
		t.Fatalf("reading metrics of %s: status %d: %v", s.name, status, err)
	}
	return body
}

// get asks over a connection of its own, so that none outlives a killed process.
func get(ctx context.Context, url string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", fmt.Errorf("making request: %w", err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("asking %s: %w", url, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, "", fmt.Errorf("reading %s: %w", url, err)
	}
	return resp.StatusCode, string(text), nil
}

// Run runs a program to its end, such as a command of `postrider`, and returns what
// it wrote and its exit code. One that takes longer than a minute fails the test.
func Run(t testing.TB, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path := Binary(t, name) // which may take longer than the minute
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := tool(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		t.Fatalf("running %s %s: %v\n%s", name, strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}
