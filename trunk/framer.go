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

	// controlID is the stream that the side which opened the session opens
	// first.
	controlID = 1
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

// putData makes the header of a data frame.
func (f muxFrame) putData(id uint32, length int) {
	clear(f[:4])
	binary.BigEndian.PutUint32(f[4:], id)
	binary.BigEndian.PutUint32(f[8:], uint32(length))
}

// framer is the pipe as yamux sees it. yamux opens, accepts and ends streams,
// and carries the control stream; the data of all others goes by it: it copies
// twice, hands over between goroutines at each write, and holds a lock on a
// stream while the rest of a frame may be a lost link away. Each frame is
// looked at: yamux has one window for all streams, far above what each may
// send, and answers pings as fast as they come. A peer that takes more than it
// was given ends the session.
type framer struct {
	*pipe
	s     *session
	head  [muxHeader]byte // of the frame that yamux is writing
	wrote int             // bytes of that body that are to come

	in    [muxHeader + maxWords]byte // for yamux
	given int                        // of in
	have  int                        // of in
}

// Read gives yamux its next frame, once that is there to its end.
func (f *framer) Read(b []byte) (int, error) {
	for f.given == f.have {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, f.in[f.given:f.have])
	f.given += n
	return n, nil
}

// next reads one frame: for yamux, or for a stream.
func (f *framer) next() error {
	f.given, f.have = 0, 0
	if err := f.readFull(f.in[:muxHeader]); err != nil {
		return err
	}
	head := muxFrame(f.in[:muxHeader])
	switch head.kind() {
	case muxGoAway:
		f.have = muxHeader
		return nil
	case muxWindow:
		f.have = muxHeader
		return f.s.arrived(head.id(), head.flags())
	case muxData:
		return f.data(head)
	}
	return fmt.Errorf("%w: yamux version %d, type %d", errFrame, head[0], head[1])
}

// data reads the body of a data frame.
func (f *framer) data(head muxFrame) error {
	n := head.length()
	switch {
	case head.flags() != 0 || n <= 0 || n > maxBody: // below 0 where an int has 32 bits
		return fmt.Errorf("%w: yamux data of %d bytes, flags %d", errFrame, n, head.flags())
	case head.id() == controlID && n > maxWords:
		return fmt.Errorf("%w: %d bytes of messages", errFrame, n)
	case head.id() == controlID:
		if err := f.s.wordsArrived(int64(n)); err != nil {
			return err
		}
		f.have = muxHeader + n
		return f.readFull(f.in[muxHeader:f.have])
	}
	whole := newBody(n)
	err, kept := f.readFull(whole.b[:n]), false
	if err == nil {
		kept, err = f.s.deliver(head.id(), whole, n)
	}
	if !kept {
		whole.free()
	}
	return err
}

func (f *framer) readFull(b []byte) error {
	for len(b) > 0 {
		n, err := f.pipe.Read(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// Write takes what yamux writes: a header, and then the body that it announces.
// Both go into the pipe together, since streams write there as well.
func (f *framer) Write(b []byte) (int, error) {
	if f.wrote > 0 {
		f.wrote = 0
		return len(b), f.pipe.append(f.head[:], b)
	}
	if h := muxFrame(b); h.kind() == muxData && h.length() > 0 {
		f.wrote = h.length()
		copy(f.head[:], b)
		return len(b), nil
	}
	return len(b), f.pipe.append(b, nil)
}
