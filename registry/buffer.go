package registry

import "sync"

// bufferSize is 64 KiB less the 12 bytes of a yamux header, so that header and
// body of one message share an allocation class and a record's share of TLS.
const bufferSize = 64<<10 - 12

// smallRead is what a stream without data holds for its next read.
const smallRead = 2 << 10

type buffer [bufferSize]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func getBuffer() *buffer  { return buffers.Get().(*buffer) }
func putBuffer(b *buffer) { buffers.Put(b) }
