package faults

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// targets are scenarios of targets that do not answer, or worse.
func targets() []scenario {
	short := []string{"--retry-schedule=" + strings.Repeat("2s,", 9) + "2s"}
	hanging := options{organizations: 100, sender: short}
	return []scenario{
		{id: "F16a", fault: "1 of 100 targets hangs", world: hanging, run: func(w *world) { w.hang(1, 1.5) }},
		{id: "F16b", fault: "50 of 100 targets hang", world: hanging, run: func(w *world) { w.hang(50, 3) }},
		{id: "F16c", fault: "a tenant with nine tenths of the traffic, and a dead target", world: options{rate: pick(60, 200)}, run: (*world).heavyTenant},
		{id: "F17a", fault: "hostile receivers, by HTTP and TLS", run: (*world).hostile},
		{id: "F17b", fault: "names that are slow to resolve, or do not", run: (*world).names},
	}
}

// hang has some of the targets hang for a while, and holds I4 for the others.
func (w *world) hang(hanging int, factor float64) {
	var mu sync.Mutex
	hung := map[string]int{}
	see := func(r receiver.Request) {
		if r.Answer.Hang {
			mu.Lock()
			hung[r.Path]++
			mu.Unlock()
		}
	}
	w.watch.Store(&see)
	sick := func(n int) bool { return n < hanging }
	healthy := func(path string) bool {
		n, err := strconv.Atoi(strings.TrimPrefix(path, "/o"))
		return err == nil && !sick(n)
	}
	quiet := w.pass(pick(8*time.Second, 30*time.Second))
	for n := range hanging {
		w.targets.Answers("/"+w.organizations[n], receiver.Answer{Hang: true})
	}
	fault := w.pass(pick(12*time.Second, time.Minute))
	w.settled(healthy, fault)
	for n := range hanging {
		w.targets.Answers("/" + w.organizations[n])
		w.targets.Release("/" + w.organizations[n])
	}
	w.faultEnded()
	mu.Lock()
	count, requests := len(hung), 0
	for _, n := range hung {
		requests += n
	}
	mu.Unlock()
	w.notef("%d targets held %d requests", count, requests)
	if count < hanging {
		w.problemf("%d targets held a request, want %d", count, hanging)
	}
	w.progress(500)
	again := w.pass(pick(8*time.Second, 30*time.Second))
	w.settled(healthy, again)
	w.isolated(healthy, factor, fault, quiet, again)
}

// heavyTenant has one organization send nine times what all others send together, to
// a target that is well and then to one where nobody listens.
func (w *world) heavyTenant() {
	others := func(path string) bool { return path != "/heavy" }
	hook := w.subscribe("heavy", "/heavy", `,"retry_schedule":["1s","2s"]`)
	stop := w.flood("h", "heavy", 9*pick(60, 200))
	defer stop()
	quiet := w.pass(pick(8*time.Second, 30*time.Second))
	w.settled(others, quiet)
	w.call(http.StatusOK, http.MethodPatch, "/v1/webhooks/"+hook.ID, fmt.Sprintf(`{"url":"http://%s/heavy"}`, pipeline.FreeAddr(w.t)))
	fault := w.pass(pick(15*time.Second, time.Minute))
	stop()
	w.settled(others, fault)
	w.isolated(others, 1.5, fault, quiet)
	made, _ := w.log.of(hook.ID)
	results := w.waitEnded(hook.ID, made)
	w.notef("the tenant's %d deliveries: %d delivered, %d dead after %d retries", made, results["delivered"], results["dead"], results["retry"])
	if results["dead"] < 5*9*60 {
		w.problemf("%d deliveries to the dead target are dead, want those of five seconds at least", results["dead"])
	}
}
