package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// programVariable makes this test binary a program of ours: its value says which.
const programVariable = "PROCESS_TEST_PROGRAM"

func TestMain(m *testing.M) {
	switch os.Getenv(programVariable) {
	case "":
		goleak.VerifyTestMain(m)
	case "graceful":
		os.Exit(Main("graceful", &everyKind{}, func(ctx context.Context, p *Process) error {
			fmt.Println("ready", p.AdminAddress)
			<-ctx.Done()
			return ctx.Err()
		}))
	case "hanging":
		os.Exit(Main("hanging", &everyKind{}, func(ctx context.Context, _ *Process) error {
			fmt.Println("ready")
			<-ctx.Done()
			fmt.Println("stopping")
			select {}
		}))
	}
}

// startProgram starts this binary as a program of ours, and returns its lines of standard output.
func startProgram(t *testing.T, name string) (*exec.Cmd, *bufio.Scanner, *bytes.Buffer) {
	t.Helper()
	program := exec.CommandContext(t.Context(), os.Args[0], "--admin-listen=127.0.0.1:0")
	program.Env = append(os.Environ(), programVariable+"="+name)
	var stderr bytes.Buffer
	program.Stderr = &stderr
	stdout, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	return program, bufio.NewScanner(stdout), &stderr
}

func waitLine(t *testing.T, lines *bufio.Scanner, prefix string) {
	t.Helper()
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), prefix) {
			return
		}
	}
	t.Fatalf("the program ended without the line %q: %v", prefix, lines.Err())
}

func TestMainStopsAtASignal(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			program, lines, stderr := startProgram(t, "graceful")
			waitLine(t, lines, "ready 127.0.0.1:")
			if err := program.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if err := program.Wait(); err != nil {
				t.Errorf("got %v, want exit code 0; its log: %s", err, stderr)
			}
			for _, want := range []string{`"msg":"starting"`, `"settings":{"admin_listen":"127.0.0.1:0"}`, signal.String(), `"msg":"stopped"`} {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("log without %q: %s", want, stderr)
				}
			}
		})
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	program, lines, stderr := startProgram(t, "hanging")
	waitLine(t, lines, "ready")
	for _, line := range []string{"stopping", ""} {
		if err := program.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if line != "" {
			waitLine(t, lines, line)
		}
	}
	var exit *exec.ExitError
	if err := program.Wait(); !errors.As(err, &exit) {
		t.Fatalf("got %v, want an end by signal; its log: %s", err, stderr)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGTERM {
		t.Errorf("got %v, want an end by SIGTERM", exit)
	}
}

func TestExecuteGivesExitCodes(t *testing.T) {
	taken, err := Listen(t.Context(), "listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	address := taken.Addr().String()

	tests := []struct {
		name   string
		args   []string
		run    func(ctx context.Context, p *Process) error
		code   int
		stdout string
		stderr string
	}{
		{"end", nil, func(context.Context, *Process) error { return nil }, 0, "", "stopped"},
		{"help", []string{"-h"}, nil, 0, "POSTRIDER_ADMIN_LISTEN", ""},
		{"error", nil, func(context.Context, *Process) error { return errors.New("disk full") }, 1, "", `"error":"running test: disk full","exit_code":1`},
		{"settings", []string{"--log-level=loud", "--partitions=x"}, nil, 2, "", "test: bad settings:\n  --partitions = \"x\" (flag): must be a whole number\n  --log-level"},
		{"settings found later", nil, func(context.Context, *Process) error {
			return &SettingsError{Problems: []string{"key ring"}}
		}, 2, "", "key ring"},
		{"admin port taken", []string{"--admin-listen", address}, nil, 2, "", "listening on " + address + ": port taken by another process: give another address with --admin-listen"},
		{"port taken", nil, func(ctx context.Context, _ *Process) error {
			_, err := Listen(ctx, "listen", address)
			return err
		}, 2, "", "give another address with --listen"},
		{"no such address", []string{"--admin-listen", "192.0.2.1:80"}, nil, 2, "", `--admin-listen = "192.0.2.1:80": must be an address of this machine`},
		{"fenced", nil, func(context.Context, *Process) error { return fmt.Errorf("ending: %w", ErrFenced) }, 3, "", "another process has this instance's name"},
		{"text log", []string{"--log-format=text", "--log-level=warn"}, func(_ context.Context, p *Process) error {
			p.Log.Info("quiet")
			p.Log.Warn("loud")
			return nil
		}, 0, "", "level=WARN msg=loud program=test\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append([]string{"--admin-listen=127.0.0.1:0"}, test.args...)
			code := execute("test", args, nil, &stdout, &stderr, &everyKind{}, test.run)
			if code != test.code || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("got %d, %q, %q; want %d, %q, %q", code, stdout.String(), stderr.String(), test.code, test.stdout, test.stderr)
			}
			if strings.Contains(stderr.String(), "quiet") {
				t.Errorf("got a record under the level: %s", stderr.String())
			}
		})
	}
}

func TestExecuteServesHealthUntilTheEnd(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	var stdout, stderr bytes.Buffer
	code := execute("test", []string{"--admin-listen=127.0.0.1:0"}, nil, &stdout, &stderr, &everyKind{}, func(_ context.Context, p *Process) error {
		p.Health.Dependency("kafka", Required).Down(errors.New("refused"))
		code, body := get(t, "http://"+p.AdminAddress+"/readyz") //nolint:contextcheck // asks as an operator does, from outside
		if code != http.StatusServiceUnavailable || !strings.Contains(body, "refused") {
			t.Errorf("got %d %s, want 503 with the reason", code, body)
		}
		return nil
	})
	if code != ExitOK {
		t.Errorf("got %d, %s", code, stderr.String())
	}
}

func TestExitCode(t *testing.T) {
	for err, want := range map[error]int{nil: 0, flag.ErrHelp: 0, ErrFenced: 3, ErrPortTaken: 2, context.Canceled: 1} {
		if got := ExitCode(err); got != want {
			t.Errorf("ExitCode(%v) = %d, want %d", err, got, want)
		}
	}
}
