//go:build !linux

package clickhouse

import "syscall"

// diesWithParent has no counterpart to Linux's parent-death signal: a supervisor
// that is itself killed by hand leaves its binary to be ended by hand.
func diesWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
