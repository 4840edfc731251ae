//go:build unix

package forward

import (
	"net"
	"sync"
	"syscall"
)

const (
	errAddrInUse   = syscall.EADDRINUSE
	errConnRefused = syscall.ECONNREFUSED
)

var umask sync.Mutex

// listenPrivate makes the socket 0600 from its first moment on.
func listenPrivate(path string) (net.Listener, error) {
	umask.Lock()
	defer umask.Unlock()
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}
