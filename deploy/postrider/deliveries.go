package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

func deliveriesCommand() *cobra.Command {
	return group("deliveries", "List deliveries and send them again",
		leaf("list", "List deliveries, newest first", &listDeliveries{}),
		leaf("retry", "Send a delivery that has ended again (by its ID), or all of a webhook's that died since a time (--webhook --since)", &retryDeliveries{}),
	)
}

// reason is what to tell people of the latest result.
func reason(d *audit.Delivery) string {
	if d.StatusCode == 0 {
		return d.Reason
	}
	return fmt.Sprintf("%s (%d)", d.Reason, d.StatusCode)
}

type listDeliveries struct {
	api api

	organization, webhook, event, status string
	since, until, cursor                 string
	limit                                int
}

// Register implements process.Registrar.
func (l *listDeliveries) Register(s *process.Settings) {
	l.api.Register(s)
	s.String(&l.organization, "organization", "", "only this one's")
	s.String(&l.webhook, "webhook", "", "only this webhook's")
	s.String(&l.event, "event", "", "only of events of this name")
	s.String(&l.status, "status", "", "only with this latest result: pending, delivered, retry, dead, discarded or held")
	s.String(&l.since, "since", "", "only with a latest result of this time or later, such as 2026-11-25T12:00:00Z")
	s.String(&l.until, "until", "", "only with a latest result of before this time")
	s.Int(&l.limit, "limit", 100, "how many at most, 1 to 1,000")
	s.String(&l.cursor, "cursor", "", "where the same list ended before; it says so")
}

func (l *listDeliveries) run(ctx context.Context, t *terminal) error {
	query := url.Values{"limit": {strconv.Itoa(l.limit)}}
	for name, value := range map[string]string{
		"organization": l.organization, "webhook": l.webhook, "event": l.event, "status": l.status,
		"since": l.since, "until": l.until, "cursor": l.cursor,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	var found page[audit.Delivery]
	if err := l.api.call(ctx, t, "listing deliveries", http.MethodGet, "/v1/deliveries?"+query.Encode(), nil, &found); err != nil {
		return err
	}
	if t.asJSON {
		return t.showJSON(found)
	}
	rows := make([][]string, 0, len(found.Data))
	for i := range found.Data {
		d := &found.Data[i]
		rows = append(rows, []string{
			d.ID, d.WebhookID, d.EventID, d.Event, d.Status, reason(d), strconv.Itoa(d.Attempts), d.UpdatedAt.Format(time.RFC3339),
		})
	}
	err := t.showTable([]string{"ID", "WEBHOOK", "EVENT ID", "EVENT", "STATUS", "REASON", "ATTEMPTS", "UPDATED"}, rows)
	if err == nil && found.Next != nil {
		err = t.showLine("There are more: the same with --cursor=%s", *found.Next)
	}
	return err
}

type retryDeliveries struct {
	api api
	ids []string

	webhook, since, until string
	rate                  int
	wait                  bool
}

// Register implements process.Registrar.
func (r *retryDeliveries) Register(s *process.Settings) {
	r.api.Register(s)
	s.String(&r.webhook, "webhook", "", "instead of an ID: all of this webhook's deliveries that are dead, as a job")
	s.String(&r.since, "since", "", "of these, those that ended at this time or later, such as 2026-11-25T12:00:00Z")
	s.String(&r.until, "until", "", "and before this time; empty: now")
	s.Int(&r.rate, "rate", 100, "how many a second, 1 to 1,000")
	s.Bool(&r.wait, "wait", false, "wait until the job has ended, and show how far it is (--timeout bounds that too)")
	s.Arguments(&r.ids, "[ID]")
	s.Check(func() error {
		byWebhook := r.webhook != "" && r.since != "" && len(r.ids) == 0
		byID := len(r.ids) == 1 && r.webhook == "" && r.since == "" && r.until == ""
		if !byWebhook && !byID {
			return &usageError{command: "postrider deliveries retry", problem: "must be one delivery's id, or --webhook with --since"}
		}
		return nil
	})
}

func (r *retryDeliveries) run(ctx context.Context, t *terminal) error {
	if r.webhook != "" {
		return r.runJob(ctx, t)
	}
	var made struct {
		ID string `json:"id"`
	}
	id := r.ids[0]
	if err := r.api.call(ctx, t, "retrying delivery "+id, http.MethodPost, "/v1/deliveries/"+url.PathEscape(id)+"/retry", nil, &made); err != nil {
		return err
	}
	if t.asJSON {
		return t.showJSON(made)
	}
	return t.showLine("%s", made.ID)
}

func (r *retryDeliveries) runJob(ctx context.Context, t *terminal) error {
	body, err := json.Marshal(struct {
		Since string `json:"since"`
		Until string `json:"until,omitempty"`
		Rate  int    `json:"rate"`
	}{r.since, r.until, r.rate})
	if err != nil {
		return fmt.Errorf("encoding job: %w", err)
	}
	path := "/v1/webhooks/" + url.PathEscape(r.webhook) + "/retry"
	var job registry.JobView
	if err := r.api.call(ctx, t, "retrying deliveries of webhook "+r.webhook, http.MethodPost, path, body, &job); err != nil {
		return err
	}
	for r.wait && job.State == schemas.JobRunning {
		if !t.asJSON {
			if err := showJob(t, &job); err != nil {
				return err
			}
		}
		if !process.Pause(ctx, time.Second) {
			return fmt.Errorf("waiting for job %s, which goes on: %w", job.ID, context.Cause(ctx))
		}
		if err := r.api.call(ctx, t, "looking at job "+job.ID, http.MethodGet, path+"/"+job.ID, nil, &job); err != nil {
			return err
		}
	}
	if t.asJSON {
		return t.showJSON(job)
	}
	return showJob(t, &job)
}

func showJob(t *terminal, j *registry.JobView) error {
	return t.showLine("Job %s is %s: %d of %d sent again, %d skipped.", j.ID, j.State, j.Done, j.Total, j.Skipped)
}
