// Command receiver is a webhook target that answers 200 and tells what it got.
//
//	receiver [flags] [command [arguments]]
//
// Given a command it runs that, with TARGET (a URL for a webhook) and RECEIVER
// (where to ask what came) in its environment, and ends with it and its exit code.
// Without one it runs until SIGINT or SIGTERM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/postrider/postrider/loadtest/receiver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "receiver:", err)
	}
	os.Exit(code)
}

// run blocks until ctx or the command ends, and returns the exit code.
func run(ctx context.Context, args []string) (code int, err error) {
	var cfg receiver.Config
	flags := flag.NewFlagSet("receiver", flag.ContinueOnError)
	flags.StringVar(&cfg.Addr, "listen", "127.0.0.1:9999", "where webhooks call, host:port")
	admin := flags.String("admin-listen", "127.0.0.1:9998", "where /requests, /total and /readyz are served, host:port")
	flags.BoolVar(&cfg.Light, "light", false, "keep no bodies, for many requests")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0, nil
		}
		return 2, nil // the flag set has said it
	}
	r, err := receiver.Listen(ctx, cfg)
	if err != nil {
		return 2, fmt.Errorf("%w: give another address with --listen", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }() //nolint:contextcheck // it ends after ctx has
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", *admin)
	if err != nil {
		return 2, fmt.Errorf("listening on %s: %w: give another address with --admin-listen", *admin, err)
	}
	server := &http.Server{Handler: r.RequestsHandler(), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	defer func() {
		err = errors.Join(err, server.Close())
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
	}()
	asked := "http://" + ln.Addr().String()
	if flags.NArg() > 0 {
		return command(ctx, flags.Args(), "TARGET="+r.URL("/hook"), "RECEIVER="+asked)
	}
	fmt.Printf("webhooks call %s, what came is at %s/requests\n", r.URL("/hook"), asked)
	<-ctx.Done()
	return 0, nil
}

// command runs a program to its end, which ctx asks for with SIGINT.
func command(ctx context.Context, args []string, environ ...string) (code int, err error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), environ...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(1, exit.ExitCode()), nil // -1: ended by a signal
	}
	if err != nil {
		return 2, fmt.Errorf("running %s: %w", args[0], err)
	}
	return 0, nil
}
