package broker

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func startBroker(t *testing.T, dir string) *Broker {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Start(Config{Dir: dir, Listener: ln, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func newClient(t *testing.T, b *Broker, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(b.Address()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.CloseAllowingRebalance)
	return cl
}

func createTopic(t *testing.T, b *Broker, name string, partitions int32, configs map[string]string) {
	t.Helper()
	pointers := make(map[string]*string, len(configs))
	for key, value := range configs {
		pointers[key] = &value
	}
	if _, err := kadm.NewClient(newClient(t, b)).CreateTopic(t.Context(), partitions, 1, pointers, name); err != nil {
		t.Fatal(err)
	}
}

func produce(t *testing.T, b *Broker, records ...*kgo.Record) {
	t.Helper()
	cl := newClient(t, b, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	cl.Close()
}

// readCommitted reads a topic to its end.
func readCommitted(t *testing.T, b *Broker, topic string) []string {
	t.Helper()
	ends, err := kadm.NewClient(newClient(t, b)).ListCommittedOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	cl := newClient(t, b, kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var values []string
	reached := make(map[int32]int64)
	ends.Each(func(end kadm.ListedOffset) {
		if end.Offset > 0 {
			reached[end.Partition] = end.Offset
		}
	})
	for len(reached) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("reading %s to its end: %v; still to come: %v", topic, err, reached)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				values = append(values, string(r.Value))
			}
			if r.Offset+1 >= reached[r.Partition] {
				delete(reached, r.Partition)
			}
		})
	}
	slices.Sort(values)
	return values
}

// copier moves records from "in" to both partitions of "out", exactly once.
type copier struct {
	session *kgo.GroupTransactSession
}

func newCopier(t *testing.T, b *Broker) *copier {
	t.Helper()
	session, err := kgo.NewGroupTransactSession(
		kgo.SeedBrokers(b.Address()), kgo.TransactionalID("copier"), kgo.ConsumerGroup("copier"), kgo.ConsumeTopics("in"),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.FetchMaxWait(100*time.Millisecond),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	return &copier{session}
}

// begin copies what is there to be copied, and does not end the transaction.
func (c *copier) begin(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	fetches := c.session.PollFetches(ctx)
	if err := errors.Join(fetches.Err0(), c.session.Begin()); err != nil {
		t.Fatal(err)
	}
	fetches.EachRecord(func(r *kgo.Record) {
		for p := range int32(2) {
			c.session.Produce(ctx, &kgo.Record{Topic: "out", Partition: p, Value: r.Value}, nil)
		}
	})
	if err := c.session.Client().Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func (c *copier) commit(t *testing.T) {
	t.Helper()
	if committed, err := c.session.End(t.Context(), kgo.TryCommit); err != nil || !committed {
		t.Fatalf("ending transaction: committed %v, %v", committed, err)
	}
}

// step is one more thing written: a file's new end.
type step struct {
	path string
	data []byte
}

// growth returns what files have more after than before, in the order kfake writes it.
func growth(t *testing.T, before, after map[string][]byte) []step {
	t.Helper()
	var steps []step
	for _, path := range slices.Sorted(maps.Keys(after)) {
		if tail, ok := bytes.CutPrefix(after[path], before[path]); !ok {
			t.Fatalf("%s was written anew", path)
		} else if len(tail) > 0 {
			steps = append(steps, step{path, tail})
		}
	}
	order := func(path string) int {
		switch path {
		case "groups.log":
			return 1
		case "pids.log":
			return 2
		default:
			return 0
		}
	}
	slices.SortStableFunc(steps, func(a, b step) int { return order(a.path) - order(b.path) })
	return steps
}

func readFiles(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files[name], err = fs.ReadFile(root, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func writeFiles(t *testing.T, files map[string][]byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// killedAt returns the files as a kill leaves them when n steps and a share of
// the next one have been written.
func killedAt(before map[string][]byte, steps []step, n int, share float64) map[string][]byte {
	files := maps.Clone(before)
	for i, s := range steps {
		length := len(s.data)
		switch {
		case i > n:
			length = 0
		case i == n:
			length = int(share * float64(length))
		}
		files[s.path] = slices.Concat(files[s.path], s.data[:length])
	}
	return files
}

// TestKilledInACommit kills after every write of a commit, and in the middle of
// each: the transaction is there whole, with its offsets, or not at all, and
// what comes after goes on from there, exactly once.
func TestKilledInACommit(t *testing.T) {
	dir := t.TempDir()
	b := startBroker(t, dir)
	createTopic(t, b, "in", 1, nil)
	createTopic(t, b, "out", 2, nil)
	c := newCopier(t, b)
	produce(t, b, &kgo.Record{Topic: "in", Value: []byte("first")})
	c.begin(t)
	c.commit(t)
	produce(t, b, &kgo.Record{Topic: "in", Value: []byte("second")})
	c.begin(t)
	before := readFiles(t, dir)
	c.commit(t)
	steps := growth(t, before, readFiles(t, dir))
	if len(steps) != 6 { // two markers with their index entries, the offset, the producer
		t.Fatalf("a commit wrote %d files, not 6", len(steps))
	}
	endtx, _, ok := bytes.Cut(steps[5].data, []byte(`{"type":"init"`))
	if !ok || !bytes.Contains(endtx, []byte("endtx")) {
		t.Fatalf("a commit wrote %q into pids.log", steps[5].data)
	}

	for n := range steps {
		for _, share := range []float64{0, 0.5, 1} {
			whole := n == 5 && share > 0 // the half of pids.log's two entries is more than the first
			want := []string{"first", "first"}
			if whole {
				want = append(want, "second", "second")
			}
			killed := startBroker(t, writeFiles(t, killedAt(before, steps, n, share)))
			if got := readCommitted(t, killed, "out"); !slices.Equal(got, want) {
				t.Errorf("killed at step %d and %v (%s): out holds %q, want %q", n, share, steps[n].path, got, want)
			}
			again := newCopier(t, killed)
			produce(t, killed, &kgo.Record{Topic: "in", Value: []byte("third")})
			for len(readCommitted(t, killed, "out")) < 6 {
				again.begin(t)
				again.commit(t)
			}
			// As it is read the next time, after another kill.
			reread := startBroker(t, writeFiles(t, readFiles(t, killed.dir(t))))
			want = []string{"first", "first", "second", "second", "third", "third"}
			if got := readCommitted(t, reread, "out"); !slices.Equal(got, want) {
				t.Errorf("killed at step %d and %v (%s), and again: out holds %q, want %q", n, share, steps[n].path, got, want)
			}
		}
	}
}

func (b *Broker) dir(t *testing.T) string {
	t.Helper()
	return b.folder
}

// TestOpenTransactionStaysAborted reads a transaction that was open at a kill
// again after its producer has committed another one.
func TestOpenTransactionStaysAborted(t *testing.T) {
	dir := t.TempDir()
	b := startBroker(t, dir)
	createTopic(t, b, "in", 1, nil)
	createTopic(t, b, "out", 2, nil)
	c := newCopier(t, b)
	produce(t, b, &kgo.Record{Topic: "in", Value: []byte("only")})
	c.begin(t)

	killed := startBroker(t, writeFiles(t, readFiles(t, dir)))
	again := newCopier(t, killed)
	again.begin(t)
	again.commit(t)
	for range 2 {
		killed = startBroker(t, writeFiles(t, readFiles(t, killed.dir(t))))
		if got, want := readCommitted(t, killed, "out"), []string{"only", "only"}; !slices.Equal(got, want) {
			t.Errorf("out holds %q, want %q", got, want)
		}
	}
}

// TestRetentionKeepsOffsets lets everything in a topic expire.
func TestRetentionKeepsOffsets(t *testing.T) {
	dir := t.TempDir()
	b := startBroker(t, dir)
	createTopic(t, b, "log", 1, map[string]string{"retention.ms": "86400000"})
	createTopic(t, b, "table", 1, map[string]string{"cleanup.policy": "compact"})
	old := time.Now().Add(-30 * 24 * time.Hour)
	produce(t, b, &kgo.Record{Topic: "log", Value: []byte("old"), Timestamp: old})
	produce(t, b, &kgo.Record{Topic: "table", Key: []byte("k"), Value: []byte("old"), Timestamp: old})
	b.Close()
	for range 3 {
		b = startBroker(t, dir)
		if got := readCommitted(t, b, "log"); len(got) != 0 {
			t.Errorf("the log still holds %q", got)
		}
		if got := readCommitted(t, b, "table"); !slices.Equal(got, []string{"old"}) {
			t.Errorf("the table holds %q, want what is in force", got)
		}
		b.Close()
	}
	b = startBroker(t, dir)
	ends, err := kadm.NewClient(newClient(t, b)).ListEndOffsets(t.Context(), "log")
	if err != nil {
		t.Fatal(err)
	}
	if end, _ := ends.Lookup("log", 0); end.Offset < 1 {
		t.Errorf("the log goes on at offset %d, which was used before", end.Offset)
	}
}

// TestCommittedAfterAnAbortIsRead restarts between a transaction that is aborted
// in a compacted topic and one that the same producer commits.
func TestCommittedAfterAnAbortIsRead(t *testing.T) {
	dir := t.TempDir()
	b := startBroker(t, dir)
	createTopic(t, b, "table", 1, map[string]string{"cleanup.policy": "compact"})
	transact := func(end kgo.TransactionEndTry, value string) {
		t.Helper()
		cl, err := kgo.NewClient(kgo.SeedBrokers(b.Address()), kgo.TransactionalID("writer"))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "table", Key: []byte("k"), Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	produce(t, b, &kgo.Record{Topic: "table", Key: []byte("l"), Value: []byte("others")})
	transact(kgo.TryAbort, "aborted")
	produce(t, b, &kgo.Record{Topic: "table", Key: []byte("m"), Value: []byte("others")})
	b.Close()
	b = startBroker(t, dir)
	transact(kgo.TryCommit, "committed")
	for range 2 {
		if got := readCommitted(t, b, "table"); !slices.Contains(got, "committed") {
			t.Errorf("the table holds %q, want what was committed too", got)
		}
		b.Close()
		b = startBroker(t, dir)
	}
}

// TestKilledInACompaction finds the files that a compaction had deleted already.
func TestKilledInACompaction(t *testing.T) {
	dir := t.TempDir()
	b := startBroker(t, dir)
	createTopic(t, b, "table", 1, map[string]string{"cleanup.policy": "compact"})
	for _, value := range []string{"1", "2", "3"} {
		produce(t, b, &kgo.Record{Topic: "table", Key: []byte("k"), Value: []byte(value)}, &kgo.Record{Topic: "table", Key: []byte(value), Value: []byte(value)})
	}
	b.Close()
	killed := make(map[string][]byte)
	for path, data := range readFiles(t, dir) {
		if rest, ok := strings.CutPrefix(path, filepath.Join("partitions", "table-0")); ok {
			killed[path] = data[:len(data)/2] // as far as the new one had come
			path = filepath.Join(uncompacted, "table-0"+rest)
		}
		killed[path] = data
	}
	b = startBroker(t, writeFiles(t, killed))
	got := readCommitted(t, b, "table")
	if want := []string{"1", "2", "3"}; len(slices.Compact(slices.Clone(got))) != len(want) {
		t.Errorf("the table holds %q, want %q", got, want)
	}
	if _, err := os.Stat(filepath.Join(b.dir(t), uncompacted)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("looking for what was kept: %v, want that it is gone", err)
	}
}

// TestKilledInItsFirstMoment finds the first of the files that kfake begins with, and no other.
func TestKilledInItsFirstMoment(t *testing.T) {
	dir := t.TempDir()
	startBroker(t, dir)
	b := startBroker(t, writeFiles(t, map[string][]byte{"meta.json": readFiles(t, dir)["meta.json"]}))
	createTopic(t, b, "log", 1, nil)
	produce(t, b, &kgo.Record{Topic: "log", Value: []byte("v")})
	if got := readCommitted(t, b, "log"); !slices.Equal(got, []string{"v"}) {
		t.Errorf("the log holds %q", got)
	}
}
