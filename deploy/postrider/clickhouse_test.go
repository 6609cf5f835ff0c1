package main

import (
	"strings"
	"testing"
)

func TestClickHouseGrants(t *testing.T) {
	out, _ := command(t, 0, "", "clickhouse", "grants", "--organization=acme", "--clickhouse-database=audit", "--service-user=postrider")
	for _, want := range []string{
		"CREATE ROLE IF NOT EXISTS `postrider_acme`", "GRANT SELECT ON audit.deliveries_v1 TO `postrider_acme`;\n",
		"ON audit.outcomes FOR SELECT USING organization = 'acme' TO `postrider_acme`;\n", "USING 1 TO `postrider`;\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("got\n%s, want it to hold %s", out, want)
		}
	}
	if out, _ := command(t, 0, "", "clickhouse", "grants", "--organization=acme", "--json"); !strings.Contains(out, `"role": "postrider_acme"`) {
		t.Errorf("got\n%s", out)
	}
	for _, bad := range [][]string{{"clickhouse", "grants"}, {"clickhouse", "grants", "--organization=acme", "--clickhouse-database=a;b"}} {
		if _, said := command(t, 2, "", bad...); said == "" {
			t.Errorf("%v: got nothing said", bad)
		}
	}
	if _, said := command(t, 1, "", "clickhouse", "grants", "--organization=a\nb"); !strings.Contains(said, "control character") {
		t.Errorf("got %s", said)
	}
}
