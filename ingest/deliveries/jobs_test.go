package deliveries

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAudit has n dead deliveries; it is asked by jobs only.
type fakeAudit struct {
	audit.Audit
	rows   []audit.Delivery
	before func(ctx context.Context, call int) error // each answer of Ended; nil: nothing
	calls  int
}

var longAgo = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant

func newFakeAudit(n int) *fakeAudit {
	f := &fakeAudit{}
	for i := range n {
		f.rows = append(f.rows, audit.Delivery{
			ID:           schemas.DeliveryID{Offset: int64(i)}.String(),
			Organization: "acme", WebhookID: "wh_1", EventID: fmt.Sprint("event-", i), Event: "a.b", Status: "dead",
			AcceptedAt: longAgo, UpdatedAt: longAgo.Add(time.Duration(i/7) * time.Second), // several in a moment
		})
	}
	return f
}

func (f *fakeAudit) Ended(ctx context.Context, q audit.Filter, after audit.Place, limit int) ([]audit.Delivery, error) {
	var found []audit.Delivery
	for _, d := range f.rows {
		if cmp.Or(d.UpdatedAt.Compare(after.At), cmp.Compare(d.ID, after.ID)) > 0 && d.UpdatedAt.Before(q.Until) && len(found) < limit {
			found = append(found, d)
		}
	}
	if f.calls++; f.before != nil {
		return found, f.before(ctx, f.calls)
	}
	return found, nil
}

// Events have no body where their number ends in 9, and are too large for more than 60 together.
func (f *fakeAudit) EventsOf(_ context.Context, of []audit.Delivery) ([]*schemas.Event, error) {
	events := make([]*schemas.Event, min(len(of), 60))
	for i := range events {
		if id := of[i].EventID; id[len(id)-1] != '9' {
			events[i] = &schemas.Event{ID: id, Name: "a.b", Organization: "acme"}
		}
	}
	return events, nil
}

// replica is a registry and its jobs on a cluster.
type replica struct {
	registry *registry.Registry
	jobs     *Jobs
	stop     func()
}

func startCluster(t *testing.T) kafka.Config {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	cfg := kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: "test."}
	cl, err := cfg.NewClient("test")
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := kafka.CreateTopics(t.Context(), cl, cfg.Topics(), schemas.Partitions{Events: 2, Deliveries: 4}, 1); err != nil {
		t.Fatal(err)
	}
	return cfg
}

type unheard struct{}

func (unheard) Up()        {}
func (unheard) Down(error) {}

// startReplica starts a registry, and jobs if they shall run by themselves.
func startReplica(t *testing.T, cfg kafka.Config, name string, asked audit.Audit, run bool) *replica {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	rows, err := registry.New(cfg, registry.Process{ClientID: name, Log: log, Metrics: prometheus.NewRegistry(), Health: unheard{}})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{registry: rows, jobs: NewJobs(rows, asked, name, log, prometheus.NewRegistry())}
	r.jobs.timing = timing{look: 10 * time.Millisecond, patience: 300 * time.Millisecond, keep: time.Hour, second: 20 * time.Millisecond}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	loops := []func(context.Context) error{rows.Follow, rows.Write}
	if run {
		loops = append(loops, r.jobs.Run)
	}
	var running sync.WaitGroup
	for _, loop := range loops {
		running.Go(func() {
			if err := loop(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(r.stop)
	<-rows.Ready()
	return r
}

// startJob makes the webhook and a job of it.
func (r *replica) startJob(t *testing.T, rate, total int) schemas.Job {
	t.Helper()
	w := schemas.Webhook{ID: "wh_1", Organization: "acme", URL: "https://example.com/", Events: []string{"a"}, Revision: 7}
	_, err := r.registry.ChangeWebhook(t.Context(), registry.Actor{ID: "test"}, "created", w.ID, func(*schemas.Webhook) (*schemas.Webhook, error) { return &w, nil })
	if err != nil {
		t.Fatal(err)
	}
	job := schemas.Job{
		ID: schemas.NewJobID(), Organization: "acme", WebhookID: w.ID, State: schemas.JobRunning, Since: longAgo, Until: longAgo.Add(time.Hour),
		Rate: rate, Total: total, Runner: "one", MovedAt: now(), CreatedAt: now(), Revision: 1,
	}
	job, err = r.registry.StartJob(t.Context(), registry.Actor{ID: "test"}, job)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func (r *replica) job(t *testing.T, id string) schemas.Job {
	t.Helper()
	job, err := r.registry.Job(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return *job
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

// readAll returns the committed records of a topic, as they stand now.
func readAll(t *testing.T, cfg kafka.Config, topic string) []*kgo.Record {
	t.Helper()
	var records []*kgo.Record
	follower, err := kafka.NewFollower(cfg, "reader", slog.New(slog.DiscardHandler), []string{topic}, func(r *kgo.Record) {
		records = append(records, r)
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- follower.Run(ctx) }()
	if err := follower.Barrier(ctx); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	return records
}

// wantEachOnce fails the test unless there is one new delivery of each event with a body, at its webhook's place.
func wantEachOnce(t *testing.T, cfg kafka.Config, events int) {
	t.Helper()
	made := map[string]int{}
	partitions := map[int32]bool{}
	for _, record := range readAll(t, cfg, cfg.Topics().Deliveries) {
		d, err := schemas.DecodeDelivery(record, [16]byte{1})
		if err != nil || d.Cause != schemas.CauseRetry || d.WebhookRevision != 7 {
			t.Fatalf("got delivery %+v, %v", d, err)
		}
		made[d.EventID]++
		partitions[record.Partition] = true
	}
	for i := range events {
		want := 1
		if i%10 == 9 {
			want = 0
		}
		if n := made[fmt.Sprint("event-", i)]; n != want {
			t.Errorf("got %d deliveries of event-%d, want %d", n, i, want)
		}
	}
	if len(partitions) != 1 {
		t.Errorf("got deliveries of one webhook in %d partitions", len(partitions))
	}
}

// wantSteps fails the test if a step of a job went through more than size deliveries.
func wantSteps(t *testing.T, cfg kafka.Config, size int) {
	t.Helper()
	before := 0
	for _, record := range readAll(t, cfg, cfg.Topics().Jobs) {
		job, err := schemas.DecodeJob(record)
		if err != nil {
			t.Fatal(err)
		}
		if step := job.Done + job.Skipped - before; step > size {
			t.Errorf("got a step of %d, want at most %d", step, size)
		}
		before = job.Done + job.Skipped
	}
}

// TestJobIsTakenOver freezes the runner in the middle of a step, for longer than
// the other has patience, and then lets it go on: what it was about to write is
// no longer its to write.
func TestJobIsTakenOver(t *testing.T) {
	cfg := startCluster(t)
	frozen, thaw := make(chan struct{}), make(chan struct{})
	slow := newFakeAudit(50)
	slow.before = func(_ context.Context, call int) error {
		if call == 4 {
			close(frozen)
			<-thaw
		}
		return nil
	}
	one := startReplica(t, cfg, "one", slow, true)
	job := one.startJob(t, 5, 50)
	<-frozen
	two := startReplica(t, cfg, "two", newFakeAudit(50), true)
	waitFor(t, "the other replica to take over", func() bool { j := two.job(t, job.ID); return j.Runner == "two" && j.Done > 20 })
	close(thaw)
	waitFor(t, "the job to be done", func() bool { j := two.job(t, job.ID); return j.State == schemas.JobDone })
	if got := two.job(t, job.ID); got.Done != 45 || got.Skipped != 5 || got.Total != 50 || got.Runner != "two" || got.EndedAt.IsZero() {
		t.Errorf("got %+v, want 45 done and 5 skipped by the other", got)
	}
	waitFor(t, "the thawed replica to let go of the job", func() bool { return one.jobs.begin(job.ID) })
	one.stop()
	wantEachOnce(t, cfg, 50)
	wantSteps(t, cfg, 5)
}

// TestJobOutlivesItsRunner stops runners one after the other, each in its third step.
func TestJobOutlivesItsRunner(t *testing.T) {
	cfg := startCluster(t)
	var job schemas.Job
	names := []string{"one", "two", "one", "three", "four"}
	for i, name := range names {
		audit := newFakeAudit(40)
		vanish := make(chan struct{})
		if i < len(names)-1 {
			audit.before = func(ctx context.Context, call int) error {
				if call < 3 {
					return nil
				}
				close(vanish)
				<-ctx.Done()
				return ctx.Err()
			}
		}
		r := startReplica(t, cfg, name, audit, true)
		if i == 0 {
			job = r.startJob(t, 4, 40)
		}
		if audit.before != nil {
			<-vanish
			r.stop()
			continue
		}
		waitFor(t, "the job to be done", func() bool { return r.job(t, job.ID).State == schemas.JobDone })
	}
	wantEachOnce(t, cfg, 40)
	wantSteps(t, cfg, 4)
}

// TestJobKeepsItsRate counts what each step makes, and the wait that it asks for.
func TestJobKeepsItsRate(t *testing.T) {
	cfg := startCluster(t)
	r := startReplica(t, cfg, "one", nil, false)
	r.jobs.timing.second = time.Second
	for _, c := range []struct {
		rate, deliveries int
		steps            []int
	}{
		{2, 5, []int{2, 2, 1}},
		{50, 120, []int{50, 50, 20}},
		{1000, 250, []int{60, 60, 60, 60, 10}}, // a step's bodies are too large for 100
	} {
		r.jobs.audit = newFakeAudit(c.deliveries)
		job := r.startJob(t, c.rate, c.deliveries)
		var steps []int
		before := job
		for {
			wait, err := r.jobs.step(t.Context(), job.ID)
			if errors.Is(err, registry.ErrJobMoved) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			after := r.job(t, job.ID)
			made := after.Done - before.Done
			if want := time.Duration(made) * time.Second / time.Duration(c.rate); wait != want {
				t.Errorf("at rate %d: got a wait of %s after %d deliveries, want %s", c.rate, wait, made, want)
			}
			steps, before = append(steps, made+after.Skipped-before.Skipped), after
		}
		if !slices.Equal(steps, c.steps) {
			t.Errorf("at rate %d: got steps of %v, want %v", c.rate, steps, c.steps)
		}
	}
}

// TestJobWaitsForTheAudit holds a job back from what the audit may not have yet.
func TestJobWaitsForTheAudit(t *testing.T) {
	cfg := startCluster(t)
	audit := newFakeAudit(1)
	audit.rows[0].UpdatedAt = now().Add(-time.Minute)
	r := startReplica(t, cfg, "one", audit, false)
	job := r.startJob(t, 10, 1)
	_, err := r.registry.ChangeJob(t.Context(), registry.Actor{}, "", job.ID, func(old *schemas.Job) (*schemas.Job, error) {
		changed := *old
		changed.Until = now()
		return &changed, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.jobs.timing.settle = time.Hour
	for range 2 {
		if wait, err := r.jobs.step(t.Context(), job.ID); err != nil || wait <= 0 || r.job(t, job.ID).Done != 0 {
			t.Fatalf("got wait %s, %v, want to wait for the audit", wait, err)
		}
	}
	r.jobs.timing.settle = 0
	if _, err := r.jobs.step(t.Context(), job.ID); err != nil || r.job(t, job.ID).Done != 1 {
		t.Errorf("got %+v, %v, want one done", r.job(t, job.ID), err)
	}
}

func TestJobEndsEarly(t *testing.T) {
	cfg := startCluster(t)
	r := startReplica(t, cfg, "one", newFakeAudit(20), false)
	job := r.startJob(t, 5, 20)
	if _, err := r.jobs.step(t.Context(), job.ID); err != nil {
		t.Fatal(err)
	}
	_, err := r.registry.ChangeJob(t.Context(), registry.Actor{}, "cancelled", job.ID, func(old *schemas.Job) (*schemas.Job, error) {
		cancelled := *old
		cancelled.State = schemas.JobCancelled
		return &cancelled, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.jobs.step(t.Context(), job.ID); !errors.Is(err, registry.ErrJobMoved) {
		t.Errorf("got %v after the job was cancelled, want no step", err)
	}
	if n := len(readAll(t, cfg, cfg.Topics().Deliveries)); n != 5 {
		t.Errorf("got %d deliveries, want those of the first step", n)
	}

	gone := r.startJob(t, 5, 20)
	_, err = r.registry.ChangeWebhook(t.Context(), registry.Actor{}, "deleted", "wh_1", func(*schemas.Webhook) (*schemas.Webhook, error) {
		return nil, nil //nolint:nilnil // how a change deletes
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.jobs.step(t.Context(), gone.ID)
	if got := r.job(t, gone.ID); !errors.Is(err, registry.ErrJobMoved) || got.State != schemas.JobFailed || got.Reason != ReasonWebhookDeleted {
		t.Errorf("got %+v, %v, want it to have failed", got, err)
	}
}

// TestEndedJobsAreDropped keeps the newest few of a webhook, and none for long.
func TestEndedJobsAreDropped(t *testing.T) {
	cfg := startCluster(t)
	r := startReplica(t, cfg, "one", newFakeAudit(0), false)
	for range maxKept + 3 {
		job := r.startJob(t, 5, 0)
		if _, err := r.jobs.step(t.Context(), job.ID); !errors.Is(err, registry.ErrJobMoved) {
			t.Fatal(err)
		}
	}
	r.startJob(t, 5, 0)
	jobs := func() []schemas.Job {
		jobs, err := r.registry.Jobs()
		if err != nil {
			t.Fatal(err)
		}
		return jobs
	}
	all := jobs()
	r.jobs.sweep(t.Context(), all)
	if kept := jobs(); len(kept) != maxKept+1 || kept[0].ID != all[3].ID {
		t.Errorf("got %d jobs, want the newest %d and the one that runs", len(kept), maxKept)
	}
	r.jobs.timing.keep = 0
	r.jobs.sweep(t.Context(), jobs())
	r.jobs.sweep(t.Context(), all) // as another replica would, a moment late
	if kept := jobs(); len(kept) != 1 || !kept[0].Running() {
		t.Errorf("got %+v, want the job that runs", kept)
	}
}
