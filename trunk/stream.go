package trunk

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"p2ptun/proto"
	"p2ptun/registry"
)

const (
	// leastWindow is what each stream may send from the start, and windowStart
	// what it is told next, where the budget has room; then it doubles to windowMax
	// while the reader keeps up, each time that credit was renewed within
	// windowTrips, and twice within half as many: it is to be ahead of a
	// sender that doubles its rate each round trip, or triples it. Where no round
	// trip was measured, each time that the sender has used it up.
	leastWindow = 4 << 10
	windowStart = 256 << 10
	windowMax   = 16 << 20
	windowTrips = 8
	// maxBody is what one yamux frame carries: with its header it fills a chunk.
	maxBody   = maxData - muxHeader
	smallBody = smallData - muxHeader
)

// processStart is when the times of streams begin.
var processStart = time.Now()

// Stream is one connection on a trunk. It is a registry.End.
type Stream struct {
	s  *session
	ys *yamux.Stream

	turn  chan struct{} // holds one where the writer may go on
	more  chan struct{} // holds one where the reader may go on
	cut   chan struct{} // closed when it is reset, by either side
	ended chan struct{} // closed when the peer has said that its way ends
	begun sync.Once     // the end of our way out
	mu    sync.Mutex
	reset error // why it was cut
	// complete: it was cut with its session, after all had come that the peer
	// had to say: that may be read to its end.
	complete bool
	gone     bool // this side has done with it
	fin      bool // the peer will send no more; with gone, it is out of the session
	sent     uint64
	credit   uint64 // that the peer gave, in all
	frame    *chunk // that Frame gave
	full     bool   // the last was

	inbox             inbox
	parked            bool                    // the reader waits, and not in Lend
	push              func([]byte) (took int) // takes what comes then
	wake              func()                  // ends its being parked
	lent              int                     // bytes of inbox's head that the reader has
	total             uint64                  // that the peer sends in all; known once ended is closed
	got               uint64                  // that has come from the peer
	consumed, granted uint64                  // that we have read, and given in all
	grown             uint64                  // granted when the window grew last
	behind            uint8                   // how often the window is to double once the reader has run dry
	given             time.Duration           // when credit was given last, of the process's time
	calm              uint64                  // consumed when tidy looked last
	window            uint64                  // that is reserved of the budget
	reclaiming        bool                    // the peer is to say how much of the credit it keeps: none is given before
}

var _ interface {
	registry.End
	registry.Lender
	registry.Framer
} = (*Stream)(nil)

func newStream(s *session, ys *yamux.Stream) *Stream {
	return &Stream{
		s: s, ys: ys, turn: make(chan struct{}, 1), more: make(chan struct{}, 1), cut: make(chan struct{}), ended: make(chan struct{}),
		credit: leastWindow, granted: leastWindow, window: leastWindow,
	}
}

// Read returns io.EOF for a half-close, and a *registry.ResetError for a reset
// and for the end of the session.
func (st *Stream) Read(b []byte) (int, error) {
	lent, err := st.Lend(len(b))
	if err != nil || len(b) == 0 {
		return 0, err
	}
	n := copy(b, lent)
	st.Return()
	return n, nil
}

// Lend waits for bytes and gives up to most of them, which stay as they are
// until Return is called. Errors are those of Read.
func (st *Stream) Lend(most int) ([]byte, error) {
	for {
		st.mu.Lock()
		if b := st.inbox.head(); b != nil {
			b = b[:min(most, len(b))]
			st.lent = len(b)
			st.mu.Unlock()
			return b, nil
		}
		atEnd := isClosed(st.ended)
		st.mu.Unlock()
		if atEnd {
			return nil, st.atEnd()
		}
		select {
		case <-st.more:
		case <-st.ended:
		case <-st.cut:
		case <-st.s.pipe.ended:
		}
		if st.isOver() {
			return nil, st.failure()
		}
	}
}

// Push has what comes for a parked reader taken by a func, and the reader woken by
// another. What has come already is offered now.
func (st *Stream) Push(to func([]byte) (took int), wake func()) {
	st.mu.Lock()
	st.push, st.wake = to, wake
	n := st.offer()
	st.mu.Unlock()
	if n > 0 {
		st.consume(n)
	}
}

// offer has push take what there is, as far as it does. Call it with mu held.
func (st *Stream) offer() (took int) {
	for b := st.inbox.head(); b != nil; b = st.inbox.head() {
		n := st.push(b)
		if n == 0 {
			break
		}
		st.inbox.drop(n)
		took += n
	}
	return took
}

// Park has the reader wait without Lend.
func (st *Stream) Park() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.inbox.size > 0 || isClosed(st.ended) || isClosed(st.cut) || isClosed(st.s.pipe.ended) {
		return false
	}
	st.parked = true
	return true
}

// rouse tells the reader that it need not wait any more. Call it with mu held.
func (st *Stream) rouse() {
	if st.parked {
		st.parked = false
		st.wake()
		return
	}
	select {
	case st.more <- struct{}{}:
	default:
	}
}

// isOver says that the peer will not end its way: an end that it said before
// the stream was cut, or the session over, holds.
func (st *Stream) isOver() bool {
	return (isClosed(st.cut) || isClosed(st.s.pipe.ended)) && !isClosed(st.ended)
}

// Return gives back what Lend gave, as read.
func (st *Stream) Return() {
	st.mu.Lock()
	n := st.lent
	if st.lent = 0; n > 0 {
		st.inbox.drop(n)
	}
	st.forget()
	st.mu.Unlock()
	st.consume(n)
}

// Frame gives room for the bytes of one frame.
func (st *Stream) Frame() []byte {
	pool := &smallChunks
	if st.full && st.s.pipe.isQuick() {
		pool = &largeChunks
	}
	st.frame = pool.Get().(*chunk)
	room := st.frame.body()
	if st.s.pipe.isSlow() {
		room = room[:slowData]
	}
	return room
}

// Drop takes back what Frame gave.
func (st *Stream) Drop() {
	st.frame.free()
	st.frame, st.full = nil, false
}

// Send is Write for the first n bytes of what Frame gave. Those of a frame that
// is worth a chunk go out from there.
func (st *Stream) Send(n int) (sent int, err error) {
	c := st.frame
	st.frame = nil
	b := c.body()[:n]
	st.full = n >= len(c.body())*3/4
	if c.isWhole(n) {
		if sent, err = st.mayWrite(n); err != nil {
			c.free()
			return 0, err
		}
		if sent == n {
			return st.put(b, c)
		}
		sent, err = st.put(b[:sent], nil)
	}
	if err == nil {
		n, err = st.Write(b[sent:])
		sent += n
	}
	c.free()
	return sent, err
}

// deliver takes what came for the stream. Errors: more than the peer may send.
func (st *Stream) deliver(whole *body, n int) (kept bool, err error) {
	st.mu.Lock()
	st.got += uint64(n)
	if st.got > st.granted {
		err = fmt.Errorf("%w: %d bytes beyond a stream's credit", errFrame, n)
	}
	if err != nil || st.gone {
		st.mu.Unlock()
		return false, err
	}
	took := st.pushOn(whole.b[:n])
	kept = took < n && st.store(whole, took, n)
	to := st.next()
	st.mu.Unlock()
	st.widen(to, budgetForAll)
	return kept, nil
}

// pushOn offers bytes to a parked reader, for which nothing else is there. Call it
// with mu held.
func (st *Stream) pushOn(b []byte) (took int) {
	if !st.parked {
		return 0
	}
	if took = st.push(b); took > 0 {
		st.consumed += uint64(took)
		st.grant()
	}
	return took
}

// store keeps bytes for the reader. Call it with mu held.
func (st *Stream) store(whole *body, from, to int) (kept bool) {
	if kept = whole.isFull(to - from); kept {
		st.inbox.keep(whole, from, to)
	} else {
		st.inbox.put(whole.b[from:to])
	}
	st.rouse()
	return kept
}

// atEnd is what the end of the peer's way means.
func (st *Stream) atEnd() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.reset != nil && !st.complete:
		return st.reset
	case st.total != st.consumed:
		return &registry.ResetError{Code: proto.CodeNone, Err: io.ErrUnexpectedEOF}
	}
	return io.EOF
}

// finish takes the peer's word that it has ended its way.
func (st *Stream) finish(total uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !isClosed(st.ended) {
		st.total = total
		close(st.ended)
		st.rouse()
	}
}

func (st *Stream) why() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.reset
}

// consume counts what was read and lets the peer send as much again.
func (st *Stream) consume(n int) {
	st.mu.Lock()
	st.consumed += uint64(n)
	st.grant()
	to := st.next()
	st.mu.Unlock()
	st.widen(to, budgetForAll)
}

// grant renews the peer's credit when half of it is used, or a quarter of the first
// window, which a sender that has just begun is through with before it hears of a
// larger one. It is said before mu is let go of: a word takes the place of an older
// one, and the reader and the peer's messages both give credit. Call it with mu held.
func (st *Stream) grant() {
	left := st.window / 2
	if st.window == windowStart {
		left += windowStart / 4
	}
	if st.reclaiming || st.granted-st.consumed > left {
		return
	}
	st.granted = st.consumed + st.window
	st.s.control.say(ctlCredit, st.ys.StreamID(), st.granted)
	before := st.given
	st.given = time.Since(processStart)
	if before == 0 || st.window < windowStart { // less is given where memory is short: to who is blocked
		return
	}
	switch took, trip := st.given-before, time.Duration(st.s.pipe.quickest.Load()); {
	case took < windowTrips/2*trip:
		st.behind = 2
	case took < windowTrips*trip:
		st.behind = max(st.behind, 1)
	}
}

// widen gives the stream a larger window, if the budget allows it; one of twice the
// size where it does not allow more.
func (st *Stream) widen(to uint64, fraction float64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.gone || st.reclaiming {
		return
	}
	if twice := 2 * st.window; st.reserve(to, fraction) {
		st.window = to
	} else if to > twice && st.window >= windowStart && st.reserve(twice, fraction) {
		st.window = twice
	} else {
		return
	}
	st.granted = st.consumed + st.window
	st.grown, st.given = st.granted, time.Since(processStart)
	st.s.control.say(ctlCredit, st.ys.StreamID(), st.granted)
}

// reserve takes what a larger window needs of the budget. Call it with mu held.
func (st *Stream) reserve(to uint64, fraction float64) bool {
	return to > st.window && to <= windowMax && st.s.budget.take(int64(to-st.window), fraction)
}

// tidy has an idle stream's peer give back the credit beyond most.
func (st *Stream) tidy(most uint64) {
	st.mu.Lock()
	idle := st.calm == st.consumed && !st.gone
	st.calm = st.consumed
	ask := idle && st.window > most && !st.reclaiming && st.granted-st.got > most
	if ask {
		st.reclaiming = true
	}
	st.mu.Unlock()
	if ask {
		st.s.control.say(ctlReclaim, st.ys.StreamID(), most)
	}
}

// obey carries out what the peer says of the stream.
func (st *Stream) obey(kind byte, value uint64) {
	switch kind {
	case ctlReset:
		st.cutOff(&registry.ResetError{Code: proto.Code(value), Err: errReset})
	case ctlCredit:
		st.allow(value)
	case ctlBlocked:
		st.blocked(value)
	case ctlEnd:
		st.finish(value)
	case ctlReclaim:
		st.handBack(value)
	case ctlHolds:
		st.reclaimed(value)
	}
}

// handBack keeps no more credit than most, and says how much that is.
func (st *Stream) handBack(most uint64) {
	st.mu.Lock()
	st.credit = min(st.credit, st.sent+min(most, windowMax))
	holds := st.credit
	st.mu.Unlock()
	st.s.control.say(ctlHolds, st.ys.StreamID(), holds)
}

// reclaimed takes the peer's word of what it keeps. What it says that it could
// not hold is not believed.
func (st *Stream) reclaimed(holds uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.reclaiming || st.gone {
		return
	}
	st.reclaiming = false
	st.granted = min(max(holds, st.got), st.granted)
	st.grown = min(st.grown, st.granted)
	window := max(st.granted-st.consumed, leastWindow)
	back := int64(st.window) - int64(window)
	st.window = window
	st.s.budget.give(back)
	st.grant()
}

// finished: the peer will send no more.
func (st *Stream) finished() {
	st.mu.Lock()
	out := !st.fin && st.gone
	st.fin = true
	st.mu.Unlock()
	if out {
		st.release()
	}
}

// blocked: the sender has used up what it had. Each window is to be used up
// before the next, larger one.
func (st *Stream) blocked(had uint64) {
	st.mu.Lock()
	if had >= st.grown && had <= st.granted {
		st.behind = max(st.behind, 1)
	}
	to := st.next()
	st.mu.Unlock()
	st.widen(to, budgetForAll)
}

// next is the window that the stream should have: a larger one where the sender
// was blocked, or soon would be, and the reader has run dry, since then it is the
// window that holds them back. Call it with mu held.
func (st *Stream) next() uint64 {
	if st.behind == 0 || st.consumed != st.got {
		return st.window
	}
	to := st.window << st.behind
	st.behind = 0
	return min(max(to, windowStart), windowMax)
}

// Write blocks while the peer does not read.
func (st *Stream) Write(b []byte) (total int, err error) {
	for len(b) > 0 {
		n, err := st.mayWrite(len(b))
		if err != nil {
			return total, err
		}
		if n, err = st.put(b[:n], nil); err != nil {
			return total, err
		}
		total += n
		b = b[n:]
	}
	return total, nil
}

// put sends one frame for which credit was taken. Where its bytes are those of
// a chunk, it takes that.
func (st *Stream) put(b []byte, c *chunk) (int, error) {
	if !st.s.pipe.admit(len(b), st.cut) {
		return 0, st.failure()
	}
	if err := st.s.pipe.send(st.ys.StreamID(), b, c); err != nil {
		return 0, st.failure()
	}
	return len(b), nil
}

// failure is why nothing more can be read or written.
func (st *Stream) failure() error {
	if err := st.why(); err != nil {
		return err
	}
	if err := st.s.why(); err != nil {
		return err
	}
	return &registry.ResetError{Code: proto.CodeNone, Err: io.ErrClosedPipe}
}

// mayWrite waits for credit, and takes of it.
func (st *Stream) mayWrite(want int) (int, error) {
	said := false
	for {
		st.mu.Lock()
		room := st.credit - st.sent
		if n := min(uint64(want), room, maxBody); n > 0 {
			st.sent += n
			st.mu.Unlock()
			return int(n), nil
		}
		had := st.credit
		st.mu.Unlock()
		if !said {
			st.s.control.say(ctlBlocked, st.ys.StreamID(), had)
			said = true
		}
		select {
		case <-st.turn:
			said = false
		case <-st.cut:
			return 0, st.failure()
		case <-st.s.pipe.ended:
			return 0, st.failure()
		}
	}
}

// allow takes the peer's credit.
func (st *Stream) allow(total uint64) {
	st.mu.Lock()
	if total > st.credit {
		st.credit = total
	}
	st.mu.Unlock()
	select {
	case st.turn <- struct{}{}:
	default:
	}
}

// CloseWrite ends the way out.
func (st *Stream) CloseWrite() error {
	var err error
	st.begun.Do(func() {
		st.mu.Lock()
		total := st.sent
		st.mu.Unlock()
		err = st.ys.Close()
		st.s.control.say(ctlEnd, st.ys.StreamID(), total)
	})
	if err != nil {
		return st.failure()
	}
	if cut := st.why(); cut != nil {
		return cut
	}
	return nil
}

// Reset cuts both ways, and tells the peer why.
func (st *Stream) Reset(code proto.Code) error {
	if st.cutOff(&registry.ResetError{Code: code, Err: errReset}) {
		st.s.control.reset(st.ys.StreamID(), code)
	}
	return nil
}

var errReset = errors.New("stream reset")

// cutOff makes blocked calls return. It reports false where the stream is
// gone already.
func (st *Stream) cutOff(why error) bool {
	st.mu.Lock()
	if st.gone || st.reset != nil {
		st.mu.Unlock()
		return false
	}
	st.reset = why
	close(st.cut)
	st.rouse()
	st.mu.Unlock()
	st.leave()
	return true
}

// strand is cutOff at the end of the session.
func (st *Stream) strand(why error) {
	st.mu.Lock()
	st.complete = isClosed(st.ended) && st.got == st.total
	st.mu.Unlock()
	st.cutOff(why)
}

// Close releases the stream, whose both ways have ended.
func (st *Stream) Close() error {
	st.leave()
	return nil
}

// leave ends this side's part. What the peer still sends is counted until it
// has heard.
func (st *Stream) leave() {
	st.mu.Lock()
	first := !st.gone
	st.gone = true
	st.forget()
	out := first && st.fin
	st.mu.Unlock()
	if !first {
		return
	}
	st.begun.Do(func() { _ = st.ys.Close() })
	st.s.left()
	if out {
		st.release()
	}
}

// forget drops what nobody is to read. Call it with mu held.
func (st *Stream) forget() {
	if st.gone && !st.complete && st.lent == 0 {
		st.inbox.clear()
	}
}

// release takes the stream out of the session, and gives back what it had of
// the budget, once.
func (st *Stream) release() {
	st.mu.Lock()
	back := st.window
	st.window = 0
	st.mu.Unlock()
	st.s.budget.give(int64(back))
	st.s.drop(st.ys.StreamID())
}

// Path is that of the trunk's link at this moment, or of its last one.
func (st *Stream) Path() registry.Path { return st.s.pipe.path() }

// Trunk says how the trunk under the stream has fared.
func (st *Stream) Trunk() registry.TrunkStatus { return st.s.status() }
