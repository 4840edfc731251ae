package mux

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A frame is a header of 12 bytes and, for data, its payload:
//
//	version (1) | type (1) | flags (2) | stream id (4) | length (4)
//
// in network byte order. The length of a window update is what the peer may
// send on top; of a ping its number; of a go-away and of a reset the error code.
const (
	headerSize = 12

	kindData   byte = 0
	kindWindow byte = 1
	kindPing   byte = 2
	kindGoAway byte = 3

	flagSYN uint16 = 1
	flagACK uint16 = 2
	flagFIN uint16 = 4
	flagRST uint16 = 8
)

// Codes of a go-away.
const (
	awayNormal   uint32 = 0
	awayProtocol uint32 = 1
)

// errFrame is returned for what is no frame, or none that may come now.
var errFrame = errors.New("yamux: not a frame")

type header struct {
	kind   byte
	flags  uint16
	id     uint32
	length uint32
}

func (h header) has(flag uint16) bool { return h.flags&flag != 0 }

func (h header) put(b []byte) {
	b[0], b[1] = 0, h.kind
	binary.BigEndian.PutUint16(b[2:], h.flags)
	binary.BigEndian.PutUint32(b[4:], h.id)
	binary.BigEndian.PutUint32(b[8:], h.length)
}

// parseHeader reads a header and checks its version and type.
func parseHeader(b *[headerSize]byte) (header, error) {
	h := header{
		kind:   b[1],
		flags:  binary.BigEndian.Uint16(b[2:]),
		id:     binary.BigEndian.Uint32(b[4:]),
		length: binary.BigEndian.Uint32(b[8:]),
	}
	if b[0] != 0 || h.kind > kindGoAway {
		return h, fmt.Errorf("%w: version %d, type %d", errFrame, b[0], h.kind)
	}
	return h, nil
}
