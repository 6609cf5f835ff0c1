package schemas

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// JobState is how far a job has come.
type JobState string

// The states. All but running are a job's end.
const (
	JobRunning   JobState = "running"
	JobDone      JobState = "done"
	JobCancelled JobState = "cancelled"
	JobFailed    JobState = "failed" // Reason says why
)

// Job sends again the deliveries of a webhook that died within a time, as it
// stands in the compacted topic jobs. Each of its steps is one record, in one
// Kafka transaction with the deliveries that the step makes.
type Job struct {
	ID           string   `json:"id" validate:"required,max=64,text"`
	Organization string   `json:"organization" validate:"required,max=128,text"`
	WebhookID    string   `json:"webhook_id" validate:"required,max=64,text"`
	State        JobState `json:"state" validate:"oneof=running done cancelled failed"`
	// Reason is why it failed.
	Reason string `json:"reason,omitempty" validate:"max=200,text"`
	// Since and Until bound the time of the deliveries' latest results: from Since on, and before Until.
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	// Rate is the number of deliveries a second.
	Rate int `json:"rate" validate:"min=1"`
	// Total is how many deliveries there were to send again when it began.
	Total int `json:"total" validate:"min=0"`
	// Done counts new deliveries, Skipped those that could not be made: the event's body is no longer kept.
	Done    int `json:"done" validate:"min=0"`
	Skipped int `json:"skipped" validate:"min=0"`
	// Deliveries are gone through by the time of their latest result, then by id; AfterAt and AfterID are the last one's.
	AfterAt time.Time `json:"after_at,omitzero"`
	AfterID string    `json:"after_id,omitempty" validate:"max=64,text"`
	// Runner is the instance that runs it; MovedAt is when it last took a step.
	Runner  string    `json:"runner" validate:"max=256,text"`
	MovedAt time.Time `json:"moved_at"`
	// Revision grows with each step.
	Revision  int64     `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
}

// Running reports whether the job has not ended.
func (j *Job) Running() bool { return j.State == JobRunning }

// Record returns the job's record.
func (j *Job) Record(topic string) (*kgo.Record, error) { return jsonRecord(topic, j.ID, j) }

// DecodeJob reads a record of jobs. ErrTombstone says that the key is deleted.
func DecodeJob(r *kgo.Record) (Job, error) {
	var j Job
	if err := decodeCompacted(r, &j); err != nil {
		return Job{}, err
	}
	if j.ID != string(r.Key) {
		return Job{}, fmt.Errorf("decoding job %.64q: %w", r.Key, Invalid(CodeInvalidRecord, "#/id", "differs from the record's key"))
	}
	if err := Validate(&j); err != nil {
		return Job{}, fmt.Errorf("decoding job %.64q: %w", r.Key, err)
	}
	return j, nil
}
