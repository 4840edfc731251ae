//go:build !unix

package home

import (
	"net"
	"syscall"
)

// errConnRefused is Winsock's own number: package syscall's name stands for an
// invented one.
const errConnRefused = syscall.Errno(10061) // WSAECONNREFUSED

func listenPrivate(path string) (net.Listener, error) { return net.Listen("unix", path) }
