// Package clickhouse runs a real ClickHouse server as a child process: a
// `clickhouse` binary where one is on PATH, else the server inside the npm
// package @chdb/lib-…, fetched once into a cache folder. The server has one user,
// without a password, unless it is given others, so it listens on loopback
// addresses only.
//
// The child is the caller's own binary, run again: a main (or TestMain) that
// starts a server calls [ChildMain] before anything else. The child ignores
// SIGINT and SIGTERM, and ends when its standard input does, which the kernel
// sees to even if the parent is killed; no orphan keeps a port or the folder.
//
// Start creates the database, ENGINE = Atomic, and leaves tables to others. It
// runs one goroutine a server, which ends with the child.
package clickhouse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrInUse says that another process, perhaps another Start of this one, runs a
// server on the same folder.
var ErrInUse = errors.New("folder in use by another ClickHouse")

// ErrPortTaken says that a port asked for by number is not free.
var ErrPortTaken = errors.New("port taken")

// Config says where a server keeps its data and where it listens.
type Config struct {
	// Dir holds everything the server keeps. It is made if it is not there.
	Dir string
	// HTTPListen and NativeListen are loopback addresses with the same host; port
	// 0, and an empty address, mean a free port.
	HTTPListen, NativeListen string
	// Database is created, ENGINE = Atomic, before Start returns: `default` is
	// special in the library's server. Empty means postrider.
	Database string
	// Users is the path of a users.xml with users, their profiles, grants and row
	// policies; the user default, without a password and with every right, must be
	// among them. Empty: there is only that one. (What CREATE USER, ROLE and ROW POLICY
	// make, the library's server has nowhere to keep.)
	Users string
	// CacheDir keeps the fetched library; empty means DefaultCacheDir.
	CacheDir string
	// Log is told of a fetch and of an unexpected end; nil means slog.Default.
	Log *slog.Logger
}

// Server is a running server.
type Server struct {
	cfg          Config
	http, native netip.AddrPort
	cmd          *exec.Cmd
	stdin        io.WriteCloser
	ending       atomic.Bool   // set before the child is made to end
	done         chan struct{} // closed by the goroutine that waits for the child, after err is set
	err          error
}

// stopTime is how long a server told to stop may take before it is killed. Parts
// are on disk when an insert is answered, so killing loses nothing that was.
const stopTime = 10 * time.Second

// startTime bounds a start, from the child's on: until it answers and has its database.
const startTime = time.Minute

// Start starts a server and blocks until it answers and the database exists. Its
// errors are ErrInUse, ErrPortTaken, or what to install.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if os.Getenv(childEnv) != "" {
		return nil, errors.New("starting ClickHouse: this process is a ClickHouse child whose main does not call clickhouse.ChildMain first")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Database == "" {
		cfg.Database = "postrider"
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("finding folder %q: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	s, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("starting ClickHouse in %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func start(ctx context.Context, cfg Config) (*Server, error) {
	program, err := findProgram(ctx, cfg)
	if err != nil {
		return nil, err
	}
	lock, err := lockFolder(ctx, cfg.Dir)
	if err != nil {
		return nil, err
	}
	// The child has its own copy: the lock is free when the last of the two is gone.
	defer lock.Close()
	for attempt := 1; ; attempt++ {
		s, err := startOnce(ctx, cfg, program, lock)
		// A free port is found by opening and closing it, so another process can take
		// it in between. One asked for by number is the caller's to free.
		if err == nil || !errors.Is(err, ErrPortTaken) || attempt == 5 || !anyPort(cfg.HTTPListen) && !anyPort(cfg.NativeListen) {
			return s, err
		}
	}
}

func startOnce(ctx context.Context, cfg Config, p program, lock *os.File) (*Server, error) {
	httpAddr, nativeAddr, err := choosePorts(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, http: httpAddr, native: nativeAddr, done: make(chan struct{})}
	if err := s.spawn(p, lock); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("no answer within %v", startTime))
	defer cancel()
	if err := s.waitReady(ctx); err != nil {
		s.Kill()
		return nil, err
	}
	if _, err := s.Query(ctx, "CREATE DATABASE IF NOT EXISTS `"+cfg.Database+"` ENGINE = Atomic"); err != nil {
		s.Kill()
		return nil, fmt.Errorf("creating database %q: %w", cfg.Database, cmp.Or(context.Cause(ctx), err))
	}
	go s.tellUnexpectedEnd()
	return s, nil
}

// spawn starts the child and the goroutine that waits for it.
func (s *Server) spawn(p program, lock *os.File) error {
	logFile, err := os.Create(s.logPath())
	if err != nil {
		return fmt.Errorf("creating log file: %w", err)
	}
	defer logFile.Close()
	self, err := ownBinary()
	if err != nil {
		return err
	}
	// No CommandContext: a server outlives the context of its start.
	cmd := exec.Command(self) //nolint:noctx,gosec // our own binary; ended through its standard input
	cmd.Args = []string{"postrider-clickhouse"}
	env, err := childOrder{Program: p, Dir: s.dataDir(), HTTP: s.http, Native: s.native, Users: s.cfg.Users}.environ()
	if err != nil {
		return err
	}
	cmd.Env = append(os.Environ(), env)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{lock}
	// A group of its own: a terminal's Ctrl-C must not reach the database, and Kill
	// reaches the binary that a child supervises.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		return fmt.Errorf("opening the child's standard input: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting child: %w", err)
	}
	s.cmd = cmd
	go func() {
		defer close(s.done)
		s.err = cmd.Wait()
	}()
	return nil
}

// tellUnexpectedEnd blocks until the child has ended.
func (s *Server) tellUnexpectedEnd() {
	<-s.done
	if !s.ending.Load() {
		s.cfg.Log.Error("ClickHouse has ended by itself", slog.String("state", s.cmd.ProcessState.String()), slog.String("said", s.lastWords()))
	}
}

// lastWords is the end of what the child wrote.
func (s *Server) lastWords() string {
	text, err := os.ReadFile(s.logPath())
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-2000):]))
}

// waitReady asks over HTTP until the child answers. The native port is opened
// first, so it answers too. Only a server with our path is ours: we hold the
// folder's lock, while anyone may have taken the port.
func (s *Server) waitReady(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		path, err := s.Query(ctx, "SELECT value FROM system.server_settings WHERE name = 'path'")
		if err == nil && strings.TrimSuffix(path, "/") != s.dataDir() {
			return fmt.Errorf("waiting for %s: %w by a ClickHouse in %s", s.http, ErrPortTaken, path)
		}
		if err == nil {
			return nil
		}
		select {
		case <-s.done:
			return s.earlyEnd()
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", s.http, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func (s *Server) earlyEnd() error {
	tail := s.lastWords()
	if strings.Contains(tail, "Address already in use") {
		return fmt.Errorf("listening on %s and %s: %w: %s", s.http, s.native, ErrPortTaken, tail)
	}
	return fmt.Errorf("waiting for %s: the child ended, %v, and said: %s", s.http, s.cmd.ProcessState, tail)
}

// HTTPAddr is the address of the HTTP interface, host:port.
func (s *Server) HTTPAddr() string { return s.http.String() }

// NativeAddr is the address of the native interface, host:port.
func (s *Server) NativeAddr() string { return s.native.String() }

// PID is the child's process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Done is closed when the child has ended, whoever ended it.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is how the child ended. It is valid after Done is closed.
func (s *Server) Err() error { return s.err }

// Query runs one statement over HTTP and returns its answer as text, without the
// last line's end.
func (s *Server) Query(ctx context.Context, statement string) (string, error) {
	return query(ctx, s.http, statement)
}

// Stop asks the server to stop and blocks until it has ended. One that takes
// longer than ten seconds, or than ctx allows, is killed.
func (s *Server) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stopTime, fmt.Errorf("not done within %v", stopTime))
	defer cancel()
	s.ending.Store(true)
	// A write to a child that is gone already returns EPIPE: then Done says so.
	_, _ = io.WriteString(s.stdin, stopWord+"\n")
	_ = s.stdin.Close()
	select {
	case <-s.done:
	case <-ctx.Done():
		s.Kill()
		return fmt.Errorf("stopping ClickHouse in %s: killed: %w", s.cfg.Dir, context.Cause(ctx))
	}
	if s.err != nil {
		return fmt.Errorf("stopping ClickHouse in %s: %w", s.cfg.Dir, s.err)
	}
	return nil
}

// Kill ends the server with SIGKILL, as a crash would, and blocks until it is gone.
func (s *Server) Kill() {
	select {
	case <-s.done: // its id may be another process's by now
		return
	default:
	}
	s.ending.Store(true)
	// The group holds the child and, where there is one, the binary it supervises.
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.done
	_ = s.stdin.Close()
}

func (s *Server) dataDir() string { return filepath.Join(s.cfg.Dir, "data") }

func (s *Server) logPath() string { return filepath.Join(s.cfg.Dir, "server.log") }

// ownBinary is the running binary. On Linux the link in /proc still leads to it
// after a build has replaced the file, or `go run` has removed it.
func ownBinary() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding our own binary: %w", err)
	}
	return path, nil
}

// query posts one statement. It keeps no connection, so nothing outlives the server.
func query(ctx context.Context, addr netip.AddrPort, statement string) (string, error) {
	u := url.URL{Scheme: "http", Host: addr.String(), Path: "/"}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(statement))
	if err != nil {
		return "", fmt.Errorf("making request: %w", err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("querying ClickHouse: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("reading ClickHouse's answer: %w", err)
	}
	text := strings.TrimSuffix(string(body), "\n")
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("querying ClickHouse: status %d: %s", resp.StatusCode, text)
	}
	return text, nil
}
