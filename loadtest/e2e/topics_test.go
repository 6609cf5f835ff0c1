package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

// readAll returns the records of a topic as far as a read-committed reader can
// see now. opts come last: with ReadUncommitted it returns what was aborted too.
func (s *system) readAll(t *testing.T, topic string, opts ...kgo.Opt) []*kgo.Record {
	t.Helper()
	cl := s.client(t, append([]kgo.Opt{
		kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100 * time.Millisecond),
		kgo.KeepControlRecords(), // the last before the end may be one
	}, opts...)...)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	var listed kadm.ListedOffsets
	pipeline.Wait(t, soon, "the end of "+topic, func() (err error) { // which a new leader may not know for a moment
		if listed, err = kadm.NewClient(cl).ListCommittedOffsets(ctx, topic); err == nil {
			err = listed.Error()
		}
		return err
	})
	left := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	var records []*kgo.Record
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("reading %s to %v: %v", topic, left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				records = append(records, r)
			}
		})
	}
	return records
}

// ends are the offsets at which the next records of topics will stand, whether
// or not what is before them is committed.
func (s *system) ends(t *testing.T, topics ...string) map[kafka.Place]int64 {
	t.Helper()
	cl := s.client(t)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	listed, err := kadm.NewClient(cl).ListEndOffsets(ctx, topics...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		t.Fatalf("asking for the ends of %v: %v", topics, err)
	}
	ends := map[kafka.Place]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		ends[kafka.Place{Topic: o.Topic, Partition: o.Partition}] = o.Offset
	})
	return ends
}

// all are the names of all topics.
func (s *system) all() []string {
	var names []string
	for _, spec := range s.topics.Specs(schemas.DefaultPartitions()) {
		names = append(names, spec.Name)
	}
	return names
}
