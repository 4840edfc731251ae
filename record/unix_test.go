//go:build unix

package record

import "syscall"

const errNothing = syscall.EAGAIN

func readNow(fd uintptr, b []byte) (int, error) { return syscall.Read(int(fd), b) }
