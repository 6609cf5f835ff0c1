package main

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/ingest"
	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/schemas"
)

// fakeAudit knows one dead delivery, and what it was asked for last.
type fakeAudit struct {
	audit.Audit
	dead  audit.Delivery
	asked audit.Filter
}

func (f *fakeAudit) Deliveries(_ context.Context, q audit.Filter, after audit.Place, _ int) ([]audit.Delivery, error) {
	f.asked = q
	if after.ID != "" {
		return nil, nil
	}
	return []audit.Delivery{f.dead, f.dead}, nil
}

func (f *fakeAudit) Delivery(context.Context, string, string) (audit.Delivery, error) {
	return f.dead, nil
}

func (f *fakeAudit) Count(context.Context, audit.Filter) (int, error) { return 1, nil }

func (f *fakeAudit) Ended(_ context.Context, _ audit.Filter, after audit.Place, _ int) ([]audit.Delivery, error) {
	if after.ID != "" {
		return nil, nil
	}
	return []audit.Delivery{f.dead}, nil
}

func (f *fakeAudit) EventsOf(context.Context, []audit.Delivery) ([]*schemas.Event, error) {
	return []*schemas.Event{{ID: f.dead.EventID, Name: f.dead.Event, Organization: f.dead.Organization}}, nil
}

func TestDeliveries(t *testing.T) {
	at := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	known := &fakeAudit{dead: audit.Delivery{
		ID: schemas.DeliveryID{Offset: 7}.String(), Organization: "acme", EventID: "event-7", Event: "a.b",
		Status: "dead", Reason: "status", StatusCode: 500, Attempts: 3, RoutedAt: at, UpdatedAt: at,
	}}
	startIngest(t, func(cfg *ingest.Config) { cfg.Audit = known })
	a := api{server: os.Getenv("POSTRIDER_SERVER"), key: adminKey}
	var hook struct{ ID string }
	body := []byte(`{"organization":"acme","url":"https://example.com","events":"*"}`)
	if err := a.call(t.Context(), &terminal{}, "creating", "POST", "/v1/webhooks", body, &hook); err != nil {
		t.Fatal(err)
	}
	known.dead.WebhookID = hook.ID

	asked := []string{"deliveries", "list", "--status=dead", "--webhook=" + hook.ID, "--since=2026-01-02T00:00:00Z", "--limit=1"}
	out, _ := command(t, 0, "", asked...)
	for _, want := range []string{known.dead.ID, hook.ID, "status (500)", "There are more: the same with --cursor="} {
		if !strings.Contains(out, want) {
			t.Errorf("listing dead deliveries does not say %q:\n%s", want, out)
		}
	}
	if want := (audit.Filter{WebhookID: hook.ID, Status: "dead", Since: at.Add(-12 * time.Hour)}); known.asked != want {
		t.Errorf("the audit was asked for %+v, want %+v", known.asked, want)
	}
	cursor := strings.TrimSpace(out[strings.LastIndex(out, "--cursor="):])
	out, _ = command(t, 0, "", append(asked, cursor, "--json")...)
	var found page[audit.Delivery]
	if err := json.Unmarshal([]byte(out), &found); err != nil || len(found.Data) != 0 || found.Next != nil {
		t.Errorf("the next page is %v\n%s", err, out)
	}
	if _, said := command(t, 1, "", "deliveries", "list", "--status=gone"); !strings.Contains(said, "parameter status") {
		t.Errorf("a status that there is not says:\n%s", said)
	}

	if out, _ := command(t, 0, "", "deliveries", "retry", known.dead.ID); !strings.HasPrefix(out, "dlv_") {
		t.Errorf("retrying a delivery shows %q", out)
	}
	out, _ = command(t, 0, "", "deliveries", "retry", "--webhook="+hook.ID, "--since=2026-01-02T00:00:00Z", "--until=2026-01-02T13:00:00Z", "--wait")
	if !strings.Contains(out, "is running: 0 of 1") || !strings.Contains(out, "is done: 1 of 1 sent again, 0 skipped.") {
		t.Errorf("retrying a webhook's shows:\n%s", out)
	}
	if _, said := command(t, 1, "", "deliveries", "retry", "--webhook="+hook.ID, "--since=soon"); !strings.Contains(said, "#/since: ") {
		t.Errorf("a bad time says:\n%s", said)
	}
}
