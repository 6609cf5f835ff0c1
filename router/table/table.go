// Package table provides the webhooks in force, indexed so that an event costs what it matches and not what there is. It is filled by a follower of the
// compacted topics webhooks and webhook-states, in that follower's goroutine; how far it has come is the follower's to know. It runs no goroutines.
package table

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// A Table holds all webhooks. Match and Err may be called from any goroutine; Apply, Begin and Done are the follower's.
type Table struct {
	topics  schemas.Topics
	log     *slog.Logger
	bad     *prometheus.CounterVec
	indexed prometheus.Gauge

	mu   sync.RWMutex // guards the rest, and what live holds; writers are rare, a reader holds it for one event
	live *content
	next *content // while the topics are read again, what they hold; then it takes live's place
	told map[place]struct{}
}

// place names a bad record that was logged; a topic read again has it again.
type place struct {
	topic     string
	partition int32
	offset    int64
}

// New returns an empty table of the webhooks in topics.
func New(topics schemas.Topics, log *slog.Logger, metrics prometheus.Registerer) *Table {
	t := &Table{
		topics: topics,
		log:    log,
		bad: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_router_bad_table_records_total", Help: "Records of compacted topics that could not be read.",
		}, []string{"topic"}),
		indexed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postrider_router_table_webhooks", Help: "Webhooks that are routed to.",
		}),
		live: newContent(),
		told: make(map[place]struct{}),
	}
	metrics.MustRegister(t.bad, t.indexed)
	for _, topic := range t.Topics() {
		t.bad.WithLabelValues(t.label(topic))
	}
	return t
}

// Topics are those whose records Apply takes.
func (t *Table) Topics() []string {
	return []string{t.topics.Webhooks, t.topics.WebhookStates}
}

func (t *Table) label(topic string) string { return strings.TrimPrefix(topic, t.topics.Prefix) }

// Begin says that the topics are read again from their start: records belong to a new table, and the old one stays in force until Done.
func (t *Table) Begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = newContent()
}

// Done puts the new table in the place of the old.
func (t *Table) Done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next != nil {
		t.live, t.next = t.next, nil
		t.indexed.Set(float64(t.live.indexed))
	}
}

// Err says why nobody may route by this table: it holds a record of a version not known here.
func (t *Table) Err() error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, err := range t.live.unknown {
		return err
	}
	return nil
}

// Apply takes a record of the topics. A bad one is counted, and logged once; the key's last good value stays in force, but of a webhook whose settings
// make no sense: that is disabled.
func (t *Table) Apply(r *kgo.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.live
	if t.next != nil {
		c = t.next
	}
	var err error
	switch r.Topic {
	case t.topics.Webhooks:
		err = c.applyWebhook(r)
	case t.topics.WebhookStates:
		err = c.applyState(r)
	}
	k := key{r.Topic, string(r.Key)}
	delete(c.unknown, k)
	if schemas.IsNewer(err) {
		c.unknown[k] = fmt.Errorf("reading %s/%d@%d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	if err != nil {
		t.tellLocked(r, err)
	}
	t.indexed.Set(float64(t.live.indexed))
}

func (t *Table) tellLocked(r *kgo.Record, err error) {
	p := place{r.Topic, r.Partition, r.Offset}
	if _, told := t.told[p]; told {
		return
	}
	t.told[p] = struct{}{}
	t.bad.WithLabelValues(t.label(r.Topic)).Inc()
	log := t.log.With("topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
	if errors.Is(err, errInvalid) {
		log.Error("bad record in compacted topic: its webhook is disabled")
		return
	}
	log.Error("bad record in compacted topic: its key's last good value stays in force")
}

// Match appends to dst the webhooks that get an event of organization and account (which may be empty) whose name stands under the patterns
// (schemas.PatternsFor), by id, each once. A webhook of the organization gets the events of all its accounts, one of an account only that account's.
func (t *Table) Match(dst []*Webhook, organization, account string, patterns []string) []*Webhook {
	var room [8][]*Webhook // four patterns, two scopes
	lists := room[:0]
	t.mu.RLock()
	defer t.mu.RUnlock()
	lists = t.live.appendLists(lists, scope{organization, ""}, patterns)
	if account != "" {
		lists = t.live.appendLists(lists, scope{organization, account}, patterns)
	}
	return merge(dst, lists)
}

// merge appends what stands in sorted lists, none of them empty, in order and without repetition. It spoils lists.
func merge(dst []*Webhook, lists [][]*Webhook) []*Webhook {
	for len(lists) > 1 {
		next := lists[0][0]
		for _, list := range lists[1:] {
			if list[0].ID < next.ID {
				next = list[0]
			}
		}
		dst = append(dst, next)
		for i := 0; i < len(lists); {
			if lists[i][0] == next {
				lists[i] = lists[i][1:]
			}
			if len(lists[i]) > 0 {
				i++
				continue
			}
			lists[i] = lists[len(lists)-1]
			lists = lists[:len(lists)-1]
		}
	}
	if len(lists) == 1 {
		dst = append(dst, lists[0]...)
	}
	return dst
}
