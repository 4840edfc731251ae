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

func (*ReadyReader) init(syscall.RawConn) {}

func (*connEnd) readReady(Room, int) (n int, err error) { return 0, ErrNotReadable }

// ReadyWriter: nor does it write without waiting.
type ReadyWriter struct{}

// NewReadyWriter returns ErrNotReadable.
func NewReadyWriter(syscall.RawConn) (*ReadyWriter, error) { return nil, ErrNotReadable }

// Write returns ErrNotReadable.
func (*ReadyWriter) Write([]byte) (int, error) { return 0, ErrNotReadable }

func (*ReadyWriter) init(syscall.RawConn) {}

func (e *connEnd) send(b []byte) (int, error) { return e.halfCloser.Write(b) }

func (*connEnd) writeNow([]byte) int { return 0 }

// dead: Windows reports a reset to whoever asks, however often.
func (*connEnd) dead() bool { return false }
