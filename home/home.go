// Package home is the home directory: where it is, who owns it, and how its
// files are written. One home is one identity is one process. It knows no
// format of any file but the book of peer names; node, access and daemon keep
// theirs here. They and command call it.
package home

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/adrg/xdg"
	"github.com/gofrs/flock"
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
	lockFile    = "lock"
	socketFile  = "control.sock"
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
func (e *UnsafeError) Hint() string { return "chmod go-w " + e.Path }

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

// Peers is the file of peer names.
func (d Dir) Peers() string { return d.join(peersFile) }

// maxSocketPath is what every system takes as the path of a unix socket:
// sun_path holds 104 bytes on macOS and the BSDs, 108 on Linux, with its zero.
const maxSocketPath = 103

// Socket is the path of the control socket. Where the home's path is too long
// for the system, it is a short one under the run-time directory, the same for
// every process of this user.
func (d Dir) Socket() (string, error) {
	if path := d.join(socketFile); len(path) <= maxSocketPath {
		return path, nil
	}
	sum := sha256.Sum256([]byte(d))
	dir, err := runtimeDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, hex.EncodeToString(sum[:8])+".sock")
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("control socket: %s is too long for a unix socket, and so is the home's path", path)
	}
	return path, nil
}

// runtimeDir is a directory of this user alone.
func runtimeDir() (string, error) {
	base := os.Getenv("XDG_RUNTIME_DIR")
	if base == "" {
		base = filepath.Join("/tmp", fmt.Sprintf("p2ptun-%d", os.Getuid()))
	} else {
		base = filepath.Join(base, "p2ptun")
	}
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", fmt.Errorf("run-time directory: %w", err)
	}
	info, err := os.Lstat(base)
	if err != nil {
		return "", fmt.Errorf("run-time directory: %w", err)
	}
	if !info.IsDir() || OthersMayWrite(info) || !ownedByUs(info) {
		return "", fmt.Errorf("run-time directory %s is not ours alone", base)
	}
	return base, nil
}

// Lock says who owns a home. It is the system's: it ends with its process,
// however that ends.
type Lock struct{ f *flock.Flock }

// TryLock takes the home's lock; ok is false where another process has it.
func (d Dir) TryLock() (lock *Lock, ok bool, err error) {
	f := flock.New(d.join(lockFile), flock.SetPermissions(0o600))
	ok, err = f.TryLock()
	if err != nil {
		return nil, false, fmt.Errorf("lock home: %w", err)
	}
	if !ok {
		return nil, false, nil
	}
	return &Lock{f: f}, true, nil
}

// Release gives the lock back.
func (l *Lock) Release() error { return l.f.Unlock() }

// ErrBusy is returned by Edit when another process holds the file for too long.
var ErrBusy = errors.New("file is being edited by another process")
