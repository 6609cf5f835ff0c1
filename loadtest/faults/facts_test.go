package faults

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/ledger"
)

// ours leaves out operational events.
const ours = "event = '" + eventName + "'"

// query asks ClickHouse about the world's own tables.
func (w *world) query(statement string) string {
	w.t.Helper()
	for _, table := range []string{"outcomes", "events", "deliveries"} {
		statement = strings.ReplaceAll(statement, "FROM "+table, "FROM "+w.ch.Database+"."+table)
	}
	return strings.TrimRight(w.ch.Query(w.t, statement), "\n")
}

// read reads a topic to some ends, without the transactions' own records.
func (w *world) read(topic string, ends map[int32]int64, each func(*kgo.Record), opts ...kgo.Opt) {
	w.t.Helper()
	cl := w.client(append(opts, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100*time.Millisecond), kgo.KeepControlRecords())...)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), soon)
	defer cancel()
	left := maps.Clone(ends)
	maps.DeleteFunc(left, func(_ int32, end int64) bool { return end == 0 })
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			w.t.Fatalf("reading %s to %v: %v", topic, left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= ends[r.Partition] {
				delete(left, r.Partition)
			}
			if r.Offset < ends[r.Partition] && !r.Attrs.IsControl() {
				each(r)
			}
		})
	}
}

// lines are a query's rows.
func (w *world) lines(statement string) [][]string {
	w.t.Helper()
	var rows [][]string
	for line := range strings.Lines(w.query(statement)) {
		rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
	}
	return rows
}

func (w *world) rows() (rows []ledger.Row) {
	w.t.Helper()
	for _, f := range w.lines("SELECT partition, offset, delivery_id, attempt, result FROM outcomes") {
		rows = append(rows, ledger.Row{
			Partition: int32(number(w.t, f[0])), Offset: number(w.t, f[1]), //nolint:gosec // a partition
			DeliveryID: f[2], Attempt: int(number(w.t, f[3])), Result: f[4],
		})
	}
	return rows
}

func (w *world) events() (rows []ledger.EventRow) {
	w.t.Helper()
	for _, f := range w.lines("SELECT event_id, ifNull(matches, -1) FROM events WHERE " + ours) {
		rows = append(rows, ledger.EventRow{ID: f[0], Matches: int(number(w.t, f[1]))})
	}
	return rows
}

func number(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
