package forward

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// On Linux a connection to a socket whose backlog is full fails at once: that
// is no sign that nobody listens.
func TestASocketWithAFullBacklogIsNotTouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener := unixFD(t)
	addr := &syscall.SockaddrUnix{Name: path}
	if err := errors.Join(syscall.Bind(listener, addr), syscall.Listen(listener, 0)); err != nil {
		t.Fatal(err)
	}
	var err error
	for range 8 {
		if err = syscall.Connect(unixFD(t), addr); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("the backlog is not full: %v", err)
	}
	before, _ := os.Lstat(path)
	if _, _, err := bind("/unix" + path); !errors.Is(err, ErrAddrTaken) {
		t.Errorf("err = %v", err)
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was replaced: %v", err)
	}
}

func unixFD(t testing.TB) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	return fd
}
