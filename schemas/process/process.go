// Package process provides what every program of ours promises its operator: settings that tell all their problems at once, structured logs, health and
// metrics on an admin port, an order of stopping, and exit codes. What the program does is left to the function given to Main.
//
// Main runs the admin server, the program's function and one goroutine that waits for the first signal; Run a goroutine for each stage.
// All have ended when they return.
package process

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

var (
	// ErrFenced says that another process runs under this one's name: exit code 3.
	ErrFenced = errors.New("fenced: another process has this instance's name")
	// ErrPortTaken says that another process listens where this one wants to: exit code 2.
	ErrPortTaken = errors.New("port taken by another process")
)

// Exit codes of every program.
const (
	ExitOK       = 0
	ExitError    = 1
	ExitSettings = 2 // bad settings, or a port taken
	ExitFenced   = 3
)

// A Process is what a program's parts share. In standalone one serves them all.
type Process struct {
	Log     *slog.Logger
	Health  *Health
	Metrics *prometheus.Registry
	// AdminAddress is where health and metrics are served; empty unless Main made the process.
	AdminAddress string
}

// New returns a process whose registry has the collectors of the Go runtime, the process, the build and the health. Main makes its own; tests use it.
func New(log *slog.Logger) *Process {
	p := &Process{Log: log, Health: NewHealth(log), Metrics: prometheus.NewRegistry()}
	p.Metrics.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
		p.Health,
	)
	return p
}

// A Registrar registers its settings: a pointer to a Config.
type Registrar interface {
	Register(s *Settings)
}

// Main reads settings, serves health and metrics, and calls run, whose context ends at the first SIGINT or SIGTERM; a second one ends the process at once.
// It returns the exit code. The program's cfg is registered first: where it registers --log-format or --admin-listen itself, its default and usage stand.
func Main(program string, cfg Registrar, run func(ctx context.Context, p *Process) error) int {
	return execute(program, os.Args[1:], os.Environ(), os.Stdout, os.Stderr, cfg, run)
}

func execute(
	program string, args, environ []string, stdout, stderr io.Writer, cfg Registrar, run func(ctx context.Context, p *Process) error,
) int {
	var own options
	settings := NewSettings(program)
	cfg.Register(settings)
	own.Register(settings)
	err := settings.Parse(args, environ)
	if errors.Is(err, flag.ErrHelp) {
		return report(stderr, program, nil, settings.WriteHelp(stdout))
	}
	if err != nil {
		return report(stderr, program, nil, err)
	}

	log := own.logger(stderr).With("program", program)
	log.Info("starting", "version", Version(), "settings", settings)
	ctx, stop := untilSignal(context.Background(), log)
	defer stop()
	return report(stderr, program, log, serve(ctx, New(log), own.adminListen, program, run))
}

func serve(ctx context.Context, p *Process, adminListen, program string, run func(ctx context.Context, p *Process) error) error {
	ln, err := Listen(ctx, "admin-listen", adminListen)
	if err != nil {
		return err
	}
	p.AdminAddress = ln.Addr().String()
	defer context.AfterFunc(ctx, p.Health.stop)()
	return Run(ctx,
		Stage{Name: "admin", Run: func(ctx context.Context) error { return ServeAdmin(ctx, ln, p) }},
		Stage{Name: program, Run: func(ctx context.Context) error { return run(ctx, p) }},
	)
}

// report tells how the process ended: what the operator has to change as plain text, the rest as a log record.
func report(stderr io.Writer, program string, log *slog.Logger, err error) int {
	code := ExitCode(err)
	switch {
	case log != nil && code == ExitOK:
		log.Info("stopped")
	case log != nil && code != ExitSettings:
		log.Error("ending", "error", err, "exit_code", code)
	case code != ExitOK:
		_, _ = fmt.Fprintf(stderr, "%s: %v\n", program, err) // nobody is left to tell
	}
	return code
}

// ExitCode is the exit code for what a program's function returned.
func ExitCode(err error) int {
	_, badSettings := errors.AsType[*SettingsError](err)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return ExitOK
	case errors.Is(err, ErrFenced):
		return ExitFenced
	case badSettings, errors.Is(err, ErrPortTaken):
		return ExitSettings
	default:
		return ExitError
	}
}

// untilSignal returns a context that ends at the first SIGINT or SIGTERM. From then on the signals have their default effect again,
// so a second one ends the process even if everything in it hangs.
func untilSignal(parent context.Context, log *slog.Logger) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case received := <-signals:
			signal.Stop(signals)
			log.Info("stopping; a second signal ends at once", "signal", received.String())
			cancel()
		case <-ctx.Done():
			signal.Stop(signals)
		}
	}()
	return ctx, func() {
		cancel()
		<-ended
	}
}

// Version is the version of the build: a tag, a pseudo-version, or devel.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

// Listen listens on a TCP address. Its errors name the flag (without dashes) that the address came from: one that wraps ErrPortTaken if somebody
// else listens there, a *SettingsError if it cannot be listened on at all.
func Listen(ctx context.Context, flagName, address string) (net.Listener, error) {
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listening on %s: %w: give another address with --%s", address, ErrPortTaken, flagName)
	case err != nil:
		return nil, &SettingsError{Problems: []string{fmt.Sprintf("--%s = %q: must be an address of this machine that may be listened on: %v", flagName, address, err)}}
	}
	return ln, nil
}

// options are the settings of this package.
type options struct {
	adminListen string
	logLevel    string
	logFormat   string
}

func (o *options) Register(s *Settings) {
	s.Address(&o.adminListen, "admin-listen", "127.0.0.1:8081", "where /livez, /readyz and /metrics are served")
	s.String(&o.logLevel, "log-level", "info", "least level logged: debug, info, warn or error")
	s.OneOf(&o.logLevel, "log-level", "debug", "info", "warn", "error")
	s.String(&o.logFormat, "log-format", "json", "form of the log on standard error: json or text")
	s.OneOf(&o.logFormat, "log-format", "json", "text")
}

func (o *options) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		panic(fmt.Sprintf("BUG: log level %q passed its check: %v", o.logLevel, err))
	}
	handler := &slog.HandlerOptions{Level: level}
	if o.logFormat == "text" {
		return slog.New(slog.NewTextHandler(w, handler))
	}
	return slog.New(slog.NewJSONHandler(w, handler))
}
