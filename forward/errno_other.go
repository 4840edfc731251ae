//go:build !unix

package forward

import "syscall"

// errAddrInUse is Winsock's own number: package syscall's name stands for an
// invented one.
const errAddrInUse = syscall.Errno(10048) // WSAEADDRINUSE
