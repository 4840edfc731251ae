//go:build linux && (amd64 || arm64) && !race

package registry

import (
	"syscall"
	"unsafe"
)

// recvNow and sendNow are recv(2) and send(2) without waiting, made without a word to
// Go's scheduler: that would take the processor from a goroutine whose call takes
// longer than 20 µs, as writes on loopback do, and wake its monitor thread, which
// then looks every 20 µs. Either costs more than the call.
func recvNow(fd int, b []byte) (int, error) {
	return callNow(syscall.SYS_RECVFROM, fd, b, syscall.MSG_DONTWAIT)
}

func sendNow(fd int, b []byte) (int, error) {
	return callNow(syscall.SYS_SENDTO, fd, b, syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
}

func callNow(call uintptr, fd int, b []byte, flags uintptr) (int, error) {
	n, _, errno := syscall.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
