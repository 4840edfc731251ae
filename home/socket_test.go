//go:build unix

package home

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestASocketIsPrivateFromItsFirstMomentOn(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := filepath.Join(shortDir(t), "s")
	var done atomic.Bool
	var looks atomic.Int64
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for !done.Load() {
			if info, err := os.Lstat(path); err == nil {
				looks.Add(1)
				if info.Mode().Perm() != 0o600 {
					t.Errorf("mode %v", info.Mode())
					return
				}
			}
		}
	}()
	for n := 0; n < 200 || looks.Load() < 100 && !t.Failed(); n++ {
		l, err := ListenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		if m := mode(t, path); m != 0o600 {
			t.Fatalf("mode %v", m)
		}
		l.Close()
	}
	done.Store(true)
	<-stopped
	if got := syscall.Umask(0); got != 0 {
		t.Errorf("the umask became %o", got)
	}
}

// shortDir is short enough for a socket, whatever the test's name.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestRefusedIsASocketThatNobodyListensOn(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := net.Dial("unix", path); !Refused(err) {
		t.Errorf("%v", err)
	}
	if _, err := net.Dial("unix", path+"x"); err == nil || Refused(err) {
		t.Errorf("no such file: %v", err)
	}
}

func TestARecordedSocketIsLookedAtFirst(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", shortDir(t))
	d := Dir(filepath.Join(t.TempDir(), strings.Repeat("long", 40)))
	if _, err := Open(string(d)); err != nil {
		t.Fatal(err)
	}
	own, err := d.Socket()
	if err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string][]string{
		"/elsewhere/s.sock\n":           {"/elsewhere/s.sock", own},
		own + "\n":                      {own},
		"":                              {own},
		"relative.sock\n":               {own},
		"/" + strings.Repeat("x", 1000): {own},
	} {
		if err := os.WriteFile(d.join(pathFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Sockets(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%.20q: %v, %v; want %v", content, got, err, want)
		}
	}
}

func TestTheRecordOfASocketIsPrivateAndGoesWithIt(t *testing.T) {
	d := Dir(t.TempDir())
	if err := d.RecordSocket("/elsewhere/s.sock"); err != nil {
		t.Fatal(err)
	}
	if m := mode(t, d.join(pathFile)); m != 0o600 {
		t.Errorf("mode %v", m)
	}
	wantContent(t, d.join(pathFile), "/elsewhere/s.sock\n")
	for range 2 { // the second time there is nothing to remove
		if err := d.RecordSocket(d.join(socketFile)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(d.join(pathFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the record of another socket is left: %v", err)
		}
	}
}
