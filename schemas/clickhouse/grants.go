package clickhouse

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxOrganization is the most characters that an organization's name has.
const maxOrganization = 128

// Reader says who may read what of the audit with SQL.
type Reader struct {
	Database, Organization string
	// Payloads lets it read bodies too: of events, and of answers with their heads.
	Payloads bool
	// Service is the user of the services, which must see all rows once there are row policies.
	Service string
}

// Role is the name of the organization's role.
func (r Reader) Role() string { return "postrider_" + r.Organization }

// Grants returns the statements that make, or complete, a role that can read the
// views, of one organization only, and can change nothing. They may run again. The
// server must have access control (SQL-driven users) and run them as who may grant.
//
// The views read with the rights of who asks (SQL SECURITY INVOKER), so the role
// reads their tables too; there the row policies hold.
func Grants(r Reader) ([]string, error) {
	switch {
	case !databaseName().MatchString(r.Database):
		return nil, fmt.Errorf("granting to organization %q: database %q: letters, digits and underscores only", r.Organization, r.Database)
	case r.Organization == "", utf8.RuneCountInString(r.Organization) > maxOrganization, !utf8.ValidString(r.Organization),
		strings.ContainsFunc(r.Organization, unicode.IsControl):
		return nil, fmt.Errorf("granting to organization %q: 1 to %d characters, none of them a control character", r.Organization, maxOrganization)
	}
	role := quote('`', r.Role())
	statements := []string{"CREATE ROLE IF NOT EXISTS " + role + " SETTINGS readonly = 2, max_execution_time = 60 MIN 1 MAX 60," +
		" max_memory_usage = 4000000000 MAX 4000000000"}
	var tables []string
	for _, view := range Views() {
		var columns []string
		for _, c := range view.Columns {
			columns = append(columns, c.Name)
		}
		statements = append(statements, r.grant(view.Name, columns))
		tables = append(tables, view.Tables...)
	}
	slices.Sort(tables)
	tables = slices.Compact(tables)
	for _, table := range tables {
		statements = append(statements, r.grant(table, columnsOf(table)))
	}
	for _, table := range tables {
		on := r.Database + "." + table
		statements = append(statements, "CREATE ROW POLICY OR REPLACE "+role+" ON "+on+" FOR SELECT USING organization = "+quote('\'', r.Organization)+" TO "+role)
		if r.Service != "" {
			statements = append(statements, "CREATE ROW POLICY OR REPLACE postrider_service ON "+on+" FOR SELECT USING 1 TO "+quote('`', r.Service))
		}
	}
	return statements, nil
}

// grant lets the role read columns, all where there is no body among them.
func (r Reader) grant(name string, columns []string) string {
	isBody := func(column string) bool {
		return column == "body" || column == "response_head" || column == "response_body"
	}
	what := "SELECT"
	if !r.Payloads && slices.ContainsFunc(columns, isBody) {
		what += "(" + strings.Join(slices.DeleteFunc(slices.Clone(columns), isBody), ", ") + ")"
	}
	return "GRANT " + what + " ON " + r.Database + "." + name + " TO " + quote('`', r.Role())
}

// quote makes a name or a text of SQL; the mark and the backslash are escaped by a backslash.
func quote(mark byte, text string) string {
	m := string(mark)
	return m + strings.NewReplacer(`\`, `\\`, m, `\`+m).Replace(text) + m
}
