package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kfake"
)

// kfake compacts a partition by deleting its files and writing new ones: killed
// in between, it would lose a whole topic. So the old files are kept under a
// second name (a hard link) until the new ones are there.
const (
	uncompacted        = "uncompacted"         // whole: to be put back if it is found at a start
	uncompactedPartial = "uncompacted.partial" // being made, or being removed: of no use
)

// compact compacts every compacted topic and applies retention. If a transaction was
// aborted in one it does not compact: kfake would drop the marker that ends it and
// go on telling readers of it, who then see nothing of what its producer commits later.
func compact(dir string, cluster *kfake.Cluster, log *slog.Logger) error {
	partitions, err := compactedPartitions(dir)
	if err != nil {
		return err
	}
	for _, name := range partitions {
		p, err := readPartition(filepath.Join(dir, "partitions", name))
		if err != nil {
			return fmt.Errorf("partition %s: %w", name, err)
		}
		if p.aborts {
			log.Info("the embedded Kafka is not compacted: a transaction was aborted there", "partition", name)
			cluster.ApplyRetention() // which goes with compacting
			return nil
		}
	}
	partial := filepath.Join(dir, uncompactedPartial)
	if err := os.RemoveAll(partial); err != nil {
		return fmt.Errorf("preparing compaction: %w", err)
	}
	for _, name := range partitions {
		if err := linkFiles(filepath.Join(dir, "partitions", name), filepath.Join(partial, name)); err != nil {
			return fmt.Errorf("keeping partition %s: %w", name, err)
		}
	}
	if len(partitions) == 0 {
		return nil
	}
	if err := os.Rename(partial, filepath.Join(dir, uncompacted)); err != nil {
		return fmt.Errorf("preparing compaction: %w", err)
	}
	cluster.Compact()
	if err := os.Rename(filepath.Join(dir, uncompacted), partial); err != nil {
		return fmt.Errorf("ending compaction: %w", err)
	}
	if err := os.RemoveAll(partial); err != nil {
		return fmt.Errorf("ending compaction: %w", err)
	}
	return nil
}

// restoreUncompacted puts back the files of a compaction that was killed. It may
// itself be killed and repeated.
func restoreUncompacted(dir string) error {
	kept := filepath.Join(dir, uncompacted)
	entries, err := os.ReadDir(kept)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for an unfinished compaction: %w", err)
	}
	for _, entry := range entries {
		partition := filepath.Join(dir, "partitions", entry.Name())
		if err := os.RemoveAll(partition); err != nil {
			return fmt.Errorf("taking back compaction of %s: %w", entry.Name(), err)
		}
		if err := os.Rename(filepath.Join(kept, entry.Name()), partition); err != nil {
			return fmt.Errorf("taking back compaction of %s: %w", entry.Name(), err)
		}
	}
	if err := os.RemoveAll(kept); err != nil {
		return fmt.Errorf("taking back compaction: %w", err)
	}
	return nil
}

// compactedPartitions returns the folders of the compacted topics' partitions.
func compactedPartitions(dir string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "topics.json")) //nolint:gosec // standalone's own folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // killed in its first moment
	}
	if err != nil {
		return nil, fmt.Errorf("reading topics: %w", err)
	}
	var file struct {
		Topics []struct {
			Name       string            `json:"name"`
			Partitions int               `json:"partitions"`
			Configs    map[string]string `json:"configs"`
		} `json:"topics"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("reading topics: %w", err)
	}
	var names []string
	for _, topic := range file.Topics {
		if !strings.Contains(topic.Configs["cleanup.policy"], "compact") {
			continue
		}
		for p := range topic.Partitions {
			name := url.PathEscape(topic.Name) + "-" + strconv.Itoa(p)
			if _, err := os.Stat(filepath.Join(dir, "partitions", name)); err == nil { // none before the first record
				names = append(names, name)
			}
		}
	}
	return names, nil
}

func linkFiles(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return fmt.Errorf("creating folder: %w", err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("reading folder: %w", err)
	}
	for _, entry := range entries {
		if err := os.Link(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			return fmt.Errorf("linking file: %w", err)
		}
	}
	return nil
}
