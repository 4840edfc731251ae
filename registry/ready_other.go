//go:build !unix

package registry

import "syscall"

// readyReader: Windows completes a read into a buffer that must stand, so
// there the pump's small first read serves.
type readyReader struct{}

func (*readyReader) init(syscall.Conn) {}

func (*connEnd) readPooled(int) (buf *buffer, n int, err error) { return nil, 0, errNotReadable }

// dead: Windows reports a reset to whoever asks, however often.
func (*connEnd) dead() bool { return false }
