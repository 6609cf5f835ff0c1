package clickhouse

import (
	"runtime"
	"syscall"
)

// diesWithParent has the kernel kill a binary whose supervisor is killed. The
// signal follows the thread that starts the process, so that thread is kept:
// the caller is the supervisor's main goroutine, which lives as long as it does.
func diesWithParent() *syscall.SysProcAttr {
	runtime.LockOSThread()
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
