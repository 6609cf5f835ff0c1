package main

import (
	"strings"
	"testing"

	"github.com/postrider/postrider/schemas/process"
)

func TestACLs(t *testing.T) {
	out, _ := command(t, 0, "", "topics", "acls", "--role=producer", "--principal=User:O'Neil", "--transactional-id=shop-", "--topic-prefix=x.")
	want := `set -eu
# producer
kafka-acls.sh "$@" --add --force --allow-principal 'User:O'\''Neil' --operation Write --topic x.events
kafka-acls.sh "$@" --add --force --allow-principal 'User:O'\''Neil' --operation Write --resource-pattern-type prefixed --transactional-id shop-
`
	if out != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
	out, _ = command(t, 0, "", "topics", "acls", "--role=reader", "--group=ledger", "--json")
	for _, want := range []string{`"principal": "User:postrider-reader"`, `"postrider.outcomes"`, `"ledger"`} {
		if !strings.Contains(out, want) {
			t.Errorf("got %s, want it to hold %s", out, want)
		}
	}
	out, _ = command(t, 0, "", "topics", "acls")
	for _, role := range []string{"ingest", "router", "sender", "verify", "admin"} {
		if !strings.Contains(out, "\n# "+role+"\n") {
			t.Errorf("the role %s is missing in\n%s", role, out)
		}
	}
}

func TestACLsRefuses(t *testing.T) {
	for _, test := range []struct {
		args []string
		text string
	}{
		{[]string{"--role="}, "--role"},
		{[]string{"--role=boss"}, "ingest, router"},
		{[]string{"--principal=User:x"}, "--principal"},
		{[]string{"--role=router", "--principal=x"}, "--principal"},
		{[]string{"--role=reader"}, "--group"},
		{[]string{"--role=router", "--group=x"}, "--group"},
		{[]string{"--role=router", "--transactional-id=x"}, "--transactional-id"},
	} {
		_, stderr := command(t, process.ExitSettings, "", append([]string{"topics", "acls"}, test.args...)...)
		if !strings.Contains(stderr, test.text) {
			t.Errorf("%v: got %q, want it to name %s", test.args, stderr, test.text)
		}
	}
}
