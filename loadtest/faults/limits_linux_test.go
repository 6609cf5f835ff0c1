package faults

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postrider/postrider/loadtest/pipeline"
)

// limit sets a process's soft limit of a resource (prlimit(2)).
func (w *world) limit(pid, resource int, most uint64) {
	w.t.Helper()
	var had unix.Rlimit
	if err := unix.Prlimit(pid, resource, nil, &had); err != nil {
		w.t.Fatalf("asking for a limit: %v", err)
	}
	if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: min(most, had.Max), Max: had.Max}, nil); err != nil {
		w.t.Fatalf("setting a limit: %v", err)
	}
}

// tmpfs mounts a file system of so many bytes in memory, until the test ends.
func (w *world) tmpfs(bytes int) string {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "small")
	if err := os.Mkdir(dir, 0o750); err != nil {
		w.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		w.t.Fatalf("mounting a small file system, which needs root: %v", err)
	}
	w.t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			w.t.Error(err)
		}
	})
	return dir
}

// fill writes a file that leaves so many bytes of its file system free.
func (w *world) fill(dir string, leave uint64) (file string) {
	w.t.Helper()
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	pipeline.Wait(w.t, soon, "the rest of the space", func() error { // others write too
		var had syscall.Statfs_t
		if err := syscall.Statfs(dir, &had); err != nil {
			return err
		}
		free := had.Bavail * uint64(had.Bsize) //nolint:gosec // a block's size
		if free <= leave {
			return nil
		}
		at, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		return syscall.Fallocate(int(f.Fd()), 0, at, int64(free-leave)) //nolint:gosec // within a small file system
	})
	return file
}

func startOnTmpfs(w *world) {
	w.small = w.tmpfs(1 << 30)
	w.kafka = pipeline.StartKafkaIn(w.t, w.small, 1, "log.segment.bytes=16777216")
}

func startStoreOnTmpfs(w *world) {
	w.small = w.tmpfs(1 << 30)
	w.ch = pipeline.StartClickHouseIn(w.t, w.small)
}

// brokerDiskFull fills the disk until the broker can write no more, which ends it;
// the operator makes room and starts it again.
func brokerDiskFull(w *world) {
	w.progress(200)
	broker := w.kafka.Brokers[0]
	file := w.fill(w.small, 2<<20)
	pipeline.Wait(w.t, 2*soon, "the broker to find its disk full", func() error {
		if broker.Running() {
			return fmt.Errorf("it runs on")
		}
		return nil
	})
	w.wantUnavailable()
	w.pass(pick(5*time.Second, 30*time.Second))
	if err := os.Remove(file); err != nil {
		w.t.Fatal(err)
	}
	broker.Restart(w.t)
	w.faultEnded()
	w.progress(500)
}
