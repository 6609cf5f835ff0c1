package faults

import (
	"time"
)

// clickHouses are scenarios of the audit's store.
func clickHouses() []scenario {
	own := options{ownClickHouse: true}
	return []scenario{
		{id: "F11a", fault: "ClickHouse killed, started again later", world: own, run: func(w *world) {
			w.storeAway(func() { w.ch.Kill9(w.t) }, func() { w.ch.Restart(w.t) })
		}},
		{id: "F11b", fault: "ClickHouse frozen: it answers long after its clients' timeout", world: own, run: func(w *world) {
			w.storeAway(func() { w.ch.Suspend(w.t) }, func() { w.ch.Continue(w.t) })
		}},
	}
}

// storeAway takes ClickHouse away and brings it back: deliveries must not mind.
func (w *world) storeAway(away, back func()) {
	w.progress(200)
	from := time.Now()
	away()
	w.pass(pick(15*time.Second, 5*time.Minute))
	_, silence := w.ledger.Silence(from, time.Now(), nil)
	back()
	w.faultEnded()
	w.notef("longest silence of a target meanwhile %.1f s", silence.Seconds())
	w.bound("the longest silence of a target meanwhile", silence, slack)
	w.progress(500)
}
