package trunk

import (
	"encoding/binary"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
	ctlReclaim byte = 5 // the sender is to keep no more credit than the value beyond what it has sent
	ctlHolds   byte = 6 // its answer; the value is what it may send in all from now on
	ctlKinds        = 7

	ctlSize = 13
	// maxWords is what one yamux frame carries of messages, in bytes.
	maxWords = smallBody - smallBody%ctlSize
	// maxControl bounds what of the peer's messages waits to be read, in bytes:
	// a word of each kind about each of MaxStreams streams.
	maxControl = 4 << 20
)

// sayOrder is the order in which words about a stream go out. A reclaim follows
// a credit that was given before.
var sayOrder = [...]byte{ctlCredit, ctlBlocked, ctlEnd, ctlReclaim, ctlHolds, ctlReset}

// control is the session's first stream. What is to be said is kept by stream,
// so that what a later word makes void is not sent.
type control struct {
	stream *yamux.Stream
	ready  chan struct{} // holds one while there is something to say
	unread atomic.Int64  // bytes of the peer's

	mu    sync.Mutex
	said  sync.Cond // words went out, or never will
	words [ctlKinds]map[uint32]uint64
	busy  bool // some are on their way into the pipe
	over  bool
}

func newControl(s *yamux.Stream) *control {
	c := &control{stream: s, ready: make(chan struct{}, 1)}
	c.said.L = &c.mu
	for kind := range c.words {
		c.words[kind] = map[uint32]uint64{}
	}
	return c
}

func (c *control) reset(id uint32, code proto.Code) {
	c.mu.Lock()
	for _, words := range c.words {
		delete(words, id)
	}
	c.words[ctlReset][id] = uint64(code)
	c.mu.Unlock()
	c.wake()
}

// say keeps a word about a stream, in place of an older one, unless it is being
// reset. ctlEnd is said where yamux's own end would do, were it not for resets:
// those go another way, and a reset must never come out as an end.
func (c *control) say(kind byte, id uint32, value uint64) {
	c.mu.Lock()
	if _, reset := c.words[ctlReset][id]; !reset {
		c.words[kind][id] = value
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
	defer c.finish()
	for {
		select {
		case <-c.ready:
		case <-ended:
			return
		}
		for words := range slices.Chunk(c.collect(), maxWords) {
			if _, err := c.stream.Write(words); err != nil {
				return
			}
		}
		c.mu.Lock()
		c.busy = false
		c.said.Broadcast()
		c.mu.Unlock()
	}
}

func (c *control) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.said.Broadcast()
}

// flush waits until all words are in the pipe, or for limit: yamux's window of
// this stream is the peer's to give.
func (c *control) flush(limit time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	over := false
	late := time.AfterFunc(limit, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		over = true
		c.said.Broadcast()
	})
	defer late.Stop()
	for !over && !c.over && (c.busy || c.pending()) {
		c.said.Wait()
	}
}

// pending says that there are words to say. Call it with mu held.
func (c *control) pending() bool {
	for _, words := range c.words {
		if len(words) > 0 {
			return true
		}
	}
	return false
}

// collect takes all that is to be said.
func (c *control) collect() (out []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, kind := range sayOrder {
		for id, value := range c.words[kind] {
			out = appendControl(out, kind, id, value)
		}
		clear(c.words[kind])
	}
	c.busy = true
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
