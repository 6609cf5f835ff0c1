package broker

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// kfake keeps producers and groups in logs of JSON entries, each framed with
// length, checksum and version.
const (
	logVersion = 1
	logHead    = 10 // length (4, of what follows the checksum), checksum (4), version (2)
)

// A stateLog is one of them.
type stateLog struct {
	path    string
	entries []logEntry
	end     int64
}

type logEntry struct {
	at   int64
	data []byte
}

// readStateLog reads a log, which may not be there yet, and cuts off what a kill
// left unfinished: kfake passes over that, but goes on writing behind it, where
// it would not find it again.
func readStateLog(path string) (*stateLog, error) {
	raw, err := os.ReadFile(path) //nolint:gosec // standalone's own folder
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading log: %w", err)
	}
	l := &stateLog{path: path}
	for int64(len(raw))-l.end >= logHead {
		rest := raw[l.end:]
		size := 8 + int64(binary.LittleEndian.Uint32(rest))
		if size < logHead || size > int64(len(rest)) || binary.LittleEndian.Uint32(rest[4:]) != checksum(rest[8:size]) {
			break
		}
		l.entries = append(l.entries, logEntry{l.end, rest[logHead:size]})
		l.end += size
	}
	if l.end == int64(len(raw)) {
		return l, nil
	}
	return l, l.truncate(l.end)
}

func (l *stateLog) truncate(end int64) error {
	if err := os.Truncate(l.path, end); err != nil {
		return fmt.Errorf("cutting off a log's end: %w", err)
	}
	l.end = end
	return nil
}

func (l *stateLog) append(value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding log entry: %w", err)
	}
	entry := make([]byte, logHead, logHead+len(data))
	binary.LittleEndian.PutUint16(entry[8:], logVersion)
	entry = append(entry, data...)
	binary.LittleEndian.PutUint32(entry, uint32(len(entry)-8)) //nolint:gosec // some hundred bytes
	binary.LittleEndian.PutUint32(entry[4:], checksum(entry[8:]))
	return appendFile(l.path, entry)
}

// producerEntry is an entry of pids.log.
type producerEntry struct {
	Type     string `json:"type"` // init, endtx or timeout
	Producer int64  `json:"pid"`
	Epoch    int16  `json:"epoch"`
	Commit   *bool  `json:"commit,omitempty"`
}

// producer is what the log says last of one.
type producer struct {
	epoch     int16
	committed bool // the transaction of this epoch
}

func producers(l *stateLog) (map[int64]producer, error) {
	all := make(map[int64]producer)
	for _, e := range l.entries {
		var entry producerEntry
		if err := json.Unmarshal(e.data, &entry); err != nil {
			return nil, fmt.Errorf("reading producers: entry at %d: %w", e.at, err)
		}
		// An init holds a commit where the log was written anew: the last state of each.
		all[entry.Producer] = producer{entry.Epoch, entry.Commit != nil && *entry.Commit}
	}
	return all, nil
}

// groupEntry is an entry of groups.log, as far as it is of interest here.
type groupEntry struct {
	Type        string `json:"type"`
	CommittedAt int64  `json:"lc"` // in milliseconds
}

// takeBackCommits cuts off the commits at the log's end that are not older than
// a time.
func takeBackCommits(l *stateLog, since int64) error {
	for _, e := range slices.Backward(l.entries) {
		var entry groupEntry
		if err := json.Unmarshal(e.data, &entry); err != nil {
			return fmt.Errorf("reading groups: entry at %d: %w", e.at, err)
		}
		if entry.Type != "commit" || entry.CommittedAt < since {
			return nil
		}
		if err := l.truncate(e.at); err != nil {
			return err
		}
	}
	return nil
}
