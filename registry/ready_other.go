//go:build !unix

package registry

import "syscall"

// readyReader: Windows completes a read into a buffer that must stand, so
// there the pump's small first read serves.
type readyReader struct{}

func (*readyReader) init(syscall.Conn) {}

func (*connEnd) readReady(room, int) (n int, err error) { return 0, errNotReadable }

// readyWriter: nor does it write without waiting.
type readyWriter struct{}

func (*readyWriter) init(readyReader) {}

func (*connEnd) writeNow([]byte) int { return 0 }

// dead: Windows reports a reset to whoever asks, however often.
func (*connEnd) dead() bool { return false }
