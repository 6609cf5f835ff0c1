package table

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// A Webhook is what routing needs of one. It is never changed: a change of the webhook makes a new one.
type Webhook struct {
	ID       string
	Revision int64
	Format   schemas.Format
	Filter   string // of package filter; empty: none
}

// A scope is what a webhook is installed on: an account, or with an empty account the organization itself.
type scope struct {
	organization, account string
}

// An entry is a webhook as its record says, indexed or not.
type entry struct {
	*Webhook

	scope      scope
	patterns   []string
	active     bool
	generation int64
	indexed    bool
}

type key struct{ topic, key string }

// errInvalid says of a record that it is in force, and its webhook disabled for what its settings are.
var errInvalid = errors.New("settings that make no sense")

// content is what the topics held when they were read. Its owner locks.
type content struct {
	webhooks map[string]*entry
	states   map[string]schemas.WebhookState
	index    map[scope]map[string][]*Webhook // scope → pattern → webhooks by id
	indexed  int                             // webhooks in the index
	unknown  map[key]error                   // keys whose last record is of a version not known here
}

func newContent() *content {
	return &content{
		webhooks: make(map[string]*entry),
		states:   make(map[string]schemas.WebhookState),
		index:    make(map[scope]map[string][]*Webhook),
		unknown:  make(map[key]error),
	}
}

func (c *content) applyWebhook(r *kgo.Record) error {
	w, err := schemas.DecodeWebhook(r)
	deleted := errors.Is(err, schemas.ErrTombstone)
	if err != nil && !deleted {
		return err
	}
	id := string(r.Key)
	if before := c.webhooks[id]; before != nil {
		c.removeFromIndex(before)
		delete(c.webhooks, id)
	}
	if deleted {
		return nil
	}
	e := &entry{
		Webhook:    &Webhook{ID: w.ID, Revision: w.Revision, Format: w.Format, Filter: w.Filter},
		scope:      scope{w.Organization, w.Account},
		patterns:   w.Events,
		active:     w.Active,
		generation: w.Generation,
	}
	c.webhooks[id] = e
	c.settle(e)
	if w.Invalid != "" {
		return fmt.Errorf("reading webhook %.64q: %w: %s", id, errInvalid, w.Invalid)
	}
	return nil
}

func (c *content) applyState(r *kgo.Record) error {
	s, err := schemas.DecodeWebhookState(r)
	id := string(r.Key)
	switch {
	case errors.Is(err, schemas.ErrTombstone):
		delete(c.states, id)
	case err != nil:
		return err
	default:
		c.states[id] = s // also before the webhook itself: the two topics are read side by side
	}
	if e := c.webhooks[id]; e != nil {
		c.settle(e)
	}
	return nil
}

// settle puts a webhook into the index or takes it out, as its owner and the sender say. What the sender found counts for the generation it found
// it in: enabling again makes a new one.
func (c *content) settle(e *entry) {
	state, found := c.states[e.ID]
	disabled := found && state.Generation == e.generation && !state.DisabledAt.IsZero()
	if e.active && !disabled {
		c.addToIndex(e)
	} else {
		c.removeFromIndex(e)
	}
}

func (c *content) addToIndex(e *entry) {
	if e.indexed {
		return
	}
	e.indexed = true
	c.indexed++
	patterns := c.index[e.scope]
	if patterns == nil {
		patterns = make(map[string][]*Webhook)
		c.index[e.scope] = patterns
	}
	for _, pattern := range e.patterns {
		if i, found := find(patterns[pattern], e.ID); !found {
			patterns[pattern] = slices.Insert(patterns[pattern], i, e.Webhook)
		}
	}
}

func (c *content) removeFromIndex(e *entry) {
	if !e.indexed {
		return
	}
	e.indexed = false
	c.indexed--
	patterns := c.index[e.scope]
	for _, pattern := range e.patterns {
		i, found := find(patterns[pattern], e.ID)
		if !found {
			continue
		}
		if patterns[pattern] = slices.Delete(patterns[pattern], i, i+1); len(patterns[pattern]) == 0 {
			delete(patterns, pattern)
		}
	}
	if len(patterns) == 0 {
		delete(c.index, e.scope)
	}
}

func find(list []*Webhook, id string) (int, bool) {
	return slices.BinarySearchFunc(list, id, func(w *Webhook, id string) int { return strings.Compare(w.ID, id) })
}

func (c *content) appendLists(lists [][]*Webhook, s scope, patterns []string) [][]*Webhook {
	index := c.index[s]
	if len(index) == 0 {
		return lists
	}
	for _, pattern := range patterns {
		if list := index[pattern]; len(list) > 0 {
			lists = append(lists, list)
		}
	}
	return lists
}
