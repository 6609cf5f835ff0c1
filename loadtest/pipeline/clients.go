package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/postrider/postrider/deploy/clickhouse"
)

// The foreign clients and reference verifiers, pinned.
const (
	confluentKafkaVersion  = "2.16.1"
	pythonStandardWebhooks = "1.1.0"
	nodeStandardWebhooks   = "1.1.1"
	asyncAPISpecs          = "6.11.1"
)

// ClickHouse is a real server and a database in it.
type ClickHouse struct {
	// HTTP and Native are the server's addresses, host:port. They stay over restarts.
	HTTP, Native string
	// Database is the test's own where the server is shared.
	Database string

	cfg    clickhouse.Config
	server *clickhouse.Server
	shared bool
	killed bool // by the test
}

// SharedClickHouse is the server of this test binary with a database, ENGINE =
// Atomic, of the test's own, dropped at its end. It must not be killed.
func SharedClickHouse(t testing.TB) *ClickHouse {
	t.Helper()
	s := the(t)
	s.clickhouseMu.Lock()
	defer s.clickhouseMu.Unlock()
	c := &ClickHouse{Database: unique(t), shared: true}
	if s.clickhouse == nil {
		c.cfg = clickHouseConfig(t, filepath.Join(s.dir, "clickhouse"))
		c.start(t)
		s.clickhouse, s.clickhouseConfig = c.server, c.cfg
	}
	c.server, c.cfg = s.clickhouse, s.clickhouseConfig
	c.HTTP, c.Native = c.cfg.HTTPListen, c.cfg.NativeListen
	c.queryLocked(t, s, "CREATE DATABASE "+c.Database+" ENGINE = Atomic")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s.clickhouseMu.Lock()
		defer s.clickhouseMu.Unlock()
		if _, err := s.clickhouse.Query(ctx, "DROP DATABASE "+c.Database); err != nil {
			t.Log(err) // the folder goes with the test binary
		}
	})
	return c
}

// StartClickHouse starts a server of the test's own, with database postrider.
func StartClickHouse(t testing.TB) *ClickHouse {
	t.Helper()
	return StartClickHouseIn(t, t.TempDir())
}

// StartClickHouseIn is StartClickHouse, with its data in a folder.
func StartClickHouseIn(t testing.TB, dir string) *ClickHouse {
	t.Helper()
	the(t)
	c := &ClickHouse{Database: "postrider", cfg: clickHouseConfig(t, dir)}
	c.HTTP, c.Native = c.cfg.HTTPListen, c.cfg.NativeListen
	t.Cleanup(func() {
		if c.server != nil {
			c.server.Kill()
		}
	})
	c.start(t)
	return c
}

func clickHouseConfig(t testing.TB, dir string) clickhouse.Config {
	t.Helper()
	return clickhouse.Config{Dir: dir, HTTPListen: FreeAddr(t), NativeListen: FreeAddr(t), Log: slog.Default()}
}

func (c *ClickHouse) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), toolTime) // it may have to be fetched
	defer cancel()
	server, err := clickhouse.Start(ctx, c.cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.server, c.killed = server, false
}

// Query runs one statement and returns its answer as text, tab-separated.
func (c *ClickHouse) Query(t testing.TB, statement string) string {
	t.Helper()
	if c.shared {
		s := the(t)
		s.clickhouseMu.Lock()
		defer s.clickhouseMu.Unlock()
		return c.queryLocked(t, s, statement)
	}
	return c.query(t, statement)
}

// queryLocked asks the shared server. The caller holds clickhouseMu.
func (c *ClickHouse) queryLocked(t testing.TB, s *shared, statement string) string {
	t.Helper()
	c.server = s.clickhouse
	answer := c.query(t, statement)
	s.clickhouse = c.server
	return answer
}

// query asks the server, which it starts again if it has ended by itself: the
// library's server (26.7) aborts now and then when a client dies in the middle of
// a query, about one kill in thirty, and a test's sender is killed.
func (c *ClickHouse) query(t testing.TB, statement string) string {
	t.Helper()
	answer, err := c.ask(t.Context(), statement)
	if err == nil {
		return answer
	}
	select {
	case <-c.server.Done():
	case <-time.After(dyingTime):
		t.Fatalf("%s: %v", statement, err)
	}
	if c.killed {
		t.Fatalf("%s: the test has killed the server: %v", statement, err)
	}
	t.Logf("ClickHouse has ended by itself (%v): starting it again", err)
	c.start(t)
	if answer, err = c.ask(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return answer
}

func (c *ClickHouse) ask(ctx context.Context, statement string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	return c.server.Query(ctx, statement)
}

// queryTime bounds a statement. The longest of the tests take a second on an idle machine.
const queryTime = 30 * time.Second

// dyingTime is how long a server that aborts may take to be gone.
const dyingTime = 5 * time.Second

// Kill9 ends the server with SIGKILL and waits until it is gone.
func (c *ClickHouse) Kill9(t testing.TB) {
	t.Helper()
	c.own(t)
	c.killed = true
	c.server.Kill()
}

// Restart starts the server again on the same data and ports, killing it if it
// runs, and blocks until it answers.
func (c *ClickHouse) Restart(t testing.TB) {
	t.Helper()
	c.own(t)
	c.server.Kill()
	c.start(t)
}

// Suspend freezes the server (SIGSTOP): connections stay open and nothing answers.
func (c *ClickHouse) Suspend(t testing.TB) {
	t.Helper()
	c.signal(t, syscall.SIGSTOP)
}

// Continue lets a suspended server go on (SIGCONT).
func (c *ClickHouse) Continue(t testing.TB) {
	t.Helper()
	c.signal(t, syscall.SIGCONT)
}

func (c *ClickHouse) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	c.own(t)
	// The group: a server that is a binary runs below the child.
	if err := syscall.Kill(-c.server.PID(), sig); err != nil {
		t.Fatalf("sending %v to ClickHouse: %v", sig, err)
	}
}

func (c *ClickHouse) own(t testing.TB) {
	t.Helper()
	if c.shared {
		t.Fatal("the shared ClickHouse is every test's: use StartClickHouse")
	}
}

// PID is the id of the server's process.
func (c *ClickHouse) PID() int { return c.server.PID() }

// CPU is the processor time that the server has used since its start.
func (c *ClickHouse) CPU(t testing.TB) time.Duration {
	t.Helper()
	used, err := processorTime(c.server.PID())
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// Python is the path of a Python that can import confluent_kafka and standardwebhooks.
func Python(t testing.TB) string {
	t.Helper()
	name := "python-confluent-kafka-" + confluentKafkaVersion + "-standardwebhooks-" + pythonStandardWebhooks
	dir := cached(t, name, func(ctx context.Context, dir string) error {
		base, err := exec.LookPath("python3")
		if err != nil {
			return errors.New("finding python3: not on PATH: install Python 3.9 or newer with its venv module")
		}
		if err := runTool(ctx, base, "-m", "venv", dir); err != nil {
			return fmt.Errorf("making a Python environment : install Python 3.9 or newer with its venv module: %w", err)
		}
		// Run as a module: the pip script names a folder that is about to be renamed.
		return runTool(ctx, filepath.Join(dir, "bin", "python"), "-m", "pip", "install", "--quiet",
			"confluent-kafka=="+confluentKafkaVersion, "standardwebhooks=="+pythonStandardWebhooks)
	})
	python := filepath.Join(dir, "bin", "python")
	if err := runTool(t.Context(), python, "-c", "import confluent_kafka, standardwebhooks"); err != nil {
		t.Fatalf("checking the Python environment; if Python was upgraded, remove %s: %v", dir, err)
	}
	return python
}

// Node is the path of node, and of a folder for NODE_PATH that holds standardwebhooks.
func Node(t testing.TB) (node, modules string) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal("finding node: not on PATH: install Node.js with npm")
	}
	return node, npmModules(t, "node-standardwebhooks-"+nodeStandardWebhooks, "standardwebhooks@"+nodeStandardWebhooks)
}

// AsyncAPISchema is the path of the JSON Schema of AsyncAPI 3.0.0, as its authors publish it.
func AsyncAPISchema(t testing.TB) string {
	t.Helper()
	modules := npmModules(t, "asyncapi-specs-"+asyncAPISpecs, "@asyncapi/specs@"+asyncAPISpecs)
	return filepath.Join(modules, "@asyncapi", "specs", "schemas", "3.0.0.json")
}

// npmModules is the path of a folder in the cache that holds a package and what it needs.
func npmModules(t testing.TB, name, pkg string) string {
	t.Helper()
	dir := cached(t, name, func(ctx context.Context, dir string) error {
		npm, err := exec.LookPath("npm")
		if err != nil {
			return errors.New("finding npm: not on PATH: install Node.js with npm")
		}
		return runTool(ctx, npm, "install", "--prefix", dir, "--no-save", "--no-package-lock",
			"--no-audit", "--no-fund", "--ignore-scripts", pkg)
	})
	return filepath.Join(dir, "node_modules")
}
