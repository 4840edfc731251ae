//go:build unix

package forward

import "syscall"

const errAddrInUse = syscall.EADDRINUSE
