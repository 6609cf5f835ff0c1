// Package examples runs the examples of the pages that users read, as they stand
// there, by the programs and libraries that the pages name.
package examples

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
)

func TestMain(m *testing.M) { pipeline.Main(m) }

// soon bounds what takes milliseconds on an idle machine and seconds on a loaded one.
const soon = time.Minute

// block is the one block of code in a language on a page. A page with none, or two, fails the test.
func block(t *testing.T, page, language string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(text), "\n```"+language+"\n")
	if len(parts) != 2 {
		t.Fatalf("%s has %d examples in %s, want one", page, len(parts)-1, language)
	}
	code, _, closed := strings.Cut(parts[1], "\n```\n")
	if !closed {
		t.Fatalf("%s: the example in %s has no end", page, language)
	}
	return code + "\n"
}

// write puts code into a file of the test's own.
func write(t *testing.T, name, code string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// buildGo builds a program of one file with this workspace's packages.
func buildGo(t *testing.T, code string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "example")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", binary, write(t, "main.go", code))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the example: %v\n%s", err, out)
	}
	return binary
}

// output is what a running program writes. It may be read meanwhile.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// launch starts a program with settings in its environment. It ends with the test,
// which shows what it wrote if it fails.
func launch(t *testing.T, env []string, path string, args ...string) *output {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, args...)
	out := &output{}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = t.TempDir(), append(os.Environ(), env...), out, out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("the example wrote:\n%s", out)
		}
	})
	return out
}
