package record

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
)

// Room is where a read puts bytes: Take is called when some are there, Release
// where none were after all.
type Room interface {
	Take() []byte
	Release()
}

// ReadReady reads from a connection, up to most bytes, and waits without a buffer
// until there are some.
type ReadReady func(into Room, most int) (n int, err error)

// Handshake is a connection for crypto/tls to shake hands over: it reads no further
// than to the end of a record, so that nothing is held back when that is done.
type Handshake struct {
	net.Conn
	header [headerSize]byte
	have   int // bytes of it
	left   int // bytes of the record after it
}

func (c *Handshake) Read(b []byte) (n int, err error) {
	if c.left > 0 {
		n, err = c.Conn.Read(b[:min(len(b), c.left)])
		c.left -= n
		return n, err
	}
	n, err = c.Conn.Read(b[:min(len(b), headerSize-c.have)])
	c.have += copy(c.header[c.have:], b[:n])
	if c.have == headerSize {
		c.have, c.left = 0, lengthOf(c.header[:])
	}
	return n, err
}

func lengthOf(header []byte) int { return int(binary.BigEndian.Uint16(header[3:])) }

// inBuffer is what has been read and not been decrypted. Where nothing has, it
// holds nothing; while it waits for the rest of a record, no more than one.
type inBuffer struct {
	conn  net.Conn
	ready ReadReady        // nil where the connection can't be read that way
	whole *[aheadSize]byte // nil while it is not needed
	small *[oneRecord]byte // likewise; the one or the other
	b     []byte           // what is there, in one of them
}

// oneRecord holds the longest that is not refused.
const oneRecord = headerSize + cipherSize

var (
	wholeBuffers = sync.Pool{New: func() any { return new([aheadSize]byte) }}
	smallBuffers = sync.Pool{New: func() any { return new([oneRecord]byte) }}
)

// hasRecord says that a whole record is there, or what is none.
func (i *inBuffer) hasRecord() bool {
	if len(i.b) < headerSize {
		return false
	}
	n := lengthOf(i.b)
	return n > cipherSize || len(i.b) >= headerSize+n
}

// record is the first one. One that is too long is cut.
func (i *inBuffer) record() (header, sealed []byte) {
	return i.b[:headerSize], i.b[headerSize:min(len(i.b), headerSize+lengthOf(i.b))]
}

func (i *inBuffer) taken(n int) { i.b = i.b[n:] }

// fill reads more, at least one byte. There is no whole record yet.
func (i *inBuffer) fill() error {
	if i.ready == nil {
		return i.fillSmall()
	}
	n, err := i.ready(i, aheadSize)
	if err != nil {
		return err
	}
	i.b = i.b[:len(i.b)+n]
	return nil
}

// fillSmall waits with the room of one record.
func (i *inBuffer) fillSmall() error {
	i.shrink()
	if i.small == nil {
		i.small = smallBuffers.Get().(*[oneRecord]byte)
		i.b = i.small[:0]
	}
	i.b = i.small[:copy(i.small[:], i.b)]
	n, err := i.conn.Read(i.small[len(i.b):])
	i.b = i.b[:len(i.b)+n]
	if n > 0 {
		return nil
	}
	if len(i.b) == 0 {
		i.release()
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// Take makes room for a read after what is there.
func (i *inBuffer) Take() []byte {
	if i.whole == nil {
		i.whole = wholeBuffers.Get().(*[aheadSize]byte)
	}
	n := copy(i.whole[:], i.b)
	i.b = i.whole[:n]
	if i.small != nil {
		smallBuffers.Put(i.small)
		i.small = nil
	}
	return i.whole[n:]
}

// Release is called where nothing has been read: what is there waits in less room.
func (i *inBuffer) Release() {
	if i.release(); i.whole != nil {
		i.shrink()
	}
}

// shrink moves a part of a record to where one has room.
func (i *inBuffer) shrink() {
	if i.whole == nil {
		return
	}
	if len(i.b) > 0 {
		i.small = smallBuffers.Get().(*[oneRecord]byte)
		i.b = i.small[:copy(i.small[:], i.b)]
	}
	wholeBuffers.Put(i.whole)
	i.whole = nil
}

// release gives back the room where nothing is there.
func (i *inBuffer) release() {
	if len(i.b) > 0 {
		return
	}
	if i.whole != nil {
		wholeBuffers.Put(i.whole)
	}
	if i.small != nil {
		smallBuffers.Put(i.small)
	}
	i.whole, i.small, i.b = nil, nil, nil
}
