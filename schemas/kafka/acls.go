package kafka

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postrider/postrider/schemas"
)

// Role is what a principal of Kafka is to Postrider, by its name on a command line.
type Role string

// The roles.
const (
	RoleIngest Role = "ingest"
	RoleRouter Role = "router"
	RoleSender Role = "sender" // with the audit's writer
	// RoleVerify reads what `postrider verify` compares, and writes nothing.
	RoleVerify Role = "verify"
	// RoleAdmin creates topics and the groups' first offsets, and checks them.
	RoleAdmin Role = "admin"
	// RoleProducer writes events, of any organization.
	RoleProducer Role = "producer"
	// RoleReader reads outcomes, which are public, in a group of its own.
	RoleReader Role = "reader"
)

// Roles returns all roles.
func Roles() []Role {
	return []Role{RoleIngest, RoleRouter, RoleSender, RoleVerify, RoleAdmin, RoleProducer, RoleReader}
}

// Kinds of resources, by the flags of kafka-acls.sh.
const (
	resourceTopic         = "topic"
	resourceGroup         = "group"
	resourceTransactional = "transactional-id"
	resourceCluster       = "cluster"
)

// Operations, by Kafka's names. Read and Write imply Describe.
const (
	opRead            = "Read"
	opWrite           = "Write"
	opCreate          = "Create"
	opDescribe        = "Describe"
	opDescribeConfigs = "DescribeConfigs"
)

// Grant is a set of operations on resources of one kind.
type Grant struct {
	Operations []string // by Kafka's names
	Resource   string   // topic, group, transactional-id, or cluster, which has no names
	Names      []string
	Prefixed   bool // the names are beginnings
}

// Grants returns the least that a role needs, and the whole of it: a principal with
// these and no other does all its work. own names what is the principal's own: a
// producer's transactional ids begin with it (empty for one without transactions), and
// a reader's group is it.
func Grants(role Role, t schemas.Topics, own string) ([]Grant, error) {
	topics := func(operation string, names ...string) Grant {
		return Grant{Operations: []string{operation}, Resource: resourceTopic, Names: names}
	}
	groups := func(operation string, names ...string) Grant {
		return Grant{Operations: []string{operation}, Resource: resourceGroup, Names: names}
	}
	transactions := func(name string, prefixed bool) Grant {
		return Grant{Operations: []string{opWrite}, Resource: resourceTransactional, Names: []string{name}, Prefixed: prefixed}
	}
	// Each service holds all topics against what they should be when it starts.
	check := Grant{Operations: []string{opDescribe, opDescribeConfigs}, Resource: resourceTopic, Names: topicNames(t)}
	tables := []string{t.Webhooks, t.WebhookStates}
	switch role {
	case RoleIngest:
		return []Grant{
			check,
			topics(opRead, append(tables, t.Keys, t.EventTypes, t.Jobs)...),
			topics(opWrite, append(tables, t.Keys, t.EventTypes, t.Jobs, t.Events, t.Deliveries, t.Changes)...),
			transactions(t.WebhooksWriter, false),
		}, nil
	case RoleRouter:
		return []Grant{
			check,
			topics(opRead, append(tables, t.Events, t.Routed)...),
			topics(opWrite, t.Routed, t.Deliveries, t.Rejected),
			groups(opRead, t.RouterGroup),
			transactions(t.RouterGroup+".", true),
		}, nil
	case RoleSender:
		return []Grant{
			check,
			topics(opRead, slices.Concat(tables, t.Sources(), []string{t.Events, t.Routed, t.Outcomes, t.Changes, t.Rejected})...),
			topics(opWrite, slices.Concat(t.Waiting(), []string{t.WebhookStates, t.Outcomes, t.DeadLetters, t.Events, t.Changes, t.Rejected})...),
			groups(opRead, t.SenderGroup, t.AuditGroup),
			transactions(t.SenderGroup+".", true),
		}, nil
	case RoleVerify:
		return []Grant{
			topics(opRead, append(t.Sources(), t.Events, t.Routed, t.Outcomes, t.Rejected)...),
			groups(opDescribe, t.RouterGroup, t.SenderGroup, t.AuditGroup),
		}, nil
	case RoleAdmin:
		return []Grant{
			{Operations: []string{opCreate, opDescribe, opDescribeConfigs}, Resource: resourceTopic, Names: topicNames(t)},
			topics(opRead, append(t.Audited(), t.Waiting()...)...), // to commit an offset of it
			groups(opRead, t.RouterGroup, t.SenderGroup, t.AuditGroup),
			{Operations: []string{opDescribeConfigs}, Resource: resourceCluster},
		}, nil
	case RoleProducer:
		grants := []Grant{topics(opWrite, t.Events)}
		if own != "" {
			grants = append(grants, transactions(own, true))
		}
		return grants, nil
	case RoleReader:
		if own == "" {
			return nil, fmt.Errorf("listing the grants of a %s: its group has no name", role)
		}
		return []Grant{topics(opRead, t.Outcomes), groups(opRead, own)}, nil
	default:
		return nil, fmt.Errorf("listing the grants of role %q: there is none of that name", role)
	}
}

func topicNames(t schemas.Topics) []string {
	specs := t.Specs(schemas.DefaultPartitions())
	names := make([]string, len(specs))
	for i := range specs {
		names[i] = specs[i].Name
	}
	return names
}

// ACLCommand returns the arguments of Kafka's kafka-acls.sh that give a principal
// (User:name) a grant; where to find the brokers is left to add.
func (g Grant) ACLCommand(principal string) []string {
	args := []string{"--add", "--force", "--allow-principal", principal}
	for _, operation := range g.Operations {
		args = append(args, "--operation", operation)
	}
	if g.Prefixed {
		args = append(args, "--resource-pattern-type", "prefixed")
	}
	if g.Resource == resourceCluster {
		return append(args, "--cluster")
	}
	for _, name := range g.Names {
		args = append(args, "--"+g.Resource, name)
	}
	return args
}

// quoteShell quotes a word for sh where it has to be.
func quoteShell(word string) string {
	if word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/=") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// ACLScript returns lines for sh that give a principal its grants with Kafka's
// kafka-acls.sh. They hand on what the script is called with: --bootstrap-server and
// --command-config.
func ACLScript(principal string, grants []Grant) string {
	var script strings.Builder
	for _, g := range grants {
		script.WriteString(`kafka-acls.sh "$@"`)
		for _, arg := range g.ACLCommand(principal) {
			script.WriteString(" " + quoteShell(arg))
		}
		script.WriteString("\n")
	}
	return script.String()
}
