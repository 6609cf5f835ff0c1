package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

const aclsHelp = `Print the least ACLs of each role, as a script for sh.
It calls Kafka's kafka-acls.sh with the arguments that it is called with itself:
postrider topics acls | sh -s -- --bootstrap-server broker:9092 --command-config admin.properties`

// showACLs prints what principals may do. It asks no broker.
type showACLs struct {
	prefix        string
	roles         []string
	principal     string
	transactional string
	group         string
}

// Register implements process.Registrar.
func (c *showACLs) Register(s *process.Settings) {
	s.String(&c.prefix, "topic-prefix", schemas.DefaultPrefix, "prefix of the names of all topics and consumer groups")
	s.Strings(&c.roles, "role", []string{string(kafka.RoleIngest), string(kafka.RoleRouter), string(kafka.RoleSender), string(kafka.RoleVerify), string(kafka.RoleAdmin)},
		"roles to print, of "+roleNames())
	s.String(&c.principal, "principal", "", "who has the role, as Kafka names it (User:name); User:postrider-<role> if empty")
	s.String(&c.transactional, "transactional-id", "", "beginning of a producer's transactional ids; none if empty")
	s.String(&c.group, "group", "", "consumer group of a reader")
	s.Check(func() error { return c.check(s) })
}

// check holds the rules that relate settings to each other.
func (c *showACLs) check(s *process.Settings) error {
	has := func(role kafka.Role) bool { return slices.Contains(c.roles, string(role)) }
	var problems []error
	if len(c.roles) == 0 || slices.ContainsFunc(c.roles, func(role string) bool { return !slices.Contains(kafka.Roles(), kafka.Role(role)) }) {
		problems = append(problems, s.Invalid("role", "some of "+roleNames()))
	}
	kind, name, _ := strings.Cut(c.principal, ":")
	if c.principal != "" && (len(c.roles) != 1 || kind == "" || name == "") {
		problems = append(problems, s.Invalid("principal", "a kind and a name with : between them, for one --role only"))
	}
	if (c.group != "") != has(kafka.RoleReader) {
		problems = append(problems, s.Invalid("group", "set where --role has reader, and nowhere else"))
	}
	if c.transactional != "" && !has(kafka.RoleProducer) {
		problems = append(problems, s.Invalid("transactional-id", "empty unless --role has producer"))
	}
	return errors.Join(problems...)
}

func roleNames() string {
	names := make([]string, 0, len(kafka.Roles()))
	for _, role := range kafka.Roles() {
		names = append(names, string(role))
	}
	return strings.Join(names, ", ")
}

type roleView struct {
	Role      kafka.Role  `json:"role"`
	Principal string      `json:"principal"`
	Grants    []grantView `json:"grants"`
}

type grantView struct {
	Operations []string `json:"operations"`
	Resource   string   `json:"resource"`
	Names      []string `json:"names,omitempty"`
	Prefixed   bool     `json:"prefixed"`
}

func (c *showACLs) run(_ context.Context, t *terminal) error {
	var roles []roleView
	script := &strings.Builder{}
	script.WriteString("set -eu\n")
	for _, name := range c.roles {
		own := c.transactional
		if name == string(kafka.RoleReader) {
			own = c.group
		}
		grants, err := kafka.Grants(kafka.Role(name), schemas.NewTopics(c.prefix), own)
		if err != nil {
			return err //nolint:wrapcheck // it says what it did
		}
		view := roleView{Role: kafka.Role(name), Principal: c.principal}
		if view.Principal == "" {
			view.Principal = "User:postrider-" + name
		}
		for _, g := range grants {
			view.Grants = append(view.Grants, grantView(g))
		}
		roles = append(roles, view)
		fmt.Fprintf(script, "# %s\n%s", name, kafka.ACLScript(view.Principal, grants))
	}
	if t.asJSON {
		return t.showJSON(map[string]any{"roles": roles})
	}
	return t.showLine("%s", strings.TrimSuffix(script.String(), "\n"))
}
