package join

import (
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/filter"
)

func TestFilters(t *testing.T) {
	t.Parallel()
	h := startHarness(t, 1)
	for id, expression := range map[string]string{
		"wh_all": "", "wh_big": `payload.amount > 100`, "wh_berlin": `account == "berlin"`, "wh_never": `false`, "wh_broken": `payload.`,
		"wh_costly": `payload.list.all(a, payload.list.all(b, payload.list.all(c, a + b + c >= 0)))`,
	} {
		w := schemas.Webhook{
			ID: id, Organization: "org", Active: true, URL: "https://example.com/", Events: []string{"orders", "ping"},
			Filter: expression, Generation: 1, Revision: 1,
		}
		r, err := w.Record(h.topics.Webhooks)
		if err != nil {
			t.Fatal(err)
		}
		h.put(r)
	}
	h.put(h.event("big", "orders.created", `{"amount":120}`), h.event("small", "orders.created", `{"amount":7,"list":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]}`),
		h.event("none", "orders.removed", ""), h.event("other", "labs.created", `{"amount":120}`))
	r := h.startRouter("a", nil)
	h.routed()
	r.stop(t)

	if got, want := h.deliveries(), []string{"big wh_all", "big wh_big", "none wh_all", "small wh_all"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	webhooks := 0
	for _, e := range h.entries() {
		webhooks += e.Webhooks
	}
	if webhooks != 4 {
		t.Errorf("routed tells of %d deliveries, want 4", webhooks)
	}
	// Of three orders: one that is big; no amount, and twice no list; what is broken never says anything.
	for result, want := range map[string]float64{
		resultPassed: 1, resultFiltered: 1 + 3 + 3, string(filter.KindEvaluation): 1 + 2, string(filter.KindCost): 1, string(filter.KindInvalid): 3,
	} {
		if got := testutil.ToFloat64(r.filters.decisions.WithLabelValues(result)); got != want {
			t.Errorf("got %v decisions %q, want %v", got, result, want)
		}
	}
	if len(r.filters.told) != 3 {
		t.Errorf("got %v webhooks whose trouble was logged, want 3", r.filters.told)
	}
}
