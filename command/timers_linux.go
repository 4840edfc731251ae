package command

import (
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is how late the kernel may wake this process (PR_SET_TIMERSLACK,
// prctl(2)). Go's monitor thread means to sleep for 20 µs at a time while there is
// work; ARCHITECTURE.md says what that costs.
const timerSlack = time.Millisecond

const defaultSlack = 50 * time.Microsecond // the kernel's

// startedAnew is set in the environment of a program that has been.
const startedAnew = "P2PTUN_STARTED_ANEW"

// CalmTimers begins a program that is about to run a node anew, as the same process
// (execve), with timers that may be timerSlack late: the threads that run by now can't
// be told. It does nothing where somebody has chosen another slack, as systemd does by
// TimerSlackNSec=, nor where the kernel forbids it. Call it before all else: what was
// read, and signals that were caught, are lost.
func CalmTimers(args []string) {
	if !runsANode(args) || os.Getenv(startedAnew) != "" {
		_ = os.Unsetenv(startedAnew)
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || slack != int(defaultSlack) {
		return
	}
	program, err := os.Executable()
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(program, args, append(os.Environ(), startedAnew+"=1"))
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // the default
}

// runsANode guesses: to be wrong costs 10 ms.
func runsANode(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		return slices.Contains([]string{"listen", "forward", "daemon", "relay"}, a)
	})
}
