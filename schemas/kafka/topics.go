package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

// CreateTopics creates the topics that are not there yet, each with its settings,
// and waits until every partition has a leader. It changes none that exists;
// CheckTopics says how those differ. A replication of 0 leaves the factor to the
// brokers' default.
//
// For each consumer group without a committed offset it commits offset zero,
// unless its topics have been written to already: then the group's offsets may
// be lost, and it is for --start-at to say where it begins. It may be called
// again after an error.
func CreateTopics(ctx context.Context, cl *kgo.Client, t schemas.Topics, p schemas.Partitions, replication int) error {
	specs := t.Specs(p)
	resp, err := createRequest(specs, replication).RequestWith(ctx, cl)
	if err != nil {
		return fmt.Errorf("creating topics of prefix %q: %w", t.Prefix, err)
	}
	var problems []error
	for _, answer := range resp.Topics {
		err := kerr.ErrorForCode(answer.ErrorCode)
		if err == nil || errors.Is(err, kerr.TopicAlreadyExists) {
			continue
		}
		if answer.ErrorMessage != nil {
			err = fmt.Errorf("%w (%s)", err, *answer.ErrorMessage)
		}
		problems = append(problems, fmt.Errorf("creating topic %q: %w", answer.Topic, err))
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	names := make([]string, len(specs))
	for i, spec := range specs {
		names[i] = spec.Name
	}
	if err := awaitLeaders(ctx, cl, names); err != nil {
		return err
	}
	return commitZero(ctx, cl, t)
}

func createRequest(specs []schemas.TopicSpec, replication int) *kmsg.CreateTopicsRequest {
	if replication <= 0 {
		replication = -1 // the brokers' default (KIP-464)
	}
	req := kmsg.NewPtrCreateTopicsRequest()
	for _, spec := range specs {
		topic := kmsg.NewCreateTopicsRequestTopic()
		topic.Topic = spec.Name
		topic.NumPartitions = int32(spec.Partitions) //nolint:gosec // settings are bounded where they are read
		topic.ReplicationFactor = int16(replication)
		for _, name := range sortedKeys(spec.Configs) {
			config := kmsg.NewCreateTopicsRequestTopicConfig()
			config.Name, config.Value = name, new(spec.Configs[name])
			topic.Configs = append(topic.Configs, config)
		}
		req.Topics = append(req.Topics, topic)
	}
	return req
}

// awaitLeaders waits for what the controller made to be known to the brokers.
func awaitLeaders(ctx context.Context, cl *kgo.Client, topics []string) error {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, maxPause) {
		described, err := describe(ctx, cl, topics)
		for topic, d := range described {
			for p := range d.leaders {
				_, none := d.leader(Place{topic, int32(p)})
				err = cmp.Or(err, none)
			}
		}
		if err == nil || !passing(err) || !process.Pause(ctx, wait) {
			return err
		}
	}
}

// placesOf returns all partitions of topics, those of a topic together.
func placesOf(ctx context.Context, cl *kgo.Client, topics []string) ([]Place, error) {
	described, err := describe(ctx, cl, topics)
	if err != nil {
		return nil, err
	}
	var places []Place
	for _, topic := range topics {
		for p := range described[topic].leaders {
			places = append(places, Place{topic, int32(p)})
		}
	}
	return places, nil
}

func comparePlaces(a, b Place) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}
