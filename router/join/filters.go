package join

import (
	"errors"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postrider/postrider/router/table"
	"github.com/postrider/postrider/schemas/filter"
)

// Decisions of filters, in metrics, beside those of filter.Kind.
const (
	resultPassed   = "passed"
	resultFiltered = "filtered"
)

// maxTold bounds the webhooks of which is known that their trouble was logged.
const maxTold = 4096

// filters decides which webhooks want an event, for all sessions. One that comes
// to no decision lets nothing pass: that is counted, and logged once for each
// revision of its webhook.
type filters struct {
	set       *filter.Set
	log       *slog.Logger
	decisions *prometheus.CounterVec

	mu   sync.Mutex       // guards told
	told map[string]int64 // webhook id → the revision whose trouble was logged
}

func newFilters(log *slog.Logger, metrics prometheus.Registerer) *filters {
	f := &filters{
		set: filter.NewSet(filter.Kept),
		log: log,
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_router_filter_decisions_total",
			Help: "Decisions of webhooks' filters, by result; of an aborted transaction, too. invalid, cost and evaluation: it came to none, and the event did not pass.",
		}, []string{"result"}),
		told: make(map[string]int64),
	}
	metrics.MustRegister(f.decisions)
	for _, result := range []string{resultPassed, resultFiltered, string(filter.KindInvalid), string(filter.KindCost), string(filter.KindEvaluation)} {
		f.decisions.WithLabelValues(result)
	}
	return f
}

// passing keeps of webhooks, in their place, those that have no filter or whose filter an event passes.
func (f *filters) passing(webhooks []*table.Webhook, it *item) []*table.Webhook {
	var event *filter.Event // made for the first filter, and shared by all
	kept := webhooks[:0]
	for _, w := range webhooks {
		if w.Filter != "" {
			if event == nil {
				event = filter.NewEvent(&it.event, it.record.Timestamp)
			}
			if !f.passes(w, event) {
				continue
			}
		}
		kept = append(kept, w)
	}
	return kept
}

func (f *filters) passes(w *table.Webhook, event *filter.Event) bool {
	passes, err := f.set.Match(w.Filter, event)
	result := resultFiltered
	if undecided, ok := errors.AsType[*filter.Error](err); ok {
		result = string(undecided.Kind)
		f.tell(w, undecided.Kind)
	} else if passes {
		result = resultPassed
	}
	f.decisions.WithLabelValues(result).Inc()
	return passes
}

// tell logs that a filter comes to no decision, but not what it says: that may hold a piece of the payload.
func (f *filters) tell(w *table.Webhook, kind filter.Kind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if revision, told := f.told[w.ID]; told && revision == w.Revision {
		return
	}
	if len(f.told) >= maxTold {
		clear(f.told)
	}
	f.told[w.ID] = w.Revision
	f.log.Warn("filter came to no decision: the event does not pass (told once for each revision of a webhook)",
		"webhook", w.ID, "revision", w.Revision, "kind", string(kind))
}
