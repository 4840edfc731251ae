package forward

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"p2ptun/registry"
)

func bound(t testing.TB, addr string) (net.Listener, string) {
	t.Helper()
	l, at, err := bind(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, at
}

func TestBindShowsTheRealPort(t *testing.T) {
	r := newRig(t, registry.Tunnel{Bind: "/ip4/127.0.0.1/tcp/0"}, anna)
	defer r.cancel()
	if err := r.Bind(); err != nil {
		t.Fatal(err)
	}
	at := r.Entry.Status().Bind
	if !strings.HasPrefix(at, "/ip4/127.0.0.1/tcp/") || strings.HasSuffix(at, "/0") {
		t.Errorf("bound %s", at)
	}
	if _, _, err := bind(at); !errors.Is(err, ErrAddrTaken) {
		t.Errorf("a second time: %v", err)
	}
	r.Unbind()
	if _, again := bound(t, at); again != at {
		t.Errorf("after Unbind %s, want %s", again, at)
	}
}

func TestBindSaysWhatIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	for _, addr := range []string{
		"/ip4/192.0.2.1/tcp/0",                       // not this machine's (RFC 5737)
		"/unix" + filepath.Join(dir, "nowhere", "s"), // no directory
		"/ip4/127.0.0.1/udp/0",
		"nonsense",
	} {
		l, _, err := bind(addr)
		if err == nil {
			l.Close()
		}
		if err == nil || errors.Is(err, ErrAddrTaken) || !strings.HasPrefix(err.Error(), "bind ") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestAUnixSocketIsPrivateAndGoesWithItsTunnel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, at := bound(t, "/unix"+path)
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode()&fs.ModeSocket == 0 || at != "/unix"+path {
		t.Errorf("%s: %v, %v", at, info.Mode(), err)
	}
	other := filepath.Join(filepath.Dir(path), "f")
	if err := os.WriteFile(other, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(other); info.Mode().Perm()&0o600 != 0o600 {
		t.Errorf("the umask stayed: %v", info.Mode())
	}
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestAStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false) // as a crash leaves it
	old.Close()
	l, _ := bound(t, "/unix"+path)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if a, err := l.Accept(); err != nil {
		t.Error(err)
	} else {
		a.Close()
	}
}

func TestALiveSocketIsNotTouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	bound(t, "/unix"+path)
	before, _ := os.Lstat(path)
	if _, _, err := bind("/unix" + path); !errors.Is(err, ErrAddrTaken) {
		t.Errorf("err = %v", err)
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was replaced: %v", err)
	}
}

func TestWhatIsNoSocketIsNotTouched(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("mine"), 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":      func(path string) error { return os.Symlink(filepath.Join(dir, "file"), path) },
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Lstat(path)
		if _, _, err := bind("/unix" + path); !errors.Is(err, ErrAddrTaken) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s was replaced: %v", name, err)
		}
	}
}
