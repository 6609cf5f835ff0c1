package consume

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

// ended counts the deliveries of a webhook by how they ended, and those that have not.
func (s *sim) ended(id string) map[string]int {
	counts := make(map[string]int)
	for _, list := range s.outcomes {
		if o := list[len(list)-1]; o.WebhookID == id {
			counts[fmt.Sprintf("%s %s", o.Result, o.Reason)]++
		}
	}
	return counts
}

// events returns the operational events written, by name.
func (s *sim) events(t *testing.T) map[string][]schemas.Event {
	t.Helper()
	found := make(map[string][]schemas.Event)
	for p, records := range s.logs {
		if p.topic != s.topics.Events {
			continue
		}
		for _, r := range records {
			e, err := schemas.DecodeEvent(r)
			if err != nil || e.Source != schemas.OperationalSource {
				t.Fatalf("event %+v, error %v", e, err)
			}
			found[e.Name] = append(found[e.Name], e)
		}
	}
	return found
}

// report reads the payload of the only event of a name.
func report[T any](t *testing.T, events map[string][]schemas.Event, name string) (v T) {
	t.Helper()
	if len(events[name]) != 1 {
		t.Fatalf("%d events %s, want one", len(events[name]), name)
	}
	if err := json.Unmarshal(events[name][0].Payload, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestGoneDisablesUntilEnabled(t *testing.T) {
	for _, gone := range []deliver.Verdict{
		{Action: deliver.Final, Reason: deliver.ReasonGone, Health: deliver.Answering, Disable: true},
		{Action: deliver.Delivered, Health: deliver.Well, Disable: true},
	} {
		s := startSim(t, 1)
		s.webhook(t, "w", nil)
		s.webhook(t, "other", nil)
		answer := gone
		s.target = func(it *item) (time.Duration, deliver.Verdict) {
			if it.delivery.WebhookID == "other" {
				return time.Millisecond, well
			}
			return time.Millisecond, answer
		}
		s.deliver("w", 1)
		s.run(t, s.now.Add(time.Second), nil)
		s.deliver("w", 50)
		s.deliver("other", 50)
		s.run(t, s.now.Add(time.Second), nil)
		if got := s.ended("w"); got["discarded webhook_disabled"] != 50 || len(s.requests["w"]) != 1 {
			t.Errorf("%d requests, ended %v; want one, and 50 discarded", len(s.requests["w"]), got)
		}
		if got := s.ended("other"); got["delivered "] != 50 {
			t.Errorf("the other's ended %v, want 50 delivered", got)
		}
		why := report[schemas.WebhookReport](t, s.events(t), schemas.WebhookDisabled)
		if want := map[bool]string{true: "unwanted", false: "gone"}[gone.Action == deliver.Delivered]; why.ID != "w" || why.Reason != want || why.Generation != 1 {
			t.Errorf("webhook.disabled says %+v, want reason %s", why, want)
		}
		if changes := s.logs[place{s.topics.Changes, 0}]; len(changes) != 1 {
			t.Errorf("%d changes, want one", len(changes))
		}
		// A new owner of the partition knows, and enabling wins.
		s.rebalance()
		s.deliver("w", 1)
		s.run(t, s.now.Add(time.Second), nil)
		if len(s.requests["w"]) != 1 {
			t.Error("asked by the next owner of its partition")
		}
		answer = well
		s.webhook(t, "w", func(w *schemas.Webhook) { w.Generation++ })
		s.deliver("w", 1)
		s.run(t, s.now.Add(time.Second), nil)
		if len(s.requests["w"]) != 2 {
			t.Errorf("%d requests after it was enabled, want 2", len(s.requests["w"]))
		}
	}
}

// TestDisabledByTheClock has an event an hour, so that little is in memory at a time.
func TestDisabledByTheClock(t *testing.T) {
	tests := []struct {
		name     string
		every    time.Duration
		well     time.Duration // when a single delivery is taken
		disabled time.Duration // 0: never
	}{
		{"all fail", time.Hour, -1, 5 * 24 * time.Hour},
		{"one is taken on the third day", time.Hour, 3 * 24 * time.Hour, 8 * 24 * time.Hour},
		{"few fail", 3 * 24 * time.Hour, -1, 0}, // 4 attempts in 10 days
	}
	for _, test := range tests {
		s := startSim(t, 1)
		s.board.effects.disableAfter = 5 * 24 * time.Hour
		s.webhook(t, "w", func(w *schemas.Webhook) { w.RetrySchedule = []string{} })
		began := s.now
		s.target = func(*item) (time.Duration, deliver.Verdict) {
			if since := s.now.Sub(began); test.well >= 0 && since >= test.well && since < test.well+test.every {
				return time.Millisecond, well
			}
			return time.Millisecond, deliver.Verdict{Action: deliver.Retry, Reason: deliver.ReasonStatus, Health: deliver.Answering}
		}
		for s.now.Sub(began) < 10*24*time.Hour {
			s.deliver("w", 1)
			s.run(t, s.now.Add(test.every), nil)
			s.board.sweep(s.now)
			if s.now.Sub(began)%(7*time.Hour) < test.every {
				s.rebalance() // what is known of it is in the topic
			}
		}
		disabled := s.events(t)[schemas.WebhookDisabled]
		if test.disabled == 0 {
			if len(disabled) != 0 {
				t.Errorf("%s: disabled after %v, want never", test.name, disabled[0].Time.Sub(began))
			}
			continue
		}
		why := report[schemas.WebhookReport](t, s.events(t), schemas.WebhookDisabled)
		if after := why.DisabledAt.Sub(began); why.Reason != reasonFailing || after < test.disabled || after > test.disabled+9*time.Hour {
			t.Errorf("%s: disabled after %v for %s, want after %v", test.name, after, why.Reason, test.disabled)
		}
	}
}

func TestStatesAreKeptOnlyOfWhatFailsForLong(t *testing.T) {
	s := startSim(t, 1)
	s.webhook(t, "w", nil)
	began := s.now
	n := 0
	s.target = func(*item) (time.Duration, deliver.Verdict) {
		if n++; n%2 == 0 && s.now.Sub(began) < 5*time.Minute {
			return time.Millisecond, well
		}
		return time.Millisecond, deliver.Verdict{Action: deliver.Retry, Reason: deliver.ReasonStatus, Health: deliver.Answering}
	}
	states := place{s.topics.WebhookStates, 0}
	s.run(t, began.Add(4*time.Minute), s.feed(5, began.Add(4*time.Minute)))
	if n := len(s.logs[states]); n != 0 {
		t.Errorf("%d states written of a target that takes every second delivery, want none", n)
	}
	s.now = began.Add(5 * time.Minute)
	s.run(t, began.Add(20*time.Minute), s.feed(5, began.Add(20*time.Minute)))
	if n := len(s.logs[states]); n == 0 || n > leastAttempts+1 {
		t.Errorf("%d states written of one that fails, want from 1 to %d", n, leastAttempts+1)
	}
	last, err := schemas.DecodeWebhookState(s.logs[states][len(s.logs[states])-1])
	if err != nil || last.FailingSince.Before(began.Add(4*time.Minute)) || last.FailingSince.After(began.Add(6*time.Minute)) || !last.DisabledAt.IsZero() {
		t.Errorf("state %+v, error %v", last, err)
	}
}

func TestReportsOfDeliveries(t *testing.T) {
	s := startSim(t, 1)
	s.webhook(t, "w", func(w *schemas.Webhook) { w.RetrySchedule = []string{"1s", "1s", "1s", "1s"} })
	for _, test := range []struct {
		takes int // the attempt that the target takes; 0: none
		event string
		want  []string
	}{
		{1, "labs.created", nil},
		{4, "labs.created", nil},
		{5, "labs.created", []string{schemas.DeliveryFailing, schemas.DeliveryRecovered}},
		{0, "labs.created", []string{schemas.DeliveryDead, schemas.DeliveryFailing}},
		{0, schemas.DeliveryDead, nil}, // about itself
	} {
		s.logs[place{s.topics.Events, 0}] = nil
		attempts := 0
		s.target = func(*item) (time.Duration, deliver.Verdict) {
			if attempts++; attempts == test.takes {
				return time.Millisecond, well
			}
			return time.Millisecond, deliver.Verdict{Action: deliver.Retry, Reason: deliver.ReasonStatus, Health: deliver.Answering}
		}
		s.write((&schemas.Delivery{
			WebhookID: "w", EventID: "e", Event: test.event, Organization: "org", Cause: schemas.CauseEvent, Body: []byte("{}"),
		}).Record(s.topics.Deliveries))
		s.run(t, s.now.Add(time.Minute), nil)
		events := s.events(t)
		var names []string
		for name := range events {
			names = append(names, name)
			if r := report[schemas.DeliveryReport](t, events, name); r.WebhookID != "w" || r.EventID != "e" || r.Attempt < schemas.FailingAfter {
				t.Errorf("%s says %+v", name, r)
			}
		}
		if slices.Sort(names); !slices.Equal(names, test.want) {
			t.Errorf("taken at attempt %d of %s: events %v, want %v", test.takes, test.event, names, test.want)
		}
	}
}

func TestPausedIsHeldAndReleased(t *testing.T) {
	s := startSim(t, 2)
	s.target = func(*item) (time.Duration, deliver.Verdict) { return time.Millisecond, well }
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		s.webhook(t, id, func(w *schemas.Webhook) { w.Paused = id != "f" })
		s.deliver(id, 300)
	}
	s.run(t, s.now.Add(time.Minute), nil)
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		if got := s.ended(id); got["held webhook_paused"] != 300 || len(s.requests[id]) != 0 {
			t.Fatalf("%s: %d requests, outcomes %v; want none, and 300 held", id, len(s.requests[id]), got)
		}
	}
	if len(s.requests["f"]) != 300 {
		t.Errorf("%d requests of the one that is not paused, want 300", len(s.requests["f"]))
	}
	heldOf := func() (n int) { return len(s.logs[place{s.topics.Held, 0}]) + len(s.logs[place{s.topics.Held, 1}]) }
	if n := heldOf(); n != 5*300 {
		t.Errorf("%d records in held, want %d", n, 5*300)
	}

	s.webhook(t, "a", func(w *schemas.Webhook) { w.Paused, w.ResumedAt = false, s.now })
	s.run(t, s.now.Add(time.Minute), nil)
	if len(s.requests["a"]) != 300 {
		t.Errorf("%d requests of the one that was resumed, want 300", len(s.requests["a"]))
	}
	if n := heldOf(); n > 5*300+4*300 {
		t.Errorf("%d records in held after a release, want each of the others at most once more", n)
	}
	// While nobody worked the partitions, another was resumed and a third deleted.
	s.board.giveUp(nil)
	s.webhook(t, "b", func(w *schemas.Webhook) { w.Paused, w.ResumedAt = false, s.now })
	s.webhooks.apply(schemas.Tombstone(s.topics.Webhooks, "c"))
	s.now = s.now.Add(time.Hour)
	s.join()
	s.run(t, s.now.Add(time.Minute), nil)
	if len(s.requests["b"]) != 300 {
		t.Errorf("%d requests of the one that was resumed meanwhile, want 300", len(s.requests["b"]))
	}
	s.run(t, s.now.Add(heldRest), nil)
	if got := s.ended("c"); got["discarded webhook_deleted"] != 300 {
		t.Errorf("outcomes of the deleted one after a day: %v, want 300 discarded", got)
	}
	for range 31 {
		s.run(t, s.now.Add(heldRest), nil)
	}
	for _, id := range []string{"d", "e"} {
		if got := s.ended(id); got["discarded held_too_long"] != 300 || len(s.requests[id]) != 0 {
			t.Errorf("%s after a month: %d requests, outcomes %v; want 300 discarded", id, len(s.requests[id]), got)
		}
	}
	if n := heldOf(); n > 20_000 {
		t.Errorf("%d records in held, want each once a day at most", n)
	}
}

// TestHeldByOneThatDidNotKnow holds a delivery after its webhook was resumed, as
// an attempt does that looked it up before.
func TestHeldByOneThatDidNotKnow(t *testing.T) {
	s := startSim(t, 1)
	s.target = func(*item) (time.Duration, deliver.Verdict) { return time.Millisecond, well }
	s.webhook(t, "w", func(w *schemas.Webhook) { w.Paused = true })
	s.webhook(t, "other", func(w *schemas.Webhook) { w.Paused = true })
	s.deliver("other", 10)
	s.run(t, s.now.Add(time.Second), nil)
	s.deliver("w", 1)
	s.poll()
	r := s.board.admit(s.now)
	if len(r.begin) != 1 || !r.begin[0].aside {
		t.Fatalf("begun %d, want one aside", len(r.begin))
	}
	held := s.attempt(t.Context(), r.begin[0])
	s.now = s.now.Add(time.Millisecond)
	s.webhook(t, "w", func(w *schemas.Webhook) { w.Paused, w.ResumedAt = false, s.now })
	s.run(t, s.now.Add(time.Second), nil) // the others are passed through
	s.board.finish(r.begin[0], held, s.now)
	s.run(t, s.now.Add(time.Second), nil)
	if len(s.requests["w"]) != 1 {
		t.Errorf("%d requests, want the one that was held too late", len(s.requests["w"]))
	}
}

// TestEnablingWinsOverALateDisable has a 410 come for an attempt that was made before the webhook was enabled.
func TestEnablingWinsOverALateDisable(t *testing.T) {
	for _, seen := range []bool{false, true} { // whether anything was asked of it since
		s := startSim(t, 1)
		s.webhook(t, "w", nil)
		s.target = func(*item) (time.Duration, deliver.Verdict) {
			if len(s.requests["w"]) == 1 {
				return 10 * time.Second, deliver.Verdict{Action: deliver.Final, Reason: deliver.ReasonGone, Health: deliver.Answering, Disable: true}
			}
			return time.Millisecond, well
		}
		s.deliver("w", 1)
		s.run(t, s.now.Add(time.Second), nil)
		before := s.flights[0].it
		was, _ := s.webhooks.get("w")
		s.webhook(t, "w", func(w *schemas.Webhook) { w.Generation++ })
		if seen {
			s.deliver("w", 1)
			s.run(t, s.now.Add(time.Second), nil)
		}
		e := s.judged(before, was, &deliver.Attempt{StartedAt: before.started}, s.flights[0].verdict)
		s.flights = nil
		s.board.finish(before, e, s.now)
		s.deliver("w", 1)
		s.run(t, s.now.Add(time.Second), nil)
		if got := s.ended("w"); got["dead gone"] != 1 || got["delivered "] != len(s.requests["w"])-1 || len(got) != 2 {
			t.Errorf("asked in between: %t: outcomes %v, want one gone and the rest delivered", seen, got)
		}
	}
}
