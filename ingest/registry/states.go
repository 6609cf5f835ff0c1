package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// stateOrganization says of a state that it is no organization's: states are not listed.
func stateOrganization(*schemas.WebhookState) string { return "" }

// decodeWebhook reads a webhook, and tells of settings that make no sense as of a bad record.
func (r *Registry) decodeWebhook(record *kgo.Record) (schemas.Webhook, error) {
	w, err := schemas.DecodeWebhook(record)
	if w.Invalid != "" {
		r.badRecords.Inc()
		r.log.Error("reading a record of the registry: its webhook is disabled, for its settings make no sense",
			"topic", record.Topic, "partition", record.Partition, "offset", record.Offset, "error", w.Invalid)
	}
	return w, err
}

// stateReadable returns ErrUnavailable if what the sender found out about a webhook is of a version that is not known here.
func (r *Registry) stateReadable(id string) error {
	_, err := r.states.get(id)
	return err
}

// stateOf returns what the sender found out about a webhook: nothing that it found out before the owner enabled it counts.
func (r *Registry) stateOf(w *schemas.Webhook) schemas.WebhookState {
	if s, err := r.states.get(w.ID); err == nil && s != nil && s.Generation == w.Generation {
		return *s
	}
	return schemas.WebhookState{}
}

// Enabled reports whether neither a webhook's owner nor the sender has disabled it.
func (r *Registry) Enabled(w *schemas.Webhook) bool {
	return w.Active && r.stateOf(w).DisabledAt.IsZero()
}

// Enable enables a webhook, also one that seems to be enabled: the sender may be
// about to disable it. It makes a new generation, so that what the sender found
// out, or is about to write of the one before, counts no more.
func (r *Registry) Enable(w *schemas.Webhook) {
	w.Active = true
	w.Generation++
	if s, err := r.states.get(w.ID); err == nil && s != nil {
		w.Generation = max(w.Generation, s.Generation+1)
	}
}

// eventsOf returns the operational events about a change of a webhook, and where it
// is deleted the end of its state; before is nil where it is made, after where it is deleted.
func (r *Registry) eventsOf(before, after *schemas.Webhook) ([]*kgo.Record, error) {
	shown, at := after, time.Now().Truncate(time.Millisecond)
	var names []string
	switch {
	case before == nil && after == nil:
	case before == nil:
		names = []string{schemas.WebhookCreated}
	case after == nil:
		shown, names = before, []string{schemas.WebhookDeleted}
	case after.Revision != before.Revision: // else only its secrets are sealed anew
		if changedBesides(before, after) {
			names = append(names, schemas.WebhookUpdated)
		}
		if before.Active && !after.Active {
			names = append(names, schemas.WebhookDisabled)
		}
		if !r.Enabled(before) && r.Enabled(after) {
			names = append(names, schemas.WebhookEnabled)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	about := fmt.Sprintf("%s.r%d", shown.ID, shown.Revision) // the sender's have the generation there, without a letter
	records := make([]*kgo.Record, len(names))
	for i, name := range names {
		event, err := schemas.Operational(name, about, shown.Organization, shown.Account, at, r.ViewWebhook(shown))
		if err != nil {
			return nil, fmt.Errorf("telling of webhook %.64q: %w", shown.ID, err)
		}
		records[i] = event.Record(r.topics.Events)
	}
	if after == nil && before != nil { // what the sender found out about it is of no use any more
		records = append(records, schemas.Tombstone(r.topics.WebhookStates, before.ID))
	}
	return records, nil
}

// changedBesides reports whether a change did more than to enable or disable a webhook.
func changedBesides(before, after *schemas.Webhook) bool {
	b := *before
	b.Active, b.Generation, b.Revision, b.UpdatedAt = after.Active, after.Generation, after.Revision, after.UpdatedAt
	return !Same(&b, after)
}

// Same reports whether two webhooks have the same record.
func Same(a, b *schemas.Webhook) bool {
	one, err := json.Marshal(a)
	other, otherErr := json.Marshal(b)
	return err == nil && otherErr == nil && bytes.Equal(one, other)
}
