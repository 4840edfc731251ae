package record

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxContent is what one record carries at most (RFC 8446, 5.1), and
	// headerSize and tagSize what is around it, with its inner type.
	maxContent = 16 << 10
	headerSize = 5
	tagSize    = 16
	overhead   = headerSize + 1 + tagSize
	// cipherSize is what may follow a header (RFC 8446, 5.2).
	cipherSize = maxContent + 256
	// gathered bounds what goes out in one system call: a frame of mux.
	gathered = 17 * (maxContent + overhead)
	// aheadSize is what one system call takes in at most.
	aheadSize = 256 << 10
	// maxUseless bounds the records in a row that bring nothing, and maxHandshake
	// a handshake message after the handshake.
	maxUseless   = 16
	maxHandshake = 64 << 10
	// farewell bounds how long the alert of an end may take.
	farewell = 5 * time.Second
)

// Types of content (RFC 8446, B.1), of handshake messages (B.3) and alerts (B.2).
const (
	typeAlert     = 21
	typeHandshake = 22
	typeData      = 23

	newSessionTicket = 4
	keyUpdate        = 24

	alertCloseNotify       = 0
	alertUnexpectedMessage = 10
	alertBadRecord         = 20
	alertOverflow          = 22
	alertDecode            = 50
	alertUserCanceled      = 90
	levelWarning           = 1
	levelFatal             = 2
)

// Conn is a connection after its handshake. One Read and one Write may run at
// the same time; others wait. A deadline that ends a Read takes nothing of what
// is under way; one that ends a Write ends all that are to come.
type Conn struct {
	net.Conn // the socket

	out sync.Mutex
	// sealing is the key of what goes out; nothing goes out after broken.
	sealing trafficKey
	broken  error
	// rekey: the peer wants a new key to be used.
	rekey  atomic.Bool
	closed atomic.Bool

	in      sync.Mutex
	opening trafficKey
	buf     inBuffer
	plain   []byte // decrypted and not taken, in buf
	useless int    // records in a row that brought nothing
	end     error  // of all reads

	server bool
	head   []byte // what has come of a handshake message's header
	skip   int    // bytes of a ticket that are to come
}

// New goes on where a handshake has ended whose Handshake was over c, and whose
// KeyLogWriter told, with SessionTicketsDisabled on the server: crypto/tls would
// send tickets under the same key. suite is the one that was agreed on; server is
// this side. c is the Conn's from then on, and is read by ready, unless that is
// nil. Errors, which leave c as it is: a suite other than AES-GCM, no secrets, no
// such ciphers on this system.
func New(c net.Conn, ready ReadReady, told *Secrets, suite uint16, server bool) (*Conn, error) {
	ours, theirs := told.client, told.server
	if server {
		ours, theirs = theirs, ours
	}
	r := &Conn{Conn: c, server: server}
	if err := errors.Join(r.sealing.init(suite, ours), r.opening.init(suite, theirs)); err != nil {
		return nil, err
	}
	r.buf.conn, r.buf.ready = c, ready
	return r, nil
}

// outBuffer is what goes out in one system call.
type outBuffer struct {
	n int
	b []byte
}

// A write that hangs holds what it needs: one record, or many.
var smallOuts, largeOuts = outPool(maxContent + overhead), outPool(gathered)

func outPool(size int) *sync.Pool {
	return &sync.Pool{New: func() any { return &outBuffer{b: make([]byte, size)} }}
}

// outFor is the pool for so many bytes of data.
func outFor(size int) *sync.Pool {
	if size <= maxContent {
		return smallOuts
	}
	return largeOuts
}

// Write sends b in records, up to gathered bytes in one system call. An error, that
// of a deadline too, is that of all Writes to come.
func (r *Conn) Write(b []byte) (int, error) {
	if err := r.WriteBoth(b, nil); err != nil {
		return 0, err
	}
	return len(b), nil
}

// WriteBoth writes both pieces as one. Where it fails, any part of them may have
// gone out.
func (r *Conn) WriteBoth(head, body []byte) error {
	r.out.Lock()
	defer r.out.Unlock()
	pool := outFor(len(head) + len(body))
	out := pool.Get().(*outBuffer)
	defer pool.Put(out)
	out.n = 0
	if r.rekey.Swap(false) || r.sealing.isWorn() {
		if err := r.update(out); err != nil {
			return err
		}
	}
	for len(head)+len(body) > 0 {
		if out.n+min(maxContent, len(head)+len(body))+overhead > len(out.b) {
			if err := r.flush(out); err != nil {
				return err
			}
		}
		head, body = r.seal(out, typeData, head, body)
	}
	return r.flush(out)
}

// seal adds one record, and returns what did not fit. The lock is held.
func (r *Conn) seal(out *outBuffer, kind byte, head, body []byte) (restHead, restBody []byte) {
	size := min(len(head)+len(body), maxContent)
	at := out.b[out.n:]
	n := copy(at[headerSize:headerSize+size], head)
	m := copy(at[headerSize+n:headerSize+size], body)
	at[headerSize+size] = kind
	header := at[:headerSize]
	header[0], header[1], header[2] = typeData, 3, 3
	binary.BigEndian.PutUint16(header[3:], uint16(size+1+tagSize))
	r.sealing.seal(at[headerSize:], size+1, header)
	out.n += size + overhead
	return head[n:], body[m:]
}

// flush sends what there is. The lock is held.
func (r *Conn) flush(out *outBuffer) error {
	if r.broken != nil || out.n == 0 {
		return r.broken
	}
	_, r.broken = r.Conn.Write(out.b[:out.n])
	out.n = 0
	return r.broken
}

// update tells the peer of a new key and uses it (RFC 8446, 4.6.3). The lock is
// held.
func (r *Conn) update(out *outBuffer) error {
	r.seal(out, typeHandshake, []byte{keyUpdate, 0, 0, 1, 0}, nil)
	if err := r.flush(out); err != nil {
		return err
	}
	r.broken = r.sealing.next()
	return r.broken
}

// Close says that this is the end, where no Write is under way, and ends the
// connection.
func (r *Conn) Close() error {
	if !r.closed.Swap(true) {
		r.alert(levelWarning, alertCloseNotify)
	}
	return r.Conn.Close()
}

// alert tells the peer something, where no Write is under way.
func (r *Conn) alert(level, description byte) {
	if !r.out.TryLock() {
		return
	}
	defer r.out.Unlock()
	out := smallOuts.Get().(*outBuffer)
	defer smallOuts.Put(out)
	out.n = 0
	r.seal(out, typeAlert, []byte{level, description}, nil)
	_ = r.Conn.SetWriteDeadline(time.Now().Add(farewell))
	_ = r.flush(out)
	if r.broken == nil {
		r.broken = net.ErrClosed
	}
}

// Read takes as much of what is there as fits into b, at least one byte, and waits
// where nothing is. It returns io.EOF where the peer has said that this is the end,
// or has ended the socket between two records; io.ErrUnexpectedEOF in one. What the
// peer may not send ends the connection with an alert (tls.AlertError).
func (r *Conn) Read(b []byte) (n int, err error) {
	r.in.Lock()
	defer r.in.Unlock()
	for n == 0 && len(b) > 0 {
		if err := r.await(); err != nil {
			return 0, err
		}
		n = r.take(b)
	}
	return n, nil
}

// await returns when there is something to be taken. Of a deadline's error the
// next one knows nothing.
func (r *Conn) await() error {
	for len(r.plain) == 0 {
		if r.end != nil {
			return r.end
		}
		if r.buf.hasRecord() {
			return nil
		}
		if err := r.fill(); err != nil {
			return err
		}
	}
	return nil
}

// fill reads from the socket. Where that ends between two records the connection
// does, without the alert that many forget.
func (r *Conn) fill() error {
	err := r.buf.fill()
	switch {
	case err == nil, isTimeout(err):
		return err
	case errors.Is(err, io.EOF) && len(r.buf.b) > 0:
		err = io.ErrUnexpectedEOF
	}
	r.end, r.buf.b = err, nil
	r.buf.release()
	return err
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// take moves what is there to b.
func (r *Conn) take(b []byte) (n int) {
	for n < len(b) {
		if len(r.plain) == 0 {
			if r.end != nil || !r.buf.hasRecord() {
				break
			}
			m, err := r.open(b[n:])
			if n += m; err != nil {
				r.end = err
			}
			continue
		}
		m := copy(b[n:], r.plain)
		n, r.plain = n+m, r.plain[m:]
	}
	if len(r.plain) == 0 {
		r.plain = nil // it keeps the buffer's memory
		if r.end != nil {
			r.buf.b = nil
		}
		r.buf.release()
	}
	return n
}

// Ahead says that a whole record is there, or what is left of one: a Read would not
// wait, unless that record brings no data. Only who reads may ask.
func (r *Conn) Ahead() bool { return len(r.plain) > 0 || r.buf.hasRecord() }

// open decrypts a record: data to b where it fits there with its inner type, else
// to plain. n is what b has got.
func (r *Conn) open(b []byte) (n int, err error) {
	header, sealed := r.buf.record()
	switch {
	case lengthOf(header) > cipherSize:
		return 0, r.refuse(alertOverflow)
	case header[0] != typeData || len(sealed) < 1+tagSize:
		return 0, r.refuse(alertUnexpectedMessage)
	}
	to := sealed[:0]
	direct := len(b) >= len(sealed)-tagSize
	if direct {
		to = b[:0]
	}
	inner, err := r.opening.open(to, sealed, header)
	if err != nil {
		return 0, r.refuse(alertBadRecord)
	}
	r.buf.taken(headerSize + len(sealed))
	if len(inner) > maxContent+1 {
		return 0, r.refuse(alertOverflow)
	}
	inner = bytes.TrimRight(inner, "\x00") // padding
	if len(inner) == 0 {
		return 0, r.refuse(alertUnexpectedMessage)
	}
	content, kind := inner[:len(inner)-1], inner[len(inner)-1]
	if kind != typeHandshake && len(r.head)+r.skip > 0 {
		return 0, r.refuse(alertUnexpectedMessage) // in the middle of a message
	}
	if kind == typeData && len(content) > 0 {
		r.useless = 0
		if direct {
			return len(content), nil
		}
		r.plain = content
		return 0, nil
	}
	return 0, r.other(kind, content)
}

// other is a record that brings no data.
func (r *Conn) other(kind byte, content []byte) error {
	if r.useless++; r.useless > maxUseless {
		return r.refuse(alertUnexpectedMessage)
	}
	switch kind {
	case typeData:
		return nil
	case typeHandshake:
		return r.shake(content)
	case typeAlert:
		return r.alerted(content)
	}
	return r.refuse(alertUnexpectedMessage)
}

// alerted is what the peer has to say (RFC 8446, 6).
func (r *Conn) alerted(content []byte) error {
	switch {
	case len(content) != 2:
		return r.refuse(alertDecode)
	case content[1] == alertCloseNotify:
		return io.EOF
	case content[1] == alertUserCanceled:
		return nil
	}
	return &net.OpError{Op: "remote error", Err: tls.AlertError(content[1])}
}

// shake takes a part of the handshake messages that may come now (RFC 8446, 4.6). It
// keeps nothing of tickets, which are for nothing here.
func (r *Conn) shake(content []byte) error {
	if len(content) == 0 {
		return r.refuse(alertUnexpectedMessage)
	}
	for len(content) > 0 {
		if r.skip > 0 {
			n := min(r.skip, len(content))
			content, r.skip = content[n:], r.skip-n
			continue
		}
		n := min(4-len(r.head), len(content))
		r.head, content = append(r.head, content[:n]...), content[n:]
		if len(r.head) < 4 {
			return nil
		}
		size := int(r.head[1])<<16 + int(r.head[2])<<8 + int(r.head[3])
		switch {
		case r.head[0] == newSessionTicket && !r.server:
			if size > maxHandshake {
				return r.refuse(alertDecode)
			}
			r.skip, r.head = size, nil
		case r.head[0] != keyUpdate:
			return r.refuse(alertUnexpectedMessage)
		case size != 1:
			return r.refuse(alertDecode)
		case len(content) > 0:
			r.head = nil
			return r.updated(content)
		}
	}
	return nil
}

// updated takes the peer's next key. No message spans a change of keys.
func (r *Conn) updated(body []byte) error {
	switch {
	case len(body) > 1:
		return r.refuse(alertUnexpectedMessage)
	case body[0] > 1:
		return r.refuse(alertDecode)
	case body[0] == 1:
		r.rekey.Store(true)
	}
	return r.opening.next()
}

// refuse ends the connection for what the peer has sent.
func (r *Conn) refuse(description byte) error {
	r.alert(levelFatal, description)
	_ = r.Conn.Close()
	return &net.OpError{Op: "local error", Err: tls.AlertError(description)}
}
