package clickhouse

import (
	"regexp"
	"strings"
)

// View is a view of the supported interface, as its DDL has it.
type View struct {
	Name string
	// Tables are those that it reads.
	Tables  []string
	Columns []Column
}

// Column is a column of a View or of a table.
type Column struct {
	Name, Type, Comment string
}

// Views returns the supported views. A later statement of the same name is what holds.
func Views() []View {
	create := regexp.MustCompile(`^(?s)CREATE OR REPLACE VIEW db\.(\w+)\n\(\n(.*?)\n\) AS (.*)$`)
	column := regexp.MustCompile(`^\s*(\w+) (.+?)(?: COMMENT '(.*)')?,?$`)
	table := regexp.MustCompile(`(?:FROM|JOIN) db\.(\w+)`)
	var views []View
	for _, statement := range ddlOf("db") {
		found := create.FindStringSubmatch(statement)
		if found == nil {
			continue
		}
		view := View{Name: found[1]}
		for line := range strings.SplitSeq(found[2], "\n") {
			if c := column.FindStringSubmatch(line); c != nil {
				view.Columns = append(view.Columns, Column{c[1], c[2], c[3]})
			}
		}
		for _, of := range table.FindAllStringSubmatch(found[3], -1) {
			view.Tables = append(view.Tables, of[1])
		}
		views = append(views, view)
	}
	return views
}

// columnsOf returns the names of a table's columns that can be read.
func columnsOf(table string) []string {
	var names []string
	for _, statement := range ddlOf("db") {
		_, body, is := strings.Cut(statement, "CREATE TABLE IF NOT EXISTS db."+table+"\n(\n")
		if !is {
			continue
		}
		body, _, _ = strings.Cut(body, "\n)\n")
		for line := range strings.SplitSeq(body, "\n") {
			name, kind, _ := strings.Cut(strings.TrimSpace(line), " ")
			if name != "INDEX" && name != "PROJECTION" && !strings.Contains(kind, " EPHEMERAL ") {
				names = append(names, name)
			}
		}
	}
	return names
}

// ddlOf returns the statements of all migrations, without the comments before them.
func ddlOf(database string) []string {
	var all []string
	for _, m := range Migrations(database) {
		for _, statement := range m.Statements {
			for strings.HasPrefix(statement, "--") {
				_, statement, _ = strings.Cut(statement, "\n")
			}
			all = append(all, statement)
		}
	}
	return all
}
