package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/postrider/postrider/deploy/clickhouse"
)

// ports are those that this test binary has given out or found taken. While it
// lives each is locked against other test binaries, as a byte of a common file.
type ports struct {
	mu   sync.Mutex // guards the below
	seen map[int]bool
	file *os.File // of locks, which go with its first close
}

// FreePort gives a port of 127.0.0.1 that nobody uses, for a process that has to
// be told one and must get the same after a restart. No other call gives it, in
// this test binary or in another. It is below the ports that Linux hands out by
// itself (from 32768), so no outgoing connection takes it.
func FreePort(t testing.TB) int {
	t.Helper()
	port, err := the(t).ports.free(t.Context())
	if err != nil {
		t.Fatalf("finding a free port: %v", err)
	}
	return port
}

// FreeAddr is 127.0.0.1 with a FreePort.
func FreeAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}

func (p *ports) free(ctx context.Context) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.openLocked(); err != nil {
		return 0, err
	}
	for range 1000 {
		port := 16_000 + rand.IntN(16_000)
		locked, err := p.lockLocked(port)
		if err != nil {
			return 0, err
		}
		if !locked {
			continue
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("1000 tries from 16000 to 31999, all taken")
}

func (p *ports) openLocked() error {
	if p.file != nil {
		return nil
	}
	dir, err := clickhouse.DefaultCacheDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("creating cache folder: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "ports.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening lock file: %w", err)
	}
	p.file, p.seen = file, map[int]bool{}
	return nil
}

// lockLocked says whether the port was nobody's. A process's own locks do not keep
// it from a byte (fcntl(2)), so it remembers them.
func (p *ports) lockLocked(port int) (bool, error) {
	if p.seen[port] {
		return false, nil
	}
	lock := &syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart, Start: int64(port), Len: 1}
	err := syscall.FcntlFlock(p.file.Fd(), syscall.F_SETLK, lock)
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("locking byte %d of %s: %w", port, p.file.Name(), err)
	}
	p.seen[port] = true
	return true, nil
}

func (p *ports) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}
