// Package registry provides the webhooks, API keys and jobs as they stand, what the
// sender found out about webhooks, and the one way to change them. They live in compacted topics, which every replica follows
// whole; there is no further database. What a change must look like is its
// callers' to say.
//
// Follow, Write and NoteUses are its goroutines: one applies what the topics say, one
// is the fenced writer, of which one replica at a time is the true one, and one has
// it written when keys were last used.
package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

const (
	// maxStale is how old this replica's view may be for a request to be answered
	// from it without asking Kafka: a revoked key is refused a second after the answer.
	maxStale = time.Second
	// maxWrite bounds a change from its call to its answer, under the 5 s that any request may take.
	maxWrite = 4500 * time.Millisecond
	// maxQueue bounds the changes waiting for the writer, which takes maxBatch at once.
	maxQueue = 1000
)

// Errors of the registry.
var (
	// ErrNotFound means that there is no such row, as of a moment after the call.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable means that Kafka, or another replica's writer, did not let this one through in time, or that only a
	// newer binary can read what was asked for. Nothing was changed.
	ErrUnavailable = errors.New("the registry of webhooks and keys is not available")
	// ErrUnknownEnd means that a change may have been made or not: look before trying again.
	ErrUnknownEnd = errors.New("the change was sent to Kafka and its end is not known")
	// ErrTooMany means that the organization has as many webhooks as it may.
	ErrTooMany = errors.New("the organization has as many webhooks as it may")
	// ErrJobRunning means that a job of the webhook is running already.
	ErrJobRunning = errors.New("a job of this webhook is running")
	// ErrJobMoved means that a job is no longer what its step was taken from.
	ErrJobMoved = errors.New("the job has moved, or has been cancelled")
)

// Registry is this replica's view of webhooks and keys, and its writer.
type Registry struct {
	cfg      kafka.Config
	clientID string
	topics   schemas.Topics
	log      *slog.Logger

	follower *kafka.Follower
	barrier  *barrier
	webhooks kind[schemas.Webhook]
	keys     kind[schemas.Key]
	jobs     kind[schemas.Job]
	states   *table[schemas.WebhookState] // the sender's to write

	// fresh are the tables of a load that is not complete, while the topics are
	// read anew and the old ones are still in force; the follower's goroutine alone uses them.
	fresh struct {
		webhooks *table[schemas.Webhook]
		keys     *table[schemas.Key]
		jobs     *table[schemas.Job]
		states   *table[schemas.WebhookState]
	}
	health  kafka.Reporter
	writes  chan *write
	watched atomic.Pointer[sighting]
	uses    uses // of keys, here

	maxWebhooks int

	badRecords prometheus.Counter
	takeovers  prometheus.Counter
	written    *prometheus.CounterVec
	duration   prometheus.Histogram
}

// mayMake says whether the organization of a key may have one webhook more, if the
// change makes one; also after those before it in its transaction. The admin may.
func (r *Registry) mayMake(actor Actor, id string, batch overlay) error {
	if r.maxWebhooks == 0 || actor.Organization == "" {
		return nil
	}
	if row, err := r.webhooks.table.get(id); row != nil || err != nil {
		return err
	}
	n := r.webhooks.count(actor.Organization)
	for _, made := range batch {
		if w, ok := made.(*schemas.Webhook); ok && w != nil && w.Organization == actor.Organization && r.isNew(w.ID) {
			n++
		}
	}
	if n >= r.maxWebhooks {
		return ErrTooMany
	}
	return nil
}

func (r *Registry) isNew(id string) bool {
	row, err := r.webhooks.table.get(id)
	return row == nil && err == nil
}

// Process is what a registry needs of the process it runs in.
type Process struct {
	ClientID string
	Log      *slog.Logger
	Metrics  prometheus.Registerer
	Health   kafka.Reporter // told whether webhooks and keys are whole and up to date
	// MaxWebhooks bounds the webhooks that an organization's own keys may make; 0: they may make any number.
	MaxWebhooks int
}

// New returns a registry; its two loops fill it and serve it.
func New(cfg kafka.Config, p Process) (*Registry, error) {
	topics := cfg.Topics()
	r := &Registry{
		cfg:      cfg,
		clientID: p.ClientID,
		topics:   topics,
		log:      p.Log,
		health:   p.Health,

		maxWebhooks: p.MaxWebhooks,

		writes: make(chan *write, maxQueue),
		webhooks: kind[schemas.Webhook]{
			table:  newTable(func(w *schemas.Webhook) string { return w.Organization }),
			object: "webhook",
			topic:  topics.Webhooks,
			record: func(w *schemas.Webhook) (*kgo.Record, error) { return w.Record(topics.Webhooks) },
		},
		keys: kind[schemas.Key]{
			table:  newTable(func(k *schemas.Key) string { return k.Organization }),
			object: "key",
			topic:  topics.Keys,
			record: func(k *schemas.Key) (*kgo.Record, error) { return k.Record(topics.Keys) },
			view:   func(k *schemas.Key) any { return ViewKey(k) },
		},
		jobs: kind[schemas.Job]{
			table:  newTable(func(j *schemas.Job) string { return j.Organization }),
			object: "job",
			topic:  topics.Jobs,
			record: func(j *schemas.Job) (*kgo.Record, error) { return j.Record(topics.Jobs) },
			view:   func(j *schemas.Job) any { return ViewJob(j) },
		},
		states: newTable(stateOrganization),
	}
	r.webhooks.view = func(w *schemas.Webhook) any { return r.ViewWebhook(w) }
	r.webhooks.besides, r.webhooks.tell = r.stateReadable, r.eventsOf
	followed := []string{topics.Webhooks, topics.WebhookStates, topics.Keys, topics.Jobs}
	follower, err := kafka.NewFollower(cfg, p.ClientID+"-registry", p.Log, followed, r.apply)
	if err != nil {
		return nil, fmt.Errorf("making the follower of webhooks and keys: %w", err)
	}
	follower.OnRebuild(r.beginRebuild, r.endRebuild)
	follower.ReportTo(reporter{r})
	r.follower = follower
	r.barrier = newBarrier(follower.Barrier)
	r.register(p.Metrics)
	return r, nil
}

func (r *Registry) register(metrics prometheus.Registerer) {
	r.badRecords = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "postrider_ingest_registry_bad_records_total",
		Help: "Records of webhooks and keys that could not be read; the last good value stays in force, unless a newer binary wrote it. Those of webhooks whose settings make no sense, too: these are disabled.",
	})
	r.takeovers = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "postrider_ingest_registry_takeovers_total",
		Help: "Times this replica became the writer of webhooks and keys.",
	})
	r.written = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postrider_ingest_registry_writes_total",
		Help: "Changes of webhooks and keys, by result.",
	}, []string{"result"})
	r.duration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "postrider_ingest_registry_write_duration_seconds",
		Help:    "From the call of a change to its answer.",
		Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5},
	})
	metrics.MustRegister(
		r.badRecords, r.takeovers, r.written, r.duration,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postrider_ingest_registry_webhooks", Help: "Webhooks known.",
		}, func() float64 { return float64(r.webhooks.size()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postrider_ingest_registry_keys", Help: "API keys known, revoked ones too.",
		}, func() float64 { return float64(r.keys.size()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postrider_ingest_registry_staleness_seconds", Help: "Age of this replica's view of webhooks and keys.",
		}, func() float64 { return r.follower.Staleness().Seconds() }),
	)
}

// Follow applies what the topics say until ctx ends.
func (r *Registry) Follow(ctx context.Context) error { return r.follower.Run(ctx) }

// Ready is closed once the topics have been read to their end.
func (r *Registry) Ready() <-chan struct{} { return r.follower.Ready() }

// reporter passes on what the follower says, but for one thing it cannot know:
// with a record that only a newer binary can read, up to date is not enough.
type reporter struct{ r *Registry }

// Up is called again and again while the follower is up to date.
func (p reporter) Up() {
	if newer := cmp.Or(p.r.webhooks.newer(), p.r.states.newer(), p.r.keys.newer(), p.r.jobs.newer()); newer != nil {
		p.r.health.Down(newer) // unready rather than wrong
		return
	}
	p.r.health.Up()
}

// Down is called while it is not.
func (p reporter) Down(err error) { p.r.health.Down(err) }

func (r *Registry) beginRebuild() {
	r.fresh.webhooks = newTable(r.webhooks.organization)
	r.fresh.keys = newTable(r.keys.organization)
	r.fresh.jobs = newTable(r.jobs.organization)
	r.fresh.states = newTable(stateOrganization)
}

func (r *Registry) endRebuild() {
	r.webhooks.replace(r.fresh.webhooks)
	r.keys.replace(r.fresh.keys)
	r.jobs.replace(r.fresh.jobs)
	r.states.replace(r.fresh.states)
	r.fresh.webhooks, r.fresh.keys, r.fresh.jobs, r.fresh.states = nil, nil, nil, nil
}

// apply is called by the follower, record by record, as they stand in the topics.
func (r *Registry) apply(record *kgo.Record) {
	switch record.Topic {
	case r.topics.Webhooks:
		applyTo(r, cmp.Or(r.fresh.webhooks, r.webhooks.table), record, r.decodeWebhook)
	case r.topics.WebhookStates:
		applyTo(r, cmp.Or(r.fresh.states, r.states), record, schemas.DecodeWebhookState)
	case r.topics.Keys:
		applyTo(r, cmp.Or(r.fresh.keys, r.keys.table), record, schemas.DecodeKey)
	case r.topics.Jobs:
		applyTo(r, cmp.Or(r.fresh.jobs, r.jobs.table), record, schemas.DecodeJob)
	}
	r.watched.Load().saw(record)
}

// applyTo puts a record into a table. A bad one changes nothing: what its key
// had before stays, be that a row or that it is unreadable.
func applyTo[T any](r *Registry, t *table[T], record *kgo.Record, decode func(*kgo.Record) (T, error)) {
	row, err := decode(record)
	if err == nil {
		t.put(string(record.Key), &row)
		return
	}
	if errors.Is(err, schemas.ErrTombstone) {
		t.remove(string(record.Key))
		return
	}
	r.badRecords.Inc()
	log := r.log.With("topic", record.Topic, "partition", record.Partition, "offset", record.Offset, "error", err)
	if newer, ok := errors.AsType[*schemas.UnknownVersionError](err); ok {
		t.putUnreadable(string(record.Key), newer)
		log.Error("reading a record of the registry: what stands under its key is not available to this binary")
		return
	}
	log.Error("reading a record of the registry: the last good value of its key stays in force")
}

// Fresh returns at once if this replica's view is at most a second old, else as
// soon as it is again, else ErrUnavailable after 2 s.
func (r *Registry) Fresh(ctx context.Context) error {
	if r.follower.Staleness() <= maxStale {
		return nil
	}
	if err := r.barrier.wait(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Webhook returns a webhook, or ErrNotFound after asking Kafka whether this
// replica has only not heard of it yet, or ErrUnavailable if its record, or that of
// its state, is of a version that is not known here. The result must not be altered.
func (r *Registry) Webhook(ctx context.Context, id string) (*schemas.Webhook, error) {
	return find(ctx, r, &r.webhooks, id)
}

// Key returns an API key, likewise.
func (r *Registry) Key(ctx context.Context, id string) (*schemas.Key, error) {
	return find(ctx, r, &r.keys, id)
}

func find[T any](ctx context.Context, r *Registry, k *kind[T], id string) (*T, error) {
	if row, err := k.get(id); row != nil || err != nil {
		return row, err
	}
	if err := r.barrier.wait(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	row, err := k.get(id)
	if row == nil && err == nil {
		err = ErrNotFound
	}
	return row, err
}

// Webhooks returns up to limit webhooks of an organization (of all if it is
// empty) that are kept (nil: all are) and whose ids sort after the given one, and
// whether there are more. While
// the record of any webhook or state is of a version that is not known here it returns
// ErrUnavailable, for every organization: the record does not say here whose it is.
func (r *Registry) Webhooks(organization, after string, limit int, keep func(*schemas.Webhook) bool) (rows []schemas.Webhook, more bool, err error) {
	if newer := r.states.newer(); newer != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrUnavailable, newer)
	}
	return r.webhooks.page(organization, after, limit, keep)
}

// Keys returns API keys, likewise.
func (r *Registry) Keys(organization, after string, limit int) (rows []schemas.Key, more bool, err error) {
	return r.keys.page(organization, after, limit, nil)
}

// ChangeWebhook makes of the webhook under id what c decides, in one Kafka
// transaction with the record of changes and its operational events, and returns it
// once this replica's own follower has it: from then on every read-committed reader
// can see it (P4). Where c returns the row that it is given, nothing is written.
// c's error is returned as it is. c must not alter the row it is given, and may be
// called several times. A row whose record is of a version that is not known here
// is left as it is: ErrUnavailable, without asking c.
func (r *Registry) ChangeWebhook(
	ctx context.Context, actor Actor, action, id string, c func(old *schemas.Webhook) (*schemas.Webhook, error),
) (schemas.Webhook, error) {
	return submit(ctx, r, &r.webhooks, proposal[schemas.Webhook]{
		actor: actor, action: action, id: id, change: c,
		allowed: func(batch overlay) error { return r.mayMake(actor, id, batch) },
	})
}

// ChangeKey does the same for an API key.
func (r *Registry) ChangeKey(
	ctx context.Context, actor Actor, action, id string, c func(old *schemas.Key) (*schemas.Key, error),
) (schemas.Key, error) {
	return submit(ctx, r, &r.keys, proposal[schemas.Key]{actor: actor, action: action, id: id, change: c})
}
