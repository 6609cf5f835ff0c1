package api

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

// webhookQuery reads which webhooks a list is to have. Without parameters it is nil: all.
func (s *Server) webhookQuery(query *fasthttp.Args) (keep func(*schemas.Webhook) bool, err error) {
	var rules []func(*schemas.Webhook) bool
	add := func(name string, most int, allowed string, rule func(text string) func(*schemas.Webhook) bool) {
		text := query.Peek(name)
		if err != nil || text == nil {
			return
		}
		var accepted func(*schemas.Webhook) bool
		if n := utf8.RuneCount(text); n > 0 && n <= most && len(query.PeekMulti(name)) == 1 {
			accepted = rule(string(text))
		}
		if accepted == nil {
			err = invalidParameter(name, allowed+", once")
			return
		}
		rules = append(rules, accepted)
	}
	add("state", 20, "active, paused or disabled", s.byState)
	add("account", 128, "1 to 128 characters", func(account string) func(*schemas.Webhook) bool {
		return func(w *schemas.Webhook) bool { return w.Account == account }
	})
	add("event", 200, "an event's name", byEvent)
	add("url", 2048, "1 to 2,048 characters", func(prefix string) func(*schemas.Webhook) bool {
		return func(w *schemas.Webhook) bool { return strings.HasPrefix(w.URL, prefix) }
	})
	add("metadata", 64+1+512, "<key>:<value>", byMetadata)
	if err != nil || len(rules) == 0 {
		return nil, err
	}
	return func(w *schemas.Webhook) bool {
		return !slices.ContainsFunc(rules, func(rule func(*schemas.Webhook) bool) bool { return !rule(w) })
	}, nil
}

// byState and the following return nil for what they cannot read.
func (s *Server) byState(text string) func(*schemas.Webhook) bool {
	state := registry.WebhookState(text)
	if state != registry.StateActive && state != registry.StatePaused && state != registry.StateDisabled {
		return nil
	}
	return func(w *schemas.Webhook) bool { return s.Registry.StateOf(w) == state }
}

func byEvent(name string) func(*schemas.Webhook) bool {
	if !schemas.ValidName(name) {
		return nil
	}
	patterns := schemas.PatternsFor(name)
	return func(w *schemas.Webhook) bool {
		return slices.ContainsFunc(w.Events, func(pattern string) bool { return slices.Contains(patterns, pattern) })
	}
}

func byMetadata(text string) func(*schemas.Webhook) bool {
	key, value, ok := strings.Cut(text, ":")
	if !ok || key == "" {
		return nil
	}
	return func(w *schemas.Webhook) bool {
		got, there := w.Metadata[key]
		return there && got == value
	}
}
