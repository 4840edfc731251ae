package registry

import "sync"

// bufferSize is 64 KiB less the 12 bytes of a yamux header, so that header and
// body of one message share an allocation class and a record's share of TLS.
const bufferSize = 64<<10 - 12

// smallRead is what a stream without data holds for its next read. A burst
// that ends exactly with a full read leaves a pooled buffer waiting, since
// nobody can know that it was the end; less 12, no multiple of 1 KiB below
// 16 MB does.
const smallRead = 2<<10 - 12

// frameMost is what is read at once into the room of a frame, as far as it goes.
const frameMost = 256 << 10

type buffer [bufferSize]byte

// bufferPool is what the pump needs of a sync.Pool.
type bufferPool interface {
	Get() any
	Put(any)
}

var buffers bufferPool = &sync.Pool{New: func() any { return new(buffer) }}

func getBuffer() *buffer  { return buffers.Get().(*buffer) }
func putBuffer(b *buffer) { buffers.Put(b) }

// Room is where bytes are read to that have come: Take gives it, and Release takes
// it back.
type Room interface {
	Take() []byte
	Release()
}

// pooledRoom is a buffer of the pool while bytes are in it.
type pooledRoom struct{ buf *buffer }

func (p *pooledRoom) Take() []byte {
	p.buf = getBuffer()
	return p.buf[:]
}

func (p *pooledRoom) Release() {
	putBuffer(p.buf)
	p.buf = nil
}

// frameRoom is the room of a frame.
type frameRoom struct{ Framer }

func (f frameRoom) Take() []byte { return f.Frame() }
func (f frameRoom) Release()     { f.Drop() }
