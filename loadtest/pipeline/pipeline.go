// Package pipeline brings up what a test needs, for real: Apache Kafka (one broker
// or three, as Java processes), ClickHouse, Postrider's own binaries as processes,
// and Python and Node with the reference libraries. Each is fetched or built once
// and kept in the user's cache folder; where a program is missing the test fails
// and says what to install.
//
// A package that uses it calls [Main] from TestMain. Shared… is one for all tests
// of the package, each with its own topic prefix or database; Start… is the test's
// own, to be killed at will. Everything ends with the test binary, however that
// ends. Goroutines: one that starts processes, and one a process that waits for it.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/deploy/clickhouse"
)

// shared is what the tests of one binary have in common. Main makes it.
type shared struct {
	dir   string      // removed at the end
	spawn chan func() // run one after another by a goroutine that never leaves its thread

	mu       sync.Mutex // held while one of the below is made
	kafka    *Kafka
	binaries map[string]string // built, by name

	clickhouseMu     sync.Mutex // held while the below is made, asked or started again
	clickhouse       *clickhouse.Server
	clickhouseConfig clickhouse.Config
}

//nolint:gochecknoglobals // one a test binary is the point: a test has no other way to find it
var common *shared

// Main runs a package's tests and exits. It must be the first call of TestMain: in
// a child process of deploy/clickhouse it runs the server instead. The checks run
// after everything shared was stopped; an error of theirs fails the binary.
func Main(m *testing.M, checks ...func() error) {
	clickhouse.ChildMain()
	code := run(m)
	for _, check := range checks {
		if err := check(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "postrider-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	common = &shared{dir: dir, spawn: make(chan func()), binaries: map[string]string{}}
	go startProcesses(common.spawn)
	defer func() {
		if err := common.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	return m.Run()
}

func (s *shared) close() error {
	var errs []error
	if s.kafka != nil {
		for _, b := range s.kafka.Brokers {
			b.kill() // its data goes too
		}
	}
	if s.clickhouse != nil {
		s.clickhouse.Kill()
	}
	close(s.spawn)
	errs = append(errs, os.RemoveAll(s.dir))
	return errors.Join(errs...)
}

// the returns what Main made.
func the(t testing.TB) *shared {
	t.Helper()
	if common == nil {
		t.Fatal("pipeline: call pipeline.Main from this package's TestMain")
	}
	return common
}

// Wait tries a condition until it returns nil. After the limit it fails the test
// with what the condition said last.
func Wait(t testing.TB, limit time.Duration, what string, condition func() error) {
	t.Helper()
	if err := wait(t.Context(), limit, nil, condition); err != nil {
		t.Fatalf("waiting for %s: not within %v: %v", what, limit, err)
	}
}

// wait gives up early when ended, which may be nil, is closed.
func wait(ctx context.Context, limit time.Duration, ended <-chan struct{}, condition func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-ended:
			return fmt.Errorf("the process has ended: %w", err)
		case <-deadline:
			return err
		case <-tick.C:
		}
	}
}

// FreePort gives a port of 127.0.0.1 that nobody uses, for a process that has to
// be told one and must get the same after a restart. It is below the ports that
// Linux hands out by itself (from 32768), so no outgoing connection takes it.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 16_000 + rand.IntN(16_000)
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("finding a free port: 100 tries from 16000 to 31999, all taken")
	return 0
}

// FreeAddr is 127.0.0.1 with a FreePort.
func FreeAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}

// unique is a name for a test's own topics or database: the test's, shortened, and
// a number, so that -count and parallel packages do not meet.
func unique(t testing.TB) string {
	t.Helper()
	name := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(t.Name()), "_")
	return fmt.Sprintf("%.40s_%08x", name, rand.Uint32())
}

// cached is the path of a folder in the user's cache that fill has filled once.
// Any number of processes may ask at once: one fills, under a lock, a folder
// that is renamed when it is whole.
func cached(t testing.TB, name string, fill func(ctx context.Context, dir string) error) string {
	t.Helper()
	root, err := clickhouse.DefaultCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, name)
	if err := fillOnce(t.Context(), dir, fill); err != nil {
		t.Fatal(err)
	}
	return dir
}

func fillOnce(ctx context.Context, dir string, fill func(ctx context.Context, dir string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return fmt.Errorf("creating cache folder: %w", err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening lock file: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	partial := dir + ".partial" // left over, if it is there, from a process that was killed
	if err := os.RemoveAll(partial); err != nil {
		return fmt.Errorf("clearing %s: %w", partial, err)
	}
	if err := os.Mkdir(partial, 0o750); err != nil {
		return fmt.Errorf("creating cache folder: %w", err)
	}
	if err := fill(ctx, partial); err != nil {
		return fmt.Errorf("filling cache folder %s: %w", dir, err)
	}
	if err := os.Rename(partial, dir); err != nil {
		return fmt.Errorf("keeping cache folder: %w", err)
	}
	return nil
}
