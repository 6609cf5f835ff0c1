package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
)

// rewrapAtOnce is how many webhooks go to the writer together: it takes what
// waits into one transaction.
const rewrapAtOnce = 200

func webhooksCommand() *cobra.Command {
	return group("webhooks", "Keep webhooks",
		leaf("pause", "Have the deliveries of a webhook held", &stateWebhook{action: "pause", doing: "pausing"}),
		leaf("resume", "Let go what was held of a webhook, and hold no more", &stateWebhook{action: "resume", doing: "resuming"}),
		leaf("enable", "Enable a webhook that its owner or the sender has disabled", &stateWebhook{action: "enable", doing: "enabling"}),
		leaf("rewrap", "Seal all signing secrets under the first key of the key ring, so that its other keys can go", &rewrapWebhooks{}),
	)
}

// stateWebhook changes the state of a webhook.
type stateWebhook struct {
	api    api
	action string // the command, and the end of the path
	doing  string
	ids    []string
}

// Register implements process.Registrar.
func (c *stateWebhook) Register(s *process.Settings) {
	c.api.Register(s)
	s.Arguments(&c.ids, "ID")
	s.Check(func() error {
		if len(c.ids) != 1 {
			return &usageError{command: "postrider webhooks " + c.action, problem: fmt.Sprintf("%d arguments: must be one, the webhook's id", len(c.ids))}
		}
		return nil
	})
}

func (c *stateWebhook) run(ctx context.Context, t *terminal) error {
	var shown json.RawMessage
	path := "/v1/webhooks/" + url.PathEscape(c.ids[0]) + "/" + c.action
	if err := c.api.call(ctx, t, c.doing+" webhook "+c.ids[0], http.MethodPost, path, nil, &shown); err != nil {
		return err
	}
	if t.asJSON {
		return t.showJSON(shown)
	}
	var webhook struct {
		ID    string `json:"id"`
		State string `json:"state"`
	}
	if err := json.Unmarshal(shown, &webhook); err != nil {
		return fmt.Errorf("reading webhook: %w", err)
	}
	return t.showLine("Webhook %s is %s.", webhook.ID, webhook.State)
}

// rewrapWebhooks is a writer of webhooks for as long as it runs, as each ingest is:
// secrets pass through no API.
type rewrapWebhooks struct {
	kafka   kafka.Config
	keyRing string
}

// Register implements process.Registrar.
func (c *rewrapWebhooks) Register(s *process.Settings) {
	c.kafka.Register(s)
	s.Secret(&c.keyRing, "key-ring", "",
		"keys that open signing secrets, the first seals them: one <id>:<base64 of 32 bytes> a line (@FILE reads them from a file)")
	s.Required("brokers", "key-ring")
	s.CheckText(&c.keyRing, "key-ring", schemas.CheckKeyRing)
}

// rewrapped is what came of it.
type rewrapped struct {
	mu       sync.Mutex
	Webhooks int      `json:"webhooks"`
	Changed  int      `json:"changed"`
	Failed   []string `json:"failed"` // ids of webhooks with a secret that no key of the ring opens
}

var errNotRewrapped = errors.New("secrets that no key of the ring opens")

func (c *rewrapWebhooks) run(ctx context.Context, t *terminal) error {
	ring, err := schemas.ParseKeyRing(c.keyRing)
	if err != nil {
		return fmt.Errorf("re-wrapping secrets: %w", err)
	}
	rows, err := registry.New(c.kafka, registry.Process{
		ClientID: "postrider-rewrap", Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: unheard{},
	})
	if err != nil {
		return fmt.Errorf("re-wrapping secrets: %w", err)
	}
	running, stop := context.WithCancel(ctx)
	var loops errgroup.Group
	loops.Go(func() error { return rows.Follow(running) })
	loops.Go(func() error { return rows.Write(running) })
	var done rewrapped
	err = done.all(ctx, rows, ring)
	stop()
	if err := errors.Join(err, loops.Wait()); err != nil {
		return fmt.Errorf("re-wrapping secrets: %w", err)
	}
	if t.asJSON {
		err = t.showJSON(&done)
	} else {
		err = t.showLine("%d webhooks, %d of them sealed anew.", done.Webhooks, done.Changed)
	}
	if len(done.Failed) > 0 {
		return errors.Join(err, fmt.Errorf("re-wrapping %d webhooks (%.3q …): %w", len(done.Failed), done.Failed[:min(len(done.Failed), 3)], errNotRewrapped))
	}
	return err
}

// all re-wraps every webhook there is.
func (d *rewrapped) all(ctx context.Context, rows *registry.Registry, ring schemas.KeyRing) error {
	select {
	case <-rows.Ready():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for after, more := "", true; more; {
		var (
			page []schemas.Webhook
			err  error
		)
		if page, more, err = rows.Webhooks("", after, rewrapAtOnce, nil); err != nil {
			return err
		}
		var changes errgroup.Group
		for i := range page {
			after = page[i].ID
			changes.Go(func() error { return d.one(ctx, rows, ring, page[i].ID) })
		}
		if err := changes.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// one re-wraps a webhook. Its revision stays: for its owner nothing has changed.
func (d *rewrapped) one(ctx context.Context, rows *registry.Registry, ring schemas.KeyRing, id string) error {
	w, err := rows.Webhook(ctx, id)
	if errors.Is(err, registry.ErrNotFound) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return fmt.Errorf("reading webhook %q: %w", id, err)
	}
	_, changed, err := w.Reseal(ring)
	if err == nil && changed {
		_, err = rows.ChangeWebhook(ctx, registry.Actor{ID: "postrider webhooks rewrap"}, "rewrapped", id, func(old *schemas.Webhook) (*schemas.Webhook, error) {
			if old == nil {
				return nil, registry.ErrNotFound
			}
			resealed, _, err := old.Reseal(ring)
			return &resealed, err
		})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Webhooks++
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil
	case errors.Is(err, schemas.ErrUnknownKey), errors.Is(err, schemas.ErrNotOpened):
		d.Failed = append(d.Failed, id)
		return nil
	case err != nil:
		return fmt.Errorf("changing webhook %q: %w", id, err)
	case changed:
		d.Changed++
	}
	return nil
}

// unheard takes what the registry says of itself: the command's own timeout says enough.
type unheard struct{}

// Up implements kafka.Reporter.
func (unheard) Up() {}

// Down implements kafka.Reporter.
func (unheard) Down(error) {}
