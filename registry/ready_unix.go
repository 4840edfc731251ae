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
	raw, err := c.SyscallConn()
	r := &ReadyReader{}
	r.init(raw)
	return r, err
}

func (r *ReadyReader) init(raw syscall.RawConn) { r.raw, r.try = raw, r.readOnce }

// readOnce reports false when the socket has nothing yet; the runtime then
// parks the goroutine until it has.
func (r *ReadyReader) readOnce(fd uintptr) bool {
	b := r.into.Take()
	b = b[:min(r.most, len(b))]
	for {
		r.n, r.err = recvNow(int(fd), b)
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

// ReadyWriter writes to a socket, as its net.Conn would, but without a word to Go's
// scheduler where that costs more than the call. One goroutine may write.
type ReadyWriter struct {
	raw syscall.RawConn
	try func(fd uintptr) bool

	b      []byte
	noWait bool // it is over after one system call
	err    error
}

// NewReadyWriter makes one that writes to a socket. Error: ErrNotReadable where none
// can be written to that way.
func NewReadyWriter(raw syscall.RawConn) (*ReadyWriter, error) {
	w := &ReadyWriter{}
	w.init(raw)
	return w, nil
}

func (w *ReadyWriter) init(raw syscall.RawConn) { w.raw, w.try = raw, w.writeSome }

// writeSome reports false when the socket has no room; the runtime then parks the
// goroutine until it has.
func (w *ReadyWriter) writeSome(fd uintptr) bool {
	for len(w.b) > 0 {
		n, err := sendNow(int(fd), w.b)
		w.b = w.b[max(n, 0):]
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return w.noWait
		case n == 0:
			w.err = io.ErrUnexpectedEOF
			return true
		case err != nil:
			w.err = os.NewSyscallError("write", err)
			return true
		case w.noWait:
			return true
		}
	}
	return true
}

// Write is net.Conn's.
func (w *ReadyWriter) Write(b []byte) (n int, err error) { return w.write(b, false) }

func (w *ReadyWriter) write(b []byte, noWait bool) (n int, err error) {
	w.b, w.noWait, w.err = b, noWait, nil
	err = w.raw.Write(w.try)
	n = len(b) - len(w.b)
	w.b = nil
	if err == nil {
		err = w.err
	}
	return n, err
}

// send is the writer's Write.
func (e *connEnd) send(b []byte) (n int, err error) {
	if e.out.raw == nil {
		return e.halfCloser.Write(b)
	}
	return e.out.Write(b)
}

// writeNow writes as much as goes without waiting. Why it is not all, the next
// Write says, and after a RST the next Read.
func (e *connEnd) writeNow(b []byte) int {
	if e.out.raw == nil || !e.writing.TryLock() {
		return 0
	}
	defer e.writing.Unlock()
	n, err := e.out.write(b, true)
	e.heard(err)
	return n
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
