package faults

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/sender/deliver"
)

// log follows what is committed in deliveries and outcomes from their beginnings.
type log struct {
	client *kgo.Client

	mu         sync.Mutex // guards the below
	at         map[kafka.Place]int64
	deliveries []ledger.Delivery
	outcomes   []ledger.Outcome
	unended    map[string]bool // deliveries, by id
	unreadable int
	newerOnes  map[string]int // records of newer versions, by topic
}

// startLog follows until the test ends.
func (w *world) startLog() *log {
	w.t.Helper()
	l := &log{
		at: map[kafka.Place]int64{}, unended: map[string]bool{}, newerOnes: map[string]int{},
		client: w.client(kgo.ConsumeTopics(w.topics.Deliveries, w.topics.Outcomes), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(250*time.Millisecond), kgo.KeepControlRecords(),
			kgo.MetadataMinAge(250*time.Millisecond)),
	}
	ids, err := kafka.TopicIDs(w.t.Context(), l.client, w.topics.Deliveries)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			// Errors are those of an outage: the client goes on by itself.
			l.client.PollFetches(ctx).EachRecord(func(r *kgo.Record) { l.note(r, w.topics, ids[w.topics.Deliveries]) })
		}
	}()
	w.t.Cleanup(func() { stop(); <-done })
	return l
}

func (l *log) note(r *kgo.Record, topics schemas.Topics, topicID [16]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	place := kafka.Place{Topic: r.Topic, Partition: r.Partition}
	if r.Offset < l.at[place] {
		return // a client whose partition moved may begin it again
	}
	l.at[place] = r.Offset + 1
	r, newer := known(r)
	if newer {
		l.newerOnes[r.Topic]++
	}
	switch {
	case r.Attrs.IsControl():
	case r.Topic == topics.Deliveries:
		d, err := schemas.DecodeDelivery(r, topicID)
		if err != nil {
			l.unreadable++
			return
		}
		id := d.ID.String()
		l.deliveries = append(l.deliveries, ledger.Delivery{ID: id, EventID: d.EventID, WebhookID: d.WebhookID})
		l.unended[id] = true
	default:
		o, err := schemas.DecodeOutcome(r)
		if err != nil {
			l.unreadable++
			return
		}
		l.outcome(r, &o)
	}
}

// outcome keeps an outcome. The caller holds mu. An end may come before its
// delivery, which another partition has.
func (l *log) outcome(r *kgo.Record, o *schemas.Outcome) {
	id := o.DeliveryID.String()
	l.outcomes = append(l.outcomes, ledger.Outcome{
		Row:     ledger.Row{Partition: r.Partition, Offset: r.Offset, DeliveryID: id, Attempt: o.Attempt, Result: string(o.Result)},
		EventID: o.EventID, WebhookID: o.WebhookID, Requested: requested(o),
	})
}

// requested tells whether a target has seen a request of an attempt.
func requested(o *schemas.Outcome) bool {
	reached := []deliver.Reason{
		deliver.ReasonTimeout, deliver.ReasonReset, deliver.ReasonHeadTooLarge, deliver.ReasonResponseTooLarge,
		deliver.ReasonProtocol, deliver.ReasonNetwork,
	}
	return o.StatusCode > 0 || slices.Contains(reached, deliver.Reason(o.Reason))
}

// settled says what is still to come, if anything: deliveries without an end, and
// records not read yet. Held is an end as far as this goes.
func (l *log) settled(w *world) error {
	count := w.ledger.Count()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	ends, err := kadm.NewClient(l.client).ListCommittedOffsets(ctx, w.topics.Deliveries, w.topics.Outcomes)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("asking for ends: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.outcomes {
		if o.Result != string(schemas.ResultRetry) {
			delete(l.unended, o.DeliveryID)
		}
	}
	var behind error
	ends.Each(func(o kadm.ListedOffset) {
		if at := l.at[kafka.Place{Topic: o.Topic, Partition: o.Partition}]; at < o.Offset {
			behind = fmt.Errorf("%s/%d is read to %d of %d", o.Topic, o.Partition, at, o.Offset)
		}
	})
	if n := len(l.unended); n > 0 || len(l.deliveries) < count.Due {
		return fmt.Errorf("%d accepted, %d deliveries made of %d, %d of them not accepted by their targets, %d without an end",
			count.Accepted, len(l.deliveries), count.Due, count.Owed, n)
	}
	return behind
}

// newer counts a topic's records of newer versions.
func (l *log) newer(topic string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newerOnes[topic]
}

// made is how many deliveries were.
func (l *log) made() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.deliveries)
}

// count is that of the outcomes.
func (l *log) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.outcomes)
}

func (l *log) facts() ledger.Facts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return ledger.Facts{Deliveries: slices.Clone(l.deliveries), Outcomes: slices.Clone(l.outcomes)}
}
