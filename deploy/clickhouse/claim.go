package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// choosePorts settles both addresses, with free ports where none is asked for.
func choosePorts(ctx context.Context, cfg Config) (httpAddr, nativeAddr netip.AddrPort, err error) {
	var held []net.Listener // both open at once, so that they differ
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	choose := func(listen string) (netip.AddrPort, error) {
		if listen == "" {
			listen = "127.0.0.1:0"
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
		if errors.Is(err, syscall.EADDRINUSE) {
			return netip.AddrPort{}, fmt.Errorf("listening on %s: %w", listen, ErrPortTaken)
		}
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("listening on %s: %w", listen, err)
		}
		held = append(held, l)
		addr, err := netip.ParseAddrPort(l.Addr().String())
		if err != nil || !addr.Addr().IsLoopback() {
			return netip.AddrPort{}, fmt.Errorf("listening on %s: not a loopback address, and this ClickHouse has no access control", listen)
		}
		return addr, nil
	}
	if httpAddr, err = choose(cfg.HTTPListen); err != nil {
		return httpAddr, nativeAddr, err
	}
	if nativeAddr, err = choose(cfg.NativeListen); err != nil {
		return httpAddr, nativeAddr, err
	}
	if httpAddr.Addr() != nativeAddr.Addr() {
		err = fmt.Errorf("listening on %s and %s: the hosts must be the same", httpAddr, nativeAddr)
	}
	return httpAddr, nativeAddr, err
}

func anyPort(listen string) bool {
	return listen == "" || strings.HasSuffix(listen, ":0")
}

// lockFolder takes the folder's lock, waiting up to five seconds: the child of a
// parent that was killed a moment ago needs up to three to end.
func lockFolder(ctx context.Context, dir string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o750); err != nil {
		return nil, fmt.Errorf("creating data folder: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, ErrInUse)
	defer cancel()
	return lockFile(ctx, filepath.Join(dir, "lock"))
}

// lockFile takes an exclusive lock on a file, made if it is not there. The lock
// goes when the last copy of the file is closed, also by the death of a process.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the caller's folder
	if err != nil {
		return nil, fmt.Errorf("opening lock file: %w", err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
