package consume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender/deliver"
)

// memberVariable makes the test binary a sender with the settings in it, so that it can be killed.
const memberVariable = "POSTRIDER_TEST_MEMBER"

func runMember(text string) int {
	var s settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return process.ExitSettings
	}
	return process.ExitCode(s.run(context.Background(), process.New(slog.New(slog.NewTextHandler(os.Stderr, nil)))))
}

// startProcess runs a sender as a process of its own; kill ends it as a crash does.
func (r *rig) startProcess(t *testing.T, instance string, schedule ...time.Duration) (kill func()) {
	t.Helper()
	text, err := json.Marshal(r.settings(instance, schedule...))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), memberVariable+"="+string(text))
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if killed {
			return
		}
		killed = true
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("killing sender: %v", err)
		}
		_ = cmd.Wait() // its error is the kill
	}
	t.Cleanup(kill)
	return kill
}

// repeats is how many requests there were beyond one for each of the outcomes that had
// one: behind an open breaker there was none.
func (r *rig) repeats(outcomes map[string][]schemas.Outcome) (repeats int) {
	for _, list := range outcomes {
		for _, o := range list {
			if o.Result != schemas.ResultDiscarded && deliver.Reason(o.Reason) != deliver.ReasonBreakerOpen {
				repeats--
			}
		}
	}
	for _, n := range r.target.requests() {
		repeats += n
	}
	return repeats
}

func (r *rig) webhooks(t *testing.T, n int, path string) (list []schemas.Webhook) {
	t.Helper()
	for range n {
		list = append(list, r.webhook(t, path, nil))
	}
	return list
}

func TestMembersJoinAndLeave(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	hooks := append(r.webhooks(t, 8, "/ok"), r.webhooks(t, 8, "/once")...)
	made := r.deliveries(t, 50, hooks...)
	l := r.read(t, r.topics.Outcomes)
	members := []*member{r.start(t, "m0", time.Second, time.Second)}
	for i := range 6 {
		seen := len(l.records)
		l.until(t, "outcomes", func(records []*kgo.Record) bool { return len(records) > seen })
		maps.Copy(made, r.deliveries(t, 10, hooks...))
		if i%2 == 0 {
			joined := r.start(t, fmt.Sprintf("m%d", i+1), time.Second, time.Second)
			waitFor(t, "both to work partitions", func() bool { return joined.partitions(t) > 0 && members[0].partitions(t) > 0 })
			members = append(members, joined)
			continue
		}
		members[0].stop()
		members = members[1:]
	}
	outcomes := r.ends(t, l, made)
	if n := r.repeats(outcomes); n != 0 {
		t.Errorf("%d attempts repeated, want 0: every member left gracefully", n)
	}
	for id, list := range outcomes {
		if last := list[len(list)-1]; last.Result != schemas.ResultDelivered {
			t.Errorf("delivery %s: %s %s", id, last.Result, last.Reason)
		}
	}
}

func TestKilled(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	hooks := append(r.webhooks(t, 6, "/ok"), r.webhooks(t, 6, "/once")...)
	made := r.deliveries(t, 100, hooks...)
	l := r.read(t, r.topics.Outcomes)
	const kills = 2
	for i := range kills {
		kill := r.startProcess(t, "a", time.Second, time.Second)
		seen := len(l.records)
		l.until(t, "outcomes", func(records []*kgo.Record) bool { return len(records) > seen })
		kill()
		if i < kills-1 {
			maps.Copy(made, r.deliveries(t, 20, hooks...))
		}
	}
	r.start(t, "a", time.Second, time.Second)
	outcomes := r.ends(t, l, made)
	// At most what one process may have had unfinished: 1,000 of each of 4 partitions and their tiers' few.
	if n := r.repeats(outcomes); n < 0 || n > kills*4*maxUnfinished {
		t.Errorf("%d attempts repeated over %d kills", n, kills)
	} else {
		t.Logf("%d attempts repeated over %d kills", n, kills)
	}
}

func TestHangingTargetDelaysOnlyItself(t *testing.T) {
	r := startRig(t)
	stuck := r.deliveries(t, 300, r.webhooks(t, 4, "/hang")...)
	healthy := r.deliveries(t, 100, r.webhooks(t, 8, "/ok")...)
	l := r.read(t, r.topics.Outcomes)
	m := r.start(t, "a", time.Second)
	waitFor(t, "partitions", func() bool { return m.partitions(t) > 0 })
	began := time.Now()
	ended := make(map[string]bool)
	next := 0
	l.until(t, "the healthy ones", func(records []*kgo.Record) bool {
		for ; next < len(records); next++ {
			o, err := schemas.DecodeOutcome(records[next])
			if err != nil {
				t.Fatal(err)
			}
			if healthy[o.DeliveryID.String()] {
				ended[o.DeliveryID.String()] = true
			}
		}
		return len(ended) == len(healthy)
	})
	if took := time.Since(began); took > deliver.DefaultTimeout/2 {
		t.Errorf("healthy targets took %v behind ones that hang for %v", took, deliver.DefaultTimeout)
	}
	r.target.release()
	all := maps.Clone(stuck)
	maps.Copy(all, healthy)
	outcomes := r.ends(t, l, all)
	for id := range stuck {
		if n := len(outcomes[id]); n != 1 {
			t.Errorf("delivery %s has %d outcomes, want 1: parking is no attempt", id, n)
		}
	}
}

func TestFencedTwiceEnds(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	hooks := r.webhooks(t, 16, "/ok") // some in every partition: who writes nothing is not fenced
	a, b := r.start(t, "same"), r.start(t, "same")
	done := make(chan error, 1)
	go func() {
		select {
		case err := <-a.done:
			a.done <- nil
			done <- err
		case err := <-b.done:
			b.done <- nil
			done <- err
		}
	}()
	made := make(map[string]bool)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patienceOfTests)
	for {
		select {
		case err := <-done:
			if !errors.Is(err, process.ErrFenced) {
				t.Fatalf("error %v, want ErrFenced", err)
			}
			r.ends(t, r.read(t, r.topics.Outcomes), made)
			return
		case <-tick.C:
			maps.Copy(made, r.deliveries(t, 1, hooks...))
		case <-deadline:
			t.Fatal("two senders of one name go on")
		}
	}
}

// TestBrokerErrors lets the broker answer each request of a transaction with an
// error once: no effect is lost or doubled.
func TestBrokerErrors(t *testing.T) {
	t.Parallel()
	for _, err := range []*kerr.Error{
		kerr.ConcurrentTransactions, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress,
		kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.InvalidProducerEpoch, kerr.UnknownServerError,
	} {
		t.Run(err.Message, func(t *testing.T) {
			t.Parallel()
			r := startRig(t)
			failed := make(chan struct{}, 1)
			r.cluster.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
				failed <- struct{}{}
				commit := req.(*kmsg.TxnOffsetCommitRequest)
				resp := commit.ResponseKind().(*kmsg.TxnOffsetCommitResponse)
				for _, topic := range commit.Topics {
					answer := kmsg.NewTxnOffsetCommitResponseTopic()
					answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
					for _, p := range topic.Partitions {
						partition := kmsg.NewTxnOffsetCommitResponseTopicPartition()
						partition.Partition, partition.ErrorCode = p.Partition, err.Code
						answer.Partitions = append(answer.Partitions, partition)
					}
					resp.Topics = append(resp.Topics, answer)
				}
				return resp, nil, true
			})
			made := r.deliveries(t, 20, r.webhooks(t, 4, "/ok")...)
			r.start(t, "a")
			outcomes := r.ends(t, r.read(t, r.topics.Outcomes), made)
			<-failed
			kept := slices.Contains([]*kerr.Error{
				kerr.ConcurrentTransactions, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.UnknownServerError,
			}, err)
			if n := r.repeats(outcomes); kept && n != 0 {
				t.Errorf("%d attempts repeated after an abort that kept the results", n)
			}
		})
	}
}
