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
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postrider/postrider/deploy/clickhouse"
)

// shared is what the tests of one binary have in common. Main makes it.
type shared struct {
	dir   string      // removed at the end
	spawn chan func() // run one after another by a goroutine that never leaves its thread

	mu       sync.Mutex // held while one of the below is made
	kafka    *Kafka
	binaries map[string]string // built, by name

	ports ports

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

// NoLeaks is a check for goroutines that run on. It gives them ten seconds to end,
// and so more than goleak by itself, whose 0.4 s are few on a busy machine.
func NoLeaks(options ...goleak.Option) func() error {
	return func() (err error) {
		for range 25 {
			if err = goleak.Find(options...); err == nil {
				return nil
			}
		}
		return err
	}
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
	errs = append(errs, s.ports.close(), os.RemoveAll(s.dir))
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
// with what the condition said last. The limit is looked at between two tries: a
// condition ends by itself, as all do that ask by way of this package.
func Wait(t testing.TB, limit time.Duration, what string, condition func() error) {
	t.Helper()
	if err := wait(t.Context(), limit, nil, condition); err != nil {
		t.Fatalf("waiting for %s: not within %v: %v", what, limit, err)
	}
}

// Try is Wait, but returns what the condition said last instead of failing the test.
func Try(t testing.TB, limit time.Duration, condition func() error) error {
	t.Helper()
	return wait(t.Context(), limit, nil, condition)
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
	ctx, cancel := context.WithTimeout(t.Context(), toolTime)
	defer cancel()
	if err := fillOnce(ctx, dir, fill); err != nil {
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
	if err := flock(ctx, lock); err != nil {
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

// flock waits for the lock until ctx ends.
func flock(ctx context.Context, file *os.File) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another process holds it: %w", ctx.Err())
		case <-tick.C:
		}
	}
}
