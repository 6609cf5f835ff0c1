package kafka

import (
	"slices"
	"testing"

	"github.com/postrider/postrider/schemas"
)

// TestGrants: every topic is written by somebody and looked at by an admin, nobody but
// the sender writes what it tells, and nobody but ingest what it decides.
func TestGrants(t *testing.T) {
	topics := schemas.NewTopics("x.")
	writers := map[string][]Role{}
	for _, role := range Roles() {
		grants, err := Grants(role, topics, "own")
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range grants {
			if len(g.Operations) == 0 || len(g.Names) == 0 && g.Resource != resourceCluster || slices.Contains(g.Names, "") {
				t.Errorf("%s has a grant of nothing, or of all: %+v", role, g)
			}
			if g.Resource == resourceTopic && g.Prefixed {
				t.Errorf("%s has a grant for topics that do not exist: %+v", role, g)
			}
			if g.Resource != resourceTopic || !slices.Contains(g.Operations, opWrite) {
				continue
			}
			for _, name := range g.Names {
				writers[name] = append(writers[name], role)
			}
		}
	}
	only := map[string][]Role{
		topics.Webhooks: {RoleIngest}, topics.Keys: {RoleIngest}, topics.Jobs: {RoleIngest}, topics.Routed: {RoleRouter},
		topics.Deliveries: {RoleIngest, RoleRouter}, topics.Outcomes: {RoleSender}, topics.DeadLetters: {RoleSender}, topics.Held: {RoleSender},
		topics.Events: {RoleIngest, RoleSender, RoleProducer}, topics.Changes: {RoleIngest, RoleSender}, topics.Rejected: {RoleRouter, RoleSender},
		topics.WebhookStates: {RoleIngest, RoleSender},
	}
	for name, want := range only {
		if got := writers[name]; !slices.Equal(got, want) {
			t.Errorf("%s is written by %v, want %v", name, got, want)
		}
	}
	for _, spec := range topics.Specs(schemas.DefaultPartitions()) {
		if len(writers[spec.Name]) == 0 {
			t.Errorf("nobody may write %s", spec.Name)
		}
	}
}

func TestGrantsRefuses(t *testing.T) {
	for _, role := range []Role{"", "boss", RoleReader} {
		if got, err := Grants(role, schemas.NewTopics(""), ""); err == nil {
			t.Errorf("role %q: got %v, want an error", role, got)
		}
	}
}
