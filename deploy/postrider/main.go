// Command postrider is the command line of Postrider: it prepares Kafka and
// ClickHouse, and speaks to the REST listener. One file a noun; how a command
// reads its settings and shows what it found is in command.go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/schemas/process"
)

// Exit codes, besides those of every program: process.ExitError also says that
// something was refused, or that a check found differences.
const exitUsage = process.ExitSettings

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	ran, err := root.ExecuteContextC(ctx)
	return report(stderr, ran.CommandPath(), err)
}

func rootCommand() *cobra.Command {
	root := group("postrider", "Prepares Kafka and ClickHouse for Postrider, and speaks to it",
		topicsCommand(), clickhouseCommand(), keysCommand(), webhooksCommand(), eventsCommand(), deliveriesCommand(), verifyCommand(),
	)
	root.Version = process.Version()
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{command: cmd.CommandPath(), problem: err.Error()}
	})
	return root
}

// usageError says that a command line cannot be understood.
type usageError struct {
	command, problem string
}

func (e *usageError) Error() string {
	return fmt.Sprintf("%s; %s -h shows what there is", e.problem, e.command)
}

// report tells why a command did not do what it was asked, and returns its exit code.
func report(stderr io.Writer, command string, err error) int {
	if err == nil {
		return process.ExitOK
	}
	code := process.ExitCode(err)
	if _, usage := errors.AsType[*usageError](err); usage {
		code = exitUsage
	}
	if _, unknown := errors.AsType[*unknownError](err); unknown {
		code = exitUnknown
	}
	// Nobody is left to tell of an error in writing to standard error.
	if answer, refused := errors.AsType[*refusedError](err); refused && answer.asJSON {
		_ = json.NewEncoder(stderr).Encode(answer.problem)
		return code
	}
	_, _ = fmt.Fprintf(stderr, "%s: %s\n", command, strings.TrimRight(err.Error(), "\n"))
	return code
}
