package trunk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"p2ptun/proto"
)

// A frame on a link is a header of 12 bytes and, for data, its bytes:
//
//	kind (1) | length (3, of what follows) | offset (8)
//
// in network byte order. Offsets count the bytes of one way of a session from
// its beginning, over all its links.
const (
	kindData byte = 1 // offset of its first byte; length of 1 to maxData
	kindAck  byte = 2 // offset: all before it has arrived; length 0
	kindEnd  byte = 3 // the session is over; offset: why, a reset code; length 0; nothing follows
	kindAsk  byte = 4 // data that is to be acknowledged as soon as it has come

	headerSize = 12
	// maxData bounds the bytes of one data frame: with its header, and libp2p's of
	// 12 bytes, it is 256 KiB. Where that would keep others waiting for long, a
	// frame has smallData at most, and on a slow link a stream gives slowData at
	// a time: with all headers, a record of TLS.
	maxData   = 256<<10 - headerSize - 12
	smallData = 64<<10 - headerSize - 12
	slowData  = 16<<10 - 3*headerSize
)

// errFrame is returned for what is no frame, or none that may come now.
var errFrame = errors.New("trunk: not a frame")

// endError is the peer's word that the session is over.
type endError struct{ code proto.Code }

func (e endError) Error() string { return "ended by the peer: " + e.code.String() }

type header struct {
	kind   byte
	length int
	offset uint64
}

func (h header) isData() bool { return h.kind == kindData || h.kind == kindAsk }

func (h header) put(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(h.kind)<<24|uint32(h.length))
	binary.BigEndian.PutUint64(b[4:], h.offset)
}

// parseHeader reads a header and checks its bounds.
func parseHeader(b []byte) (header, error) {
	word := binary.BigEndian.Uint32(b)
	h := header{kind: byte(word >> 24), length: int(word & 0xffffff), offset: binary.BigEndian.Uint64(b[4:])}
	switch {
	case h.isData() && h.length >= 1 && h.length <= maxData:
		return h, nil
	case h.kind == kindAck && h.length == 0:
		return h, nil
	case h.kind == kindEnd && h.length == 0 && h.offset <= 1<<32-1:
		return h, nil
	}
	return h, fmt.Errorf("%w: kind %d with %d bytes", errFrame, h.kind, h.length)
}
