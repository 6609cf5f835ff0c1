package clickhouse

import (
	"bufio"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"go.uber.org/goleak"
)

const (
	parentDirEnv = "CLICKHOUSE_TEST_PARENT_DIR"
	libraryEnv   = "CLICKHOUSE_TEST_LIBRARY"
)

func TestMain(m *testing.M) {
	ChildMain()
	if dir := os.Getenv(parentDirEnv); dir != "" {
		parentMain(dir)
	}
	if library := os.Getenv(libraryEnv); library != "" {
		binaryMain(library)
	}
	code := m.Run()
	if code == 0 {
		if err := leaks(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// leaks gives goroutines ten seconds to end: goleak's own 0.4 s are few on a busy machine.
func leaks() (err error) {
	for range 25 {
		if err = goleak.Find(); err == nil {
			return nil
		}
	}
	return err
}

// parentMain is a process to be killed: it starts a server and waits.
func parentMain(dir string) {
	s, err := Start(context.Background(), Config{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.HTTPAddr(), s.NativeAddr())
	<-s.Done()
	os.Exit(1)
}

// binaryMain stands in for a clickhouse binary: `server --config-file=…` over the library.
func binaryMain(library string) {
	var config struct {
		Path string     `xml:"path"`
		Host netip.Addr `xml:"listen_host"`
		HTTP uint16     `xml:"http_port"`
		TCP  uint16     `xml:"tcp_port"`
	}
	text, err := os.ReadFile(strings.TrimPrefix(os.Args[len(os.Args)-1], "--config-file="))
	if err == nil {
		err = xml.Unmarshal(text, &config) //nolint:gosec // the supervisor's own file
	}
	if err == nil {
		err = childOrder{
			Program: program{Library: library},
			Dir:     strings.TrimSuffix(config.Path, "/"),
			HTTP:    netip.AddrPortFrom(config.Host, config.HTTP),
			Native:  netip.AddrPortFrom(config.Host, config.TCP),
		}.serveLibrary()
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestRowsOutliveKilledParent(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), parentDirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var httpAddr, nativeAddr string
	if _, err := fmt.Fscanln(bufio.NewReader(out), &httpAddr, &nativeAddr); err != nil {
		t.Fatalf("reading the parent's addresses: %v", err)
	}
	insertRows(t, nativeAddr, 1000)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	waitForUnlock(t, dir)
	for _, addr := range []string{httpAddr, nativeAddr} {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatalf("port of a killed server: %v", err)
		}
		_ = l.Close()
	}
	s := startServer(t, Config{Dir: dir, HTTPListen: httpAddr, NativeListen: nativeAddr})
	if got := countRows(t, s); got != "1000" {
		t.Errorf("rows after a restart: got %s, want 1000", got)
	}
}

func TestStopKeepsRows(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, Config{Dir: dir, Database: "some"})
	if got, err := s.Query(t.Context(), "SELECT engine FROM system.databases WHERE name = 'some'"); err != nil || got != "Atomic" {
		t.Errorf("database engine: got %q, %v, want Atomic", got, err)
	}
	insertRows(t, s.NativeAddr(), 10)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		if err := syscall.Kill(s.PID(), sig); err != nil {
			t.Fatal(err)
		}
	}
	if got := countRows(t, s); got != "10" {
		t.Errorf("rows after SIGINT and SIGTERM: got %s, want 10", got)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := startServer(t, Config{Dir: dir, Database: "some"})
	if got := countRows(t, again); got != "10" {
		t.Errorf("rows after a stop: got %s, want 10", got)
	}
	again.Kill()
	if got := countRows(t, startServer(t, Config{Dir: dir})); got != "10" {
		t.Errorf("rows after a kill: got %s, want 10", got)
	}
}

func TestStartRefuses(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, Config{Dir: dir})
	tests := map[string]struct {
		cfg  Config
		want error
		text string
	}{
		"the same folder":       {Config{Dir: dir}, ErrInUse, dir},
		"a taken HTTP port":     {Config{Dir: t.TempDir(), HTTPListen: s.HTTPAddr()}, ErrPortTaken, s.HTTPAddr()},
		"a taken native port":   {Config{Dir: t.TempDir(), NativeListen: s.NativeAddr()}, ErrPortTaken, s.NativeAddr()},
		"every interface":       {Config{Dir: t.TempDir(), HTTPListen: "0.0.0.0:0"}, nil, "not a loopback address"},
		"hosts that differ":     {Config{Dir: t.TempDir(), HTTPListen: "127.0.0.2:0"}, nil, "the hosts must be the same"},
		"no address":            {Config{Dir: t.TempDir(), HTTPListen: "nowhere"}, nil, "nowhere"},
		"an unwritable folder":  {Config{Dir: "/dev/null/x"}, nil, "creating data folder"},
		"an impossible db name": {Config{Dir: t.TempDir(), Database: "a`b"}, nil, "creating database"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Start(t.Context(), tt.cfg)
			if err == nil {
				got.Kill()
				t.Fatal("got a server, want an error")
			}
			if tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got error %q, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

// A child whose main forgot ChildMain must not start children of its own.
func TestStartRefusesInsideChild(t *testing.T) {
	t.Setenv(childEnv, "{}")
	if _, err := Start(t.Context(), Config{Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "ChildMain") {
		t.Errorf("got error %v, want one that names ChildMain", err)
	}
}

func TestBinaryOnPathIsPreferred(t *testing.T) {
	library, err := Fetch(t.Context(), "", slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(libraryEnv, library)
	putBinaryOnPath(t, "ClickHouse local version 26.7.2.1.")
	dir := t.TempDir()
	s := startServer(t, Config{Dir: dir})
	if !exists(filepath.Join(dir, "config.xml")) {
		t.Error("the server was started without a configuration file: not from the binary")
	}
	insertRows(t, s.NativeAddr(), 5)
	if got := countRows(t, s); got != "5" {
		t.Errorf("rows: got %s, want 5", got)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	// Only the child is killed here: the kernel then kills the binary below it.
	s = startServer(t, Config{Dir: dir})
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	startServer(t, Config{Dir: dir, HTTPListen: s.HTTPAddr(), NativeListen: s.NativeAddr()})
}

func TestOldBinaryIsPassedOver(t *testing.T) {
	putBinaryOnPath(t, "ClickHouse client version 18.16.1.")
	p, err := findProgram(t.Context(), Config{Log: slog.Default()})
	if err != nil || p.Library == "" || p.Binary != "" {
		t.Errorf("got %+v, %v, want the library", p, err)
	}
}

func TestFetchWithoutNPM(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Fetch(t.Context(), t.TempDir(), slog.Default())
	if err == nil || !strings.Contains(err.Error(), "install Node.js with npm") {
		t.Errorf("got error %v, want what to install", err)
	}
}

// putBinaryOnPath puts a stand-in first on PATH: it says the version given, and
// serves with the library.
func putBinaryOnPath(t *testing.T, version string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\ncase $1 in local) echo '%s';; *) exec %s \"$@\";; esac\n", version, self)
	if err := os.WriteFile(filepath.Join(dir, "clickhouse"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

func startServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

// insertRows makes the table postrider.t and inserts n rows as a native batch.
func insertRows(t *testing.T, addr string, n int) {
	t.Helper()
	conn, err := chgo.Open(&chgo.Options{Addr: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, statement := range []string{
		"CREATE DATABASE IF NOT EXISTS postrider ENGINE = Atomic",
		"CREATE TABLE postrider.t (n UInt64) ENGINE = MergeTree ORDER BY n",
	} {
		if err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO postrider.t")
	if err != nil {
		t.Fatal(err)
	}
	defer batch.Close()
	for i := range n {
		if err := batch.Append(uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
}

func countRows(t *testing.T, s *Server) string {
	t.Helper()
	got, err := s.Query(t.Context(), "SELECT count() FROM postrider.t")
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// waitForUnlock waits until no process holds the folder: the child's copy of the
// lock goes with it. Its process id would not do, as init may be slow to reap it.
//
// The child has orphanTime for that; the rest is for a busy machine.
func waitForUnlock(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), orphanTime+10*time.Second)
	defer cancel()
	lock, err := lockFile(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	_ = lock.Close()
}
