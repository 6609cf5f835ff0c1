package history_test

import (
	"encoding/xml"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	server "github.com/postrider/postrider/deploy/clickhouse"
	"github.com/postrider/postrider/schemas/clickhouse"
)

const readerPassword = "for a test"

// user is the role that statements make, as a user of a users.xml: its GRANTs word
// for word, its row policies as filters. The library's server keeps no roles of SQL's.
func user(name string, statements []string) string {
	grant := regexp.MustCompile("^(GRANT .*) TO `[^`]*`$")
	policy := regexp.MustCompile("^CREATE ROW POLICY OR REPLACE `.*` ON postrider\\.(\\w+) FOR SELECT USING (.*) TO .*$")
	var grants, filters strings.Builder
	escape := func(s string) string {
		var b strings.Builder
		_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
		return b.String()
	}
	for _, s := range statements {
		if g := grant.FindStringSubmatch(s); g != nil {
			grants.WriteString("<query>" + escape(g[1]) + "</query>")
		}
		if p := policy.FindStringSubmatch(s); p != nil {
			filters.WriteString("<" + p[1] + "><filter>" + escape(p[2]) + "</filter></" + p[1] + ">")
		}
	}
	return fmt.Sprintf("<%[1]s><password>%[2]s</password><networks><ip>127.0.0.0/8</ip></networks><profile>reader</profile><quota>default</quota>"+
		"<grants>%[3]s</grants><databases><postrider>%[4]s</postrider></databases></%[1]s>", name, readerPassword, grants.String(), filters.String())
}

// ask asks over HTTP, as a user.
func ask(t *testing.T, address, name, statement string) (status int, text string) {
	t.Helper()
	query := url.Values{}
	if name != "" {
		query.Set("user", name)
		query.Set("password", readerPassword)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/?"+query.Encode(), strings.NewReader(statement))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body))
}

// checkReader has a user count its rows of each view, and be denied the rest.
func checkReader(t *testing.T, address, name, rows string) {
	t.Helper()
	for _, view := range clickhouse.Views() {
		want := rows
		if view.Name == "deliveries_v1" {
			want = "1" // the rows are states of one delivery
		}
		if status, got := ask(t, address, name, "SELECT count(), uniqExact(organization) FROM postrider."+view.Name); got != want+"\t1" {
			t.Errorf("%s counts %d %s rows of %s, want %s", name, status, got, view.Name, want)
		}
	}
	for _, denied := range []string{
		"INSERT INTO postrider.outcomes (organization) VALUES ('acme')", "ALTER TABLE postrider.outcomes DELETE WHERE 1", "TRUNCATE TABLE postrider.outcomes",
		"SELECT * FROM postrider.schema_migrations", "SELECT * FROM postrider.deliveries", "DROP VIEW postrider.outcomes_v1",
	} {
		if status, got := ask(t, address, name, denied); status == http.StatusOK || !strings.Contains(got, "ACCESS_DENIED") && !strings.Contains(got, "READONLY") {
			t.Errorf("%s: %s: got %d %s, want it denied", name, denied, status, got)
		}
	}
}

// TestGrants has a real server enforce what Grants says: of every view an
// organization sees its own rows, bodies where it may, and nothing else.
func TestGrants(t *testing.T) {
	dir := t.TempDir()
	var users strings.Builder
	var statements []string
	for _, r := range []clickhouse.Reader{
		{Organization: "acme"},
		{Organization: "other", Payloads: true, Service: "default"},
		{Organization: `o'brien \ "co"`},
	} {
		r.Database = "postrider"
		made, err := clickhouse.Grants(r)
		if err != nil {
			t.Fatal(err)
		}
		statements = append(statements, made...)
		name, _, _ := strings.Cut(strings.ReplaceAll(r.Organization, "'", ""), " ")
		users.WriteString(user(name, made))
	}
	file := filepath.Join(dir, "users.xml")
	text := "<clickhouse><profiles><default/><reader><readonly>2</readonly></reader></profiles><quotas><default/></quotas><users>" +
		"<default><password></password><networks><ip>127.0.0.0/8</ip></networks><profile>default</profile><quota>default</quota><access_management>1</access_management></default>" +
		users.String() + "</users></clickhouse>"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := server.Start(t.Context(), server.Config{Dir: dir, Users: file, Log: slog.Default()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	migrate(t, clickhouse.Config{Address: s.NativeAddr(), User: "default"})
	for _, table := range []string{"outcomes", "delivery_states", "event_log", "event_copies", "changes", "webhooks"} {
		if _, err := s.Query(t.Context(), "INSERT INTO postrider."+table+" (organization) SELECT * FROM VALUES('o String', 'acme', 'acme', 'other', 'o\\'brien \\\\ \"co\"', '')"); err != nil {
			t.Fatal(err)
		}
	}
	// The server has nowhere to keep roles, but knows whether each statement is one.
	for _, statement := range statements {
		if _, err := s.Query(t.Context(), "EXPLAIN AST "+statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	for name, rows := range map[string]string{"acme": "2", "other": "1", "obrien": "1"} {
		checkReader(t, s.HTTPAddr(), name, rows)
	}
	for _, body := range []string{"SELECT body FROM postrider.events_v1", "SELECT response_body FROM postrider.outcomes_v1", "SELECT response_head FROM postrider.outcomes", "SELECT body FROM postrider.event_log"} {
		if status, got := ask(t, s.HTTPAddr(), "acme", body); status == http.StatusOK || !strings.Contains(got, "ACCESS_DENIED") {
			t.Errorf("acme: %s: got %d %s, want it denied", body, status, got)
		}
		if status, got := ask(t, s.HTTPAddr(), "other", body); status != http.StatusOK {
			t.Errorf("other: %s: got %d %s", body, status, got)
		}
	}
	if status, got := ask(t, s.HTTPAddr(), "default", "SELECT 1"); status == http.StatusOK {
		t.Errorf("a wrong password for default got %s", got)
	}
}
