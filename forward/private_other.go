//go:build !unix

package forward

import (
	"net"
	"syscall"
)

// Winsock's own numbers: package syscall's names stand for invented ones.
const (
	errAddrInUse   = syscall.Errno(10048) // WSAEADDRINUSE
	errConnRefused = syscall.Errno(10061) // WSAECONNREFUSED
)

// listenPrivate: on Windows the directory's rights hold for the socket.
func listenPrivate(path string) (net.Listener, error) { return net.Listen("unix", path) }
