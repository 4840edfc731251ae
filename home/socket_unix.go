//go:build unix

package home

import (
	"net"
	"sync"
	"syscall"
)

const errConnRefused = syscall.ECONNREFUSED

// umask guards the process's one umask.
var umask sync.Mutex

func listenPrivate(path string) (net.Listener, error) {
	umask.Lock()
	defer umask.Unlock()
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}
