package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const parentEnv = "PIPELINE_TEST_PARENT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentEnv); dir != "" {
		parentMain(dir)
	}
	Main(m, NoLeaks())
}

// parentMain is a test binary to be killed: it starts a process, takes a port and waits.
func parentMain(dir string) {
	s := &shared{spawn: make(chan func())}
	go startProcesses(s.spawn)
	p := newProcess(dir, "sleep", "sleep", "600")
	if err := p.start(s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	port, err := s.ports.free(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(p.PID(), port)
	<-p.Done()
	os.Exit(1)
}

func TestWhatATestBinaryHoldsEndsWithIt(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), parentEnv+"="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid, port int
	if _, err := fmt.Fscanln(out, &pid, &port); err != nil {
		t.Fatal(err)
	}
	FreePort(t) // opens the locks
	take := func() bool {
		p := &the(t).ports
		p.mu.Lock()
		defer p.mu.Unlock()
		taken, err := p.lockLocked(port)
		if err != nil {
			t.Fatal(err)
		}
		return taken
	}
	if take() {
		t.Errorf("port %d could be taken while another test binary has it", port)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	Wait(t, 10*time.Second, "the end of the process", func() error {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signalling it: %w", err)
		}
		return nil
	})
	if !take() {
		t.Errorf("port %d could not be taken after its test binary's end", port)
	}
}

func TestPortsDiffer(t *testing.T) {
	seen := map[int]bool{}
	for range 500 {
		port := FreePort(t)
		if seen[port] {
			t.Fatalf("port %d was given twice", port)
		}
		seen[port] = true
	}
}

// A lock that its holder does not give back is not waited for without end, nor a
// program whose child lives on.
func TestWaitsAreBounded(t *testing.T) {
	deadline := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	dir := filepath.Join(t.TempDir(), "thing")
	held, err := os.Create(dir + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := fillOnce(deadline(), dir, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("filling a folder that another fills: got %v, want the deadline", err)
	}
	begun := time.Now()
	err = runTool(deadline(), "sh", "-c", "sleep 20 & wait")
	if took := time.Since(begun); err == nil || took > 15*time.Second {
		t.Errorf("running a program past the deadline: got %v after %v", err, took)
	}
}

func TestProcess(t *testing.T) {
	p := newProcess(t.TempDir(), "shell", "sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done")
	if err := p.start(the(t)); err != nil {
		t.Fatal(err)
	}
	p.ownedBy(t)
	up := func(times int) func() error {
		return func() error {
			if got := strings.Count(p.Output(t), "up\n"); got != times {
				return fmt.Errorf("starts seen in its output: got %d, want %d", got, times)
			}
			return nil
		}
	}
	Wait(t, 10*time.Second, "the shell", up(1))
	if p.Memory(t) < 100<<10 {
		t.Errorf("memory: got %d bytes, want at least 100 KiB", p.Memory(t))
	}
	Wait(t, 10*time.Second, "processor time", func() error {
		if p.CPU(t) == 0 {
			return errors.New("none")
		}
		return nil
	})
	p.Suspend(t)
	p.Continue(t)
	if got := p.Terminate(t, 10*time.Second); got != 7 {
		t.Errorf("exit code after SIGTERM: got %d, want 7", got)
	}
	p.Restart(t)
	Wait(t, 10*time.Second, "the shell", up(2))
	first := p.PID()
	p.Restart(t)
	Wait(t, 10*time.Second, "the shell", up(3))
	if p.PID() == first || !p.Running() {
		t.Error("restart of a running process: want another one, running")
	}
	p.Kill9(t)
	if p.Running() || p.WaitExit(t, time.Second) != -1 {
		t.Error("after a kill: want an end by signal")
	}
}

func TestSharedKafka(t *testing.T) {
	k, prefix := SharedKafka(t)
	again, other := SharedKafka(t)
	if again != k || other == prefix {
		t.Errorf("asked twice: got %p %q and %p %q, want one cluster and two prefixes", k, prefix, again, other)
	}
	topic := prefix + "t"
	createTopic(t, k, topic)
	cmd := KafkaTool(t, "org.apache.kafka.tools.ConsoleProducer",
		"--bootstrap-server", k.Addrs()[0], "--topic", topic, "--command-property", "acks=all")
	cmd.Stdin = strings.NewReader("one\ntwo\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("producing with Kafka's own tool: %v\n%s", err, out)
	}
	if got := consume(t, k.Addrs(), topic, 2); got != "one two" {
		t.Errorf("records: got %q, want %q", got, "one two")
	}
}

func TestThreeBrokers(t *testing.T) {
	k := StartKafka(t, 3, "replica.lag.time.max.ms=2000", "broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500")
	createTopic(t, k, "t")
	mustProduce(t, k, "all")
	k.Brokers[0].Kill9(t)
	mustProduce(t, k, "two of three")
	k.Brokers[1].Suspend(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if err := produce(ctx, t, k, "one of three"); err == nil {
		t.Error("producing with acks=all to one broker of three: got no error, and min ISR is 2")
	}
	k.Brokers[1].Continue(t)
	k.Brokers[0].Restart(t)
	k.WaitReady(t, time.Minute)
	mustProduce(t, k, "all again")
}

func TestService(t *testing.T) {
	k, prefix := SharedKafka(t)
	common := []string{"--brokers=" + k.Addrs()[0], "--topic-prefix=" + prefix}
	if _, stderr, code := Run(t, "postrider", append([]string{"topics", "create", "--events-partitions=2", "--deliveries-partitions=2"}, common...)...); code != 0 {
		t.Fatalf("creating topics: exit code %d: %s", code, stderr)
	}
	router := Start(t, "router", append(common, "--instance=r")...).WaitReady(t)
	if !strings.Contains(router.Metrics(t), "postrider_router_") {
		t.Error("metrics: none of the router's own")
	}
	router.Kill9(t)
	if status, _ := router.Readyz(t); status != 0 {
		t.Errorf("health of a killed router: got %d, want no answer", status)
	}
	router.Restart(t)
	if got := router.WaitReady(t).Terminate(t, 30*time.Second); got != 0 {
		t.Errorf("exit code after SIGTERM: got %d, want 0", got)
	}
	if _, stderr, code := Run(t, "router", "--no-such-flag"); code != 2 || !strings.Contains(stderr, "no-such-flag") {
		t.Errorf("a setting that is none: got exit code %d, %q, want 2 and its name", code, stderr)
	}
}

func TestKfake(t *testing.T) {
	_, addrs := StartKfake(t)
	cl := client(t, addrs)
	if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), 1, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
}

func TestSharedClickHouse(t *testing.T) {
	a, b := SharedClickHouse(t), SharedClickHouse(t)
	if a.Native != b.Native || a.Database == b.Database {
		t.Errorf("asked twice: got %+v and %+v, want one server and two databases", a, b)
	}
	a.Query(t, "CREATE TABLE "+a.Database+".t (n UInt8) ENGINE = MergeTree ORDER BY n")
	if got := b.Query(t, "SELECT count() FROM system.tables WHERE database = '"+b.Database+"'"); got != "0" {
		t.Errorf("tables in another test's database: got %s, want 0", got)
	}
}

func TestClickHouseKilledAndRestarted(t *testing.T) {
	c := StartClickHouse(t)
	c.Query(t, "CREATE TABLE postrider.t (n UInt8) ENGINE = MergeTree ORDER BY n")
	c.Query(t, "INSERT INTO postrider.t VALUES (1), (2)")
	c.Suspend(t)
	c.Continue(t)
	c.Kill9(t)
	c.Restart(t)
	if got := c.Query(t, "SELECT count() FROM postrider.t"); got != "2" {
		t.Errorf("rows after a kill: got %s, want 2", got)
	}
	if c.CPU(t) == 0 {
		t.Error("processor time: got none")
	}
}

func TestPythonAndNode(t *testing.T) {
	const python = "import standardwebhooks, confluent_kafka, importlib.metadata as m; print(m.version('confluent-kafka'))"
	if out, err := exec.CommandContext(t.Context(), Python(t), "-c", python).Output(); err != nil || string(out) != confluentKafkaVersion+"\n" {
		t.Errorf("Python: got %q, %v", out, err)
	}
	node, modules := Node(t)
	cmd := exec.CommandContext(t.Context(), node, "-e", "console.log(typeof require('standardwebhooks').Webhook)")
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "function\n" {
		t.Errorf("Node: got %q, %v", out, err)
	}
}

func TestServiceAddress(t *testing.T) {
	tests := []struct {
		args []string
		want string // empty: a free port is added
	}{
		{[]string{"--x", "1"}, ""},
		{[]string{"--listen", "127.0.0.1:1"}, "127.0.0.1:1"},
		{[]string{"--y", "--listen=127.0.0.1:2"}, "127.0.0.1:2"},
	}
	for _, tt := range tests {
		got, args := address(t, "--listen", tt.args)
		if tt.want == "" && (len(args) != len(tt.args)+1 || args[0] != "--listen="+got) || tt.want != "" && (got != tt.want || len(args) != len(tt.args)) {
			t.Errorf("address(%q): got %q, %q, want %q", tt.args, got, args, tt.want)
		}
	}
}

func TestCacheIsFilledOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache", "thing")
	if err := fillOnce(t.Context(), dir, func(context.Context, string) error { return errors.New("no network") }); err == nil {
		t.Error("a fill that goes wrong: got no error")
	}
	var fills atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := fillOnce(t.Context(), dir, func(_ context.Context, dir string) error {
				n := fills.Add(1)
				return os.WriteFile(filepath.Join(dir, "n"), []byte(strconv.Itoa(int(n))), 0o600)
			})
			if text, readErr := os.ReadFile(filepath.Join(dir, "n")); err != nil || readErr != nil || string(text) != "1" {
				t.Errorf("got %q, %v, %v, want it filled once", text, err, readErr)
			}
		})
	}
	wg.Wait()
}

func client(t *testing.T, addrs []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(addrs...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func createTopic(t *testing.T, k *Kafka, topic string) {
	t.Helper()
	if _, err := kadm.NewClient(client(t, k.Addrs())).CreateTopic(t.Context(), 1, -1, nil, topic); err != nil {
		t.Fatalf("creating topic %q: %v", topic, err)
	}
}

// produce gives up with ctx: without that option kgo waits for a record under way,
// whose end it could not know, for as long as Kafka is away.
func produce(ctx context.Context, t *testing.T, k *Kafka, value string) error {
	t.Helper()
	return client(t, k.Addrs(), kgo.AllowIdempotentProduceCancellation()).ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte(value)}).FirstErr()
}

func mustProduce(t *testing.T, k *Kafka, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := produce(ctx, t, k, value); err != nil {
		t.Fatalf("producing %q: %v", value, err)
	}
}

// consume reads n records from the start and joins their values with spaces.
func consume(t *testing.T, addrs []string, topic string, n int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cl := client(t, addrs, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	var values []string
	for len(values) < n {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("reading %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return strings.Join(values, " ")
}
