package schemas

import (
	"strconv"
	"time"
)

// Sizes of records. A payload is at most 1 MiB; what a record adds to it
// (headers, the body's envelope) must fit into the rest.
const (
	MaxPayloadBytes      = 1 << 20
	MaxEventRecordBytes  = MaxPayloadBytes + 64<<10
	MaxRecordBytes       = MaxPayloadBytes + 128<<10
	DefaultPrefix        = "postrider."
	DefaultEvents        = 12
	DefaultDeliveries    = 24
	StandalonePartitions = 4
)

const day = 24 * time.Hour

// DedupWindow is how long an event's id is remembered (P3): the retention of
// routed, from which the window is read back.
const DedupWindow = day

// DeliveriesRetention is how long a record may wait in deliveries and in a
// retry tier. Half of it is where postrider_oldest_unfinished_seconds alerts.
const DeliveriesRetention = 14 * day

// RetryDelays returns the delays for which a retry tier exists, ascending.
// Any wait is the sum of at most five of them, within 5 % (design: delays as topics).
func RetryDelays() []time.Duration {
	return []time.Duration{
		1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 15 * time.Second, 30 * time.Second,
		1 * time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute, 30 * time.Minute,
		1 * time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 16 * time.Hour,
	}
}

// DelayName returns a tier's delay as it stands in its topic's name: 30s, 15m, 4h.
func DelayName(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	default:
		return strconv.Itoa(int(d/time.Second)) + "s"
	}
}

// Topics holds the full names of all topics and groups under one prefix.
type Topics struct {
	Prefix string

	Events, Routed                            string
	Webhooks, WebhookStates, Keys, EventTypes string
	Jobs                                      string
	Deliveries, Held, DeadLetters             string
	Outcomes, Changes, Rejected               string

	// Retry is parallel to RetryDelays.
	Retry []string

	RouterGroup, SenderGroup, AuditGroup string

	// WebhooksWriter is the transactional id that all ingests share: it makes one of
	// them the writer of the compacted topics.
	WebhooksWriter string
}

// NewTopics names all topics and groups under prefix (usually DefaultPrefix).
func NewTopics(prefix string) Topics {
	t := Topics{
		Prefix:        prefix,
		Events:        prefix + "events",
		Routed:        prefix + "routed",
		Webhooks:      prefix + "webhooks",
		WebhookStates: prefix + "webhook-states",
		Keys:          prefix + "keys",
		EventTypes:    prefix + "event-types",
		Jobs:          prefix + "jobs",
		Deliveries:    prefix + "deliveries",
		Held:          prefix + "deliveries.held",
		DeadLetters:   prefix + "dead-letters",
		Outcomes:      prefix + "outcomes",
		Changes:       prefix + "changes",
		Rejected:      prefix + "rejected",

		RouterGroup: prefix + "router",
		SenderGroup: prefix + "sender",
		AuditGroup:  prefix + "audit",

		WebhooksWriter: prefix + "webhooks-writer",
	}
	for _, d := range RetryDelays() {
		t.Retry = append(t.Retry, prefix+"deliveries.retry."+DelayName(d))
	}
	return t
}

// Sources returns the topics a sender's members consume, co-partitioned:
// deliveries, every retry tier, and held.
func (t Topics) Sources() []string {
	return append([]string{t.Deliveries}, t.Waiting()...)
}

// Waiting returns those of the sources in which deliveries wait that have left deliveries.
func (t Topics) Waiting() []string {
	return append([]string{t.Held}, t.Retry...)
}

// Audited returns the topics the audit consumes.
func (t Topics) Audited() []string {
	return []string{t.Events, t.Routed, t.Deliveries, t.Outcomes, t.Changes}
}

// GroupTopics returns, for each consumer group, the topics it consumes.
func (t Topics) GroupTopics() map[string][]string {
	return map[string][]string{
		t.RouterGroup: {t.Events},
		t.SenderGroup: t.Sources(),
		t.AuditGroup:  t.Audited(),
	}
}

// Partitions says how many partitions the partitioned topics are created with.
// The number of deliveries' partitions is fixed at creation: a delivery's
// place, and so its retry's, follows from it.
type Partitions struct {
	Events, Deliveries int
}

// DefaultPartitions are the partitions of a production cluster.
func DefaultPartitions() Partitions {
	return Partitions{Events: DefaultEvents, Deliveries: DefaultDeliveries}
}

// TopicSpec is what a topic must be: its name, partition count and settings.
type TopicSpec struct {
	Name       string
	Partitions int
	// Configs are Kafka topic settings by their Kafka names.
	Configs map[string]string
}

// Specs returns what every topic must be, in the order they are created.
func (t Topics) Specs(p Partitions) []TopicSpec {
	log := func(name string, partitions, maxBytes int, retention time.Duration) TopicSpec {
		return TopicSpec{Name: name, Partitions: partitions, Configs: map[string]string{
			"cleanup.policy":    "delete",
			"retention.ms":      strconv.FormatInt(retention.Milliseconds(), 10),
			"retention.bytes":   "-1",
			"max.message.bytes": strconv.Itoa(maxBytes),
		}}
	}
	compacted := func(name string) TopicSpec {
		return TopicSpec{Name: name, Partitions: 1, Configs: map[string]string{
			"cleanup.policy":    "compact",
			"max.message.bytes": strconv.Itoa(MaxRecordBytes),
		}}
	}

	events := log(t.Events, p.Events, MaxEventRecordBytes, 7*day)
	// The accepted time is the broker's: a producer's wrong clock can neither age
	// a fresh event out of the log nor out of the dedup window.
	events.Configs["message.timestamp.type"] = "LogAppendTime"

	specs := []TopicSpec{
		compacted(t.Webhooks),
		compacted(t.WebhookStates),
		compacted(t.Keys),
		compacted(t.EventTypes),
		compacted(t.Jobs),
		events,
		log(t.Routed, p.Events, MaxRecordBytes, DedupWindow),
		log(t.Deliveries, p.Deliveries, MaxRecordBytes, DeliveriesRetention),
		log(t.Held, p.Deliveries, MaxRecordBytes, 30*day),
		log(t.DeadLetters, p.Deliveries, MaxRecordBytes, 30*day),
		log(t.Outcomes, p.Deliveries, MaxRecordBytes, 30*day),
		log(t.Changes, 1, MaxRecordBytes, 365*day),
		log(t.Rejected, 1, MaxRecordBytes, 30*day),
	}
	for _, name := range t.Retry {
		specs = append(specs, log(name, p.Deliveries, MaxRecordBytes, DeliveriesRetention))
	}
	return specs
}
