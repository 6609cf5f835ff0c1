package faults

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
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
		{id: "F11c", fault: "ClickHouse slow, then answering after its clients' timeout (toxiproxy)", world: options{ownClickHouse: true, proxied: true}, run: slowStore},
		{id: "F11d", fault: "ClickHouse's disk full", world: options{clickHouse: startStoreOnTmpfs}, run: storeFull},
		{id: "F11e", fault: "ClickHouse refuses what is in a row", world: own, run: rowRefused},
		{id: "F11f", fault: "audit writer frozen between insert and commit, its partitions taken over, then continued", run: lateWriter},
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

// slowStore has each answer of ClickHouse come later: well within its clients' timeout
// of two seconds at first, and then so much later that three or four of them, which an
// insert takes, are over it now and then. What was inserted is known to nobody.
func slowStore(w *world) {
	w.progress(200)
	w.proxy.Poison(w.t, "latency", "downstream", map[string]int64{"latency": 300, "jitter": 100})
	w.pass(pick(8*time.Second, time.Minute))
	w.proxy.Heal()
	w.storeAway(func() {
		w.proxy.Poison(w.t, "latency", "downstream", map[string]int64{"latency": 640, "jitter": 60})
	}, w.proxy.Heal)
	late := w.metric(w.sender, "postrider_audit_inserts_total", `result="unknown"`)
	w.notef("%.0f inserts were answered too late", late)
	if late == 0 {
		w.problemf("no insert was answered after its timeout")
	}
}

// storeFull fills ClickHouse's disk; the operator makes room.
func storeFull(w *world) {
	var file string
	w.storeAway(func() { file = w.fill(w.small, 256<<10) }, func() {
		if err := os.Remove(file); err != nil {
			w.t.Fatal(err)
		}
	})
	refused := w.metric(w.sender, "postrider_audit_inserts_total", `result="refused"`) + w.metric(w.sender, "postrider_audit_inserts_total", `result="unknown"`)
	w.notef("%.0f inserts failed", refused)
	if refused == 0 {
		w.problemf("every insert found room on the full disk")
	}
}

// rowRefused has a few events whose rows ClickHouse will never take, for what is in them.
func rowRefused(w *world) {
	w.progress(200)
	for _, table := range []string{"outcomes", "delivery_states"} {
		w.ch.Query(w.t, "ALTER TABLE "+w.ch.Database+"."+table+" ADD CONSTRAINT picky CHECK NOT startsWith(event_id, 'refused')")
	}
	w.pass(time.Second) // for inserts that had begun
	ids := w.sendMany(w.producing(), "refused", w.organizations[0], pick(3, 20))
	w.aside = len(ids)
	pipeline.Wait(w.t, soon, "the rows to be set aside", func() error {
		if got := len(w.setAside()); got != w.aside {
			return fmt.Errorf("%d of %d", got, w.aside)
		}
		return nil
	})
	w.faultEnded()
	w.progress(500)
}

// lateWriter freezes the audit's writer, and with it the sender, for longer than any
// insert may take: what it then goes on with must be in no table twice.
func lateWriter(w *world) {
	w.progress(200)
	w.rowsInserted()
	w.sender.Suspend(w.t)
	w.start("sender", "sender-2").WaitReady(w.t)
	w.pass(pick(15*time.Second, 10*time.Minute))
	w.progress(200)
	w.noteKill()
	w.sender.Continue(w.t)
	w.faultEnded()
	w.backOrGone(w.sender)
	w.progress(500)
	w.mayRepeat = aboutToSend
}

// setAside are the places of outcomes whose rows ClickHouse refused, as rejected has them.
func (w *world) setAside() map[ledger.Place]bool {
	w.t.Helper()
	places := map[ledger.Place]bool{}
	w.read(w.topics.Rejected, w.endOffsets(w.topics.Rejected, true), func(r *kgo.Record) {
		rejected, err := schemas.DecodeRejected(r)
		if err != nil {
			w.t.Fatal(err)
		}
		if rejected.Topic == w.topics.Outcomes {
			places[ledger.Place{Partition: rejected.Partition, Offset: rejected.Offset}] = true
		}
	}, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	return places
}

// settledRows waits for the audit: all rows that ClickHouse takes are there.
func (w *world) settledRows() error {
	want := strconv.Itoa(w.log.count() - w.aside)
	if got := w.query("SELECT count() FROM outcomes"); got != want {
		return fmt.Errorf("rows of outcomes: got %s, want %s", got, want)
	}
	accepted := w.ledger.Count().Accepted
	if got, _ := strconv.Atoi(w.query("SELECT count() FROM events WHERE " + ours)); got < accepted {
		return fmt.Errorf("rows of events: got %d, want %d", got, accepted)
	}
	return nil
}
