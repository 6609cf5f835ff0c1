package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"
)

// repair brings the folder into a state that kfake reads back as it was, whether
// kfake was closed or killed. kfake handles one request at a time, so that a
// kill leaves what a whole number of requests wrote, and a beginning of what the
// next one would have written. Three things are in need of mending:
//
// An EndTxn that was to commit writes a marker into each partition, then the
// group's offsets, then, in pids.log, that the transaction has ended. Killed in
// between, kfake would find the transaction committed in some partitions and
// aborted in others, or committed without its offsets. A commit without its
// entry in pids.log was not acknowledged, so it is taken back: first the
// offsets, then the markers.
//
// A transaction that is open when kfake is killed counts as aborted when it is
// read, but nothing is written down: the next transaction that its producer
// commits would commit it too, when the log is read once more. So it gets its
// markers; before them its producer a new epoch, so that no producer that
// survived writes a second half.
//
// The offset at which an empty partition goes on is not known from its files, so
// retention must not empty one: a partition without anything recent gets a
// marker that ends nothing.
//
// Each step may be repeated, and is, where repair itself is killed.
func repair(dir string, log *slog.Logger) error {
	if _, err := os.Stat(filepath.Join(dir, "meta.json")); errors.Is(err, fs.ErrNotExist) {
		return nil // never started
	}
	r := &repairer{dir: dir, log: log}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"reading partitions", r.read},
		{"taking back unfinished commits", r.takeBack},
		{"ending open transactions", r.end},
		{"anchoring offsets", r.anchor},
		{"forgetting sequences", r.forget},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("repairing: %s: %w", step.name, err)
		}
	}
	return nil
}

type repairer struct {
	dir        string
	log        *slog.Logger
	partitions []*partition // those that were ever written to
	pids       *stateLog
	producers  map[int64]producer
}

func (r *repairer) read() error {
	var err error
	if r.pids, err = readStateLog(filepath.Join(r.dir, "pids.log")); err != nil {
		return err
	}
	if r.producers, err = producers(r.pids); err != nil {
		return err
	}
	folder := filepath.Join(r.dir, "partitions")
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listing partitions: %w", err)
	}
	for _, entry := range entries {
		p, err := readPartition(filepath.Join(folder, entry.Name()))
		if err != nil {
			return fmt.Errorf("partition %s: %w", entry.Name(), err)
		}
		if p.end > 0 {
			r.partitions = append(r.partitions, p)
		}
	}
	return nil
}

// undecided says whether a partition ends with the marker of a commit that
// pids.log does not know of. A producer's epoch grows with each transaction
// (KIP-890); a client too old for that may write several under one, of which only
// the first is told apart here. A producer that is not in the log has been
// replaced, so it had ended its transactions.
func (r *repairer) undecided(p *partition) bool {
	known, found := r.producers[p.last.producer]
	return found && p.last.marker() && p.last.commit && (known.epoch < p.last.epoch || known.epoch == p.last.epoch && !known.committed)
}

func (r *repairer) takeBack() error {
	groups, err := readStateLog(filepath.Join(r.dir, "groups.log"))
	if err != nil {
		return err
	}
	since := int64(math.MaxInt64)
	var undecided []*partition
	for _, p := range r.partitions {
		if r.undecided(p) {
			undecided = append(undecided, p)
			since = min(since, p.last.stamped)
		}
	}
	if len(undecided) == 0 {
		return nil
	}
	r.log.Info("taking back a commit of the embedded Kafka that was cut short", "markers", len(undecided))
	// All markers of a commit have one time, taken before the first is written;
	// the offsets come after them, and nothing after the offsets.
	if err := takeBackCommits(groups, since); err != nil {
		return err
	}
	for _, p := range undecided {
		if err := p.takeBack(); err != nil {
			return fmt.Errorf("partition %s: %w", filepath.Base(p.dir), err)
		}
	}
	return nil
}

func (r *repairer) end() error {
	fenced := make(map[int64]bool)
	for _, p := range r.partitions {
		for id, epoch := range p.open {
			if fenced[id] {
				continue
			}
			fenced[id] = true
			next := max(epoch, r.producers[id].epoch)
			if next < math.MaxInt16-1 { // beyond, kfake gives out a new id at the next start of the producer
				next++
			}
			if err := r.pids.append(producerEntry{Type: "timeout", Producer: id, Epoch: next}); err != nil {
				return err
			}
		}
	}
	for _, p := range r.partitions {
		for id, epoch := range p.open {
			if err := p.abort(id, epoch); err != nil {
				return fmt.Errorf("partition %s: %w", filepath.Base(p.dir), err)
			}
		}
	}
	return nil
}

// anchor sees to it that each partition ends with something younger than the
// shortest retention, of 24 hours.
func (r *repairer) anchor() error {
	recent := time.Now().Add(-12 * time.Hour).UnixMilli()
	for _, p := range r.partitions {
		if p.last.stamped >= recent {
			continue
		}
		if err := p.abort(0, 0); err != nil {
			return fmt.Errorf("partition %s: %w", filepath.Base(p.dir), err)
		}
	}
	return nil
}

// forget removes what only an orderly end writes. What it holds of the folder is
// out of date now, or would be after a kill: producers' sequences of the start
// before would make kfake refuse their records.
func (r *repairer) forget() error {
	stale, err := filepath.Glob(filepath.Join(r.dir, "partitions", "*", "snapshot.json"))
	if err != nil {
		return fmt.Errorf("listing snapshots: %w", err)
	}
	stale = append(stale, filepath.Join(r.dir, "seq_windows.json"), filepath.Join(r.dir, "session_state.json"))
	for _, path := range stale {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}
