package ledger

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Facts is what the system says of itself.
type Facts struct {
	Deliveries []Delivery // of the topic deliveries, committed ones
	Outcomes   []Outcome  // of the topic outcomes, committed ones
	Rows       []Row      // of ClickHouse's table outcomes
	Events     []EventRow // of ClickHouse's view events
	Kills      []Kill     // of senders
	// Aside are the outcomes whose rows ClickHouse refused, as the audit says in rejected.
	Aside map[Place]bool
	// MayRepeat is how many requests may have come again without a kill, such as
	// those cut off when their partition went to another sender.
	MayRepeat int
}

// Delivery is a record of the topic deliveries.
type Delivery struct{ ID, EventID, WebhookID string }

// Outcome is a record of the topic outcomes, with its place.
type Outcome struct {
	Row

	EventID, WebhookID string
	Requested          bool // an attempt was made
}

// Row is a row of the table outcomes.
type Row struct {
	Partition  int32
	Offset     int64
	DeliveryID string
	Attempt    int
	Result     string
}

// Place is where an outcome stands in its topic.
type Place struct {
	Partition int32
	Offset    int64
}

// EventRow is a row of the view events.
type EventRow struct {
	ID      string
	Matches int
}

// Kill is the end of a sender that could not say what it was about.
type Kill struct {
	At   time.Time
	Ends map[int32]int64 // the end of each partition of outcomes, then
}

// Verdict is what a scenario came to.
type Verdict struct {
	Accepted  int `json:"accepted"`  // events
	Owed      int `json:"owed"`      // deliveries of them
	Delivered int `json:"delivered"` // by their outcomes
	Dead      int `json:"dead"`
	Discarded int `json:"discarded"`
	// Held counts deliveries of paused webhooks, which wait to be resumed.
	Held int `json:"held"`
	// Lost counts owed deliveries that were not made or have no end, and ends called
	// delivered that no target accepted.
	Lost int `json:"lost"`
	// Doubled counts deliveries made more than once of an event, and ends after the first.
	Doubled int `json:"doubled"`
	// Repeated counts requests beyond one an attempt; InFlight those that the killed
	// senders had no committed outcome of, and so bounds Repeated.
	Repeated int `json:"repeated"`
	InFlight int `json:"in_flight"`
	// AuditMissing and AuditExtra count rows of ClickHouse against the topics' records.
	AuditMissing int `json:"audit_missing"`
	AuditExtra   int `json:"audit_extra"`
	// WorstP99 is the greatest of all windows of WorstWindow of the time from
	// accepted to the first request, 99th percentile.
	WorstP99 time.Duration `json:"worst_p99_ns"`

	Findings []string `json:"findings,omitempty"`
}

// WorstWindow is how long a window of Verdict.WorstP99 is.
const WorstWindow = 5 * time.Second

// findings are texts, of which the first so many are kept.
type findings struct {
	texts []string
	more  int
}

func (f *findings) add(format string, args ...any) {
	const most = 20
	if len(f.texts) == most {
		f.more++
		return
	}
	f.texts = append(f.texts, fmt.Sprintf(format, args...))
}

func (f *findings) addAll(other findings) {
	for _, text := range other.list() {
		f.add("%s", text)
	}
}

func (f *findings) list() []string {
	if f.more == 0 {
		return f.texts
	}
	return append(slices.Clone(f.texts), fmt.Sprintf("and %d more", f.more))
}

// Judge compares the book with the facts, when all has come to rest.
func (l *Ledger) Judge(f Facts) Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	j := judge{ledger: l, paths: map[string]string{}}
	j.findings = findings{texts: slices.Clone(l.wrong.texts), more: l.wrong.more}
	j.verdict.Accepted = l.accepted
	for path, w := range l.webhooks {
		j.paths[w.ID] = path
	}
	made := j.deliveries(f.Deliveries)
	ends := j.ends(f.Outcomes)
	j.losses(made, ends)
	j.repeats(f.Outcomes, f.Kills, f.MayRepeat)
	j.rows(f.Outcomes, f.Rows, f.Aside)
	j.events(f.Events)
	j.verdict.WorstP99 = l.worstP99Locked()
	j.verdict.Findings = j.findings.list()
	return j.verdict
}

type judge struct {
	ledger   *Ledger
	paths    map[string]string // of webhooks, by id
	verdict  Verdict
	findings findings
}

// deliveries are those made, by event and webhook.
func (j *judge) deliveries(all []Delivery) map[pair]string {
	made := make(map[pair]string, len(all))
	for _, d := range all {
		key := pair{d.EventID, j.paths[d.WebhookID]}
		switch {
		case key.webhook == "":
			j.findings.add("delivery %s of event %s is for a webhook that nobody made: %s", d.ID, d.EventID, d.WebhookID)
			continue
		case j.ledger.events[d.EventID] == nil:
			j.findings.add("delivery %s is of an event that nobody sent: %s", d.ID, d.EventID)
			continue
		case j.barred(key):
			j.findings.add("event %s, sent after %s was gone, has a delivery to it", d.EventID, key.webhook)
		case made[key] != "":
			j.verdict.Doubled++
			j.findings.add("event %s has two deliveries to %s: %s and %s", d.EventID, key.webhook, made[key], d.ID)
		}
		made[key] = d.ID
	}
	return made
}

// barred says that an event was sent after it was acknowledged that a webhook takes no more.
func (j *judge) barred(key pair) bool {
	since, gone := j.ledger.gone[key.webhook]
	return gone && j.ledger.events[key.event].sentAt.After(since)
}

// ends are the results of deliveries, by the deliveries' ids; held is not one, but
// stands here for a delivery that has no other.
func (j *judge) ends(outcomes []Outcome) map[string]string {
	ends := make(map[string]string, len(outcomes))
	for _, o := range outcomes {
		had := ends[o.DeliveryID]
		switch {
		case o.Result == "retry":
		case o.Result == "held":
			ends[o.DeliveryID] = cmp.Or(had, "held")
		case had != "" && had != "held":
			j.verdict.Doubled++
			j.findings.add("delivery %s of event %s ended twice: %s and %s", o.DeliveryID, o.EventID, had, o.Result)
		default:
			ends[o.DeliveryID] = o.Result
		}
	}
	return ends
}

// losses goes from what was accepted to its ends.
func (j *judge) losses(made map[pair]string, ends map[string]string) {
	for id, e := range j.ledger.events {
		if e.acceptedAt.IsZero() {
			continue
		}
		for _, w := range e.webhooks {
			j.verdict.Owed++
			if made[pair{id, w.Path}] == "" {
				j.verdict.Lost++
				j.findings.add("event %s, accepted at %s, has no delivery to %s", id, e.acceptedAt.Format(time.TimeOnly), w.Path)
			}
		}
	}
	for key, delivery := range made {
		seen := j.ledger.seen[key]
		switch ends[delivery] {
		case "delivered":
			j.verdict.Delivered++
			if seen == nil || !seen.accepted {
				j.verdict.Lost++
				j.findings.add("delivery %s of event %s is called delivered, but %s did not accept it", delivery, key.event, key.webhook)
			}
		case "dead":
			j.verdict.Dead++
		case "discarded":
			j.verdict.Discarded++
		case "held":
			j.verdict.Held++
		default:
			j.verdict.Lost++
			j.findings.add("delivery %s of event %s to %s has no end", delivery, key.event, key.webhook)
		}
	}
}

// repeats compares requests with outcomes. A request without an outcome of its own
// was in flight at a kill, and at each kill of a delivery at most one is; but for
// so many that may have no such cause.
func (j *judge) repeats(outcomes []Outcome, kills []Kill, may int) {
	told := map[pair][]Outcome{}
	var unexplained findings
	count := 0
	for _, o := range outcomes {
		if o.Requested {
			key := pair{o.EventID, j.paths[o.WebhookID]}
			told[key] = append(told[key], o)
		}
	}
	for key, seen := range j.ledger.seen {
		extra := len(seen.at) - len(told[key])
		inFlight := 0
		for _, kill := range kills {
			if seen.before(kill.At) > before(told[key], kill.Ends)+inFlight {
				inFlight++
			}
		}
		j.verdict.Repeated += max(extra, 0)
		j.verdict.InFlight += inFlight
		switch {
		case extra > inFlight:
			count += extra - inFlight
			unexplained.add("event %s came %d times to %s, for %d attempts and %d in flight at kills", key.event, len(seen.at), key.webhook, len(told[key]), inFlight)
		case extra < 0:
			j.findings.add("event %s came %d times to %s, fewer than its %d attempts", key.event, len(seen.at), key.webhook, len(told[key]))
		}
	}
	if count > may {
		j.findings.add("%d requests came again without a kill, want %d at most", count, may)
		j.findings.addAll(unexplained)
	}
}

func (d *delivery) before(moment time.Time) (n int) {
	for _, at := range d.at {
		if at.Before(moment) {
			n++
		}
	}
	return n
}

func before(outcomes []Outcome, ends map[int32]int64) (n int) {
	for _, o := range outcomes {
		if o.Offset < ends[o.Partition] {
			n++
		}
	}
	return n
}

// rows compares the table outcomes with the topic.
func (j *judge) rows(outcomes []Outcome, rows []Row, aside map[Place]bool) {
	topic := make(map[Place]Row, len(outcomes))
	for _, o := range outcomes {
		if at := (Place{o.Partition, o.Offset}); !aside[at] {
			topic[at] = o.Row
		}
	}
	for _, row := range rows {
		at := Place{row.Partition, row.Offset}
		want, ok := topic[at]
		if !ok {
			j.verdict.AuditExtra++
			j.findings.add("ClickHouse has a row of outcomes %d@%d that has no record, or a second one", row.Partition, row.Offset)
			continue
		}
		if row != want {
			j.findings.add("ClickHouse's row of outcomes %d@%d is %v, want %v", row.Partition, row.Offset, row, want)
		}
		delete(topic, at)
	}
	j.verdict.AuditMissing += len(topic)
	for at := range topic {
		j.findings.add("ClickHouse has no row of outcomes %d@%d", at.Partition, at.Offset)
	}
}

// events compares the view events with what was accepted.
func (j *judge) events(rows []EventRow) {
	seen := make(map[string]bool, len(rows))
	for _, row := range rows {
		e := j.ledger.events[row.ID]
		switch {
		case e == nil:
			j.findings.add("ClickHouse has a row of an event that nobody sent: %s", row.ID)
			continue
		case seen[row.ID]:
			j.verdict.AuditExtra++
			j.findings.add("ClickHouse has event %s twice", row.ID)
		case !e.acceptedAt.IsZero() && row.Matches != len(e.webhooks):
			j.findings.add("ClickHouse says that event %s matched %d webhooks, want %d", row.ID, row.Matches, len(e.webhooks))
		}
		seen[row.ID] = true
	}
	for id, e := range j.ledger.events {
		if !e.acceptedAt.IsZero() && !seen[id] {
			j.verdict.AuditMissing++
			j.findings.add("ClickHouse has no row of event %s", id)
		}
	}
}

// worstP99Locked is by the moment of acceptance. Windows of fewer than a hundred
// requests are passed over.
func (l *Ledger) worstP99Locked() (worst time.Duration) {
	windows := map[int64][]time.Duration{}
	for key, d := range l.seen {
		if at := l.events[key.event].acceptedAt; !at.IsZero() {
			window := at.UnixNano() / int64(WorstWindow)
			windows[window] = append(windows[window], max(0, d.at[0].Sub(at)))
		}
	}
	for _, waits := range windows {
		if len(waits) < 100 {
			continue
		}
		slices.Sort(waits)
		worst = max(worst, Quantile(waits, 0.99))
	}
	return worst
}
