package kafka

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// readCursor returns the values of what a cursor gives.
func readCursor(t *testing.T, cl *kgo.Client, place Place, from, end int64) []string {
	t.Helper()
	c := NewCursor(within(t), cl, place, from, end)
	defer c.Close()
	var values []string
	for {
		r, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		if r == nil {
			return values
		}
		values = append(values, string(r.Value))
	}
}

// A cursor comes to its end whatever the log's tail is made of, and gives what was committed.
func TestCursorReadsUpToAnEnd(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	const topic = "log"
	if _, err := kadm.NewClient(cl).CreateTopic(within(t), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
	place := Place{Topic: topic}
	writer := startClient(t, cfg, kgo.TransactionalID("w"))
	var want []string
	for i := range 40 { // each a record and a marker
		value := fmt.Sprint(i)
		write(t, writer, i%3 != 2, put(topic, "k", value))
		if i%3 != 2 {
			want = append(want, value)
		}
	}
	starts, ends, err := Bounds(within(t), cl, topic)
	if err != nil {
		t.Fatal(err)
	}
	if got := readCursor(t, cl, place, starts[place], ends[place]); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := readCursor(t, cl, place, 2, 5); !slices.Equal(got, []string{"1"}) {
		t.Errorf("from 2 to 5: got %v, want 1 only", got)
	}
	if got := readCursor(t, cl, place, ends[place], ends[place]); len(got) > 0 {
		t.Errorf("behind the end: got %v", got)
	}
	var deleted kadm.Offsets
	deleted.AddOffset(topic, 0, 10, -1)
	if _, err := kadm.NewClient(cl).DeleteRecords(within(t), deleted); err != nil {
		t.Fatal(err)
	}
	if got := readCursor(t, cl, place, 0, ends[place]); !slices.Equal(got, want[4:]) { // 0, 1, 3, 4 were before 10
		t.Errorf("after retention: got %v, want %v", got, want[4:])
	}
	large := strings.Repeat("x", 1<<20)
	for range 8 { // more than an answer holds
		write(t, writer, true, put(topic, "k", large))
	}
	if _, ends, err = Bounds(within(t), cl, topic); err != nil {
		t.Fatal(err)
	}
	if got := readCursor(t, cl, place, ends[place]-16, ends[place]); len(got) != 8 {
		t.Errorf("got %d large records, want 8", len(got))
	}
	deleted.AddOffset(topic, 0, ends[place], -1)
	if _, err := kadm.NewClient(cl).DeleteRecords(within(t), deleted); err != nil {
		t.Fatal(err)
	}
	if got := readCursor(t, cl, place, 2, 6); len(got) > 0 {
		t.Errorf("of a log that retention has emptied: got %v", got)
	}
}

// Commits are those of the group, with their metadata; of a group that is not there they say nothing.
func TestCommits(t *testing.T) {
	_, cfg := startCluster(t)
	cl := startClient(t, cfg)
	topics := cfg.Topics()
	if err := CreateTopics(within(t), cl, topics, schemas.Partitions{Events: 2, Deliveries: 2}, 0); err != nil {
		t.Fatal(err)
	}
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: topics.Events, Partition: 1, At: 7, LeaderEpoch: -1, Metadata: "said"})
	if err := kadm.NewClient(cl).CommitAllOffsets(within(t), topics.RouterGroup, offsets); err != nil {
		t.Fatal(err)
	}
	got, err := Commits(within(t), cl, topics.RouterGroup, topics.Events)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Commit{7, "said"}); len(got) != 2 || got[Place{topics.Events, 1}] != want || got[Place{topics.Events, 0}].Offset != 0 {
		t.Errorf("got %v, want %v in partition 1 and 0 in the other", got, want)
	}
	nobody, err := Commits(within(t), cl, "nobody", topics.Events)
	if err != nil || nobody[Place{topics.Events, 1}].Offset != -1 {
		t.Errorf("a group that is not there: got %v, %v", nobody, err)
	}
	if _, err := Commits(within(t), cl, topics.RouterGroup, "missing"); ErrorLabel(err) != "missing_topic" {
		t.Errorf("a topic that is not there: got %v", err)
	}
}
