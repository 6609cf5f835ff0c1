package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/deploy/verify"
	"github.com/postrider/postrider/schemas/process"
)

// exitUnknown says that what was asked could not be told. 1 is kept for what is known to be wrong.
const exitUnknown = 4

// errFindings is the end of a verification that found something.
var errFindings = errors.New("not everything is accounted for")

// unknownError says that a verification could not be made, or not as a whole.
type unknownError struct{ cause error }

func (e *unknownError) Error() string { return e.cause.Error() }
func (e *unknownError) Unwrap() error { return e.cause }

var errPartly = errors.New("nothing is missing as far as it was checked, which is not all")

func verifyCommand() *cobra.Command {
	return leaf("verify", "Prove that nothing is missing in the log and in ClickHouse, and list what is.\n"+
		"Exit code 0: nothing is missing; 1: something is, and is listed; 2: bad settings; 4: it cannot be told, or not all of it", &verifyLog{})
}

type verifyLog struct {
	cfg          verify.Config
	since, until string
	timeout      time.Duration
}

// Register implements process.Registrar.
func (v *verifyLog) Register(s *process.Settings) {
	v.cfg.Kafka.Register(s)
	v.cfg.ClickHouse.Register(s)
	s.Bool(&v.cfg.LogOnly, "log-only", false, "check the log by itself, without ClickHouse")
	s.String(&v.since, "since", "", "only what was accepted at this time or later: 2026-11-25T12:00:00Z, or back from now: 24h; empty: all there is")
	s.String(&v.until, "until", "", "only what was accepted before this time, given likewise; empty: up to now")
	s.String(&v.cfg.Organization, "organization", "", "only this one's")
	s.Int(&v.cfg.List, "list", 100, "how many findings are listed; all are counted")
	process.Between(s, &v.cfg.List, "list", 0, 1_000_000)
	s.Duration(&v.timeout, "timeout", 2*time.Hour, "give up after this time")
	s.Check(func() error { return v.check(s, time.Now()) })
}

func (v *verifyLog) check(s *process.Settings, now time.Time) error {
	const allowed = "a time such as 2026-11-25T12:00:00Z, or a duration back from now such as 24h"
	var problems []error
	read := func(name, text string, at *time.Time) {
		var err error
		if *at, err = parseMoment(text, now); err != nil {
			problems = append(problems, s.Invalid(name, allowed))
		}
	}
	read("since", v.since, &v.cfg.Since)
	read("until", v.until, &v.cfg.Until)
	if len(problems) == 0 && !v.cfg.Since.IsZero() && !v.cfg.Until.IsZero() && !v.cfg.Since.Before(v.cfg.Until) {
		problems = append(problems, s.Invalid("since", "before --until"))
	}
	return errors.Join(problems...)
}

var errMoment = errors.New("not a time, nor a duration")

// parseMoment reads a time, or a duration back from now; empty is the zero time.
func parseMoment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	back, err := time.ParseDuration(text)
	if err != nil || back < 0 {
		return time.Time{}, fmt.Errorf("reading %.64q: %w", text, errMoment)
	}
	return now.Add(-back), nil
}

func (v *verifyLog) run(ctx context.Context, t *terminal) error {
	report, err := verify.Run(ctx, v.cfg)
	if err != nil {
		return &unknownError{err}
	}
	if t.asJSON {
		err = t.showJSON(report)
	} else {
		err = showReport(t, report)
	}
	notAll := len(report.NotChecked) > 0 && (!v.cfg.LogOnly || len(report.NotChecked) > 1)
	switch {
	case err != nil:
		return err
	case report.Total > 0:
		return errFindings
	case notAll:
		return &unknownError{errPartly}
	}
	return nil
}

// showReport tells the counts, what was not checked, and the findings.
func showReport(t *terminal, r *verify.Report) error {
	d, e := &r.Deliveries, &r.Events
	lines := []string{
		"As of " + r.AsOf.Format(time.RFC3339) + scopeText(r),
		fmt.Sprintf("Events      %d: %d matched, %d matched nobody, %d duplicate, %d rejected%s; %d not routed yet",
			e.Total, e.Matched, e.Unmatched, e.Duplicate, e.Rejected, expiredText(e.Expired), e.Waiting),
		fmt.Sprintf("Deliveries  %d = %d ended%s + %d pending%s + %d set aside + %d without end", d.Total,
			verify.Sum(d.Ended), partsText(d.Ended), verify.Sum(d.Pending), partsText(d.Pending), d.SetAside, r.ByKind[verify.NoEnd]),
	}
	if d.Older > 0 {
		lines = append(lines, fmt.Sprintf("            and %d pending that are older than the log of deliveries", d.Older))
	}
	lines = append(lines, fmt.Sprintf("Outcomes    %d", d.Outcomes))
	if r.Rows.Checked {
		lines = append(lines, fmt.Sprintf("ClickHouse  %d rows of outcomes, %d of deliveries' states, %d of events; %d records behind",
			r.Rows.Outcomes, r.Rows.Deliveries, r.Rows.Events, r.Rows.Lag))
	}
	lines = append(lines, fmt.Sprintf("Checked in %.1f s, %.0f deliveries/s", r.Seconds, r.PerSecond))
	if r.Organization != "" && e.Total == 0 && d.Total == 0 {
		lines = append(lines, fmt.Sprintf("Nothing of organization %q was found.", r.Organization))
	}
	for _, note := range r.NotChecked {
		lines = append(lines, "Not checked: "+note)
	}
	if r.Total == 0 {
		lines = append(lines, "Nothing is missing.")
	} else {
		lines = append(lines, fmt.Sprintf("Findings    %d%s", r.Total, partsText(r.ByKind)))
	}
	if err := t.showLine("%s", strings.Join(lines, "\n")); err != nil || len(r.Findings) == 0 {
		return err
	}
	return showFindings(t, r)
}

func showFindings(t *terminal, r *verify.Report) error {
	rows := make([][]string, len(r.Findings))
	for i := range r.Findings {
		f := &r.Findings[i]
		rows[i] = []string{
			string(f.Kind), fmt.Sprintf("%s/%d@%d", f.Topic, f.Partition, f.Offset), f.DeliveryID, f.EventID, f.Expected, f.Found,
		}
	}
	err := t.showTable([]string{"KIND", "PLACE", "DELIVERY", "EVENT ID", "EXPECTED", "FOUND"}, rows)
	if left := r.Total - int64(len(r.Findings)); err == nil && left > 0 {
		err = t.showLine("and %d more (--list)", left)
	}
	return err
}

func scopeText(r *verify.Report) string {
	text := ""
	if !r.Since.IsZero() {
		text += ", accepted since " + r.Since.UTC().Format(time.RFC3339)
	}
	if !r.Until.IsZero() {
		text += ", accepted before " + r.Until.UTC().Format(time.RFC3339)
	}
	if r.Organization != "" {
		text += fmt.Sprintf(", of organization %q", r.Organization)
	}
	return text
}

func expiredText(n int64) string {
	if n == 0 {
		return ""
	}
	return ", " + strconv.FormatInt(n, 10) + " of which routed says nothing any more"
}

// partsText names what a sum is made of.
func partsText[K ~string](counts map[K]int64) string {
	if len(counts) == 0 {
		return ""
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
