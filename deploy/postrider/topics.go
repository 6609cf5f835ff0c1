package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

// errDifferences is the end of a check that found something.
var errDifferences = errors.New("topics or brokers are not as they should be")

func topicsCommand() *cobra.Command {
	return group("topics", "Create and check Postrider's topics",
		leaf("create", "Create the topics that are missing, and the consumer groups' first offsets", &createTopics{}),
		leaf("check", "Say what differs from what the services need; exit code 1 if anything does", &checkTopics{}),
		leaf("acls", aclsHelp, &showACLs{}),
	)
}

type createTopics struct {
	kafka       kafka.Config
	partitions  schemas.Partitions
	replication int
}

// Register implements process.Registrar.
func (c *createTopics) Register(s *process.Settings) {
	c.kafka.Register(s)
	def := schemas.DefaultPartitions()
	s.Int(&c.partitions.Events, "events-partitions", def.Events, "partitions of events and routed")
	s.Int(&c.partitions.Deliveries, "deliveries-partitions", def.Deliveries,
		"partitions of deliveries, the retry tiers, held, outcomes and dead-letters; can never be changed")
	s.Int(&c.replication, "replication", 0, "copies of each partition; 0 leaves it to the brokers' default")
	process.Between(s, &c.partitions.Events, "events-partitions", 1, 10_000)
	process.Between(s, &c.partitions.Deliveries, "deliveries-partitions", 1, 10_000)
	process.Between(s, &c.replication, "replication", 0, 100)
}

type topicView struct {
	Name       string `json:"name"`
	Partitions int    `json:"partitions"`
	Created    bool   `json:"created"`
}

func (c *createTopics) run(ctx context.Context, t *terminal) error {
	cl, err := c.kafka.NewClient("postrider-topics")
	if err != nil {
		return fmt.Errorf("creating topics: %w", err)
	}
	defer cl.Close()
	before, err := listTopics(ctx, cl, c.kafka.Topics())
	if err != nil {
		return err
	}
	if err := kafka.CreateTopics(ctx, cl, c.kafka.Topics(), c.partitions, c.replication); err != nil {
		return err //nolint:wrapcheck // it says what it did
	}
	topics, err := listTopics(ctx, cl, c.kafka.Topics())
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(before))
	for _, topic := range before {
		there[topic.Name] = true
	}
	rows := make([][]string, 0, len(topics))
	for i := range topics {
		topics[i].Created = !there[topics[i].Name]
		state := "was there"
		if topics[i].Created {
			state = "created"
		}
		rows = append(rows, []string{topics[i].Name, strconv.Itoa(topics[i].Partitions), state})
	}
	if t.asJSON {
		return t.showJSON(map[string]any{"topics": topics})
	}
	return t.showTable([]string{"TOPIC", "PARTITIONS", ""}, rows)
}

// listTopics returns those of our topics that exist, in the order they are created.
func listTopics(ctx context.Context, cl *kgo.Client, names schemas.Topics) ([]topicView, error) {
	specs := names.Specs(schemas.DefaultPartitions())
	wanted := make([]string, len(specs))
	for i, spec := range specs {
		wanted[i] = spec.Name
	}
	listed, err := kadm.NewClient(cl).ListTopics(ctx, wanted...)
	if err != nil {
		return nil, fmt.Errorf("listing topics of prefix %q: %w", names.Prefix, err)
	}
	topics := make([]topicView, 0, len(specs))
	for _, name := range wanted {
		if listed.Has(name) {
			topics = append(topics, topicView{Name: name, Partitions: len(listed[name].Partitions)})
		}
	}
	return topics, nil
}

type checkTopics struct {
	kafka kafka.Config
}

// Register implements process.Registrar.
func (c *checkTopics) Register(s *process.Settings) {
	c.kafka.Register(s)
}

type differenceView struct {
	Object string `json:"object"`
	Text   string `json:"text"`
	Mend   string `json:"mend"`
	Fatal  bool   `json:"fatal"`
}

func (c *checkTopics) run(ctx context.Context, t *terminal) error {
	cl, err := c.kafka.NewClient("postrider-topics")
	if err != nil {
		return fmt.Errorf("checking topics: %w", err)
	}
	defer cl.Close()
	found, err := kafka.CheckTopics(ctx, cl, c.kafka.Topics())
	if err != nil {
		return err //nolint:wrapcheck // it says what it did
	}
	differences := make([]differenceView, len(found))
	for i, d := range found {
		differences[i] = differenceView(d)
	}
	if t.asJSON {
		err = t.showJSON(map[string]any{"differences": differences})
	} else {
		err = showDifferences(t, differences)
	}
	if err == nil && len(found) > 0 {
		err = errDifferences
	}
	return err
}

func showDifferences(t *terminal, differences []differenceView) error {
	if len(differences) == 0 {
		return t.showLine("Topics and brokers are as they should be.")
	}
	for _, d := range differences {
		weight := "recommended"
		if d.Fatal {
			weight = "needed"
		}
		if err := t.showLine("%s (%s): %s\n  mend it with: %s", d.Object, weight, d.Text, d.Mend); err != nil {
			return err
		}
	}
	return nil
}
