package kafka

import (
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// mender makes the commands that mend differences, such that they can be run as they
// stand; but where the brokers want credentials, which it does not print.
type mender struct {
	brokers string // as a client names them
	topics  schemas.Topics
	listed  kadm.TopicDetails
}

func newMender(cl *kgo.Client, t schemas.Topics, listed kadm.TopicDetails) mender {
	seeds, _ := cl.OptValue(kgo.SeedBrokers).([]string)
	return mender{brokers: strings.Join(seeds, ","), topics: t, listed: listed}
}

// create makes the topics that are missing, with as many partitions as those have
// that they stand beside.
func (m mender) create() string {
	command := "postrider topics create --brokers " + m.brokers
	if m.topics.Prefix != schemas.DefaultPrefix {
		command += " --topic-prefix " + m.topics.Prefix
	}
	t := m.topics
	if n := m.partitions(t.Events, t.Routed); n > 0 {
		command += fmt.Sprintf(" --events-partitions %d", n)
	}
	if n := m.partitions(slices.Concat([]string{t.Deliveries, t.Held}, t.Retry, []string{t.Outcomes, t.DeadLetters})...); n > 0 {
		command += fmt.Sprintf(" --deliveries-partitions %d", n)
	}
	return command
}

// partitions is how many the first of topics has that exists, or 0.
func (m mender) partitions(topics ...string) int {
	for _, topic := range topics {
		if m.listed.Has(topic) {
			return len(m.listed[topic].Partitions)
		}
	}
	return 0
}

// resize gives a topic so many partitions. Kafka takes none away: then the topic is made anew.
func (m mender) resize(topic string, partitions int) string {
	tool := "kafka-topics.sh --bootstrap-server " + m.brokers
	if len(m.listed[topic].Partitions) < partitions {
		return fmt.Sprintf("%s --alter --topic %s --partitions %d", tool, topic, partitions)
	}
	return fmt.Sprintf("%s --delete --topic %s && %s", tool, topic, m.create())
}

func (m mender) configure(topic, key, value string) string {
	return fmt.Sprintf("kafka-configs.sh --bootstrap-server %s --alter --entity-type topics --entity-name %s --add-config %s=%s", m.brokers, topic, key, value)
}
