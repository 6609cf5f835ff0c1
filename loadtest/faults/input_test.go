package faults

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// inputs are scenarios of what should never come in.
func inputs() []scenario {
	return []scenario{
		{id: "F12", fault: "poison on every topic", run: (*world).poison},
		{id: "F13", fault: "bad requests, and clients that send a byte now and then", run: (*world).badRequests},
	}
}

// poisoned is a bad record and what should come of it.
type poisoned struct {
	what   string
	record *kgo.Record

	rejected bool // with its place
	told     bool // in a log, with its place: a key's last good value stays in force
}

// poisons are bad records for a topic. Those that rest are old enough to be looked at at once.
func (w *world) poisons(topic string, compacted bool, key string) (all []poisoned) {
	consumed := slices.Contains(append(w.topics.Sources(), w.topics.Audited()...), topic)
	good := fmt.Sprintf(`{"event":%q,"organization":"poison","id":"p"}`, eventName)
	version := kgo.RecordHeader{Key: schemas.HeaderVersion, Value: []byte(schemas.Version)}
	for what, r := range map[string]*kgo.Record{
		"empty":        {Value: []byte{}},
		"garbage":      {Value: []byte{0, 1, 0xff, '{', 2}},
		"truncated":    {Value: []byte(good[:len(good)/2]), Headers: []kgo.RecordHeader{version}},
		"no headers":   {Value: []byte(`{"a":1}`)},
		"huge header":  {Value: []byte(`{"a":1}`), Headers: []kgo.RecordHeader{{Key: "h", Value: make([]byte, 900<<10)}}},
		"huge version": {Value: []byte(`{"a":1}`), Headers: []kgo.RecordHeader{{Key: "ce_specversion", Value: bytes.Repeat([]byte("9"), 900<<10)}}},
		"null key":     {Value: []byte(good[1:])},
		"tombstone":    {Key: []byte(key)},
	} {
		if what != "null key" {
			r.Key = []byte(key)
		}
		r.Topic, r.Partition, r.Timestamp = topic, 1, time.Now().Add(-25*time.Hour)
		p := poisoned{what: what, record: r, rejected: consumed}
		if topic == w.topics.Changes || topic == w.topics.Rejected {
			r.Partition = 0
		}
		if compacted {
			r.Partition = 0
			p.told = what != "tombstone"
		}
		all = append(all, p)
	}
	return all
}

// poisonTopic writes the bad records of a topic. Kafka itself refuses a null key where
// it compacts.
func (w *world) poisonTopic(producer *kgo.Client, topic string, compacted bool) (written []poisoned) {
	w.t.Helper()
	for _, p := range w.poisons(topic, compacted, "poison") {
		err := producer.ProduceSync(w.t.Context(), p.record).FirstErr()
		switch {
		case compacted && p.record.Key == nil && errors.Is(err, kerr.InvalidRecord):
		case err != nil:
			w.t.Fatalf("writing %s to %s: %v", p.what, topic, err)
		default:
			written = append(written, p)
		}
	}
	return written
}

// bomb writes a batch that inflates to 70 MiB.
func (w *world) bomb(producer *kgo.Client, topic string, compacted bool) poisoned {
	w.t.Helper()
	consumed := slices.Contains(append(w.topics.Sources(), w.topics.Audited()...), topic)
	r := &kgo.Record{Topic: topic, Key: []byte("bomb"), Partition: 1, Value: make([]byte, 70<<20)}
	if compacted || topic == w.topics.Changes || topic == w.topics.Rejected {
		r.Partition = 0
	}
	if err := producer.ProduceSync(w.t.Context(), r).FirstErr(); err != nil {
		w.t.Fatalf("writing a bomb to %s: %v", topic, err)
	}
	return poisoned{what: "bomb", record: r, rejected: consumed, told: compacted}
}

// poison writes bad records to every topic, bombs among them, and holds that consumers
// go on, and that each record is set aside with its place, or told of. Nor may they
// stop whoever starts anew.
func (w *world) poison() {
	services := []*pipeline.Service{w.ingest, w.router, w.sender}
	pids := []int{w.ingest.PID(), w.router.PID(), w.sender.PID()}
	producer := w.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(schemas.MaxRecordBytes),
		kgo.ProducerBatchCompression(kgo.NoCompression()))
	bomber := w.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(80<<20),
		kgo.ProducerBatchCompression(kgo.ZstdCompression()))
	var all []poisoned
	for _, spec := range w.topics.Specs(schemas.Partitions{Events: partitions, Deliveries: partitions}) {
		compacted := spec.Configs["cleanup.policy"] == "compact"
		all = append(all, w.poisonTopic(producer, spec.Name, compacted)...)
		all = append(all, w.bomb(bomber, spec.Name, compacted))
	}
	w.progress(500)
	w.wantSetAside(all)
	for i, s := range services {
		if !s.Running() || s.PID() != pids[i] {
			w.problemf("%s has ended", serviceNames[i])
		}
		s.Terminate(w.t, soon)
		s.Restart(w.t)
		s.WaitReady(w.t)
	}
	w.progress(500)
	for i, s := range services {
		if text := s.Output(w.t); strings.Contains(text, "panic") || strings.Contains(text, "goroutine ") {
			w.problemf("%s has panicked", serviceNames[i])
		}
	}
}

//nolint:gochecknoglobals // as good as a constant
var serviceNames = [3]string{"ingest", "router", "sender"}

// wantSetAside waits until each bad record is in rejected by its place, or told of by
// all who read it.
func (w *world) wantSetAside(all []poisoned) {
	w.t.Helper()
	var missing []string
	set, told := 0, 0
	_ = pipeline.Try(w.t, soon, func() error {
		places := w.rejections()
		output := [3]string{w.ingest.Output(w.t), w.router.Output(w.t), w.sender.Output(w.t)}
		missing, set, told = nil, 0, 0
		for _, p := range all {
			place := fmt.Sprintf("%s/%d@%d", p.record.Topic, p.record.Partition, p.record.Offset)
			switch {
			case p.rejected && !places[place]:
				missing = append(missing, p.what+" at "+place+" is not in rejected")
			case p.rejected:
				set++
			case p.told && !w.tells(output, p.record):
				missing = append(missing, p.what+" at "+place+" is not told of")
			case p.told:
				told++
			}
		}
		if len(missing) > 0 {
			return errNotYet
		}
		return nil
	})
	w.notef("%d bad records: %d in rejected by their place, %d told of by it", len(all), set, told)
	for _, text := range missing {
		w.problemf("%s", text)
	}
}

var errNotYet = errors.New("not yet")

// tells reports whether each service that reads a compacted topic has told of a record.
func (w *world) tells(output [3]string, r *kgo.Record) bool {
	place := fmt.Sprintf("topic=%s partition=%d offset=%d", r.Topic, r.Partition, r.Offset)
	readers := map[string][]int{
		w.topics.Webhooks: {0, 1, 2}, w.topics.WebhookStates: {0, 1, 2}, w.topics.Keys: {0}, w.topics.Jobs: {0},
	}
	for _, i := range readers[r.Topic] {
		if !strings.Contains(output[i], place) {
			return false
		}
	}
	return true
}

// rejections are the places that records of the topic rejected tell of.
func (w *world) rejections() map[string]bool {
	w.t.Helper()
	places := map[string]bool{}
	w.each([]string{w.topics.Rejected}, func(r *kgo.Record) {
		if bad, err := schemas.DecodeRejected(r); err == nil {
			places[fmt.Sprintf("%s/%d@%d", bad.Topic, bad.Partition, bad.Offset)] = true
		}
	})
	return places
}
