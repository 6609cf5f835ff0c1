// Package faults kills, freezes, floods and starves a whole Postrider, on Apache
// Kafka and ClickHouse, and holds what comes of it against a ledger outside of it.
//
//	go test ./faults                          short: each scenario within 45 s
//	go test ./faults -full -timeout 180m      as the README has it
//	go test ./faults -run 'TestFaults/F03'
//
// Each scenario leaves its row as JSON in the folder of -results; the table of all
// rows there is printed at the end, and written beside them as Markdown.
package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postrider/postrider/loadtest/ledger"
)

// Row is what a scenario came to.
type Row struct {
	ID    string    `json:"id"`
	Fault string    `json:"fault"`
	At    time.Time `json:"at"` // its start
	Full  bool      `json:"full"`
	ledger.Verdict

	// PeakBytes is the most memory that the services had resident together.
	PeakBytes int64 `json:"peak_bytes"`
	// Recovery is the longest time from the end of a fault to the first request of
	// an event accepted after it.
	Recovery time.Duration `json:"recovery_ns"`
	// Notes are what else was measured; Problems what fell short, Findings aside.
	Notes    []string `json:"notes,omitempty"`
	Problems []string `json:"problems,omitempty"`
}

// Passed tells whether nothing fell short.
func (r *Row) Passed() bool { return len(r.Findings) == 0 && len(r.Problems) == 0 }

// write keeps the row in a folder.
func (r *Row) write(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding row %s: %w", r.ID, err)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("making the folder of rows: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, r.ID+".json"), append(text, '\n'), 0o600)
}

// allRows is the file with all rows, beside those of one.
const allRows = "faults.json"

// ReadRows reads all rows of a folder, in the order of their ids.
func ReadRows(dir string) ([]Row, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, name := range names {
		if filepath.Base(name) == allRows {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var row Row
		if err := json.Unmarshal(text, &row); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// Table is the rows as Markdown, with their totals.
func Table(rows []Row) string {
	var b strings.Builder
	b.WriteString("| | fault | accepted | delivered | dead | lost | doubled | repeated (in flight) | audit missing / extra | worst p99 | peak memory | recovery | |\n")
	b.WriteString("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n")
	var total Row
	for i := range rows {
		r := &rows[i]
		line(&b, r)
		total.Accepted += r.Accepted
		total.Delivered += r.Delivered
		total.Dead += r.Dead
		total.Lost += r.Lost
		total.Doubled += r.Doubled
		total.Repeated += r.Repeated
		total.InFlight += r.InFlight
		total.AuditMissing += r.AuditMissing
		total.AuditExtra += r.AuditExtra
	}
	fmt.Fprintf(&b, "| | **all** | %d | %d | %d | %d | %d | %d (%d) | %d / %d | | | | |\n", total.Accepted, total.Delivered, total.Dead,
		total.Lost, total.Doubled, total.Repeated, total.InFlight, total.AuditMissing, total.AuditExtra)
	return b.String()
}

func line(b *strings.Builder, r *Row) {
	what := "passed"
	if !r.Passed() {
		what = "**fails**: " + strings.Join(append(append([]string{}, r.Problems...), r.Findings...), "; ")
		const most = 300
		if len(what) > most {
			what = what[:most] + "…"
		}
	}
	if len(r.Notes) > 0 {
		what += "; " + strings.Join(r.Notes, "; ")
	}
	recovery := "–"
	if r.Recovery > 0 {
		recovery = fmt.Sprintf("%.1f s", r.Recovery.Seconds())
	}
	fmt.Fprintf(b, "| %s | %s | %d | %d | %d | %d | %d | %d (%d) | %d / %d | %s | %d MB | %s | %s |\n", r.ID, r.Fault, r.Accepted, r.Delivered, r.Dead,
		r.Lost, r.Doubled, r.Repeated, r.InFlight, r.AuditMissing, r.AuditExtra, p99(r.WorstP99), r.PeakBytes>>20, recovery, strings.ReplaceAll(what, "|", "/"))
}

func p99(d time.Duration) string {
	switch {
	case d == 0:
		return "–"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}

// report prints the table of a folder's rows and keeps it beside them.
func report(dir string) error {
	rows, err := ReadRows(dir)
	if err != nil || len(rows) == 0 {
		return err
	}
	table := Table(rows)
	fmt.Print(table)
	all, err := json.MarshalIndent(rows, "", "  ")
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "faults.md"), []byte(table), 0o600),
		os.WriteFile(filepath.Join(dir, allRows), all, 0o600))
}
