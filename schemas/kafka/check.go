package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// A Difference is one thing about the topics or brokers that is not as it should be.
type Difference struct {
	Object string // a topic's name, or "broker 1"
	Text   string // what differs: what it is and what it should be
	Mend   string // the command that mends it
	Fatal  bool   // a promise cannot be kept: a service does not start
}

// String returns the difference in one line.
func (d Difference) String() string {
	return d.Object + ": " + d.Text + "; mend it with: " + d.Mend
}

// ErrTopics says that topics are such that a promise cannot be kept.
var ErrTopics = errors.New("no promise can be kept with that")

// Judge returns ErrTopics with the fatal differences among those found. If there are none, it logs the others.
func Judge(log *slog.Logger, found []Difference) error {
	var fatal []error
	for _, d := range found {
		if d.Fatal {
			fatal = append(fatal, errors.New(d.String()))
		}
	}
	if len(fatal) > 0 {
		return fmt.Errorf("checking topics: %w: %w", ErrTopics, errors.Join(fatal...))
	}
	for _, d := range found {
		log.Warn("a topic or broker differs from what is recommended", "object", d.Object, "difference", d.Text, "mend", d.Mend)
	}
	return nil
}

// CheckTopics compares topics and brokers with what they should be. Brokers are
// recommended to, never required of: no difference of theirs is fatal. Nor is
// one of a retention, which an operator may choose. Its error means that it could
// not look.
func CheckTopics(ctx context.Context, cl *kgo.Client, t schemas.Topics) ([]Difference, error) {
	admin := kadm.NewClient(cl)
	specs := t.Specs(schemas.DefaultPartitions())
	names := make([]string, len(specs))
	for i, spec := range specs {
		names[i] = spec.Name
	}
	listed, err := admin.ListTopics(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("listing topics of prefix %q: %w", t.Prefix, err)
	}
	there := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !listed.Has(name) })
	configs := make(map[string]map[string]string, len(there))
	if len(there) > 0 {
		described, err := admin.DescribeTopicConfigs(ctx, there...)
		if err != nil {
			return nil, fmt.Errorf("describing topics of prefix %q: %w", t.Prefix, err)
		}
		for _, d := range described {
			if d.Err != nil {
				return nil, fmt.Errorf("describing topic %q: %w", d.Name, d.Err)
			}
			configs[d.Name] = values(d)
		}
	}

	m := newMender(cl, t, listed)
	var found []Difference
	for _, spec := range specs {
		if !listed.Has(spec.Name) {
			if err := listed[spec.Name].Err; err != nil && !passing(err) {
				return nil, fmt.Errorf("listing topic %q: %w", spec.Name, err)
			}
			found = append(found, Difference{Object: spec.Name, Text: "the topic does not exist", Mend: m.create(), Fatal: true})
			continue
		}
		found = append(found, checkPartitions(m, spec.Name)...)
		found = append(found, checkConfigs(m, spec, configs[spec.Name])...)
	}
	brokers, err := checkBrokers(ctx, admin)
	return append(found, brokers...), err
}

func values(d kadm.ResourceConfig) map[string]string {
	configs := make(map[string]string, len(d.Configs))
	for _, c := range d.Configs {
		configs[c.Key] = c.MaybeValue()
	}
	return configs
}

// checkPartitions holds a topic against the one its records stand beside: routed
// against events, retry tiers and held against deliveries. Compacted topics have
// one partition. How many the others have is the operator's choice.
func checkPartitions(m mender, name string) []Difference {
	t, listed := m.topics, m.listed
	want, beside := len(listed[name].Partitions), ""
	fatal := true
	switch {
	case name == t.Routed && listed.Has(t.Events):
		want, beside = len(listed[t.Events].Partitions), t.Events
	case (name == t.Held || slices.Contains(t.Retry, name)) && listed.Has(t.Deliveries):
		want, beside = len(listed[t.Deliveries].Partitions), t.Deliveries
	case slices.Contains([]string{t.Webhooks, t.WebhookStates, t.Keys, t.EventTypes, t.Jobs}, name):
		want, fatal = 1, false
	}
	have := len(listed[name].Partitions)
	if have == want {
		return nil
	}
	text := fmt.Sprintf("it has %d partitions and should have %d", have, want)
	if beside != "" {
		text += ", as " + beside + " has"
	}
	if have > want {
		text += "; to mend it loses what it holds"
	}
	return []Difference{{Object: name, Text: text, Mend: m.resize(name, want), Fatal: fatal}}
}

// checkConfigs compares a topic's settings.
func checkConfigs(m mender, spec schemas.TopicSpec, have map[string]string) []Difference {
	var found []Difference
	for _, key := range sortedKeys(spec.Configs) {
		want, value := spec.Configs[key], have[key]
		if value == want {
			continue
		}
		fatal, reason := judge(key, value, want)
		if reason == "" {
			continue
		}
		found = append(found, Difference{
			Object: spec.Name,
			Text:   fmt.Sprintf("%s is %q and should be %q: %s", key, value, want, reason),
			Mend:   m.configure(spec.Name, key, want),
			Fatal:  fatal,
		})
	}
	return found
}

// judge says what is wrong with a topic's setting that is not as it should be;
// without a reason nothing is.
func judge(key, have, want string) (fatal bool, reason string) {
	switch key {
	case "cleanup.policy":
		if want == "compact" {
			return true, "records that are in force would be deleted when they are old"
		}
		return true, "records would be deleted because others have the same key"
	case "message.timestamp.type":
		return true, "a producer's wrong clock could age events out of the log and of the dedup window"
	case "max.message.bytes":
		if atLeast(have, want) {
			return false, "larger records than the services write or expect would be accepted"
		}
		return true, "the services' largest records would be refused"
	case "retention.ms", "retention.bytes":
		if have == "-1" || want != "-1" && atLeast(have, want) {
			return false, ""
		}
		return false, "records would be deleted sooner than the services count on"
	default:
		return false, "it is not what the services count on"
	}
}

func atLeast(have, want string) bool {
	h, errHave := strconv.ParseInt(have, 10, 64)
	w, errWant := strconv.ParseInt(want, 10, 64)
	return errHave == nil && errWant == nil && h >= w
}

// brokerSetting is one that matters to how fast, not to whether, things go right.
type brokerSetting struct {
	key    string
	want   string
	good   func(have string) bool
	reason string
}

func brokerSettings() []brokerSetting {
	atMost := func(want string) func(string) bool {
		return func(have string) bool { return have == want || !atLeast(have, want) }
	}
	return []brokerSetting{
		{
			"transaction.max.timeout.ms", "60000", atMost("60000"),
			"a producer that hangs in a transaction holds up its partitions for as long",
		},
		{
			"transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000", atMost("1000"),
			"it adds to each recovery from a process that dies in a transaction",
		},
		{
			// A sender lists in 4,096 characters what is unfinished above a commit.
			"offset.metadata.max.bytes", "4096", func(have string) bool { return atLeast(have, "4096") },
			"the senders' commits would be refused",
		},
	}
}

// checkBrokers compares the brokers' settings. One that a broker does not show
// (it takes a right that services lack, and admins have) is not a difference.
func checkBrokers(ctx context.Context, admin *kadm.Client) ([]Difference, error) {
	brokers, err := admin.ListBrokers(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing brokers: %w", err)
	}
	described, err := admin.DescribeBrokerConfigs(ctx, brokers.NodeIDs()...)
	if _, refused := errors.AsType[*kadm.AuthError](err); refused {
		return nil, nil
	}
	if err != nil && len(described) == 0 {
		return nil, fmt.Errorf("describing brokers: %w", err)
	}
	var found []Difference
	for _, d := range described {
		if d.Err != nil {
			continue
		}
		have := values(d)
		for _, s := range brokerSettings() {
			value, shown := have[s.key]
			if !shown || value == "" || s.good(value) {
				continue
			}
			found = append(found, Difference{
				Object: "broker " + d.Name,
				Text:   fmt.Sprintf("%s is %s, recommended is %s: %s", s.key, value, s.want, s.reason),
				Mend:   fmt.Sprintf("%s=%s in the brokers' server.properties", s.key, s.want),
			})
		}
	}
	slices.SortFunc(found, func(a, b Difference) int { return strings.Compare(a.String(), b.String()) })
	return found, nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
