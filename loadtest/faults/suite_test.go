package faults

import (
	"flag"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
)

//nolint:gochecknoglobals // flags of a test binary
var (
	full    = flag.Bool("full", false, "faults and loads as long as the README's table has them")
	results = flag.String("results", "results", "folder for the rows")
)

func TestMain(m *testing.M) {
	flag.Parse()
	pipeline.Main(m, func() error { return report(resultsDir()) })
}

// resultsDir keeps short and full rows apart.
func resultsDir() string {
	if *full {
		return filepath.Join(*results, "full")
	}
	return filepath.Join(*results, "short")
}

// scenario is one fault and what must come of it.
type scenario struct {
	id    string // F01, as in the README
	fault string
	world options
	run   func(w *world)
}

// scenarios are all, in the order of the table.
func scenarios() []scenario {
	var all []scenario
	for _, some := range [][]scenario{kills(), brokers(), clickHouses(), inputs(), changes(), targets(), moments(), joins(), starved(), versions()} {
		all = append(all, some...)
	}
	return all
}

// TestFaults runs every scenario: the load goes on while run does its worst, then
// ends, and the ledger is held against what the system says.
func TestFaults(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.id, func(t *testing.T) { s.test(t) })
	}
}

func (s *scenario) test(t *testing.T) {
	t.Helper()
	row := Row{ID: s.id, Fault: s.fault, At: time.Now().UTC().Truncate(time.Second), Full: *full}
	defer func() {
		if t.Failed() && row.Passed() {
			row.Problems = append(row.Problems, "broke off: see the test's output")
		}
		if err := row.write(resultsDir()); err != nil {
			t.Error(err)
		}
	}()
	w := startWorld(t, &row, s.world)
	s.run(w)
	w.finish()
	for _, finding := range row.Findings {
		t.Error(finding)
	}
	t.Logf("%s\n%s", s.fault, Table([]Row{row}))
}

// pick is one figure for the short form and one for the full.
func pick[T any](short, long T) T {
	if *full {
		return long
	}
	return short
}

func (w *world) problemf(format string, args ...any) {
	w.t.Helper()
	text := fmt.Sprintf(format, args...)
	w.row.Problems = append(w.row.Problems, text)
	w.t.Error(text)
}

// latef says that something took longer than it may. The short form shares its machine
// with whatever else is tested: there it is a note.
func (w *world) latef(format string, args ...any) {
	w.t.Helper()
	if *full {
		w.problemf(format, args...)
	} else {
		w.notef(format, args...)
	}
}

func (w *world) notef(format string, args ...any) {
	w.row.Notes = append(w.row.Notes, fmt.Sprintf(format, args...))
}
