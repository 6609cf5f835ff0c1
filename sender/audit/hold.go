package audit

import "errors"

// holdBack pauses what memory has no room for: all partitions while ClickHouse
// does not take the rows, one side of a join while the other is behind. A join's
// room is its own share, so that a partition whose router stands still holds back
// itself only.
func (w *writer) holdBack() {
	rows, joins := 0, 0
	for _, s := range w.streams {
		rows += s.bytes()
		if s.join != nil {
			joins++
		}
	}
	w.metrics.buffered.Set(float64(rows))
	full := rows > int(w.cfg.BufferBytes/2)
	share := int(w.cfg.BufferBytes/2) / max(joins, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range w.commits {
		w.holdPartition(p, w.mustWaitLocked(p, full, share))
	}
}

// mustWaitLocked says whether a partition waits for room. Where an earlier
// writer's block is not whole yet it does not wait until rows are gone: only
// reading on makes the block whole, and lets its rows go. Were such partitions
// held, none of whose blocks are whole, all would stand still for ever.
func (w *writer) mustWaitLocked(p topicPartition, full bool, share int) bool {
	source, topic := w.streamOf(p.topic)
	s := w.streams[partitionKey{source, p.partition}]
	if s == nil { // nothing was read of it yet
		from := w.commits[topicPartition{topic, p.partition}]
		s = newStream(source, topic, w.ids[topic], p.partition, from)
	}
	full = full && (s.restored.end == 0 || s.stopped != nil)
	switch {
	case s.join == nil:
		return full || s.stopped != nil
	case p.topic == w.topics.Events:
		return full || s.join.eventBytes > share/4*3
	default: // A record of routed tells of many events: a quarter of the share is plenty.
		return full || s.join.decidedBytes > share/4 || s.stopped != nil
	}
}

func (w *writer) holdPartition(p topicPartition, hold bool) {
	_, held := w.paused[p]
	switch {
	case hold && !held:
		w.pausePartition(p)
	case !hold && held:
		delete(w.paused, p)
		w.client.ResumeFetchPartitions(map[string][]int32{p.topic: {p.partition}})
	}
}

func (w *writer) pausePartition(p topicPartition) {
	w.paused[p] = struct{}{}
	w.client.PauseFetchPartitions(map[string][]int32{p.topic: {p.partition}})
}

// resumeAll makes a new assignment begin with nothing paused: what an earlier one paused stays so otherwise.
func (w *writer) resumeAll() {
	for p := range w.paused {
		w.client.ResumeFetchPartitions(map[string][]int32{p.topic: {p.partition}})
	}
	clear(w.paused)
}

// report tells health and metrics where the writer stands.
func (w *writer) report() {
	stopped := []error{w.unpaired}
	lag := make(map[source]int64)
	for key, s := range w.streams {
		if s.stopped != nil {
			stopped = append(stopped, s.stopped)
		}
		lag[key.source] += max(s.end-max(s.next, 0), 0)
	}
	for s := sourceRouted; s <= sourceChanges; s++ {
		w.metrics.lag.WithLabelValues(s.String()).Set(float64(lag[s]))
	}
	if err := errors.Join(stopped...); err != nil {
		w.audit.Down(err)
		return
	}
	w.audit.Up()
}
