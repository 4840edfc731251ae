// Package home is the home directory: where it is, who owns it, and how its
// files are written. One home is one identity is one process. It knows no
// format of any file but the book of peer names; node, access and daemon keep
// theirs here. They and command call it.
package home

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/adrg/xdg"
	"github.com/gofrs/flock"

	"p2ptun/proto"
)

// Dir is a home directory. Its files are 0600, the directory is 0700.
type Dir string

// The files of a home.
const (
	keyFile     = "identity.key"
	portFile    = "listen-port"
	accessFile  = "access"
	tunnelsFile = "tunnels.json"
	peersFile   = "peers"
	addrsFile   = "addresses.json"
	toldFile    = "told" // what was said once
	lockFile    = "lock"
	socketFile  = "control.sock"
	pathFile    = "control.path" // where the socket is, if not here
)

// Default is $P2PTUN_HOME, else p2ptun in the user's data directory (XDG base
// directory specification, or what stands for it on macOS and Windows).
func Default() string {
	if dir := os.Getenv("P2PTUN_HOME"); dir != "" {
		return dir
	}
	return filepath.Join(xdg.DataHome, "p2ptun")
}

// Open makes the directory where there is none and gives its absolute path. A
// directory that others may write to is refused: they could put their own
// rules into it.
func Open(path string) (Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("home %s: %w", path, err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return "", fmt.Errorf("home: %w", err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return "", fmt.Errorf("home: %w", err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("home %s is not a directory", abs)
	}
	if OthersMayWrite(info) {
		return "", &UnsafeError{Path: abs}
	}
	return Dir(abs), nil
}

// UnsafeError says that others may write to a file or directory whose content
// decides who gets in.
type UnsafeError struct{ Path string }

func (e *UnsafeError) Error() string { return fmt.Sprintf("others may write to %s", e.Path) }

// Hint is the command that mends it.
func (e *UnsafeError) Hint() string { return "chmod go-w " + proto.ShellQuote(e.Path) }

// OthersMayWrite says whether the mode lets group or others write. Windows has
// no such mode bits.
func OthersMayWrite(info fs.FileInfo) bool {
	return runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0
}

func (d Dir) join(name string) string { return filepath.Join(string(d), name) }

// Key is the file of the identity key.
func (d Dir) Key() string { return d.join(keyFile) }

// Port is the file of the port that the node listens on.
func (d Dir) Port() string { return d.join(portFile) }

// Access is the file of access rules.
func (d Dir) Access() string { return d.join(accessFile) }

// Tunnels is the file of kept tunnels.
func (d Dir) Tunnels() string { return d.join(tunnelsFile) }

// Addrs is the file of addresses that peers were reached at.
func (d Dir) Addrs() string { return d.join(addrsFile) }

// TellOnce says whether something is to be said now: it never was before, for
// this home.
func (d Dir) TellOnce(what string) bool {
	data, err := ReadFile(d.join(toldFile))
	if err == nil && slices.Contains(strings.Fields(string(data)), what) {
		return false
	}
	_ = WriteFile(d.join(toldFile), append(data, what+"\n"...))
	return true
}

// Peers is the file of peer names.
func (d Dir) Peers() string { return d.join(peersFile) }

// Lock says who owns a home. It is the system's: it ends with its process,
// however that ends.
type Lock struct{ f *flock.Flock }

// A look of Owner holds the lock for a moment: whoever wants it tries again.
const (
	lockTries = 3
	lockPause = 3 * time.Millisecond
)

// TryLock takes the home's lock; ok is false where another process has it.
func (d Dir) TryLock() (lock *Lock, ok bool, err error) {
	f := flock.New(d.join(lockFile), flock.SetPermissions(0o600))
	for try := 1; ; try++ {
		ok, err = f.TryLock()
		if ok || err != nil || try == lockTries {
			break
		}
		time.Sleep(lockPause)
	}
	if err != nil {
		return nil, false, fmt.Errorf("lock home: %w", err)
	}
	if !ok {
		return nil, false, nil
	}
	l := &Lock{f: f}
	l.note(strconv.Itoa(os.Getpid()) + "\n")
	return l, true, nil
}

// note writes what the lock's file says about its owner. The lock holds
// without it, so an error, a full disk for one, is none.
func (l *Lock) note(text string) { _ = os.WriteFile(l.f.Path(), []byte(text), 0o600) }

// Release gives the lock back.
func (l *Lock) Release() error {
	l.note("")
	return l.f.Unlock()
}

// Owner says whether a process owns the home, and its PID: 0 where that is not
// known.
func (d Dir) Owner() (pid int, owned bool) {
	data, err := ReadFile(d.join(lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false
	}
	f := flock.New(d.join(lockFile), flock.SetPermissions(0o600))
	free, err := f.TryRLock()
	if err != nil {
		return 0, false
	}
	if free {
		_ = f.Unlock()
		return 0, false
	}
	pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
	return pid, true
}

// ErrBusy is returned by Edit when another process holds the file for too long.
var ErrBusy = errors.New("file is being edited by another process")
