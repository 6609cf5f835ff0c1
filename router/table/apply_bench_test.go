package table_test

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// BenchmarkApply is what each webhook costs a router that starts.
func BenchmarkApply(b *testing.B) {
	topics := schemas.NewTopics("test.")
	var records []*kgo.Record
	for n := range 10_000 {
		w := schemas.Webhook{
			ID: fmt.Sprintf("wh_%d", n), Organization: fmt.Sprintf("org-%d", n), Active: true, URL: "https://example.com/", Events: []string{"*"}, Generation: 1, Revision: 1,
		}
		records = append(records, must(w.Record(topics.Webhooks)))
	}
	tbl := newTable(b)
	n := 0
	for b.Loop() {
		tbl.Apply(records[n%len(records)])
		n++
	}
}
