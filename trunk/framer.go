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

// maxBuffered is what a framer holds: the largest frame, and what may come
// before the end of another.
const maxBuffered = 2 * (muxHeader + maxBody)

// framer is the pipe as yamux sees it. It reads no frame before it is there to
// its end: yamux holds a lock on the stream meanwhile, and the rest of a frame
// may be a lost link away. And it looks at each: yamux has one window for all
// streams, far above what each may send, and answers pings as fast as they
// come. A peer that takes more than it was given ends the session.
type framer struct {
	*pipe
	s           *session
	buf         []byte
	given, have int // of buf: what yamux has, and what came
	whole       int // of buf: the end of the last frame that is there
}

func (f *framer) Read(b []byte) (int, error) {
	for f.given == f.whole {
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(b, f.buf[f.given:f.whole])
	f.given += n
	return n, nil
}

// fill reads more, and looks at the frames that are there then.
func (f *framer) fill() error {
	f.have = copy(f.buf, f.buf[f.given:f.have])
	f.given, f.whole = 0, 0
	n, err := f.pipe.Read(f.buf[f.have:])
	f.have += n
	for err == nil {
		var size int
		if size, err = f.frame(muxFrame(f.buf[f.whole:f.have])); size == 0 {
			break
		}
		f.whole += size
	}
	return err
}

// frame takes the frame that a buffer begins with, and gives its size; 0 where
// it is not there to its end.
func (f *framer) frame(b muxFrame) (size int, err error) {
	if len(b) < muxHeader {
		return 0, nil
	}
	head := b[:muxHeader]
	body := 0
	switch head.kind() {
	case muxData:
		body = head.length()
	case muxWindow:
	case muxGoAway:
		return muxHeader, nil
	default:
		return 0, fmt.Errorf("%w: yamux version %d, type %d", errFrame, b[0], b[1])
	}
	if body > maxBody {
		return 0, fmt.Errorf("%w: a yamux frame of %d bytes", errFrame, body)
	}
	if len(b) < muxHeader+body {
		return 0, nil
	}
	return muxHeader + body, f.s.arrived(head.id(), head.flags(), body)
}
