//go:build unix

package registry

import (
	"io"
	"os"
	"syscall"
)

// readyReader reads a socket into a buffer that it takes from the pool only
// when bytes are there: a blocked read holds no buffer, and no system call is
// added for it.
type readyReader struct {
	raw syscall.RawConn
	try func(fd uintptr) bool

	most int // that the next read takes
	buf  *buffer
	n    int
	err  error
}

func (r *readyReader) init(c syscall.Conn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	r.raw = raw
	r.try = r.readOnce
}

// readOnce reports false when the socket has nothing yet; the runtime then
// parks the goroutine until it has.
func (r *readyReader) readOnce(fd uintptr) bool {
	r.buf = getBuffer()
	for {
		r.n, r.err = syscall.Read(int(fd), r.buf[:r.most])
		if r.err != syscall.EINTR {
			break
		}
	}
	if r.err == syscall.EAGAIN {
		putBuffer(r.buf)
		r.buf = nil
		return false
	}
	return true
}

// readPooled blocks until bytes are there, and takes up to most, which fit into
// a buffer. The caller gives the buffer back, which is nil where an error is returned; errNotReadable where the socket
// can't be read that way.
func (e *connEnd) readPooled(most int) (buf *buffer, n int, err error) {
	r := &e.ready
	if r.raw == nil {
		return nil, 0, errNotReadable
	}
	r.most = most
	err = r.raw.Read(r.try)
	buf, n = r.buf, r.n
	r.buf = nil
	switch {
	case err != nil:
	case r.err != nil:
		err = os.NewSyscallError("read", r.err)
	case n == 0:
		err = io.EOF
	default:
		return buf, n, nil
	}
	if buf != nil {
		putBuffer(buf)
	}
	return nil, 0, e.readError(err)
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
