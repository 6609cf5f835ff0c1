package faults

import (
	"math/rand/v2"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
)

// kills are scenarios of processes that end without warning.
func kills() []scenario {
	return []scenario{
		{id: "F01", fault: "ingest killed in mid request, under load", run: func(w *world) { w.killEach(w.ingest, pick(5, 20)) }},
		{id: "F02", fault: "router killed in mid transaction and at random", run: func(w *world) { w.killEach(w.router, pick(5, 20)) }},
		{id: "F03", fault: "sender killed in mid attempt", world: options{delay: 50 * time.Millisecond}, run: func(w *world) { w.killEach(w.sender, pick(5, 20)) }},
	}
}

// killEach kills a service so many times, each time at a random moment after
// events flow again.
func (w *world) killEach(s *pipeline.Service, times int) {
	w.t.Helper()
	for range times {
		w.progress(200 + rand.IntN(200))
		if s == w.sender {
			w.killSender(s)
		} else {
			s.Kill9(w.t)
		}
		s.Restart(w.t)
		w.faultEnded()
		s.WaitReady(w.t)
	}
	w.progress(500)
}
