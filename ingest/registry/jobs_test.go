package registry

import (
	"errors"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

func jobOf(id, webhookID string, revision int64) schemas.Job {
	return schemas.Job{ID: id, Organization: "acme", WebhookID: webhookID, State: schemas.JobRunning, Rate: 1, Runner: "one", Revision: revision}
}

// proposals returns writes that are decided together, as submit would make them.
func proposals(r *Registry, all ...proposal[schemas.Job]) []*write {
	var batch []*write
	for _, p := range all {
		w, _ := newWrite(&r.jobs, r.topics.Changes, p, func(error) {})
		batch = append(batch, w)
	}
	return batch
}

func starting(r *Registry, job schemas.Job) proposal[schemas.Job] {
	return proposal[schemas.Job]{
		id: job.ID, action: "created",
		change:  func(*schemas.Job) (*schemas.Job, error) { return &job, nil },
		allowed: func(batch overlay) error { return r.mayStart(job.WebhookID, batch) },
	}
}

func refusals(batch []*write) []error {
	var errs []error
	for _, w := range batch {
		errs = append(errs, w.decided.refused)
	}
	return errs
}

func TestOneRunningJobOfAWebhook(t *testing.T) {
	r, _ := newRegistry(t)
	running, ended := jobOf("job_1", "wh_1", 1), jobOf("job_2", "wh_2", 1)
	ended.State = schemas.JobDone
	for _, job := range []schemas.Job{running, ended} {
		record, err := job.Record(r.topics.Jobs)
		if err != nil {
			t.Fatal(err)
		}
		r.apply(record)
	}
	batch := proposals(
		r, starting(r, jobOf("job_3", "wh_1", 1)), starting(r, jobOf("job_4", "wh_2", 1)),
		starting(r, jobOf("job_5", "wh_2", 1)), starting(r, jobOf("job_6", "wh_3", 1)),
	)
	rows, rest := decide(batch)
	if got, want := refusals(batch), []error{ErrJobRunning, nil, ErrJobRunning, nil}; !slices.Equal(got, want) || len(rows) != 2 || len(rest) != 4 {
		t.Errorf("got %v with %d rows and %d changes, want %v", got, len(rows), len(rest), want)
	}
}

// A step that is refused leaves nothing behind, in changes neither.
func TestFurtherRecordsGoWithTheirRow(t *testing.T) {
	r, _ := newRegistry(t)
	step := func(refused error) proposal[schemas.Job] {
		return proposal[schemas.Job]{
			id: "job_1",
			change: func(*schemas.Job) (*schemas.Job, error) {
				job := jobOf("job_1", "wh_1", 2)
				return &job, refused
			},
			further: func() []*kgo.Record { return []*kgo.Record{{Topic: "further"}, {Topic: "further"}} },
		}
	}
	batch := proposals(r, step(nil), step(ErrJobMoved), step(nil))
	rows, rest := decide(batch)
	if len(rows) != 2 || len(rest) != 4 || !errors.Is(batch[1].decided.refused, ErrJobMoved) {
		t.Errorf("got %d rows and %d further records with refusals %v, want 2 and 4", len(rows), len(rest), refusals(batch))
	}
}
