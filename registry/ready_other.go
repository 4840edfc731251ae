//go:build !unix

package registry

import "syscall"

// ReadyReader: Windows completes a read into a buffer that must stand, so
// there the pump's small first read serves.
type ReadyReader struct{}

// NewReadyReader returns ErrNotReadable.
func NewReadyReader(syscall.Conn) (*ReadyReader, error) { return nil, ErrNotReadable }

// Read returns ErrNotReadable.
func (*ReadyReader) Read(Room, int) (int, error) { return 0, ErrNotReadable }

func (*ReadyReader) init(syscall.Conn) error { return ErrNotReadable }

func (*connEnd) readReady(Room, int) (n int, err error) { return 0, ErrNotReadable }

// readyWriter: nor does it write without waiting.
type readyWriter struct{}

func (*readyWriter) init(*ReadyReader) {}

func (*connEnd) writeNow([]byte) int { return 0 }

// dead: Windows reports a reset to whoever asks, however often.
func (*connEnd) dead() bool { return false }
