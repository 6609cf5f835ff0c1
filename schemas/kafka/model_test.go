package kafka

import (
	"fmt"
	"maps"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// Whatever is written, in transactions or not, committed or aborted, with leaders
// that move, fetches that err and compaction in between: after a barrier the
// table is what a map makes of the committed writes.
func TestTableEqualsModel(t *testing.T) {
	cluster, cfg := startCluster(t, kfake.NumBrokers(2))
	plain, writer := startClient(t, cfg), startClient(t, cfg, kgo.TransactionalID("w"))
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		topics := []string{fmt.Sprint("a", round), fmt.Sprint("b", round)}
		createCompacted(t, plain, 1, topics...)
		f, tb := startFollower(rt, cfg, topics...)
		model := make(map[string]string)
		aborted := false
		for step := range rapid.IntRange(1, 12).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "what") {
			case 0:
				// kfake compacts away the marker that ends an aborted transaction, and
				// goes on telling readers of the transaction: they see nothing more of its producer.
				if !aborted {
					cluster.Compact()
				}
			case 1:
				topic := rapid.SampledFrom(topics).Draw(rt, "moved")
				if err := cluster.MoveTopicPartition(topic, 0, rapid.Int32Range(0, 1).Draw(rt, "to")); err != nil {
					t.Fatal(err)
				}
			case 2:
				err := rapid.SampledFrom([]*kerr.Error{kerr.UnknownServerError, kerr.OffsetNotAvailable, kerr.NotLeaderForPartition}).Draw(rt, "err")
				cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch, kmsg.ListOffsets}, Topic: topics[0], Err: err})
			case 3:
				mustBarrier(t, f)
				wantContent(t, tb, model)
			default:
				inTransaction, commit := rapid.Bool().Draw(rt, "transaction"), rapid.Bool().Draw(rt, "commit")
				records, after := drawWrites(rt, topics, step, model)
				if inTransaction {
					write(t, writer, commit, records...)
				} else {
					write(t, plain, true, records...)
				}
				if commit || !inTransaction {
					model = after
				} else {
					aborted = true
				}
			}
		}
		mustBarrier(t, f)
		wantContent(t, tb, model)
		late, lateTable := startFollower(rt, cfg, topics...)
		mustBarrier(t, late)
		wantContent(t, lateTable, model)
		if t.Failed() {
			rt.FailNow()
		}
	})
}

// drawWrites returns writes, and the model after them.
func drawWrites(rt *rapid.T, topics []string, step int, model map[string]string) ([]*kgo.Record, map[string]string) {
	after := maps.Clone(model)
	var records []*kgo.Record
	for i := range rapid.IntRange(1, 5).Draw(rt, "records") {
		topic, key := rapid.SampledFrom(topics).Draw(rt, "topic"), rapid.SampledFrom([]string{"k", "l", "m"}).Draw(rt, "key")
		if rapid.IntRange(0, 2).Draw(rt, "removed") == 0 {
			records = append(records, remove(topic, key))
			delete(after, topic+"/"+key)
			continue
		}
		value := fmt.Sprint(step, ".", i)
		records = append(records, put(topic, key, value))
		after[topic+"/"+key] = value
	}
	return records, after
}
