package clickhouse

import (
	"slices"
	"strings"
	"testing"
)

func TestGrants(t *testing.T) {
	got, err := Grants(Reader{Database: "db", Organization: `a'c\me` + "`", Service: "postrider"})
	if err != nil {
		t.Fatal(err)
	}
	role := "`postrider_a'c\\\\me\\``"
	for _, want := range []string{
		"GRANT SELECT ON db.deliveries_v1 TO " + role,
		"GRANT SELECT ON db.delivery_states TO " + role,
		"CREATE ROW POLICY OR REPLACE " + role + ` ON db.outcomes FOR SELECT USING organization = 'a\'c\\me` + "`' TO " + role,
		"CREATE ROW POLICY OR REPLACE postrider_service ON db.webhooks FOR SELECT USING 1 TO `postrider`",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("got no %s in\n%s", want, strings.Join(got, "\n"))
		}
	}
	for _, table := range []string{"outcomes", "delivery_states", "event_log", "event_copies", "changes", "webhooks"} {
		policies := 0
		for _, s := range got {
			if strings.Contains(s, " ON db."+table+" FOR SELECT USING organization = ") {
				policies++
			}
		}
		if policies != 1 {
			t.Errorf("got %d row policies on %s", policies, table)
		}
	}
	if all := strings.Join(got, "\n"); strings.Contains(all, "body,") || strings.Contains(all, "response_head") || strings.Contains(all, "insert_by") {
		t.Errorf("got bodies granted:\n%s", all)
	}
	got, err = Grants(Reader{Database: "db", Organization: "acme", Payloads: true})
	if err != nil || !slices.Contains(got, "GRANT SELECT ON db.event_log TO `postrider_acme`") {
		t.Errorf("got %v, %v, want all columns", got, err)
	}
	for _, bad := range []Reader{
		{"a.b", "acme", false, ""},
		{"db", "", false, ""},
		{"db", "a\nb", false, ""},
		{"db", strings.Repeat("a", 129), false, ""},
		{"db", "\xff", false, ""},
	} {
		if got, err := Grants(bad); err == nil {
			t.Errorf("%+v: got %v", bad, got)
		}
	}
	if _, err := Grants(Reader{Database: "db", Organization: strings.Repeat("é", 128)}); err != nil {
		t.Error(err)
	}
}
