package trunk

import (
	"encoding/binary"
	"io"
	"sync"

	"github.com/hashicorp/yamux"

	"p2ptun/proto"
)

// What yamux can't say of a stream goes over the session's first stream, in
// messages of 13 bytes:
//
//	kind (1) | stream id (4) | value (8)
const (
	ctlReset   byte = 1 // the value is a reset code
	ctlCredit  byte = 2 // the value is how many bytes may be sent in all
	ctlBlocked byte = 3 // the sender has used its credit up; the value is what it had
	ctlEnd     byte = 4 // the sender has ended its way; the value is how many bytes it sent in all

	ctlSize = 13
)

// control is the session's first stream. What is to be said is kept by stream,
// so that what a later word makes void is not sent.
type control struct {
	stream *yamux.Stream
	ready  chan struct{} // holds one while there is something to say

	mu      sync.Mutex
	resets  map[uint32]proto.Code
	credits map[uint32]uint64
	blocked map[uint32]uint64
	ends    map[uint32]uint64
}

func newControl(s *yamux.Stream) *control {
	return &control{
		stream: s, ready: make(chan struct{}, 1),
		resets: map[uint32]proto.Code{}, credits: map[uint32]uint64{}, blocked: map[uint32]uint64{}, ends: map[uint32]uint64{},
	}
}

func (c *control) reset(id uint32, code proto.Code) {
	c.mu.Lock()
	c.resets[id] = code
	delete(c.credits, id)
	delete(c.blocked, id)
	delete(c.ends, id)
	c.mu.Unlock()
	c.wake()
}

// end is said where yamux's own end would do, were it not for resets: those go
// another way, and a reset must never come out as an end.
func (c *control) end(id uint32, total uint64) { c.say(c.ends, id, total) }

func (c *control) credit(id uint32, total uint64) { c.say(c.credits, id, total) }

func (c *control) block(id uint32, had uint64) { c.say(c.blocked, id, had) }

// say keeps a word about a stream, in place of an older one, unless it is being
// reset.
func (c *control) say(words map[uint32]uint64, id uint32, value uint64) {
	c.mu.Lock()
	if _, reset := c.resets[id]; !reset {
		words[id] = value
	}
	c.mu.Unlock()
	c.wake()
}

func (c *control) wake() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// send says what there is to say, until the session ends.
func (c *control) send(ended <-chan struct{}) {
	for {
		select {
		case <-c.ready:
		case <-ended:
			return
		}
		if _, err := c.stream.Write(c.collect()); err != nil {
			return
		}
	}
}

// collect takes all that is to be said.
func (c *control) collect() (out []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, total := range c.credits {
		out = appendControl(out, ctlCredit, id, total)
	}
	for id, had := range c.blocked {
		out = appendControl(out, ctlBlocked, id, had)
	}
	for id, total := range c.ends {
		out = appendControl(out, ctlEnd, id, total)
	}
	for id, code := range c.resets {
		out = appendControl(out, ctlReset, id, uint64(code))
	}
	clear(c.credits)
	clear(c.blocked)
	clear(c.ends)
	clear(c.resets)
	return out
}

func appendControl(out []byte, kind byte, id uint32, value uint64) []byte {
	out = append(out, kind)
	out = binary.BigEndian.AppendUint32(out, id)
	return binary.BigEndian.AppendUint64(out, value)
}

// readControl reads one message.
func readControl(r io.Reader) (kind byte, id uint32, value uint64, err error) {
	var b [ctlSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, 0, 0, err
	}
	return b[0], binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint64(b[5:]), nil
}
