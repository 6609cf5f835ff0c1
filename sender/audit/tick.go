package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// due reports whether it is time to insert.
func (w *writer) due() bool {
	now := time.Now()
	if now.Before(w.retryAt) {
		return false
	}
	if now.Sub(w.lastTick) >= tickEvery {
		return true
	}
	count, bytes := 0, 0
	for _, s := range w.streams {
		count += s.rowCount()
		bytes += s.bytes()
	}
	return count >= tickRows || bytes >= int(w.cfg.BufferBytes/4)
}

// tick makes one insert per table of everything that is ready. The order is the
// promise (P7): quarantine, then the blocks' bounds and deadline into Kafka,
// then the rows.
func (w *writer) tick(ctx context.Context) {
	w.lastTick = time.Now()
	if err := w.quarantine(ctx); err != nil {
		w.log.Warn("bad records cannot be quarantined yet", "error", err)
		return
	}
	err := w.write(ctx, w.ready())
	switch {
	case err == nil:
		w.failures = 0
		w.clickhouse.Up()
		return
	case errors.Is(err, errCommit):
		w.log.Info("commit was refused: nothing is inserted", "error", err)
	default:
		w.clickhouse.Down(err)
		w.contact = time.Time{}
	}
	w.failures++
	w.retryAt = time.Now().Add(min(100*time.Millisecond<<min(w.failures, 10), maxBackoff))
}

// ready returns the streams with a block to insert.
func (w *writer) ready() []*stream {
	var ready []*stream
	for _, s := range w.streams {
		if s.ready() != nil {
			ready = append(ready, s)
		}
	}
	return ready
}

// write brings the streams' blocks into ClickHouse. Where there are none it
// commits what is in, and asks now and then whether ClickHouse is there.
func (w *writer) write(ctx context.Context, ready []*stream) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.InsertTimeout)
	defer cancel()
	if len(ready) == 0 && time.Since(w.contact) < contactEvery {
		return w.commitDone(ctx)
	}
	now, busy, err := w.store.clock(ctx)
	if err != nil {
		return err
	}
	w.contact = time.Now()
	deadline := now.Add(w.cfg.InsertTimeout)
	if ready = settled(ready, now, busy); len(ready) == 0 {
		return w.commitDone(ctx)
	}
	if err := w.commit(ctx, deadline, ready); err != nil {
		return err
	}
	if err := w.insertAll(ctx, ready, deadline); err != nil {
		return err
	}
	for _, s := range ready {
		w.metrics.blocks.WithLabelValues(s.source.String()).Inc()
		s.inserted()
	}
	return nil
}

// settled leaves out the streams whose block may still appear by itself: an
// insert of it may be under way until its deadline, and where one that began in
// time is still at work, until that has ended.
func settled(ready []*stream, now time.Time, busy bool) []*stream {
	var out []*stream
	for _, s := range ready {
		if s.block.unknown != 0 && !s.block.fence.IsZero() && (busy || !now.After(s.block.fence)) {
			continue
		}
		out = append(out, s)
	}
	return out
}

// insertAll inserts into every table, each on a goroutine of its own.
func (w *writer) insertAll(ctx context.Context, ready []*stream, deadline time.Time) error {
	blocks := make([]*block, len(ready))
	for i, s := range ready {
		blocks[i] = s.block
	}
	errs, refused := make([]error, len(w.tables)), make([][]refusal, len(w.tables))
	var running sync.WaitGroup
	for i := range w.tables {
		running.Go(func() {
			refused[i], errs[i] = w.insertTable(ctx, i, blocks, deadline)
		})
	}
	running.Wait()
	w.rejectRefused(slices.Concat(refused...))
	// The tables' goroutines read the blocks; what came of it is noted after them.
	for i, err := range errs {
		for _, b := range blocks {
			b.note(i, err, deadline)
		}
	}
	return errors.Join(errs...)
}

// insertTable looks up what may be in the table, and inserts what is not. It returns
// the rows that the table will never take.
func (w *writer) insertTable(ctx context.Context, i int, blocks []*block, deadline time.Time) (refused []refusal, err error) {
	t := w.tables[i]
	var missing []*block
	rows := 0
	for _, b := range blocks {
		if b.done.has(i) || t.count(&b.rows) == 0 {
			continue
		}
		if t.fenced && b.unknown.has(i) {
			if err := w.store.dropPresent(ctx, t, b); err != nil {
				return nil, err
			}
		}
		if n := t.count(&b.rows); n > 0 {
			missing = append(missing, b)
			rows += n
		}
	}
	if rows == 0 {
		return nil, nil
	}
	begin := time.Now()
	if err = w.store.insert(ctx, t, missing, deadline); refusesRow(err) {
		refused, err = w.setApart(ctx, t, missing, deadline)
		rows -= len(refused)
	}
	w.metrics.insertSec.WithLabelValues(t.name).Observe(time.Since(begin).Seconds())
	switch {
	case err == nil:
		w.metrics.inserts.WithLabelValues(t.name, "ok").Inc()
		w.metrics.rows.WithLabelValues(t.name).Add(float64(rows))
	case errors.Is(err, errUnknown):
		w.metrics.inserts.WithLabelValues(t.name, "unknown").Inc()
	default:
		w.metrics.inserts.WithLabelValues(t.name, "refused").Inc()
	}
	return refused, err
}

// note keeps what came of a table's insert.
func (b *block) note(table int, err error, deadline time.Time) {
	switch {
	case err == nil:
		b.done.add(table)
		b.unknown.remove(table)
	case errors.Is(err, errUnknown):
		b.unknown.add(table)
		if !answered(err) && deadline.After(b.fence) {
			b.fence = deadline
		}
	}
}

// quarantine produces the bad records, before a commit passes them.
func (w *writer) quarantine(ctx context.Context) error {
	if len(w.rejected) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.InsertTimeout)
	defer cancel()
	var left []*kgo.Record // those that are in Kafka are not produced again
	var failed error
	for _, p := range w.client.ProduceSync(ctx, w.rejected...) {
		if p.Err == nil {
			continue
		}
		p.Record.Context = nil // kgo would end the next try with this one's context
		left, failed = append(left, p.Record), p.Err
	}
	w.rejected = left
	if failed != nil {
		return fmt.Errorf("producing %d records to %s: %w", len(left), w.topics.Rejected, failed)
	}
	return nil
}

var (
	errCommit       = errors.New("committing offsets")
	errNoMembership = errors.New("no member of the group")
)

// commitDone commits what is in ClickHouse, where that is not committed yet.
func (w *writer) commitDone(ctx context.Context) error {
	return w.commit(ctx, time.Time{}, nil)
}

// commit commits how far each stream is in ClickHouse, and names the blocks of
// the streams that are inserted next, with their deadline. When it returns an
// error nothing may be inserted: the partitions may have another owner.
func (w *writer) commit(ctx context.Context, deadline time.Time, next []*stream) error {
	naming := make(map[*stream]bool, len(next))
	for _, s := range next {
		naming[s] = true
	}
	entries := make(map[topicPartition]commitEntry)
	for _, s := range w.streams {
		entry := s.committed
		if naming[s] {
			entry = s.entry(deadline)
		} else if s.block == nil {
			entry = s.entry(time.Time{})
		}
		if entry != s.committed && entry.offset >= 0 {
			entries[topicPartition{s.topic, s.partition}] = entry
		}
		if s.join != nil && s.eventsNext >= 0 && s.eventsNext != s.eventsCommitted.offset {
			entries[topicPartition{w.topics.Events, s.partition}] = commitEntry{offset: s.eventsNext}
		}
	}
	if len(entries) == 0 {
		return nil
	}
	if err := w.send(ctx, entries); err != nil {
		return fmt.Errorf("%w of %d partitions: %w", errCommit, len(entries), err)
	}
	for _, s := range w.streams {
		if entry, ok := entries[topicPartition{s.topic, s.partition}]; ok {
			s.committed = entry
		}
		if entry, ok := entries[topicPartition{w.topics.Events, s.partition}]; ok && s.join != nil {
			s.eventsCommitted = entry
		}
	}
	return nil
}

// send commits entries, all or none: they are in one request, which the
// coordinator appends as one batch.
func (w *writer) send(ctx context.Context, entries map[topicPartition]commitEntry) error {
	offsets := make(map[string]map[int32]kgo.EpochOffset)
	for p, entry := range entries {
		if offsets[p.topic] == nil {
			offsets[p.topic] = make(map[int32]kgo.EpochOffset)
		}
		offsets[p.topic][p.partition] = kgo.EpochOffset{Epoch: -1, Offset: entry.offset}
	}
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		if req.MemberID == "" || req.Generation < 0 {
			return errNoMembership // a broker takes this from a group that has no members
		}
		for i := range req.Topics {
			t := &req.Topics[i]
			for j := range t.Partitions {
				metadata := entries[topicPartition{t.Topic, t.Partitions[j].Partition}].metadata
				t.Partitions[j].Metadata = &metadata
			}
		}
		return nil
	})
	answer := make(chan error, 1)
	w.client.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		answer <- firstCommitError(resp, err, len(entries))
	})
	return <-answer
}

// firstCommitError is what kept any partition from being committed.
func firstCommitError(resp *kmsg.OffsetCommitResponse, err error, want int) error {
	if err != nil {
		return err
	}
	answered := 0
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err)
			}
			answered++
		}
	}
	if answered < want {
		return fmt.Errorf("%d of %d partitions answered", answered, want)
	}
	return nil
}
