package home

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// maxSocketPath is what every system takes as the path of a unix socket:
// sun_path holds 104 bytes on macOS and the BSDs, 108 on Linux, with its zero.
const maxSocketPath = 103

// Socket is the path of the control socket. Where the home's path is too long
// for the system, it is a short one under the run-time directory, the same for
// every process of this user that has the same run-time directory.
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

// RecordSocket has processes with another run-time directory find a control
// socket that is not in the home. For one that is, it removes what an owner
// before has left.
func (d Dir) RecordSocket(path string) error {
	if path == d.join(socketFile) {
		return d.ForgetSocket()
	}
	return WriteFile(d.join(pathFile), []byte(path+"\n"))
}

// ForgetSocket takes back what RecordSocket wrote.
func (d Dir) ForgetSocket() error {
	if err := os.Remove(d.join(pathFile)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Sockets are the paths where the owner's control socket may be: the recorded
// one, which a crash may have left, then Socket's.
func (d Dir) Sockets() ([]string, error) {
	var paths []string
	if data, err := ReadFile(d.join(pathFile)); err == nil {
		path := strings.TrimSpace(string(data))
		if filepath.IsAbs(path) && len(path) <= maxSocketPath {
			paths = append(paths, path)
		}
	}
	path, err := d.Socket()
	switch {
	case err == nil && (len(paths) == 0 || paths[0] != path):
		paths = append(paths, path)
	case err != nil && len(paths) == 0:
		return nil, err
	}
	return paths, nil
}

// ListenUnix listens on a unix socket that is 0600 from its first moment on.
// On Windows the directory's rights hold for the socket.
func ListenUnix(path string) (net.Listener, error) { return listenPrivate(path) }

// Refused says of a dial's error that nobody listens there.
func Refused(err error) bool { return errors.Is(err, errConnRefused) }
