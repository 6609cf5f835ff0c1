package faults

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// moments are scenarios about when things are due.
func moments() []scenario {
	return []scenario{
		{id: "F18", fault: "clock moved by ten minutes both ways while retries wait", world: options{rate: -1}, run: (*world).moveClock},
		{id: "F21", fault: "very many retries wait, and all senders are killed meanwhile", world: options{rate: 100}, run: (*world).waitForRetries},
	}
}

// clockTests are those of the sender's engine that move its clock.
const clockTests = "^TestClockMoves"

// moveClock has the sender's engine go through it on a clock that the test moves: a
// process of its own cannot be given another one, as Go asks the kernel without libc,
// and a time namespace leaves CLOCK_REALTIME alone.
func (w *world) moveClock() {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*soon)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-run", clockTests, "github.com/postrider/postrider/sender/consume")
	out, err := cmd.CombinedOutput()
	passed := strings.Count(string(out), "\n--- PASS: TestClockMoves") + strings.Count(string(out), "\n    --- PASS: TestClockMoves")
	w.notef("on the engine's own clock (a process's cannot be moved): %d tests of sender/consume passed", passed)
	if err != nil || passed < 2 {
		w.problemf("%d tests that move the clock passed, want two at least: %v\n%s", passed, err, out)
	}
}

// due is what F21 knows of a webhook: its only retry comes so long after the first attempt.
type due struct {
	hook  ledger.Webhook
	delay time.Duration
}

// waitForRetries has each delivery fail once, and all their retries wait, due spread
// evenly, while the senders are killed; then holds the times at which they came.
func (w *world) waitForRetries() {
	// Each webhook has a few, so that none's breaker opens.
	const each = 10
	total, first, spread := pick(5000, 200_000), pick(25*time.Second, 4*time.Minute), pick(20*time.Second, 10*time.Minute)
	hooks := w.failing(total/each, first, spread)
	w.answerAgain(hooks, each)
	second := w.start("sender", "sender-2")
	second.WaitReady(w.t)

	producer := w.producing()
	from := time.Now()
	ids := map[string][]string{}
	for i := range hooks {
		ids[hooks[i].hook.Path] = w.sendMany(producer, fmt.Sprintf("due%d", i), hooks[i].hook.Organization, each)
	}
	w.waitRetries(total)
	w.notef("%d retries waiting after %.1f s, due from %v to %v after the attempt before", total, time.Since(from).Seconds(), first, first+spread)
	if results := w.log.results(); results["dead"] > 0 || results["retry"] < total {
		w.problemf("not all retries wait: %v", results)
	}
	outages := w.killSenders(second, spread)
	w.waitComeBack(hooks, ids, first+spread)
	w.judgeDue(hooks, ids, outages, phase{outages[len(outages)-1].to.Add(caughtUp), time.Now()})
}

// failing makes webhooks whose retries are spread evenly, each of an organization of
// its own.
func (w *world) failing(n int, first, spread time.Duration) []due {
	w.t.Helper()
	delay := func(i int) time.Duration {
		return (first + spread*time.Duration(i)/time.Duration(n)).Truncate(time.Millisecond)
	}
	made := w.subscribeMany(n, func(i int) (organization, path, more string) {
		number := strconv.Itoa(i)
		return "due" + number, "/due/" + number, fmt.Sprintf(`,"retry_schedule":["%dms"]`, delay(i).Milliseconds())
	})
	hooks := make([]due, n)
	for i := range hooks {
		hooks[i] = due{made[i], delay(i)}
	}
	return hooks
}

// answerAgain has each target refuse as many requests as it is to get first.
func (w *world) answerAgain(hooks []due, each int) {
	answers := make([]receiver.Answer, each+1)
	for i := range each {
		answers[i] = receiver.Status(http.StatusInternalServerError)
	}
	for i := range hooks {
		w.targets.Answers(hooks[i].hook.Path, answers...)
	}
}

// waitRetries waits until so many outcomes say retry.
func (w *world) waitRetries(n int) {
	w.t.Helper()
	pipeline.Wait(w.t, pick(soon, 20*soon), "retries to wait", func() error {
		if got := w.log.results()["retry"]; got < n {
			return fmt.Errorf("%d of %d wait", got, n)
		}
		return nil
	})
}

// killSenders kills both senders at once, twice or more often, and says when none was there.
func (w *world) killSenders(second *pipeline.Service, spread time.Duration) (outages []phase) {
	w.t.Helper()
	for range pick(2, 5) {
		outage := phase{from: time.Now()}
		w.killSender(w.sender)
		w.killSender(second)
		w.sender.Restart(w.t)
		second.Restart(w.t)
		w.faultEnded()
		w.sender.WaitReady(w.t)
		second.WaitReady(w.t)
		outage.to = time.Now()
		outages = append(outages, outage)
		w.notef("senders away for %.1f s", outage.to.Sub(outage.from).Seconds())
		w.pass(spread / time.Duration(pick(2, 5)))
	}
	return outages
}

// caughtUp is how long after an outage what was due in it may come.
const caughtUp = 10 * time.Second

// judgeDue holds when retries came against when they were to come: never before their
// delay was over, and at most 1 s after what chance (2 %) and the tiers (5 %) may add.
// How late the load's own deliveries were after the last outage is the machine's lateness.
func (w *world) judgeDue(hooks []due, ids map[string][]string, outages []phase, quiet phase) {
	w.t.Helper()
	machine, _ := w.p99(func(path string) bool { return !strings.HasPrefix(path, "/due") }, quiet)
	var early, late, never, inOutage int
	var earliest, latest time.Duration
	for _, d := range hooks {
		for _, id := range ids[d.hook.Path] {
			came := w.ledger.Times(id, d.hook.Path)
			if len(came) < 2 {
				never++
				continue
			}
			at := came[0].Add(d.delay)
			most := came[0].Add(d.delay * 1071 / 1000)
			for _, o := range outages {
				if most.Add(time.Second+machine).After(o.from) && at.Before(o.to.Add(caughtUp)) {
					inOutage++
					most = o.to.Add(caughtUp)
				}
			}
			if came[1].Before(at) {
				early++
				earliest = max(earliest, at.Sub(came[1]))
			}
			lateness := came[1].Sub(most)
			latest = max(latest, lateness)
			if lateness > time.Second+machine {
				late++
			}
		}
	}
	w.notef("retries early: %d, late: %d (the latest by %d ms beyond what the schedule may add; the machine's p99 is %d ms); %d were due while no sender was there",
		early, late, latest.Milliseconds(), machine.Milliseconds(), inOutage)
	if early > 0 {
		w.problemf("%d retries were early, by up to %v", early, earliest)
	}
	if late > 0 {
		w.latef("%d retries were over 1 s late, by up to %v", late, latest)
	}
	if never > 0 {
		w.problemf("%d retries never came", never)
	}
}

// waitComeBack waits until every retry has come, or the limit is over: judgeDue tells
// of those that have not.
func (w *world) waitComeBack(hooks []due, ids map[string][]string, limit time.Duration) {
	w.t.Helper()
	err := pipeline.Try(w.t, limit+soon, func() error {
		for _, d := range slices.Backward(hooks) { // the last are due last
			for _, id := range ids[d.hook.Path] {
				if n := len(w.ledger.Times(id, d.hook.Path)); n < 2 {
					return fmt.Errorf("event %s came %d times to %s", id, n, d.hook.Path)
				}
			}
		}
		return nil
	})
	if err != nil {
		w.notef("%v", err)
	}
}
