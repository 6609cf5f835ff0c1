package clickhouse

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the columns in README.md anew") //nolint:gochecknoglobals // a flag

const (
	columnsBegin = "<!-- columns: written by go test ./clickhouse -update, from the DDL -->\n"
	columnsEnd   = "<!-- end of columns -->\n"
)

// TestColumnsAreDocumented holds README.md to the views' DDL: each column with its
// type and its comment. One without a comment fails, in either place.
func TestColumnsAreDocumented(t *testing.T) {
	var want strings.Builder
	names := map[string]bool{}
	for _, view := range Views() {
		names[view.Name] = true
		fmt.Fprintf(&want, "\n### %s\n| column | type | |\n|---|---|---|\n", view.Name)
		for _, c := range view.Columns {
			if len(c.Comment) < 5 {
				t.Errorf("%s.%s has the comment %q", view.Name, c.Name, c.Comment)
			}
			fmt.Fprintf(&want, "| `%s` | %s | %s |\n", c.Name, c.Type, strings.NewReplacer("|", "\\|", "<", "&lt;").Replace(c.Comment))
		}
		if len(view.Columns) == 0 || len(view.Tables) == 0 {
			t.Errorf("%s has columns %v of tables %v", view.Name, view.Columns, view.Tables)
		}
	}
	want.WriteString("\n")
	for _, name := range []string{"outcomes_v1", "deliveries_v1", "events_v1", "changes_v1", "webhooks_v1"} {
		if !names[name] {
			t.Errorf("there is no view %s", name)
		}
	}
	raw, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begun := strings.Cut(string(raw), columnsBegin)
	got, after, ended := strings.Cut(rest, columnsEnd)
	if !begun || !ended {
		t.Fatal("README.md has no place for the columns")
	}
	if *update {
		if err := os.WriteFile("README.md", []byte(before+columnsBegin+want.String()+columnsEnd+after), 0o600); err != nil {
			t.Fatal(err)
		}
		got = want.String()
	}
	if got != want.String() {
		t.Errorf("README.md differs from the DDL (go test ./clickhouse -update writes it): it has\n%s\nthe DDL\n%s", got, want.String())
	}
}
