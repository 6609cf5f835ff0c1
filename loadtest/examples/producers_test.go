package examples

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

const producers = "../../schemas/PRODUCERS.md"

// TestProducers runs the three producers of the page on producing, on Apache Kafka.
// Each places three orders, of which the second is refused: two are there to be read,
// each with its event, as the router reads it.
func TestProducers(t *testing.T) {
	cluster, prefix := pipeline.SharedKafka(t)
	cfg := kafka.Config{Brokers: cluster.Addrs(), TopicPrefix: prefix}
	topics := cfg.Topics()
	cl, err := cfg.NewClient("test")
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	const partitions = 7
	if err := kafka.CreateTopics(t.Context(), cl, topics, schemas.Partitions{Events: partitions, Deliveries: 1}, 0); err != nil {
		t.Fatal(err)
	}
	for language, prepare := range producersOfPage() {
		t.Run(language, func(t *testing.T) {
			orders := prefix + "orders." + language
			if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), 1, 1, nil, orders); err != nil {
				t.Fatal(err)
			}
			begin, err := kafka.StableEnds(t.Context(), cl, topics.Events)
			if err != nil {
				t.Fatal(err)
			}
			cmd := prepare(t)
			cmd.Env = append(os.Environ(), "BROKERS="+cluster.Addrs()[0], "EVENTS="+topics.Events, "ORDERS="+orders, "TRANSACTIONAL_ID=shop-"+language)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "no amount") {
				t.Fatalf("running the example: %v: want it to tell of the order that has no amount\n%s", err, out)
			}
			if got := values(committed(t, cl, orders, nil)); len(got) != 2 || !strings.Contains(got[0], `"7"`) || !strings.Contains(got[1], `"9"`) {
				t.Errorf("orders: got %q, want 7 and 9", got)
			}
			var events []string
			for _, r := range committed(t, cl, topics.Events, begin) {
				e, err := schemas.DecodeEvent(r)
				if err != nil {
					t.Errorf("event %s: %v", r.Value, err)
				}
				if want := kafka.PartitionOf("acme", partitions); r.Partition != want {
					t.Errorf("event %s is in partition %d, want %d as by the Java client", e.ID, r.Partition, want)
				}
				events = append(events, fmt.Sprint(e.ID, " ", e.Name, " ", e.Organization, " ", strings.ReplaceAll(string(e.Payload), " ", "")))
			}
			want := []string{`order-7 orders.created acme {"order":"7","amount":12}`, `order-9 orders.created acme {"order":"9","amount":5}`}
			if !slices.Equal(events, want) {
				t.Errorf("events: got %q, want %q", events, want)
			}
		})
	}
}

// producersOfPage make the examples ready to run, by their languages.
func producersOfPage() map[string]func(*testing.T) *exec.Cmd {
	return map[string]func(*testing.T) *exec.Cmd{
		"go": func(t *testing.T) *exec.Cmd {
			t.Helper()
			return exec.CommandContext(t.Context(), buildGo(t, block(t, producers, "go")))
		},
		"java": func(t *testing.T) *exec.Cmd {
			t.Helper()
			return pipeline.KafkaTool(t, write(t, "Orders.java", block(t, producers, "java")))
		},
		"python": func(t *testing.T) *exec.Cmd {
			t.Helper()
			return exec.CommandContext(t.Context(), pipeline.Python(t), write(t, "producer.py", block(t, producers, "python")))
		},
	}
}

// committed waits for two records of a topic that are committed, behind those of begin, and returns all there are.
func committed(t *testing.T, cl *kgo.Client, topic string, begin map[kafka.Place]int64) (records []*kgo.Record) {
	t.Helper()
	pipeline.Wait(t, soon, "records of "+topic, func() error {
		ends, err := kafka.StableEnds(t.Context(), cl, topic)
		if err != nil {
			return fmt.Errorf("asking for the ends of %s: %w", topic, err)
		}
		records = nil
		for place, end := range ends {
			err := kafka.ReadAll(t.Context(), cl, place, begin[place], end, func(r *kgo.Record) error {
				records = append(records, &kgo.Record{Partition: r.Partition, Key: slices.Clone(r.Key), Value: slices.Clone(r.Value), Headers: cloned(r.Headers)})
				return nil
			})
			if err != nil {
				return fmt.Errorf("reading %s: %w", topic, err)
			}
		}
		if len(records) < 2 {
			return fmt.Errorf("there are %d, want 2", len(records))
		}
		return nil
	})
	return records
}

func cloned(headers []kgo.RecordHeader) []kgo.RecordHeader {
	var own []kgo.RecordHeader
	for _, h := range headers {
		own = append(own, kgo.RecordHeader{Key: strings.Clone(h.Key), Value: slices.Clone(h.Value)})
	}
	return own
}

func values(records []*kgo.Record) (texts []string) {
	for _, r := range records {
		texts = append(texts, string(r.Value))
	}
	return texts
}
