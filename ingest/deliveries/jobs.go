package deliveries

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

const (
	// MaxRate is the most deliveries a second that a job may make.
	MaxRate = 1000
	// maxStep is the most that one step makes.
	maxStep = 100
	// maxAtOnce bounds the jobs that a replica runs; others take over the rest.
	maxAtOnce = 8
	// maxKept is how many jobs of a webhook that have ended are kept, and maxDropped how many go at once.
	maxKept    = 10
	maxDropped = 100

	// ReasonWebhookDeleted is why a job failed whose webhook is gone.
	ReasonWebhookDeleted = "webhook_deleted"
)

// timing is how long things take; tests have less time.
type timing struct {
	look time.Duration // between looks for jobs
	// patience is how long another's job may stand still: longer than a step may
	// take (three questions of maxQuery, and 4.5 s to write), or two replicas with a
	// slow ClickHouse would take the job from each other and neither came on.
	patience time.Duration
	// settle is how far the audit is behind Kafka while all is well: what ended
	// later than that ago is not all there yet, and a job that went past it would miss some.
	settle time.Duration
	keep   time.Duration // how long a job that has ended can be asked for
	// second is a second of a job's rate.
	second time.Duration
}

// Jobs runs jobs: a replica's own, and those of others that stand still.
//
// A step reads the next deliveries from the audit and makes new ones of them, in
// one Kafka transaction with the job's new place; its revision decides between
// two replicas that both take themselves for the runner. So each new delivery is
// made exactly once, whoever dies when.
type Jobs struct {
	registry *registry.Registry
	audit    audit.Audit
	instance string
	log      *slog.Logger
	made     *prometheus.CounterVec
	timing   timing

	seen map[string]sight // of the running jobs; for Run's goroutine only

	mu      sync.Mutex
	working map[string]struct{} // ids of jobs that have a goroutine here, guarded by mu
}

// sight is when a revision was first seen, by this replica's clock.
type sight struct {
	revision int64
	at       time.Time
}

// NewJobs returns what runs the jobs of the replica with this name.
func NewJobs(rows *registry.Registry, asked audit.Audit, instance string, log *slog.Logger, metrics prometheus.Registerer) *Jobs {
	j := &Jobs{
		registry: rows, audit: asked, instance: instance, log: log,
		made: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_ingest_job_deliveries_total",
			Help: "Dead deliveries that jobs went through: made again, or skipped because the event's body is not kept.",
		}, []string{"result"}),
		timing:  timing{look: time.Second, patience: 20 * time.Second, settle: 5 * time.Second, keep: 24 * time.Hour, second: time.Second},
		seen:    map[string]sight{},
		working: map[string]struct{}{},
	}
	metrics.MustRegister(j.made)
	return j
}

// Run looks for jobs until ctx ends. Those that run then stand still until a replica takes them over.
func (j *Jobs) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	for {
		jobs, err := j.registry.Jobs()
		if err != nil { // which /readyz says
			j.log.Debug("looking for jobs", "error", err)
		}
		for _, id := range j.choose(jobs) {
			if j.begin(id) {
				workers.Go(func() { j.work(ctx, id) })
			}
		}
		j.sweep(ctx, jobs)
		if !process.Pause(ctx, j.timing.look) {
			return nil
		}
	}
}

// choose returns the running jobs that are this replica's to run, and notes how long each has stood still.
func (j *Jobs) choose(jobs []schemas.Job) (ids []string) {
	seen := make(map[string]sight, len(j.seen))
	now := time.Now()
	for i := range jobs {
		job := &jobs[i]
		if !job.Running() {
			continue
		}
		s, known := j.seen[job.ID]
		if !known || s.revision != job.Revision {
			s = sight{job.Revision, now}
		}
		seen[job.ID] = s
		if job.Runner == j.instance || now.Sub(s.at) > j.timing.patience {
			ids = append(ids, job.ID)
		}
	}
	j.seen = seen
	return ids
}

// begin notes that a job has a goroutine here, unless it has one or there are enough.
func (j *Jobs) begin(id string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, working := j.working[id]; working || len(j.working) >= maxAtOnce {
		return false
	}
	j.working[id] = struct{}{}
	return true
}

func (j *Jobs) end(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.working, id)
}

// work takes a job over if it is another's, and then step after step. After an
// error it gives up: the next look begins again, here or with another replica.
func (j *Jobs) work(ctx context.Context, id string) {
	defer j.end(id)
	err := j.take(ctx, id)
	for err == nil {
		var wait time.Duration
		if wait, err = j.step(ctx, id); err == nil && !process.Pause(ctx, wait) {
			return
		}
	}
	switch {
	case ctx.Err() != nil, errors.Is(err, registry.ErrJobMoved), errors.Is(err, registry.ErrNotFound):
	case errors.Is(err, audit.ErrUnavailable), errors.Is(err, registry.ErrUnavailable):
		j.log.Debug("running a job", "job", id, "error", err) // /readyz says so
	default:
		j.log.Warn("running a job", "job", id, "error", err)
	}
}

// take makes this replica the runner, unless it is.
func (j *Jobs) take(ctx context.Context, id string) error {
	job, err := j.registry.Job(ctx, id)
	if err != nil || job.Runner == j.instance {
		return err
	}
	next := j.next(job)
	next.Runner = j.instance
	if err := j.registry.StepJob(ctx, j.actor(job), "", next, nil); err != nil {
		return err
	}
	j.log.Info("took over a job that stood still", "job", id, "runner", job.Runner)
	return nil
}

// next is the job in its next revision.
func (j *Jobs) next(job *schemas.Job) schemas.Job {
	next := *job
	next.Revision++
	next.MovedAt = now()
	return next
}

func (j *Jobs) actor(job *schemas.Job) registry.Actor {
	return registry.Actor{ID: j.instance, Organization: job.Organization}
}

// step makes the next deliveries of a job, and returns how long to wait before
// the step after it. ErrJobMoved says that there is none.
func (j *Jobs) step(ctx context.Context, id string) (wait time.Duration, err error) {
	job, err := j.registry.Job(ctx, id)
	if err != nil {
		return 0, err
	}
	if !job.Running() || job.Runner != j.instance {
		return 0, registry.ErrJobMoved
	}
	next := j.next(job)
	w, err := j.registry.Webhook(ctx, job.WebhookID)
	if errors.Is(err, registry.ErrNotFound) {
		return 0, j.finish(ctx, next, schemas.JobFailed, ReasonWebhookDeleted)
	}
	if err != nil {
		return 0, err
	}
	f, settled := DeadOf(job), time.Now().Add(-j.timing.settle)
	whole := !settled.Before(job.Until)
	if !whole {
		f.Until = settled
	}
	page, err := j.audit.Ended(ctx, f, audit.Place{At: job.AfterAt, ID: job.AfterID}, min(job.Rate, maxStep))
	switch {
	case err != nil:
		return 0, fmt.Errorf("reading deliveries of job %q: %w", id, err)
	case len(page) == 0 && whole:
		return 0, j.finish(ctx, next, schemas.JobDone, "")
	case len(page) == 0:
		return min(time.Until(job.Until.Add(j.timing.settle)), j.timing.second), nil
	}
	events, err := j.audit.EventsOf(ctx, page)
	if err != nil {
		return 0, fmt.Errorf("reading events of job %q: %w", id, err)
	}
	made := again(&next, page[:len(events)], events, w)
	if err := j.registry.StepJob(ctx, j.actor(job), "", next, made); err != nil {
		return 0, err
	}
	j.made.WithLabelValues("made").Add(float64(len(made)))
	j.made.WithLabelValues("skipped").Add(float64(len(events) - len(made)))
	return time.Duration(len(made)) * j.timing.second / time.Duration(job.Rate), nil
}

// DeadOf says which deliveries a job sends again. None that it makes itself is
// among them: their clock may be behind, but they are made after it was.
func DeadOf(job *schemas.Job) audit.Filter {
	return audit.Filter{
		Organization: job.Organization, WebhookID: job.WebhookID, Status: string(schemas.ResultDead),
		Since: job.Since, Until: job.Until, RoutedBefore: job.CreatedAt,
	}
}

// again makes the deliveries of a step, and puts the job behind those of the page.
func again(next *schemas.Job, page []audit.Delivery, events []*schemas.Event, w *schemas.Webhook) []schemas.Delivery {
	at := next.MovedAt
	if at.Before(next.CreatedAt) {
		at = next.CreatedAt // another replica's clock
	}
	var made []schemas.Delivery
	for i, e := range events {
		if e == nil {
			next.Skipped++
			continue
		}
		made = append(made, Again(&page[i], e, w, at))
	}
	next.Done += len(made)
	next.Total = max(next.Total, next.Done+next.Skipped)
	last := &page[len(page)-1]
	next.AfterAt, next.AfterID = last.UpdatedAt, last.ID
	return made
}

// finish ends a job, and returns ErrJobMoved: there is no further step.
func (j *Jobs) finish(ctx context.Context, next schemas.Job, state schemas.JobState, reason string) error {
	next.State, next.Reason, next.EndedAt = state, reason, next.MovedAt
	if err := j.registry.StepJob(ctx, j.actor(&next), string(state), next, nil); err != nil {
		return err
	}
	return registry.ErrJobMoved
}

// sweep drops jobs that ended long ago, and those of a webhook that has had many since.
func (j *Jobs) sweep(ctx context.Context, jobs []schemas.Job) {
	ended := map[string]int{} // by webhook
	dropped := 0
	for _, job := range slices.Backward(jobs) { // the newest first: ids sort by time
		if job.Running() {
			continue
		}
		if ended[job.WebhookID]++; ended[job.WebhookID] <= maxKept && time.Since(job.EndedAt) < j.timing.keep {
			continue
		}
		err := j.registry.DropJob(ctx, job.ID)
		if err != nil && !errors.Is(err, registry.ErrJobMoved) {
			j.log.Debug("dropping a job", "job", job.ID, "error", err)
			return
		}
		if dropped++; dropped == maxDropped {
			return
		}
	}
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
