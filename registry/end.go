package registry

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"p2ptun/proto"
)

// End is one side of a stream: a TCP connection, a unix socket, a libp2p
// stream. Read and Write may be called at once, by one goroutine each; the
// other methods by any goroutine at any time.
//
// Read returns io.EOF for a half-close by the other side and a *ResetError for
// a reset. Write returns a *ResetError for a reset; any other error, and
// CodeNone, says only that the other side takes no more: what it has sent, and
// whether it was reset, Read tells. CloseWrite ends the way out and leaves the way in open. Reset ends
// both ways at once, loses what is in flight, makes blocked calls return and
// releases the End; Close releases it once both ways have ended, and must not
// be called before: the other side might still send.
type End interface {
	io.Reader
	io.Writer
	CloseWrite() error
	Reset(proto.Code) error
	Close() error
}

// Lender is an End that keeps what has come until it is read, and can be read
// without a copy. Lend waits for bytes and gives up to most of them, which stay
// as they are until Return is called, once; its errors are those of Read. One
// goroutine calls both, and not Read.
type Lender interface {
	Lend(most int) ([]byte, error)
	Return()
}

// Pusher is a Lender for which nobody needs to wait. Park says that nobody calls
// Lend until wake was called, once; false where Lend would not wait. What comes
// meanwhile is offered to the func given to Push first, which takes as much as it
// can at once, and says how much; wake is called for the rest, and for the end.
// Neither func may block. Push is called before Park and Lend, once, and offers what
// has come before.
type Pusher interface {
	Lender
	Push(to func([]byte) (took int), wake func())
	Park() bool
}

// Framer is an End that sends frames, and can be written to without a copy.
// Frame gives room for the bytes of one; Send sends the first n of them as Write
// would and takes the room back, as Drop does without sending. One goroutine calls
// all three, and not Write.
type Framer interface {
	Frame() []byte
	Send(n int) (int, error)
	Drop()
}

// ResetError says that an End was reset, by whom and why.
type ResetError struct {
	Code proto.Code
	Err  error
}

func (e *ResetError) Error() string {
	if e.Err == nil {
		return e.Code.String()
	}
	return e.Code.String() + ": " + e.Err.Error()
}

func (e *ResetError) Unwrap() error { return e.Err }

// ErrNotAStream is returned by NewConnEnd for a connection without half-close.
var ErrNotAStream = errors.New("connection can't be half-closed")

// ErrNotReadable: this system knows no ReadyReader.
var ErrNotReadable = errors.New("can't wait for bytes without a buffer")

// NewConnEnd makes an End of a TCP or unix connection, which it then owns: nobody
// else may hold its file, since the end of one whose both ways are over is said by
// closing it. It turns Nagle's algorithm off.
func NewConnEnd(c net.Conn) (End, error) {
	switch c := c.(type) {
	case *net.TCPConn:
		_ = c.SetNoDelay(true) // the default of Go, said once more
		return newConnEnd(c, c.SetLinger), nil
	case *net.UnixConn:
		return newConnEnd(c, func(int) error { return nil }), nil
	}
	return nil, ErrNotAStream
}

// halfCloser is what *net.TCPConn and *net.UnixConn have in common.
type halfCloser interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

type connEnd struct {
	halfCloser
	setLinger func(seconds int) error
	ready     ReadyReader
	out       ReadyWriter

	writing sync.Mutex    // held by Write
	cut     syscall.Errno // guarded by writing: why the connection broke, as a write was told
}

func newConnEnd(c halfCloser, setLinger func(int) error) *connEnd {
	e := &connEnd{halfCloser: c, setLinger: setLinger}
	if raw, err := c.SyscallConn(); err == nil { // without, it is read with a buffer
		e.ready.init(raw)
		e.out.init(raw)
	}
	return e
}

// Read is net.Conn's, with a reset named as such.
func (e *connEnd) Read(b []byte) (int, error) {
	n, err := e.halfCloser.Read(b)
	return n, e.readError(err)
}

func (e *connEnd) Write(b []byte) (int, error) {
	e.writing.Lock()
	defer e.writing.Unlock()
	n, err := e.send(b)
	e.heard(err)
	if errors.Is(err, syscall.EPIPE) {
		return n, err // closed or reset: Read tells
	}
	return n, connError(err)
}

// heard keeps what the kernel says once. EPIPE is not: it stands for an end that was
// read, or that Read is told of. Call it with writing held.
func (e *connEnd) heard(err error) {
	if err == nil {
		return
	}
	if why := syscall.Errno(0); errors.As(err, &why) && why != syscall.EPIPE {
		e.cut = why
	}
}

// readError tells an end from a RST, or a path that broke, that a Write has heard
// of: the kernel reports each once, to whoever asks first, and from then on an end.
func (e *connEnd) readError(err error) error {
	if err == io.EOF && e.dead() {
		if why := e.whyCut(); why != 0 {
			err = why
		}
	}
	return connError(err)
}

// whyCut waits for the Write that is under way, which on a dead connection
// returns at once.
func (e *connEnd) whyCut() syscall.Errno {
	e.writing.Lock()
	defer e.writing.Unlock()
	return e.cut
}

// Reset sends a TCP RST (RFC 9293, 3.10.5: ABORT). A unix socket knows no
// reset: its peer reads the end.
func (e *connEnd) Reset(proto.Code) error {
	_ = e.setLinger(0)
	return e.Close()
}

func connError(err error) error {
	if err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return &ResetError{Code: proto.CodeReset, Err: err}
}
