package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"p2ptun/home"
)

// lockedHome is a home that this process holds without a node.
func lockedHome(t testing.TB) (home.Dir, *home.Lock) {
	t.Helper()
	dir := newHome(t)
	lock, ok, err := dir.TryLock()
	must(t, err)
	if !ok {
		t.Fatal("the home has an owner")
	}
	return dir, lock
}

func TestFindWaitsForAnOwnerThatStarts(t *testing.T) {
	dir, lock := lockedHome(t)
	started := make(chan *Server, 1)
	go func() {
		s, err := start(context.WithoutCancel(t.Context()), optionsOf(dir), lock)
		if err != nil {
			t.Error(err)
		}
		started <- s
	}()
	_, err := Find(t.Context(), dir)
	if s := <-started; s != nil {
		defer s.Stop(0, false)
	}
	must(t, err)
}

func TestOwnerWithoutASocketIsSilentNotAbsent(t *testing.T) {
	dir, lock := lockedHome(t)
	defer lock.Release()
	since := time.Now()
	wantSilent(t, dir)
	if took := time.Since(since); took < startWait {
		t.Errorf("waited only %v", took)
	}
}

func TestOwnerThatAcceptsAndSaysNothingIsSilent(t *testing.T) {
	dir, lock := lockedHome(t)
	defer lock.Release()
	path, err := dir.Socket()
	must(t, err)
	l, err := home.ListenUnix(path) // its backlog takes connections, and that is all
	must(t, err)
	defer l.Close()
	wantSilent(t, dir)
}

func wantSilent(t testing.TB, dir home.Dir) {
	t.Helper()
	_, err := Find(t.Context(), dir)
	var silent *SilentError
	if !errors.As(err, &silent) || silent.PID != os.Getpid() || errors.Is(err, ErrNoOwner) {
		t.Fatalf("%v, want that process %d is silent", err, os.Getpid())
	}
}

func TestSocketLeftWithoutAnOwnerIsNoOwner(t *testing.T) {
	dir := newHome(t)
	path, err := dir.Socket()
	must(t, err)
	l, err := net.Listen("unix", path)
	must(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, l.Close())
	if _, err := Find(t.Context(), dir); !errors.Is(err, ErrNoOwner) {
		t.Fatalf("%v", err)
	}
}

func TestOwnerOfALongHomeIsFoundFromAnotherRunTimeDirectory(t *testing.T) {
	dir, err := home.Open(filepath.Join(string(newHome(t)), strings.Repeat("long", 40)))
	must(t, err)
	t.Setenv("XDG_RUNTIME_DIR", string(newHome(t)))
	_, s := own(t, dir)
	record := filepath.Join(string(dir), "control.path")
	left, err := os.ReadFile(record)
	must(t, err)
	t.Setenv("XDG_RUNTIME_DIR", string(newHome(t)))
	_, err = Find(t.Context(), dir)
	must(t, err)
	if _, s, err := Attach(t.Context(), optionsOf(dir)); err != nil || s != nil {
		t.Errorf("attach: %v, %v", s, err)
	}
	must(t, s.Stop(0, false))
	if _, err := os.Stat(record); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record is left: %v", err)
	}
	must(t, os.WriteFile(record, left, 0o600)) // as a crash leaves it
	if _, err := Find(t.Context(), dir); !errors.Is(err, ErrNoOwner) {
		t.Errorf("nobody answers at the recorded path: %v", err)
	}
	own(t, dir) // replaces it
	_, err = Find(t.Context(), dir)
	must(t, err)
}

func TestCommandsOfAKilledNodeAreToldThatItStopped(t *testing.T) {
	c, s := own(t, newHome(t))
	ended := openUntilEnd(t, c)
	s.Kill()
	if reason := <-ended; reason != EndStopped {
		t.Errorf("ended by %q, want %q", reason, EndStopped)
	}
}

// openUntilEnd opens a tunnel as a command does, and gives why it ended.
func openUntilEnd(t testing.TB, c *Client) <-chan string {
	t.Helper()
	ready, ended := make(chan struct{}), make(chan string, 1)
	tun := keeps("", "/x/attached")
	tun.Keep = false
	go func() {
		reason, err := c.Open(context.WithoutCancel(t.Context()), tun, false, func(e Event) {
			if e.Event == "ready" {
				close(ready)
			}
		})
		if err != nil {
			t.Errorf("open: %v", err)
		}
		ended <- reason
	}()
	<-ready
	return ended
}
