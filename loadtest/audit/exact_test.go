package audit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/postrider/postrider/loadtest/pipeline"
)

func TestEveryRecordHasItsRow(t *testing.T) {
	_, brokers := pipeline.StartKfake(t)
	w := startWorld(t, brokers, "postrider.", pipeline.SharedClickHouse(t))
	w.startWriter(t)
	for range 5 {
		w.produce(t, 1000)
	}
	w.waitExact(t, 30*time.Second)
	// waitExact looks at the tables that hold a row once; the states are written beside them.
	pipeline.Wait(t, 30*time.Second, "all states", func() error {
		const want = "delivered\t5000\npending\t5000"
		if got := w.query(t, "SELECT state, count() FROM {db}.deliveries GROUP BY state ORDER BY state"); got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
	w.wantQuery(t, "SELECT body, matches, copies FROM {db}.events WHERE event_id = 'e5'", `{"id":"e5","event":"a.b","payload":{"n": 1.10}}`+"\t1\t0")
	w.wantQuery(t, "SELECT count() FROM {db}.events WHERE cause = 'ping'", "250")
	w.wantQuery(t, "SELECT count() FROM {db}.webhooks WHERE webhook_id = 'wh_1' AND NOT deleted", "5")
}

// TestKilledWriter is F4: between an insert and its commit, and anywhere else.
func TestKilledWriter(t *testing.T) {
	k, prefix := pipeline.SharedKafka(t)
	w := startWorld(t, k.Addrs(), prefix, pipeline.StartClickHouse(t))
	w.cfg.InsertTimeout = time.Second
	for range 4 {
		w.produce(t, 3000)
		writer := w.startChild(t)
		w.waitProgress(t)
		w.produce(t, 3000)
		// From before the commit to after the insert: a tick takes some 50 ms.
		wait(t, time.Duration(rand.IntN(100))*time.Millisecond)
		if err := writer.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = writer.Wait() // killed
	}
	w.startChild(t)
	w.waitExact(t, 3*time.Minute)
}

// TestStoppedWriter freezes a writer until another has its partitions: what it
// then still sends is too late.
func TestStoppedWriter(t *testing.T) {
	k, prefix := pipeline.SharedKafka(t)
	w := startWorld(t, k.Addrs(), prefix, pipeline.StartClickHouse(t))
	w.cfg.InsertTimeout = time.Second
	zombie := w.startChild(t)
	w.produce(t, 3000)
	w.waitProgress(t)
	for range 3 {
		w.produce(t, 3000)
		wait(t, time.Duration(rand.IntN(60))*time.Millisecond)
	}
	sendSignal(t, zombie, syscall.SIGSTOP)
	w.startChild(t)
	w.waitExact(t, 3*time.Minute)
	sendSignal(t, zombie, syscall.SIGCONT)
	w.produce(t, 3000)
	w.waitExact(t, 3*time.Minute)
}

// TestWritersComeAndGo moves partitions between two writers while rows flow.
func TestWritersComeAndGo(t *testing.T) {
	k, prefix := pipeline.SharedKafka(t)
	w := startWorld(t, k.Addrs(), prefix, pipeline.SharedClickHouse(t))
	w.startWriter(t)
	for range 4 {
		_, stop := w.startWriter(t)
		w.produce(t, 3000)
		w.waitProgress(t)
		stop()
	}
	w.waitExact(t, 3*time.Minute)
}

// TestAnswersLost cuts connections after the rows have gone and before the
// answer has come, and at other moments.
func TestAnswersLost(t *testing.T) {
	_, brokers := pipeline.StartKfake(t)
	w := startWorld(t, brokers, "postrider.", pipeline.StartClickHouse(t))
	proxy := startProxy(t, w.store.Native)
	w.cfg.ClickHouse.Address, w.cfg.InsertTimeout = proxy.addr, time.Second
	p, _ := w.startWriter(t)
	for range 8 {
		proxy.cutAfter.Store(1000 + rand.Int64N(100_000))
		for proxy.cutAfter.Load() > 0 {
			w.produce(t, 1000)
			w.waitProgress(t)
		}
	}
	w.waitExact(t, 3*time.Minute)
	if unknown := metric(t, p, "postrider_audit_inserts_total", "result", "unknown"); unknown == 0 {
		t.Error("no answer was lost: the test shows nothing")
	}
}

// TestGroupForgotten deletes the group's commits: everything is read again and compared.
func TestGroupForgotten(t *testing.T) {
	_, brokers := pipeline.StartKfake(t)
	w := startWorld(t, brokers, "postrider.", pipeline.SharedClickHouse(t))
	_, stop := w.startWriter(t)
	w.produce(t, 2000)
	w.waitExact(t, 30*time.Second)
	stop()
	if _, err := kadm.NewClient(w.client).DeleteGroup(t.Context(), w.topics.AuditGroup); err != nil {
		t.Fatal(err)
	}
	p, _ := w.startWriter(t)
	w.produce(t, 500)
	w.waitExact(t, 30*time.Second)
	found := metric(t, p, "postrider_audit_lookups_total", "found", "all") + metric(t, p, "postrider_audit_lookups_total", "found", "some")
	if found == 0 {
		t.Error("nothing was looked up: the test shows nothing")
	}
}

// waitProgress waits until a writer is at work on what was last produced.
func (w *world) waitProgress(t *testing.T) {
	t.Helper()
	rows := func() string { return w.query(t, "SELECT count() FROM {db}.outcomes") }
	before := rows()
	pipeline.Wait(t, 3*time.Minute, "the writer", func() error {
		if now := rows(); now == before && now != strconv.Itoa(w.want["outcomes"]) {
			return fmt.Errorf("still %s outcomes", now)
		}
		return nil
	})
}

// startChild runs an audit writer as a process.
func (w *world) startChild(t *testing.T) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func sendSignal(t *testing.T, cmd *exec.Cmd, sig syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// wait lets a moment pass, so that a fault comes at any point of a tick.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
}

// proxy passes TCP on. When cutAfter bytes have gone to the server it passes no
// more answers, and cuts the connection.
type proxy struct {
	addr     string
	cutAfter atomic.Int64 // 0: pass everything
}

func startProxy(t *testing.T, server string) *proxy {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.pass(t.Context(), client, server) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return p
}

func (p *proxy) pass(ctx context.Context, client net.Conn, address string) {
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		_ = client.Close()
		return
	}
	closeBoth := func() {
		_ = client.Close()
		_ = server.Close()
	}
	defer context.AfterFunc(ctx, closeBoth)()
	var answers sync.WaitGroup
	answers.Go(func() {
		_, _ = io.Copy(client, server)
		closeBoth()
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			break
		}
		left := p.cutAfter.Load()
		if left > 0 && left <= int64(n) {
			_ = client.Close() // the answer has nowhere to go
			_, _ = server.Write(buf[:n])
			p.cutAfter.Store(0)
			break
		}
		if left > 0 {
			p.cutAfter.Add(-int64(n))
		}
		if _, err := server.Write(buf[:n]); err != nil {
			break
		}
	}
	closeBoth()
	answers.Wait()
}
