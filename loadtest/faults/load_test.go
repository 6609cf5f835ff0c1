package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const eventName = "medical-encounters.created"

// load sends events at a steady rate until it is stopped: a half by a producer
// straight to Kafka, two fifths by REST in batches, a tenth by REST one by one.
// Each is sent until it is accepted, however often that takes, so that those
// accepted are all there are; and every fiftieth once more, which must make nothing.
type load struct {
	w       *world
	numbers atomic.Int64
	end     chan struct{}
	work    sync.WaitGroup
	http    *http.Client
}

const batchSize = 20

// startLoad starts the load of so many events a second, of all organizations in turn.
func (w *world) startLoad(rate int) {
	w.t.Helper()
	if rate == 0 {
		rate = pick(400, 1000)
	}
	l := &load{
		w: w, end: make(chan struct{}),
		http: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}},
	}
	w.load = l
	producer := w.client(kgo.ProducerLinger(5*time.Millisecond), kgo.MetadataMinAge(250*time.Millisecond),
		kgo.AllowIdempotentProduceCancellation())
	l.work.Go(func() { l.produce(producer, rate/2) })
	const batchers, posters = 4, 10
	for range batchers {
		l.work.Go(func() { l.post(batchers*batchSize, rate*2/5, batchSize) })
	}
	for range posters {
		l.work.Go(func() { l.post(posters, rate/10, 1) })
	}
}

// sent is an event as a producer has it.
type sent struct {
	id, organization, text string
	again                  bool // it is to be sent once more when it is accepted
}

const (
	copyEvery = 50
	// copyWithin is how long after an event its copy comes to Kafka, at most: whoever
	// was to remember it may have ended meanwhile.
	copyWithin = 3 * time.Second
)

// The first letter of an event's id says which way it is sent.
const (
	byREST  = "r"
	byKafka = "k"
)

// next is a new event, which the ledger knows of.
func (l *load) next(way string) sent {
	n := l.numbers.Add(1)
	e := l.w.sends(way+strconv.FormatInt(n, 10), l.w.organizations[int(n)%len(l.w.organizations)])
	e.again = n%copyEvery == 0
	return e
}

// sends tells the ledger of an event that is about to be sent.
func (w *world) sends(id, organization string) sent {
	payload := fmt.Sprintf(`{"n": %q, "half": 0.50, "filler": %q}`, id, strings.Repeat("x", 200))
	w.ledger.Sends(id, organization, fmt.Appendf(nil, `{"id":%q,"event":%q,"payload":%s}`, id, eventName, payload))
	text := fmt.Sprintf(`{"event":%q,"organization":%q,"id":%q,"payload":%s}`, eventName, organization, id, payload)
	return sent{id: id, organization: organization, text: text}
}

// every calls f so many times a second, until the load ends. What was missed is made up for.
func (l *load) every(rate float64, f func()) {
	start := time.Now()
	for n := 0; ; n++ {
		select {
		case <-l.end:
			return
		case <-time.After(time.Until(start.Add(time.Duration(float64(n) / rate * float64(time.Second))))):
		}
		f()
	}
}

// mostUnanswered bounds what a producer has under way: an outage stops it.
const mostUnanswered = 5000

func (l *load) produce(producer *kgo.Client, rate int) {
	slots := make(chan struct{}, mostUnanswered)
	l.every(float64(rate), func() {
		slots <- struct{}{}
		e := l.next(byKafka)
		l.produceUntilAccepted(producer, e, func() { <-slots })
	})
	for range mostUnanswered {
		slots <- struct{}{}
	}
}

func (l *load) produceUntilAccepted(producer *kgo.Client, e sent, done func()) {
	record := &kgo.Record{Topic: l.w.topics.Events, Key: []byte(e.organization), Value: []byte(e.text)}
	producer.Produce(l.w.t.Context(), record, func(_ *kgo.Record, err error) {
		switch {
		case err == nil && !e.again:
			l.w.ledger.Accepted(e.id)
			done()
		case l.w.t.Context().Err() != nil || errors.Is(err, kgo.ErrClientClosed):
			done()
		case err == nil:
			l.w.ledger.Accepted(e.id)
			e.again = false
			time.AfterFunc(rand.N(copyWithin), func() { l.produceUntilAccepted(producer, e, done) })
		default:
			go l.produceUntilAccepted(producer, e, done) // a callback must not produce
		}
	})
}

// post is one of some clients that together send so many events a second.
func (l *load) post(divisor, rate, size int) {
	l.every(float64(rate)/float64(divisor), func() {
		events := make([]sent, size)
		for i := range events {
			events[i] = l.next(byREST)
		}
		l.postUntilAccepted(events)
	})
}

func (l *load) postUntilAccepted(events []sent) {
	backOff := time.NewTicker(100 * time.Millisecond)
	defer backOff.Stop()
	for len(events) > 0 {
		var err error
		if events, err = l.postOnce(l.w.t.Context(), events); err == nil {
			continue
		}
		select {
		case <-l.w.t.Context().Done():
			return
		case <-backOff.C:
		}
	}
}

// postOnce posts events and returns those that are not accepted.
func (l *load) postOnce(ctx context.Context, events []sent) (left []sent, err error) {
	body := events[0].text
	if len(events) > 1 {
		texts := make([]string, len(events))
		for i, e := range events {
			texts[i] = e.text
		}
		body = "[" + strings.Join(texts, ",") + "]"
	}
	status, answer, err := l.w.try(ctx, l.http, http.MethodPost, "/v1/events", body)
	if err != nil || status != http.StatusAccepted {
		return events, fmt.Errorf("posting: status %d: %w", status, err)
	}
	if len(events) == 1 {
		return l.accepted(events, func(sent) bool { return true }), nil
	}
	var results struct {
		Results []struct {
			ID     string
			Status int
		}
	}
	if err := json.Unmarshal(answer, &results); err != nil {
		return events, fmt.Errorf("reading results: %w", err)
	}
	accepted := map[string]bool{}
	for _, r := range results.Results {
		accepted[r.ID] = r.Status == http.StatusAccepted
	}
	return l.accepted(events, func(e sent) bool { return accepted[e.id] }), nil
}

// accepted tells the ledger and returns the events that are to be sent once more.
func (l *load) accepted(events []sent, accepted func(sent) bool) (left []sent) {
	for _, e := range events {
		if !accepted(e) {
			left = append(left, e)
			continue
		}
		l.w.ledger.Accepted(e.id)
		if e.again {
			e.again = false
			left = append(left, e)
		}
	}
	return left
}

// stop ends the load, and blocks until everything sent is accepted.
func (l *load) stop(t *testing.T) {
	t.Helper()
	if l == nil {
		return
	}
	close(l.end)
	done := make(chan struct{})
	go func() { defer close(done); l.work.Wait() }()
	select {
	case <-done:
	case <-time.After(2 * soon):
		t.Fatalf("waiting for the load to end: %+v", l.w.ledger.Count())
	}
	l.http.CloseIdleConnections()
}
