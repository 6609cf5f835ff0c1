package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
)

// versions are scenarios of binaries that know more than others.
func versions() []scenario {
	return []scenario{
		{id: "F24a", fault: "a newer sender joins an older one, and leaves it alone with its records", world: options{rate: pick(200, 500)}, run: (*world).newerSender},
		{id: "F24b", fault: "ingest, router and sender become newer one after the other, and the router older again", world: options{rate: pick(200, 500)}, run: (*world).newerServices},
	}
}

// newerVersion is what a newer binary writes; it reads the older one too.
const newerVersion = "2"

// newer builds a program as a newer release would be: the one file that knows the
// version is laid over (go help build, -overlay).
func (w *world) newer(name string) (binary string) {
	w.t.Helper()
	dir := w.t.TempDir()
	const file = "../../schemas/codec.go"
	text, err := os.ReadFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	changed := string(text)
	for old, new := range map[string]string{
		`const Version = "` + schemas.Version + `"`: `const Version = "` + newerVersion + `"`,
		`if string(h.Value) == Version {`:           `if v := string(h.Value); v == Version || v == "` + schemas.Version + `" {`,
	} {
		if strings.Count(changed, old) != 1 {
			w.t.Fatalf("%s does not hold %q once", file, old)
		}
		changed = strings.Replace(changed, old, new, 1)
	}
	original, err := filepath.Abs(file)
	if err != nil {
		w.t.Fatal(err)
	}
	overlay := map[string]map[string]string{"Replace": {original: filepath.Join(dir, "codec.go")}}
	plan, err := json.Marshal(overlay)
	if err != nil {
		w.t.Fatal(err)
	}
	for path, text := range map[string]string{"codec.go": changed, "overlay.json": string(plan)} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*soon)
	defer cancel()
	binary = filepath.Join(dir, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary,
		"github.com/postrider/postrider/"+name+"/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("building a newer %s: %v\n%s", name, err, out)
	}
	return binary
}

// known is a record of a newer version as an older one: they differ in nothing else.
// It tells whether it was one.
func known(r *kgo.Record) (*kgo.Record, bool) {
	at := slices.IndexFunc(r.Headers, func(h kgo.RecordHeader) bool {
		return h.Key == schemas.HeaderVersion && string(h.Value) == newerVersion
	})
	if at < 0 {
		return r, false
	}
	older := *r
	older.Headers = slices.Clone(r.Headers)
	older.Headers[at].Value = []byte(schemas.Version)
	return &older, true
}

// newerSender has a newer sender write outcomes and retries, and then leave an older
// one alone with them until it is back.
func (w *world) newerSender() {
	binary := w.newer("sender")
	var hooks []ledger.Webhook
	for n := range 8 {
		path := "/later/" + strconv.Itoa(n)
		w.targets.Answers(path, receiver.Status(http.StatusServiceUnavailable), receiver.Answer{})
		hooks = append(hooks, w.subscribe("later", path, `,"retry_schedule":["2s","2s","2s","2s","2s","2s"]`))
	}
	w.progress(200)
	second := w.startBy(nil, "sender", binary, "sender-2")
	second.WaitReady(w.t)
	w.progress(500)
	producer := w.producing()
	w.sendMany(producer, "later", "later", 3)
	pipeline.Wait(w.t, soon, "retries of the newer sender", func() error {
		if _, newer := w.retries(); newer == 0 {
			return errNotYet
		}
		return nil
	})
	second.Kill9(w.t)
	w.noteKill()
	w.progress(500) // the older one delivers on

	pipeline.Wait(w.t, soon, "the older sender to park what it does not know", func() error {
		if parked, _ := w.retries(); parked == 0 {
			return errNotYet
		}
		return nil
	})
	parked, newer := w.retries()
	// It stands once the audit of the one that was killed is the older one's too.
	if err := pipeline.Try(w.t, soon, func() error {
		if _, body := w.sender.Readyz(w.t); !strings.Contains(body, "version") || !strings.Contains(body, w.topics.Outcomes) {
			return fmt.Errorf("%w: %s", errNotYet, body)
		}
		return nil
	}); err != nil {
		w.problemf("/readyz does not name the partition of outcomes that stands: %v", err)
	}
	behind, level := w.auditBehind()
	w.notef("%d retries of version %s, of which the older sender parked %d for 30 s; %d records of outcomes of that version: the audit stands at %d partitions, which /readyz names, and goes on at %d",
		newer, newerVersion, parked, w.log.newer(w.topics.Outcomes), behind, level)
	if behind == 0 || level == 0 {
		w.problemf("%d partitions of outcomes stand and %d go on, want some of both", behind, level)
	}
	second.Restart(w.t)
	second.WaitReady(w.t)
	w.faultEnded()
	for _, hook := range hooks {
		w.waitEnded(hook.ID, 3)
	}
	// The older one would stop again at what the newer writes.
	w.sender.Terminate(w.t, soon)
	w.sender = second
}

// auditBehind is at how many partitions of outcomes the audit stands, and at how many it goes on.
func (w *world) auditBehind() (behind, level int) {
	w.t.Helper()
	at := func() (rows map[string]string) {
		rows = map[string]string{}
		for _, f := range w.lines("SELECT partition, max(offset) FROM outcomes GROUP BY partition") {
			rows[f[0]] = f[1]
		}
		return rows
	}
	before := at()
	w.progress(500)
	w.pass(3 * time.Second)
	for partition, offset := range at() {
		if before[partition] == offset {
			behind++
		} else {
			level++
		}
	}
	return behind, level
}

// retries counts records of the newer version in retry tiers: those in the tier of 30 s, and all.
func (w *world) retries() (parked, all int) {
	w.t.Helper()
	tier := w.topics.Retry[slices.Index(schemas.RetryDelays(), 30*time.Second)]
	w.each(w.topics.Retry, func(r *kgo.Record) {
		if _, newer := known(r); newer {
			all++
			if r.Topic == tier {
				parked++
			}
		}
	})
	return parked, all
}

// each reads topics from their starts to their ends.
func (w *world) each(topics []string, f func(r *kgo.Record)) {
	w.t.Helper()
	cl := w.client(kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(100*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), soon)
	defer cancel()
	ends, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, topics...)
	if err != nil {
		w.t.Fatal(err)
	}
	type place struct {
		topic     string
		partition int32
	}
	open := map[place]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			open[place{o.Topic, o.Partition}] = o.Offset
		}
	})
	for len(open) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			w.t.Fatalf("reading %v: %v", topics, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			at := place{r.Topic, r.Partition}
			if end, ok := open[at]; ok && r.Offset+1 >= end {
				delete(open, at)
			}
			if !r.Attrs.IsControl() {
				f(r)
			}
		})
	}
}

// replace ends a process in order and starts another binary of the same name and instance.
func (w *world) replace(s *pipeline.Service, name, binary string) *pipeline.Service {
	w.t.Helper()
	s.Terminate(w.t, soon)
	return w.startBy(nil, name, binary, name+"-1")
}

// unready waits until a service says, not ready, that it met a version that it does not know.
func (w *world) unready(what string, s *pipeline.Service) {
	w.t.Helper()
	if err := pipeline.Try(w.t, soon, func() error {
		status, body := s.Readyz(w.t)
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "version") {
			return fmt.Errorf("got %d %s, want 503 and the version", status, body)
		}
		return nil
	}); err != nil {
		w.problemf("%s: %v", what, err)
		return
	}
	w.notef("%s: unready, naming the version", what)
}

// newerServices has one service after the other become newer, and the router older again.
func (w *world) newerServices() {
	ingest, router, sender := w.newer("ingest"), w.newer("router"), w.newer("sender")
	w.progress(200)
	w.ingest = w.replace(w.ingest, "ingest", ingest)
	w.ingest.WaitReady(w.t)
	w.subscribe("newer", "/newer", "")
	producer := w.producing()
	w.sendMany(producer, "newer", "newer", 20)
	w.unready("the older router, with a webhook of a newer version", w.router)
	w.unready("the older sender, with that webhook", w.sender)

	w.router = w.replace(w.router, "router", router)
	w.router.WaitReady(w.t)
	pipeline.Wait(w.t, soon, "the older sender to park what it does not know", func() error {
		if parked, _ := w.retries(); parked < 100 {
			return errNotYet
		}
		return nil
	})
	parked, _ := w.retries()
	w.notef("the older sender parked %d deliveries of the newer router", parked)
	w.sender = w.replace(w.sender, "sender", sender)
	w.sender.WaitReady(w.t)
	w.progress(200)

	w.router = w.replace(w.router, "router", pipeline.Binary(w.t, "router"))
	w.unready("an older router, with what a newer one has routed", w.router)
	w.router = w.replace(w.router, "router", router)
	w.router.WaitReady(w.t)
	w.faultEnded()
	w.progress(500)
}
