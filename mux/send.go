package mux

import (
	"sync"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
)

const (
	// maxFrame is what one data frame carries at most, so that no stream keeps
	// others waiting for long.
	maxFrame = 256<<10 - headerSize
	// smallFrame is what is copied behind its header rather than written after it.
	smallFrame = 8 << 10
	// maxWaiting bounds the bytes of frames that wait to be written: more of them
	// keep the receiver waiting.
	maxWaiting = 64 << 10
	// writeLimit is how long the connection may take to take writeStep.
	writeLimit = 10 * time.Second
	writeStep  = 64 << 10
	// farewellLimit is how long it may take for the last frame.
	farewellLimit = 100 * time.Millisecond
)

// scratches hold a small frame and what waited before it.
var scratches = sync.Pool{New: func() any {
	b := make([]byte, 0, smallFrame+2<<10)
	return &b
}}

// bothWriter is a connection that takes two pieces as one message without
// copying them into one.
type bothWriter interface {
	WriteBoth(head, body []byte) error
}

// sender writes frames, one goroutine at a time: whoever has the turn. Frames
// without a payload may be left to whoever has it next.
type sender struct {
	s     *session
	both  bothWriter    // nil where the connection is none
	turn  chan struct{} // full while somebody has it
	work  chan struct{} // holds one where keep is to write
	until time.Time     // the connection's deadline for writes
	buf   []byte        // of who has the turn, in scratch where there is room
	// scratch is a buffer of scratches; nil while buf is none.
	scratch *[]byte

	mu      sync.Mutex
	less    sync.Cond // waiting, or the end
	over    bool
	waiting []byte
}

func (o *sender) init(s *session) {
	o.s = s
	o.both, _ = s.conn.(bothWriter)
	o.turn, o.work = make(chan struct{}, 1), make(chan struct{}, 1)
	o.less.L = &o.mu
}

// data sends a frame of a stream, when its turn has come. Errors are those of a
// stream's Write.
func (o *sender) data(st *stream, payload []byte) error {
	if err := o.wait(st); err != nil {
		return err
	}
	h, err := st.frame(len(payload))
	if err == nil {
		err = o.write(&h, payload)
	}
	o.rest()
	return err
}

// wait waits for the turn.
func (o *sender) wait(st *stream) error {
	for {
		select {
		case o.turn <- struct{}{}:
			return nil
		default:
		}
		select {
		case o.turn <- struct{}{}:
			return nil
		case <-st.cutter():
			if err := st.whyNot(); err != nil {
				return err
			}
		case <-o.s.done:
			return o.s.why()
		}
	}
}

// rest gives the turn on, after what was left meanwhile.
func (o *sender) rest() {
	<-o.turn
	o.flush()
}

// later leaves a frame to whoever writes next.
func (o *sender) later(h header) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over {
		return
	}
	n := len(o.waiting)
	o.waiting = append(o.waiting, make([]byte, headerSize)...)
	h.put(o.waiting[n:])
}

// soon leaves a frame, and has it written by another goroutine.
func (o *sender) soon(h header) {
	o.later(h)
	o.wake()
}

func (o *sender) wake() {
	select {
	case o.work <- struct{}{}:
	default:
	}
}

// slow keeps the receiver waiting while too much of its making waits.
func (o *sender) slow() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.waiting) > maxWaiting && !o.over {
		o.wake()
		o.less.Wait()
	}
}

// isWaiting says that there is something to flush.
func (o *sender) isWaiting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting) > 0
}

// flush writes what waits, unless somebody has the turn, who will.
func (o *sender) flush() {
	for o.isWaiting() {
		select {
		case o.turn <- struct{}{}:
		default:
			return
		}
		_ = o.write(nil, nil)
		<-o.turn
	}
}

// collect takes what waits, to be written by who has the turn: what is left from
// now on comes after the frame that is next.
func (o *sender) collect() {
	o.scratch = scratches.Get().(*[]byte)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append((*o.scratch)[:0], o.waiting...)
	o.waiting = o.waiting[:0]
	o.less.Broadcast()
}

// write writes what was collected and then one frame; without one, what waits.
// Its caller has the turn. An error ends the session.
func (o *sender) write(h *header, payload []byte) (err error) {
	if h == nil {
		o.collect()
	} else {
		n := len(o.buf)
		o.buf = append(o.buf, make([]byte, headerSize)...)
		h.put(o.buf[n:])
	}
	if len(payload) <= smallFrame {
		o.buf = append(o.buf, payload...)
		payload = nil
	}
	if err = o.extend(len(o.buf) + len(payload)); err == nil && len(o.buf) > 0 {
		err = o.writeBoth(payload)
	}
	if cap(o.buf) <= cap(*o.scratch) {
		scratches.Put(o.scratch)
	}
	o.buf, o.scratch = nil, nil
	if err != nil {
		return o.s.fade(err)
	}
	return nil
}

func (o *sender) writeBoth(payload []byte) error {
	switch {
	case len(payload) == 0:
		_, err := o.s.conn.Write(o.buf)
		return err
	case o.both != nil:
		return o.both.WriteBoth(o.buf, payload)
	}
	whole := pool.Get(len(o.buf) + len(payload))
	defer pool.Put(whole)
	copy(whole[copy(whole, o.buf):], payload)
	_, err := o.s.conn.Write(whole)
	return err
}

// extend moves the deadline on when less than half is left of what so many bytes
// may take.
func (o *sender) extend(size int) error {
	limit := writeLimit * time.Duration(1+size/writeStep)
	now := time.Now()
	if o.until.Sub(now) > limit/2 {
		return nil
	}
	o.until = now.Add(limit)
	return o.s.conn.SetWriteDeadline(o.until)
}

// farewell writes a last frame, if its turn comes and the connection takes it.
func (o *sender) farewell(h header) {
	late := time.NewTimer(farewellLimit)
	defer late.Stop()
	select {
	case o.turn <- struct{}{}:
	case <-late.C:
		return
	case <-o.s.done:
		return
	}
	defer func() { <-o.turn }()
	var b [headerSize]byte
	h.put(b[:])
	if o.s.conn.SetWriteDeadline(time.Now().Add(farewellLimit)) == nil {
		_, _ = o.s.conn.Write(b[:])
	}
}

// ended lets go of who waits.
func (o *sender) ended() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over, o.waiting = true, nil
	o.less.Broadcast()
}
