package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/schemas/process"
)

// An action is what a command does, with the settings it needs.
type action interface {
	process.Registrar
	run(ctx context.Context, t *terminal) error
}

// terminal is what a command reads from and shows things on.
type terminal struct {
	in     io.Reader
	out    io.Writer
	err    io.Writer
	asJSON bool
}

// leaf makes a command. Settings are read as in every other program of ours
// (flags, POSTRIDER_… in the environment, a YAML file; all problems told at
// once), so cobra, which tells commands apart, hands the flags on unread.
func leaf(use, short string, a action) *cobra.Command {
	title, _, _ := strings.Cut(short, ".\n")
	return &cobra.Command{
		Use: use, Short: title, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			t := &terminal{in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
			var timeout time.Duration
			settings := process.NewSettings(cmd.CommandPath())
			a.Register(settings)
			settings.Bool(&t.asJSON, "json", false, "show JSON, for programs, instead of text")
			settings.Duration(&timeout, "timeout", 30*time.Second, "give up after this time")
			err := settings.Parse(args, os.Environ())
			if errors.Is(err, flag.ErrHelp) {
				if _, err := fmt.Fprintf(t.out, "%s.\n\n", short); err != nil {
					return fmt.Errorf("writing help: %w", err)
				}
				return settings.WriteHelp(t.out) //nolint:wrapcheck // it says what it did
			}
			if err != nil {
				return err //nolint:wrapcheck // told as it is
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("not done within %s (--timeout)", timeout))
			defer cancel()
			err = a.run(ctx, t)
			if err != nil && ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return err
		},
	}
}

// group makes a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			problem := fmt.Sprintf("unknown command %q", args[0])
			cmd.SuggestionsMinimumDistance = 2 // as for cobra's own suggestions
			if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
				problem += ", perhaps " + strings.Join(like, " or ")
			}
			return &usageError{command: cmd.CommandPath(), problem: problem}
		},
	}
	cmd.AddCommand(commands...)
	return cmd
}

// showJSON writes a value for programs.
func (t *terminal) showJSON(value any) error {
	encoder := json.NewEncoder(t.out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// showTable writes rows for people; cells are joined at a tab.
func (t *terminal) showTable(header []string, rows [][]string) error {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	lines := append([][]string{header}, rows...)
	for _, cells := range lines {
		if _, err := fmt.Fprintln(w, strings.Join(cells, "\t")); err != nil {
			return fmt.Errorf("writing table: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("writing table: %w", err)
	}
	return nil
}

// showLine writes one line for people.
func (t *terminal) showLine(format string, values ...any) error {
	if _, err := fmt.Fprintf(t.out, format+"\n", values...); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}
