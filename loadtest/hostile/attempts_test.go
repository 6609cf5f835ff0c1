package hostile

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

// attemptsVariable makes the test binary a process that makes attempts, so that
// its memory is theirs alone. Its value is a plan.
const attemptsVariable = "POSTRIDER_TEST_ATTEMPTS"

// plan is what that process is to do: attempts at one URL, all at once. It reads
// one line when they are held; it writes what they hold by then, and at their end
// what they came to.
type plan struct {
	URL     string
	Count   int
	Timeout time.Duration
	Roots   []byte // PEM
}

// memory is what each attempt held, in bytes.
type memory struct{ Heap, Stack uint64 }

// ends is what the attempts came to.
type ends struct {
	Count   map[end]int `json:"-"`
	Ends    []end
	Longest time.Duration
	// Kept is what each attempt still held after its end, with what it returned.
	Kept memory
}

type end struct {
	Status             int
	Reason, BodyReason deliver.Reason
}

func attempts(in io.Reader, out io.Writer) error {
	var p plan
	if err := json.Unmarshal([]byte(os.Getenv(attemptsVariable)), &p); err != nil {
		return fmt.Errorf("reading plan: %w", err)
	}
	allowed, err := schemas.ParseTargetPolicy([]string{"127.0.0.0/8"})
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.Roots)
	client := deliver.New(deliver.Config{Policy: allowed, RootCAs: roots, MaxConnsPerHost: p.Count})
	defer client.Close()
	base := inUse()

	results := make([]deliver.Attempt, p.Count)
	var all sync.WaitGroup
	for i := range results {
		r := request(p.URL)
		r.Timeout = p.Timeout
		all.Go(func() { results[i] = client.Do(context.Background(), r) })
	}
	if _, err := bufio.NewReader(in).ReadString('\n'); err != nil {
		return fmt.Errorf("waiting for the word to measure: %w", err)
	}
	encoder := json.NewEncoder(out)
	if err := encoder.Encode(inUse().since(base, p.Count)); err != nil {
		return err
	}
	all.Wait()
	var e ends
	for i := range results {
		e.Ends = append(e.Ends, end{results[i].StatusCode, results[i].Reason, results[i].BodyReason})
		e.Longest = max(e.Longest, results[i].Duration)
	}
	e.Kept = inUse().since(base, p.Count)
	runtime.KeepAlive(results)
	return encoder.Encode(e)
}

// inUse is what the process holds after a collection.
func inUse() memory {
	debug.FreeOSMemory() // twice: the first ages what pools keep, the second drops it
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return memory{stats.HeapAlloc, stats.StackInuse}
}

func (m memory) since(base memory, count int) memory {
	per := func(now, then uint64) uint64 { return (max(now, then) - then) / uint64(count) } //nolint:gosec // a count
	return memory{per(m.Heap, base.Heap), per(m.Stack, base.Stack)}
}

// attempting is a process that makes attempts.
type attempting struct {
	cmd *exec.Cmd
	in  io.Writer
	out *json.Decoder
}

func startAttempts(t *testing.T, p plan) *attempting {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), attemptsVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // os.ErrProcessDone: it has ended already
		_ = cmd.Wait()
	})
	return &attempting{cmd: cmd, in: in, out: json.NewDecoder(out)}
}

// measure asks for what each attempt holds now.
func (a *attempting) measure(t *testing.T) (m memory) {
	t.Helper()
	if _, err := io.WriteString(a.in, "measure\n"); err != nil {
		t.Fatal(err)
	}
	if err := a.out.Decode(&m); err != nil {
		t.Fatalf("reading what the attempts hold: %v", err)
	}
	return m
}

// wait waits for the attempts' end.
func (a *attempting) wait(t *testing.T) (e ends) {
	t.Helper()
	if err := a.out.Decode(&e); err != nil {
		t.Fatalf("reading what the attempts came to: %v", err)
	}
	e.Count = map[end]int{}
	for _, one := range e.Ends {
		e.Count[one]++
	}
	return e
}
