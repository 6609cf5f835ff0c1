package kafka

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

func TestMain(m *testing.M) {
	// Each round of the model brings up two followers; -rapid.checks asks for more.
	if err := flag.Set("rapid.checks", "30"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func startCluster(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, Config) {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatalf("starting kfake: %v", err)
	}
	t.Cleanup(cluster.Close)
	return cluster, Config{Brokers: cluster.ListenAddrs(), TopicPrefix: schemas.DefaultPrefix}
}

func startClient(t *testing.T, cfg Config, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := cfg.NewClient("test", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// within is a context for what a test waits for.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestCreateTopicsIsIdempotentAndChecked(t *testing.T) {
	_, cfg := startCluster(t, kfake.NumBrokers(3))
	cl := startClient(t, cfg)
	topics := cfg.Topics()
	partitions := schemas.Partitions{Events: 3, Deliveries: 5}
	for range 2 {
		if err := CreateTopics(within(t), cl, topics, partitions, 0); err != nil {
			t.Fatal(err)
		}
	}
	found, err := CheckTopics(within(t), cl, topics)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range found {
		if d.Fatal || !strings.HasPrefix(d.Object, "broker ") {
			t.Errorf("after CreateTopics: %s", d)
		}
	}
	admin := kadm.NewClient(cl)
	for group, consumed := range topics.GroupTopics() {
		committed, err := admin.FetchOffsets(within(t), group)
		if err != nil {
			t.Fatal(err)
		}
		described, err := describe(within(t), cl, consumed)
		if err != nil {
			t.Fatal(err)
		}
		for _, topic := range consumed {
			for p := range described[topic].leaders {
				if o, ok := committed.Lookup(topic, int32(p)); !ok || o.At != 0 {
					t.Errorf("group %s, %s/%d: committed %d (%v), want 0", group, topic, p, o.At, ok)
				}
			}
		}
	}
	ids, err := TopicIDs(within(t), cl, topics.Events, topics.Webhooks)
	if err != nil || len(ids) != 2 || ids[topics.Events] == ids[topics.Webhooks] || ids[topics.Events] == [16]byte{} {
		t.Errorf("TopicIDs = %v, %v", ids, err)
	}
	if _, err := TopicIDs(within(t), cl, "nothing"); !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("TopicIDs of a missing topic = %v", err)
	}
}

func TestCheckTopicsNamesWhatDiffers(t *testing.T) {
	_, cfg := startCluster(t, kfake.BrokerConfigs(map[string]string{"transaction.max.timeout.ms": "900000"}))
	cl := startClient(t, cfg)
	topics := cfg.Topics()
	if found, err := CheckTopics(within(t), cl, topics); err != nil || len(found) < 29 || !found[0].Fatal || found[0].Mend != "postrider topics create --brokers "+cfg.Brokers[0] {
		t.Fatalf("without topics: %d differences, %v; %v", len(found), found, err)
	}
	if err := CreateTopics(within(t), cl, topics, schemas.Partitions{Events: 2, Deliveries: 4}, 1); err != nil {
		t.Fatal(err)
	}
	admin := kadm.NewClient(cl)
	alter := func(topic, key, value string) {
		t.Helper()
		answers, err := admin.AlterTopicConfigs(within(t), []kadm.AlterConfig{{Name: key, Value: &value}}, topic)
		if err != nil || answers[0].Err != nil {
			t.Fatalf("altering %s of %s: %v, %v", key, topic, err, answers[0].Err)
		}
	}
	alter(topics.Webhooks, "cleanup.policy", "compact,delete")
	alter(topics.Events, "message.timestamp.type", "CreateTime")
	alter(topics.Deliveries, "max.message.bytes", "1000012")
	alter(topics.Deliveries, "retention.ms", "3600000")
	alter(topics.Outcomes, "retention.ms", "-1") // longer is the operator's choice
	if _, err := admin.UpdatePartitions(within(t), 6, topics.Retry[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.UpdatePartitions(within(t), 3, topics.Events); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.DeleteTopic(within(t), topics.Held); err != nil {
		t.Fatal(err)
	}

	found, err := CheckTopics(within(t), cl, topics)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		object, text, mend string
		fatal              bool
	}{
		{topics.Webhooks, `cleanup.policy is "compact,delete" and should be "compact"`, "--entity-name postrider.webhooks --add-config cleanup.policy=compact", true},
		{topics.Events, `message.timestamp.type is "CreateTime"`, "message.timestamp.type=LogAppendTime", true},
		{topics.Deliveries, `max.message.bytes is "1000012"`, "max.message.bytes=1179648", true},
		{topics.Deliveries, `retention.ms is "3600000"`, "retention.ms=1209600000", false},
		{topics.Retry[0], "it has 6 partitions and should have 4, as postrider.deliveries has", "--delete --topic postrider.deliveries.retry.1s", true},
		{topics.Routed, "it has 2 partitions and should have 3", "--alter --topic postrider.routed --partitions 3", true},
		{topics.Held, "the topic does not exist", "postrider topics create --brokers " + cfg.Brokers[0] + " --events-partitions 3 --deliveries-partitions 4", true},
		{"broker 0", "transaction.max.timeout.ms is 900000, recommended is 60000", "transaction.max.timeout.ms=60000", false},
	}
	for _, tt := range tests {
		if !slices.ContainsFunc(found, func(d Difference) bool {
			return d.Object == tt.object && strings.Contains(d.Text, tt.text) && strings.Contains(d.Mend, tt.mend) && d.Fatal == tt.fatal
		}) {
			t.Errorf("no difference of %s: %s, mended with %s (fatal %v), in:\n%v", tt.object, tt.text, tt.mend, tt.fatal, found)
		}
	}
	for _, d := range found {
		if d.Object == topics.Outcomes {
			t.Errorf("unexpected difference: %s", d)
		}
	}
}

func TestGroupWithoutCommitsRefusesUntilTold(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	topics := cfg.Topics()
	if err := CreateTopics(within(t), cl, topics, schemas.Partitions{Events: 2, Deliveries: 2}, 1); err != nil {
		t.Fatal(err)
	}
	if err := EnsureCommits(within(t), cl, topics.RouterGroup, StartAt{}, topics.Events); err != nil {
		t.Fatalf("after CreateTopics: %v", err)
	}
	writeEvents(t, cl, topics)
	admin := kadm.NewClient(cl)
	if _, err := admin.DeleteGroup(within(t), topics.RouterGroup); err != nil {
		t.Fatal(err)
	}
	// Creating the topics again must not make the group begin anew in silence.
	if err := CreateTopics(within(t), cl, topics, schemas.Partitions{Events: 2, Deliveries: 2}, 1); err != nil {
		t.Fatal(err)
	}
	if err := EnsureCommits(within(t), cl, topics.RouterGroup, StartAt{}, topics.Events); !errors.Is(err, ErrNoCommits) {
		t.Fatalf("without commits: %v, want ErrNoCommits", err)
	}
}

func TestStartAtBeginsWhereTold(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	topics := cfg.Topics()
	if err := CreateTopics(within(t), cl, topics, schemas.Partitions{Events: 2, Deliveries: 2}, 1); err != nil {
		t.Fatal(err)
	}
	writeEvents(t, cl, topics)
	admin := kadm.NewClient(cl)
	ends, err := listOffsets(within(t), cl, []Place{{topics.Events, 0}, {topics.Events, 1}}, atLatest, readCommitted)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		at   string
		want map[Place]int64
	}{
		{"earliest", map[Place]int64{{topics.Events, 0}: 0, {topics.Events, 1}: 0}},
		{"latest", ends},
		{"2001-01-01T00:00:00Z", map[Place]int64{{topics.Events, 0}: 0, {topics.Events, 1}: 0}},
		{time.Now().Add(time.Hour).Format(time.RFC3339), ends},
	}
	for _, tt := range tests {
		t.Run(tt.at, func(t *testing.T) {
			group := "group-" + tt.at
			at, err := ParseStartAt(tt.at)
			if err != nil {
				t.Fatal(err)
			}
			if err := EnsureCommits(within(t), cl, group, at, topics.Events); err != nil {
				t.Fatal(err)
			}
			committed, err := admin.FetchOffsets(within(t), group)
			if err != nil {
				t.Fatal(err)
			}
			for place, want := range tt.want {
				if o, ok := committed.Lookup(place.Topic, place.Partition); !ok || o.At != want {
					t.Errorf("%v: committed %d (%v), want %d", place, o.At, ok, want)
				}
			}
		})
	}
}

// TestEvict: only the members of the client that is named leave.
func TestEvict(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	topics := cfg.Topics()
	if err := CreateTopics(within(t), cl, topics, schemas.Partitions{Events: 2, Deliveries: 2}, 1); err != nil {
		t.Fatal(err)
	}
	const group = "group"
	ctx := within(t)
	members := func() (ids []string) {
		described, err := kadm.NewClient(cl).DescribeGroups(ctx, group)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range described[group].Members {
			ids = append(ids, m.ClientID)
		}
		slices.Sort(ids)
		return ids
	}
	for i, id := range []string{"dead", "alive"} {
		// Its heartbeats are too seldom to tell it that it is out.
		startClient(t, cfg, kgo.ClientID(id), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topics.Events), kgo.HeartbeatInterval(20*time.Second), kgo.SessionTimeout(time.Minute))
		for len(members()) <= i {
			if ctx.Err() != nil {
				t.Fatalf("%s has not joined", id)
			}
		}
	}
	for range 2 { // the second time there is nobody left to leave
		if err := Evict(ctx, cl, quiet(), group, "dead"); err != nil {
			t.Fatal(err)
		}
		if got := members(); !slices.Equal(got, []string{"alive"}) {
			t.Errorf("got members %v, want alive only", got)
		}
	}
	if err := Evict(ctx, cl, quiet(), "no-such-group", "dead"); err != nil {
		t.Errorf("of a group that is not there: %v", err)
	}
}

func writeEvents(t *testing.T, cl *kgo.Client, topics schemas.Topics) {
	t.Helper()
	records := make([]*kgo.Record, 20)
	for i := range records {
		records[i] = &kgo.Record{Topic: topics.Events, Key: []byte(schemas.NewEventID())}
	}
	if err := cl.ProduceSync(within(t), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func TestParseStartAtRefuses(t *testing.T) {
	for _, text := range []string{"yesterday", "2026-01-01", "Earliest", "1960-01-01T00:00:00Z", "-1"} {
		if at, err := ParseStartAt(text); err == nil {
			t.Errorf("ParseStartAt(%q) = %v, want an error", text, at)
		}
	}
}

func TestPartitioner(t *testing.T) {
	p := Partitioner()
	// Values of Java's Utils.toPositive(Utils.murmur2(key)) % 12.
	for key, want := range map[string]int{"21": toJava(-973932308), "foobar": toJava(-790332482), "a-little-bit-long-string": toJava(-985981536)} {
		if got := p.ForTopic("postrider.events").Partition(&kgo.Record{Key: []byte(key), Partition: 7}, 12); got != want {
			t.Errorf("partition of key %q = %d, want %d", key, got, want)
		}
	}
	topics := schemas.NewTopics("x.")
	for _, topic := range append([]string{topics.Routed, topics.Held}, topics.Retry...) {
		if got := p.ForTopic(topic).Partition(&kgo.Record{Key: []byte("21"), Partition: 7}, 12); got != 7 {
			t.Errorf("partition in %s = %d, want the one set by hand, 7", topic, got)
		}
	}
	for _, topic := range []string{topics.Deliveries, topics.DeadLetters, topics.Outcomes} {
		if got, want := p.ForTopic(topic).Partition(&kgo.Record{Key: []byte("21"), Partition: 11}, 12), toJava(-973932308); got != want {
			t.Errorf("partition in %s = %d, want %d", topic, got, want)
		}
	}
}

// toJava is Kafka's Utils.toPositive(hash) % 12; the hashes are those of its UtilsTest.
func toJava(hash int32) int { return int(hash&0x7fffffff) % 12 }

func TestErrorLabel(t *testing.T) {
	tests := []struct {
		err  error
		want string
	}{
		{nil, ""},
		{context.DeadlineExceeded, "timeout"},
		{errors.Join(context.Canceled, kerr.NotLeaderForPartition), "leader"},
		{kerr.InvalidProducerEpoch, "fenced"},
		{kerr.UnknownServerError, "broker"},
		{kgo.ErrClientClosed, "closed"},
		{errors.New("x"), "other"},
	}
	for _, tt := range tests {
		if got := ErrorLabel(tt.err); got != tt.want {
			t.Errorf("ErrorLabel(%v) = %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestSettingsAreCheckedTogether(t *testing.T) {
	tests := []struct {
		args []string
		want []string // parts of the error
	}{
		{nil, nil},
		{[]string{"--kafka-tls-cert", "c.pem", "--topic-prefix", "a b"}, []string{"--kafka-tls-cert", "--kafka-tls-key", "--topic-prefix"}},
		{[]string{"--kafka-sasl-user", "u"}, []string{"--kafka-sasl-user"}},
		{[]string{"--kafka-sasl-mechanism", "scram-sha-1"}, []string{"--kafka-sasl-mechanism", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}},
		{[]string{"--kafka-tls", "--kafka-tls-ca", "/nowhere/ca.pem"}, []string{"/nowhere/ca.pem"}},
	}
	for _, tt := range tests {
		var cfg Config
		s := process.NewSettings("test")
		cfg.Register(s)
		err := s.Parse(tt.args, nil)
		if len(tt.want) == 0 && err != nil {
			t.Errorf("Parse(%q) = %v", tt.args, err)
		}
		for _, want := range tt.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Parse(%q) = %v, want it to name %q", tt.args, err, want)
			}
		}
	}
}
