package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// TestPatchStorm has many clients count in the metadata of few webhooks, each step a
// PATCH with If-Match, through two replicas that take the writer's place from each
// other, and one of which is killed in the middle: no acknowledged change is lost.
func TestPatchStorm(t *testing.T) {
	cluster, prefix := pipeline.SharedKafka(t)
	s := prepare(t, cluster, prefix, pipeline.SharedClickHouse(t))
	s.startIngest(t, "ingest-1", loopback)
	replicas := []*pipeline.Service{s.ingest}
	s.startIngest(t, "ingest-2", loopback)
	replicas = append(replicas, s.ingest)
	for _, r := range replicas {
		r.WaitReady(t)
	}
	var hooks []string
	for i := range 3 {
		hooks = append(hooks, s.subscribe(t, "acme", "", fmt.Sprintf("/storm/%d", i), "a").ID)
	}
	st := &storm{s: s, hooks: hooks, acknowledged: map[string][]step{}, unknown: map[string]int{}, end: make(chan struct{})}
	const clients = 12
	for c := range clients {
		st.work.Go(func() {
			st.count(t, fmt.Sprintf("client-%d", c), replicas[c%len(replicas)].Listen, hooks[c%len(hooks)])
		})
	}
	st.progress(t, 100)
	replicas[0].Kill9(t)
	st.progress(t, 60)
	replicas[0].Restart(t)
	replicas[0].WaitReady(t)
	st.progress(t, 100)
	close(st.end)
	st.work.Wait()

	for _, r := range replicas {
		t.Logf("%d acknowledged and %d unknown so far; takeovers of %s: %s", st.total(), st.unknowns(), r.Listen,
			metric(r.Metrics(t), "postrider_ingest_registry_takeovers_total"))
	}
	for _, hook := range hooks {
		st.check(t, hook)
	}
}

// metric is the value of one without labels.
func metric(text, name string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return "none"
}

// step is a change that was acknowledged: to which number, at which revision, by which token.
type step struct {
	n, revision int64
	token       string
}

// storm is a number of clients that count.
type storm struct {
	s     *system
	hooks []string
	end   chan struct{}
	work  sync.WaitGroup

	mu           sync.Mutex // guards the rest
	acknowledged map[string][]step
	unknown      map[string]int // changes whose answer was lost
}

// count adds one to a webhook's number again and again, until the end.
func (st *storm) count(t *testing.T, name, replica, hook string) {
	t.Helper()
	for i := 0; ; i++ {
		select {
		case <-st.end:
			return
		default:
		}
		before, err := counterOf(t.Context(), http.MethodGet, replica, hook, "", "")
		if err != nil {
			continue // the replica is down, or says that it is not ready
		}
		want := step{n: before.n + 1, token: fmt.Sprintf("%s-%d", name, i)}
		body := fmt.Sprintf(`{"metadata":{"n":"%d","by":%q}}`, want.n, want.token)
		after, err := counterOf(t.Context(), http.MethodPatch, replica, hook, body, fmt.Sprintf("%q", strconv.FormatInt(before.revision, 10)))
		var refused *refusal
		switch {
		case errors.As(err, &refused) && refused.status == http.StatusPreconditionFailed: // another was faster
		case errors.As(err, &refused) && refused.status != http.StatusServiceUnavailable:
			t.Errorf("%s: %v", want.token, err)
			return
		case err != nil: // no answer, or one that leaves it open
			st.mu.Lock()
			st.unknown[hook]++
			st.mu.Unlock()
		case after.n != want.n || after.token != want.token || after.revision <= before.revision:
			t.Errorf("%s: the answer is %+v after %+v", want.token, after, before)
		default:
			st.mu.Lock()
			st.acknowledged[hook] = append(st.acknowledged[hook], after)
			st.mu.Unlock()
		}
	}
}

// refusal is an answer that is no success.
type refusal struct {
	status int
	body   string
}

func (r *refusal) Error() string { return fmt.Sprintf("got %d %s", r.status, r.body) }

// counterOf makes a call about a webhook and returns where its number then stands.
func counterOf(ctx context.Context, method, replica, hook, body, ifMatch string) (step, error) {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+replica+"/v1/webhooks/"+hook, strings.NewReader(body))
	if err != nil {
		return step{}, fmt.Errorf("making request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+adminKey)
	req.Header.Set("Content-Type", "application/json")
	if ifMatch != "" {
		req.Header.Set("If-Match", ifMatch)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return step{}, fmt.Errorf("calling %s of %s: %w", method, hook, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return step{}, fmt.Errorf("reading the answer of %s of %s: %w", method, hook, err)
	}
	if resp.StatusCode != http.StatusOK {
		return step{}, &refusal{resp.StatusCode, string(text)}
	}
	var w schemas.Webhook
	if err := json.Unmarshal(text, &w); err != nil {
		return step{}, fmt.Errorf("reading answer %s: %w", text, err)
	}
	return stepOf(&w)
}

// stepOf reads a webhook's number; a webhook that was just made stands at 0.
func stepOf(w *schemas.Webhook) (step, error) {
	st := step{revision: w.Revision, token: w.Metadata["by"]}
	var err error
	if text := w.Metadata["n"]; text != "" {
		st.n, err = strconv.ParseInt(text, 10, 64)
	}
	return st, err
}

func (st *storm) total() (n int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, steps := range st.acknowledged {
		n += len(steps)
	}
	return n
}

func (st *storm) unknowns() (n int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, unknown := range st.unknown {
		n += unknown
	}
	return n
}

// progress waits until so many more changes have been acknowledged.
func (st *storm) progress(t *testing.T, more int) {
	t.Helper()
	want := st.total() + more
	pipeline.Wait(t, 4*soon, "changes", func() error {
		if got := st.total(); got < want {
			return fmt.Errorf("%w: %d of %d", errNotYet, got, want)
		}
		return nil
	})
}

// check holds what the topic says of a webhook, change by change, against the model:
// a number that each acknowledged change moved by one.
func (st *storm) check(t *testing.T, hook string) {
	t.Helper()
	var written []step
	for _, r := range st.s.readAll(t, st.s.topics.Webhooks) {
		w, err := schemas.DecodeWebhook(r)
		if err != nil {
			t.Fatal(err)
		}
		if w.ID != hook {
			continue
		}
		now, err := stepOf(&w)
		if err != nil {
			t.Fatal(err)
		}
		if len(written) > 0 {
			if last := written[len(written)-1]; now.n != last.n+1 || now.revision <= last.revision {
				t.Errorf("%s: %+v follows %+v", hook, now, last)
			}
		}
		written = append(written, now)
	}
	acknowledged, unknown := st.acknowledged[hook], st.unknown[hook]
	for _, one := range acknowledged {
		if !slices.Contains(written, one) {
			t.Errorf("%s: %+v was acknowledged and is not in the topic", hook, one)
		}
	}
	final := written[len(written)-1]
	if extra := int(final.n) - len(acknowledged); extra < 0 || extra > unknown {
		t.Errorf("%s: the number is %d after %d acknowledged changes and %d of unknown end", hook, final.n, len(acknowledged), unknown)
	}
	pipeline.Wait(t, soon, "the last change", func() error {
		got, err := counterOf(t.Context(), http.MethodGet, st.s.ingest.Listen, hook, "", "")
		if err == nil && got != final {
			err = fmt.Errorf("%w: GET answers %+v, the topic says %+v", errNotYet, got, final)
		}
		return err
	})
}
