package trunk

import (
	"encoding/binary"
	"fmt"
)

// muxFrame is the header of a yamux frame (hashicorp/yamux, spec.md):
//
//	version (1) | type (1) | flags (2) | stream id (4) | length (4)
type muxFrame []byte

const (
	muxHeader = 12

	muxData   byte = 0
	muxWindow byte = 1
	muxGoAway byte = 3

	muxSYN uint16 = 1
	muxFIN uint16 = 4
	muxRST uint16 = 8
)

func (f muxFrame) kind() byte {
	if len(f) != muxHeader || f[0] != 0 {
		return 0xff
	}
	return f[1]
}

func (f muxFrame) flags() uint16 { return binary.BigEndian.Uint16(f[2:]) }
func (f muxFrame) id() uint32    { return binary.BigEndian.Uint32(f[4:]) }
func (f muxFrame) length() int   { return int(binary.BigEndian.Uint32(f[8:])) }

// inspector looks at what yamux is given to read: yamux has one window for all
// streams, far above what each may send, and answers pings as fast as they
// come. A peer that takes more than it was given ends the session.
type inspector struct {
	s    *session
	head [muxHeader]byte
	have int // of head
	body int // of a data frame, that are still to come
}

func (i *inspector) look(b []byte) error {
	for len(b) > 0 {
		if i.body > 0 {
			n := min(len(b), i.body)
			i.body, b = i.body-n, b[n:]
			continue
		}
		n := copy(i.head[i.have:], b)
		i.have, b = i.have+n, b[n:]
		if i.have < muxHeader {
			return nil
		}
		i.have = 0
		if err := i.frame(i.head[:]); err != nil {
			return err
		}
	}
	return nil
}

func (i *inspector) frame(f muxFrame) error {
	n := 0
	switch f.kind() {
	case muxData:
		n = f.length()
		i.body = n
	case muxWindow:
	case muxGoAway:
		return nil
	default:
		return fmt.Errorf("%w: yamux type %d", errFrame, f[1])
	}
	return i.s.arrived(f.id(), f.flags(), n)
}
