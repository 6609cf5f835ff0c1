package verify

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Kind is what a finding says. The kinds are stable: programs may tell them apart.
type Kind string

// The kinds.
const (
	// In the log.
	NoEnd                  Kind = "delivery_without_end"     // neither an end nor a record that waits
	TwoEnds                Kind = "delivery_with_two_ends"   // a second end
	EndAndWaiting          Kind = "ended_delivery_waits"     // an end, and a record that waits
	TwoWaiting             Kind = "delivery_waits_twice"     // two records that wait
	OutcomeWithoutDelivery Kind = "outcome_without_delivery" // an outcome of a delivery that does not stand in deliveries
	WaitingWithoutDelivery Kind = "waiting_without_delivery" // a record that waits, of a delivery that does not stand in deliveries
	EventNotRouted         Kind = "event_not_routed"         // the router has passed an event and decided nothing on it
	DeliveriesDiffer       Kind = "event_deliveries_differ"  // an event has other deliveries than routed says
	// The log against ClickHouse.
	OutcomeRowMissing  Kind = "outcome_row_missing"
	OutcomeRowTwice    Kind = "outcome_row_twice"
	OutcomeRowOnly     Kind = "outcome_row_without_record"
	DeliveryRowMissing Kind = "delivery_row_missing"
	DeliveryRowBehind  Kind = "delivery_row_without_its_end" // the log has the end, the audit's states have none
	DeliveryRowOnly    Kind = "delivery_row_without_record"
	EventRowMissing    Kind = "event_row_missing"
	EventRowTwice      Kind = "event_row_twice"
	EventRowOnly       Kind = "event_row_without_record"
)

// Finding is one thing that is not as it must be.
type Finding struct {
	Kind         Kind   `json:"kind"`
	DeliveryID   string `json:"delivery_id,omitempty"`
	EventID      string `json:"event_id,omitempty"`
	Organization string `json:"organization,omitempty"`
	WebhookID    string `json:"webhook_id,omitempty"`
	// Topic, Partition and Offset are the place of the record it is about.
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Expected  string `json:"expected"`
	Found     string `json:"found"`
}

// Report is what a verification came to. Its JSON is stable: members may be added.
type Report struct {
	// AsOf is the moment it is about: everything that had been committed by then.
	AsOf         time.Time `json:"as_of"`
	Since        time.Time `json:"since,omitzero"`
	Until        time.Time `json:"until,omitzero"`
	Organization string    `json:"organization,omitempty"`

	Events     EventCounts    `json:"events"`
	Deliveries DeliveryCounts `json:"deliveries"`
	Rows       RowCounts      `json:"rows"`

	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"deliveries_per_second"`

	// NotChecked says in words what could not be told, and why.
	NotChecked []string `json:"not_checked"`

	// Total counts all findings, ByKind each kind's; Findings lists the first of them.
	Total    int64          `json:"findings_total"`
	ByKind   map[Kind]int64 `json:"findings_by_kind"`
	Findings []Finding      `json:"findings"`
}

// EventCounts are about events in the log that the router has passed.
type EventCounts struct {
	Total     int64 `json:"total"`
	Matched   int64 `json:"matched"`
	Unmatched int64 `json:"unmatched"`
	Duplicate int64 `json:"duplicate"`
	Rejected  int64 `json:"rejected"`
	// Expired are those on which routed says nothing any more.
	Expired int64 `json:"expired"`
	// Waiting are those the router has not come to.
	Waiting int64 `json:"waiting"`
	// Routed is the number of deliveries that routed promises.
	Routed int64 `json:"routed_deliveries"`
}

// DeliveryCounts are about deliveries in the log: Total = Ended + Pending + SetAside + those without end, which are findings.
type DeliveryCounts struct {
	Total int64            `json:"total"`
	Ended map[string]int64 `json:"ended"`
	// Pending are those that wait, by where: deliveries, retry.<delay>, held.
	Pending map[string]int64 `json:"pending"`
	// SetAside are in rejected: nobody can read them.
	SetAside int64 `json:"set_aside"`
	// Older are deliveries that wait and that the log of deliveries no longer has; they are not in Total.
	Older    int64 `json:"older_than_log"`
	Outcomes int64 `json:"outcomes"`
}

// RowCounts are about ClickHouse.
type RowCounts struct {
	Checked    bool  `json:"checked"`
	Outcomes   int64 `json:"outcomes"`
	Deliveries int64 `json:"deliveries"`
	Events     int64 `json:"events"`
	// Lag counts records that the audit has not come to.
	Lag int64 `json:"lag_records"`
}

// add adds other's counts.
func (r *Report) add(other *Report) {
	e, o := &r.Events, &other.Events
	e.Total += o.Total
	e.Matched += o.Matched
	e.Unmatched += o.Unmatched
	e.Duplicate += o.Duplicate
	e.Rejected += o.Rejected
	e.Expired += o.Expired
	e.Waiting += o.Waiting
	e.Routed += o.Routed
	r.Deliveries.Total += other.Deliveries.Total
	for result, n := range other.Deliveries.Ended {
		r.Deliveries.Ended[result] += n
	}
	for where, n := range other.Deliveries.Pending {
		r.Deliveries.Pending[where] += n
	}
	r.Deliveries.SetAside += other.Deliveries.SetAside
	r.Deliveries.Older += other.Deliveries.Older
	r.Deliveries.Outcomes += other.Deliveries.Outcomes
	r.Rows.Outcomes += other.Rows.Outcomes
	r.Rows.Deliveries += other.Rows.Deliveries
	r.Rows.Events += other.Rows.Events
	r.Rows.Lag += other.Rows.Lag
}

func newCounts() *Report {
	return &Report{Deliveries: DeliveryCounts{Ended: make(map[string]int64), Pending: make(map[string]int64)}}
}

// Sum adds up a count by name.
func Sum(counts map[string]int64) (sum int64) {
	for _, n := range counts {
		sum += n
	}
	return sum
}

// findings gathers from all workers: the total is exact, the list bounded.
type findings struct {
	most int

	mu     sync.Mutex
	total  int64
	byKind map[Kind]int64
	list   []Finding
}

func (f *findings) add(found Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total++
	f.byKind[found.Kind]++
	if len(f.list) < f.most {
		f.list = append(f.list, found)
	}
}

func (f *findings) into(r *Report) {
	slices.SortStableFunc(f.list, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	r.Total, r.ByKind, r.Findings = f.total, f.byKind, f.list
	if r.Findings == nil {
		r.Findings = []Finding{}
	}
}
