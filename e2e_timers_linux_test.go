package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestANodesTimersMayBeLate: those of each thread, unless whoever starts it has chosen
// another slack; and where the kernel does not keep it, the node runs all the same.
func TestANodesTimersMayBeLate(t *testing.T) {
	for name, c := range map[string]struct {
		inherited time.Duration // 0: the kernel's default
		begin     string        // how bash begins it
		want      time.Duration
	}{
		"by default":                    {want: time.Millisecond, begin: `exec -a p2ptun "$@"`},
		"chosen by systemd":             {want: 70 * time.Microsecond, begin: `exec -a p2ptun "$@"`, inherited: 70 * time.Microsecond},
		"not kept by a kernel's execve": {want: 50 * time.Microsecond, begin: `P2PTUN_STARTED_ANEW=1 exec -a p2ptun "$@"`},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			var p *process
			withSlack(t, c.inherited, func() {
				p = startFrom(t, "/bin/bash", "bash", "-c", c.begin, "bash", n.binary, "--home", n.home, "daemon", "--network", "none", "--listen-addr", overTCP)
			})
			p.waitFor(t, &p.out, "tunnels    0 kept")
			for thread, slack := range slacks(t, p.cmd.Process.Pid) {
				if slack != c.want {
					t.Errorf("thread %s: %s, want %s", thread, slack, c.want)
				}
			}
		})
	}
}

// withSlack calls f while what it starts inherits a slack.
func withSlack(t *testing.T, slack time.Duration, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }()
	f()
}

func slacks(t *testing.T, pid int) map[string]time.Duration {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]time.Duration{}
	for _, e := range threads {
		b, err := os.ReadFile("/proc/" + e.Name() + "/timerslack_ns")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		ns, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = time.Duration(ns)
	}
	return all
}
