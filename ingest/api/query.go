package api

import (
	"slices"
	"strings"

	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

// webhookParameters are those of a list of webhooks, beside those of every list.
//
//nolint:gochecknoglobals // a constant
var webhookParameters = []string{"state", "account", "event", "url", "metadata"}

// webhookQuery reads which webhooks a list is to have; nil: all.
func (s *Server) webhookQuery(p *parameters) (keep func(*schemas.Webhook) bool) {
	var rules []func(*schemas.Webhook) bool
	if state := p.oneOf("state", string(registry.StateActive), string(registry.StatePaused), string(registry.StateDisabled)); state != "" {
		rules = append(rules, func(w *schemas.Webhook) bool { return string(s.Registry.StateOf(w)) == state })
	}
	if account := p.text("account", maxOrganization); account != "" {
		rules = append(rules, func(w *schemas.Webhook) bool { return w.Account == account })
	}
	if name := p.eventName("event"); name != "" {
		patterns := schemas.PatternsFor(name)
		rules = append(rules, func(w *schemas.Webhook) bool {
			return slices.ContainsFunc(w.Events, func(pattern string) bool { return slices.Contains(patterns, pattern) })
		})
	}
	if prefix := p.text("url", maxURL); prefix != "" {
		rules = append(rules, func(w *schemas.Webhook) bool { return strings.HasPrefix(w.URL, prefix) })
	}
	if text := p.text("metadata", maxMetadata); text != "" {
		key, value, ok := strings.Cut(text, ":")
		if !ok || key == "" {
			p.refuse(invalidParameter("metadata", "<key>:<value>"))
		}
		rules = append(rules, func(w *schemas.Webhook) bool {
			got, there := w.Metadata[key]
			return there && got == value
		})
	}
	if len(rules) == 0 {
		return nil
	}
	return func(w *schemas.Webhook) bool {
		return !slices.ContainsFunc(rules, func(rule func(*schemas.Webhook) bool) bool { return !rule(w) })
	}
}
