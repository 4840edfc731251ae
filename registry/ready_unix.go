//go:build unix

package registry

import (
	"io"
	"os"
	"syscall"
)

// ReadyReader reads a socket into room that it takes only when bytes are there:
// a blocked read holds no buffer, and no system call is added for it. One
// goroutine may read.
type ReadyReader struct {
	raw syscall.RawConn
	try func(fd uintptr) bool

	into Room // of the next read
	most int  // that it takes
	n    int
	err  error
}

// NewReadyReader makes one that reads c. Errors: a socket that can't be read that
// way; ErrNotReadable where none can.
func NewReadyReader(c syscall.Conn) (*ReadyReader, error) {
	r := &ReadyReader{}
	return r, r.init(c)
}

func (r *ReadyReader) init(c syscall.Conn) (err error) {
	r.raw, err = c.SyscallConn()
	r.try = r.readOnce
	return err
}

// readOnce reports false when the socket has nothing yet; the runtime then
// parks the goroutine until it has.
func (r *ReadyReader) readOnce(fd uintptr) bool {
	b := r.into.Take()
	b = b[:min(r.most, len(b))]
	for {
		r.n, r.err = syscall.Read(int(fd), b)
		if r.err != syscall.EINTR {
			break
		}
	}
	if r.err == syscall.EAGAIN {
		r.into.Release()
		return false
	}
	return true
}

// Read blocks until bytes are there, and takes up to most of them, at least one,
// as far as they fit into the room. The caller releases that, but not where an
// error is returned: those of a read, and io.EOF.
func (r *ReadyReader) Read(into Room, most int) (n int, err error) {
	r.into, r.most, r.n, r.err = into, most, 0, nil
	err = r.raw.Read(r.try)
	held := err == nil
	switch {
	case err != nil:
	case r.err != nil:
		err = os.NewSyscallError("read", r.err)
	case r.n == 0:
		err = io.EOF
	default:
		return r.n, nil
	}
	if held {
		into.Release()
	}
	return 0, err
}

// readReady is the reader's Read; ErrNotReadable where the socket can't be read
// that way.
func (e *connEnd) readReady(into Room, most int) (n int, err error) {
	if e.ready.raw == nil {
		return 0, ErrNotReadable
	}
	n, err = e.ready.Read(into, most)
	return n, e.readError(err)
}

// readyWriter writes to a socket what that takes at once.
type readyWriter struct {
	raw syscall.RawConn
	try func(fd uintptr) bool

	b   []byte
	n   int
	err error
}

// init takes the same socket as a reader.
func (r *readyWriter) init(of *ReadyReader) { r.raw, r.try = of.raw, r.writeOnce }

func (r *readyWriter) writeOnce(fd uintptr) bool {
	r.n, r.err = syscall.Write(int(fd), r.b)
	return true
}

// writeNow writes as much as goes without waiting. Why it is not all, the next
// Write says, and after a RST the next Read.
func (e *connEnd) writeNow(b []byte) int {
	r := &e.now
	if r.raw == nil || !e.writing.TryLock() {
		return 0
	}
	defer e.writing.Unlock()
	r.b, r.n, r.err = b, 0, nil
	err := r.raw.Write(r.try)
	r.b = nil
	if r.err == syscall.ECONNRESET {
		e.cut = true
	}
	if err != nil {
		return 0
	}
	return max(r.n, 0)
}

// dead says that the connection is over both ways, or closed here: a
// half-closed one still has a peer's address.
func (e *connEnd) dead() bool {
	if e.ready.raw == nil {
		return false
	}
	dead := true
	_ = e.ready.raw.Control(func(fd uintptr) {
		_, err := syscall.Getpeername(int(fd))
		dead = err != nil
	})
	return dead
}
