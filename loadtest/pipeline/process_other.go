//go:build !linux

package pipeline

import "syscall"

// endsWithThread has no counterpart to Linux's parent-death signal: a test binary
// that is killed leaves its processes to be ended by hand.
func endsWithThread() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
