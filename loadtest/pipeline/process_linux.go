package pipeline

import "syscall"

// endsWithThread has the kernel kill a process when the thread that started it ends,
// which is when the test binary does: also after a panic, a timeout or SIGKILL.
// The process group of its own keeps a terminal's Ctrl-C from it.
func endsWithThread() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
