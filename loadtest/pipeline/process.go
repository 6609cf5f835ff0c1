package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that a test may kill, freeze and start again. Its methods
// may be called from several goroutines, its signals one at a time.
type Process struct {
	name string
	path string
	args []string
	log  string // file of everything it wrote, over all its starts

	mu   sync.Mutex // guards the below
	cmd  *exec.Cmd
	done chan struct{} // closed when the process that cmd is has ended
}

// startProcesses runs every start of a process. Linux ends a process with the
// thread that started it (see endsWithThread), so they all get one thread that lives as
// long as the test binary.
func startProcesses(work <-chan func()) {
	runtime.LockOSThread()
	for f := range work {
		f()
	}
}

// newProcess is a process that is not started yet. Its log goes to dir.
func newProcess(dir, name, path string, args ...string) *Process {
	return &Process{name: name, path: path, args: args, log: filepath.Join(dir, name+".log")}
}

func (p *Process) start(s *shared) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening log of %s: %w", p.name, err)
	}
	defer out.Close()
	// No CommandContext: it ends when the test says so, or with the test binary.
	cmd := exec.Command(p.path, p.args...) //nolint:noctx // a test's own program
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = endsWithThread()
	started := make(chan error, 1)
	s.spawn <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		defer close(done)
		_ = cmd.Wait() // the exit code is asked for with ExitCode
	}()
	return nil
}

func (p *Process) current() (*exec.Cmd, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd, p.done
}

// PID is the id of the running process, or of the last one that ran.
func (p *Process) PID() int {
	cmd, _ := p.current()
	return cmd.Process.Pid
}

// Done is closed when the process has ended. After a restart there is a new one.
func (p *Process) Done() <-chan struct{} {
	_, done := p.current()
	return done
}

// Running tells whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.Done():
		return false
	default:
		return true
	}
}

// Kill9 ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill9(t testing.TB) {
	t.Helper()
	p.kill()
}

func (p *Process) kill() {
	cmd, done := p.current()
	_ = cmd.Process.Kill() // os.ErrProcessDone: it has ended already
	<-done
}

// Terminate sends SIGTERM, waits for the end and returns the exit code. A process
// that takes longer than the limit is killed and fails the test.
func (p *Process) Terminate(t testing.TB, limit time.Duration) int {
	t.Helper()
	p.Signal(t, syscall.SIGTERM)
	return p.WaitExit(t, limit)
}

// WaitExit waits for the end and returns the exit code, -1 after a signal. A
// process that takes longer than the limit is killed and fails the test.
func (p *Process) WaitExit(t testing.TB, limit time.Duration) int {
	t.Helper()
	cmd, done := p.current()
	select {
	case <-done:
	case <-time.After(limit):
		p.kill()
		t.Errorf("waiting for the end of %s: not within %v", p.name, limit)
	}
	return cmd.ProcessState.ExitCode()
}

// Suspend freezes the process (SIGSTOP): it holds its connections and answers
// nothing, until Continue.
func (p *Process) Suspend(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGSTOP)
}

// Continue lets a suspended process go on (SIGCONT).
func (p *Process) Continue(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGCONT)
}

// Signal sends a signal to the running process.
func (p *Process) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	cmd, _ := p.current()
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("sending %v to %s: %v", sig, p.name, err)
	}
}

// Restart starts the program again with the same arguments, killing the process
// if it runs. It does not wait until it is ready.
func (p *Process) Restart(t testing.TB) {
	t.Helper()
	p.kill()
	if err := p.start(the(t)); err != nil {
		t.Fatal(err)
	}
}

// Output is everything the program has written, over all its starts.
func (p *Process) Output(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatalf("reading log of %s: %v", p.name, err)
	}
	return string(text)
}

// Memory is the resident set in bytes.
func (p *Process) Memory(t testing.TB) int64 {
	t.Helper()
	bytes, err := residentBytes(p.PID())
	if err != nil {
		t.Fatalf("measuring memory of %s: %v", p.name, err)
	}
	return bytes
}

// Resident is the resident set in bytes, 0 of a process that has ended.
func (p *Process) Resident() int64 {
	bytes, err := residentBytes(p.PID())
	if err != nil {
		return 0
	}
	return bytes
}

// Descriptors is how many files and sockets the process has open.
func (p *Process) Descriptors(t testing.TB) int {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		t.Fatalf("counting descriptors of %s: %v", p.name, err)
	}
	return len(open)
}

// CPU is the processor time that the process has used since its start.
func (p *Process) CPU(t testing.TB) time.Duration {
	t.Helper()
	used, err := processorTime(p.PID())
	if err != nil {
		t.Fatalf("measuring processor time of %s: %v", p.name, err)
	}
	return used
}

// ownedBy ends the process with the test, and shows the end of its log if the
// test has failed.
func (p *Process) ownedBy(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s wrote, at the end:\n%s", p.name, tail(p.log))
		}
	})
}

// tail is the last 60 lines of a file, at most 16 KiB.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(text[max(0, len(text)-16<<10):]), "\n")
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

// residentBytes reads /proc/<pid>/statm: pages, the second field resident (proc(5)).
func residentBytes(pid int) (int64, error) {
	fields, err := procFields(pid, "statm")
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// processorTime reads /proc/<pid>/stat: user and system time are the fields 14 and
// 15, in hundredths of a second on every Linux architecture (proc(5), USER_HZ).
func processorTime(pid int) (time.Duration, error) {
	fields, err := procFields(pid, "stat")
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, text := range fields[13:15] {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("parsing processor time %q: %w", text, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// procFields splits a file of /proc. A program's name, the second field of stat,
// stands in parentheses and may hold spaces: it is taken as one.
func procFields(pid int, file string) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return nil, fmt.Errorf("reading process figures: %w", err)
	}
	line := string(text)
	if open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')'); open >= 0 && end > open {
		line = line[:open] + "name" + line[end+1:]
	}
	return strings.Fields(line), nil
}

// toolTime bounds a build, a fetch, and the wait for another process's fetch.
const toolTime = 10 * time.Minute

// tool is a program of a helper, which is killed when ctx ends. Children of its own
// that live on and hold its output are not waited for.
func tool(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second
	return cmd
}

// runTool runs a program of a helper to its end.
func runTool(ctx context.Context, path string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	out, err := tool(ctx, path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("running %s %s: %w: %s", path, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
