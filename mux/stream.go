package mux

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"github.com/libp2p/go-libp2p/core/network"
)

// keptParts bounds what an idle stream keeps for the list of its next parts.
const keptParts = 4

// leastPart is the least room for what came and was not read, in bytes: what is
// sent a byte at a time shares it.
const leastPart = 512

// closedNow is closed.
var closedNow = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

var (
	errReset       = errors.New("yamux: stream reset")
	errWriteClosed = errors.New("yamux: stream closed for writing")
)

// stream is one stream of a session. Its methods may be called by any goroutine.
type stream struct {
	s    *session
	id   uint32
	span network.ResourceScopeSpan

	mu       sync.Mutex
	readable sync.Cond
	writable sync.Cond
	opens    uint16 // what our first frame says on top; 0 once it has
	untaken  bool   // ours, and the peer has not taken it
	gone     bool   // out of the session

	parts   [][]byte // what came, of the pool
	read    int      // of parts, whole ones that were read
	at      int      // of the next part that was read
	due     uint32   // the peer may send that much
	window  uint32   // and so much where all is read
	used    uint32   // read since it was told
	told    time.Time
	eof     bool  // the peer has ended its way
	readErr error // why nothing can be read

	room     uint32 // we may send that much
	closed   bool   // we have ended our way
	writeErr error  // why nothing can be written

	readLimit, writeLimit limit
	cut                   chan struct{} // closed when who waits for its turn is to look again; nil while nobody does
}

var _ network.MuxedStream = (*stream)(nil)

func newStream(s *session, id uint32, span network.ResourceScopeSpan) *stream {
	st := &stream{s: s, id: id, span: span, due: windowStart, window: windowStart, room: windowStart, told: time.Now()}
	st.readable.L, st.writable.L = &st.mu, &st.mu
	return st
}

// Read gives what came, io.EOF at the end of the peer's way, or why nothing can
// be read: a *network.StreamError for a reset, os.ErrDeadlineExceeded.
func (st *stream) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	st.mu.Lock()
	for busy := false; ; {
		n, err := st.readNow(b)
		if n > 0 || err != nil {
			st.mu.Unlock()
			if n > 0 {
				st.consume(n)
			}
			return n, err
		}
		if busy || st.opens == 0 && !st.s.in.leads(st) {
			st.readable.Wait()
			busy = false
			continue
		}
		st.mu.Unlock()
		st.announce()
		st.s.out.flush()
		if n, busy = st.s.in.read(st, b); n > 0 {
			st.consume(n)
			return n, nil
		}
		st.mu.Lock()
	}
}

// readNow reads without waiting: 0 bytes and no error where there is nothing.
// Call it with mu held.
func (st *stream) readNow(b []byte) (n int, err error) {
	switch {
	case st.readErr != nil:
		return 0, st.readErr
	case st.has():
		return st.take(b), nil
	case st.eof:
		return 0, io.EOF
	case st.readLimit.isOver():
		return 0, os.ErrDeadlineExceeded
	}
	return 0, nil
}

// hasNews says that Read need not wait.
func (st *stream) hasNews() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	_, err := st.readNow(nil)
	return err != nil || st.has()
}

// take copies out what came. Call it with mu held.
func (st *stream) take(b []byte) (n int) {
	for n < len(b) && st.has() {
		next := st.parts[st.read]
		m := copy(b[n:], next[st.at:])
		n, st.at = n+m, st.at+m
		if st.at == len(next) {
			pool.Put(next)
			st.parts[st.read] = nil
			st.read, st.at = st.read+1, 0
		}
	}
	if !st.has() {
		st.parts, st.read = st.parts[:0], 0
		if cap(st.parts) > keptParts {
			st.parts = nil
		}
	}
	return n
}

// has says that there is something to read. Call it with mu held.
func (st *stream) has() bool { return st.read < len(st.parts) }

// announce leaves word for the peer of a stream of which it knows nothing yet,
// or that it was taken.
func (st *stream) announce() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if flags := st.opening(); flags != 0 && !st.gone {
		st.s.out.later(header{kind: kindWindow, flags: flags, id: st.id})
	}
}

// opening gives what the first frame has to say on top. Call it with mu held.
func (st *stream) opening() (flags uint16) {
	flags, st.opens = st.opens, 0
	return flags
}

// consume counts what was read, and lets the peer send as much again once that
// is half of the window; a quarter of the first, which a sender that has just begun
// is through with before it hears of a larger one.
func (st *stream) consume(n int) {
	st.mu.Lock()
	st.used += uint32(n)
	part := st.window / 2
	if st.window == windowStart {
		part /= 2
	}
	if st.used < part || st.eof || st.gone {
		st.mu.Unlock()
		return
	}
	now := time.Now()
	more := st.used + st.grow(now.Sub(st.told))
	st.used, st.told = 0, now
	st.due += more
	st.s.out.later(header{kind: kindWindow, flags: st.opening(), id: st.id, length: more})
	st.mu.Unlock()
	st.s.out.flush()
}

// grow makes the window larger where credit has lasted for that little time, and
// the scope has room: it is to be ahead of a sender that doubles its rate each
// round trip, or triples it. Call it with mu held.
func (st *stream) grow(took time.Duration) (by uint32) {
	trip, most := st.s.roundTrip(), windowMax-st.window
	if took < windowTrips/2*trip {
		by = st.reserve(min(3*st.window, most))
	}
	if by == 0 && took < windowTrips*trip {
		by = st.reserve(min(st.window, most))
	}
	st.window += by
	return by
}

// reserve takes bytes of the scope, 0 where it has not as many.
func (st *stream) reserve(n uint32) uint32 {
	if n > 0 && st.span.ReserveMemory(int(n), network.ReservationPriorityMedium) != nil {
		return 0
	}
	return n
}

// expect counts what the peer is about to send; false where that is more than
// it may.
func (st *stream) expect(n uint32) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if n > st.due {
		return false
	}
	st.due -= n
	return true
}

// arrive takes the first n bytes of a chunk. It reports true where it keeps the
// chunk: of few bytes it takes a copy, since they may wait for long.
func (st *stream) arrive(chunk []byte, n int) (kept bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.readErr != nil {
		return false
	}
	st.readable.Signal()
	if last := len(st.parts) - 1; st.has() && cap(st.parts[last])-len(st.parts[last]) >= n {
		st.parts[last] = append(st.parts[last], chunk[:n]...)
		return false
	}
	if n >= len(chunk)/2 && n >= leastPart {
		st.parts = append(st.parts, chunk[:n])
		return true
	}
	part := pool.Get(max(n, leastPart))
	st.parts = append(st.parts, part[:copy(part, chunk[:n])])
	return false
}

// mayLead says that there is somebody to read.
func (st *stream) mayLead() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.readErr != nil || st.eof || st.gone {
		return false
	}
	st.readable.Signal()
	return true
}

// finish notes that the peer has ended its way.
func (st *stream) finish() {
	st.mu.Lock()
	st.eof = true
	st.readable.Broadcast()
	over := st.isOver()
	st.mu.Unlock()
	if over {
		st.leave()
	}
}

// obey does what a frame says besides its data.
func (st *stream) obey(h header) {
	if h.has(flagACK) {
		st.taken()
	}
	if !h.has(flagRST) {
		return
	}
	code := network.StreamErrorCode(0)
	if h.kind == kindWindow {
		code = network.StreamErrorCode(h.length)
	}
	st.fail(&network.StreamError{ErrorCode: code, Remote: true, TransportError: errReset})
	st.leave()
}

func (st *stream) taken() {
	st.mu.Lock()
	was := st.untaken
	st.untaken = false
	st.mu.Unlock()
	if was {
		st.s.taken()
	}
}

// allow lets us send more.
func (st *stream) allow(more uint32) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.room = uint32(min(uint64(st.room)+uint64(more), math.MaxInt32))
	st.writable.Broadcast()
}

// fail ends both ways, as far as they have not ended.
func (st *stream) fail(why error) {
	st.mu.Lock()
	if !st.eof && st.readErr == nil {
		st.readErr = why
		st.forget()
	}
	if !st.closed && st.writeErr == nil {
		st.writeErr = why
	}
	st.rouse()
	st.mu.Unlock()
	st.s.in.revoke(st)
}

// forget drops what nobody is to read. Call it with mu held.
func (st *stream) forget() {
	for _, p := range st.parts[st.read:] {
		pool.Put(p)
	}
	st.parts, st.read, st.at = nil, 0, 0
}

// rouse has all who wait look again. Call it with mu held.
func (st *stream) rouse() {
	st.readable.Broadcast()
	st.writable.Broadcast()
	if st.cut != nil {
		close(st.cut)
		st.cut = nil
	}
}

// isOver says that both ways have ended. Call it with mu held.
func (st *stream) isOver() bool {
	return (st.eof || st.readErr != nil) && (st.closed || st.writeErr != nil)
}

// leave takes the stream out of the session.
func (st *stream) leave() {
	st.mu.Lock()
	first := !st.gone
	st.gone = true
	st.readLimit.stop()
	st.writeLimit.stop()
	st.mu.Unlock()
	if first {
		st.taken()
		st.s.drop(st)
		st.s.in.revoke(st)
	}
}

// Write sends b. It waits while the peer reads nothing, and for its turn.
// Errors are a *network.StreamError for a reset, os.ErrDeadlineExceeded.
func (st *stream) Write(b []byte) (total int, err error) {
	for total < len(b) {
		n, err := st.claim(len(b) - total)
		if err != nil {
			return total, err
		}
		if err = st.s.out.data(st, b[total:total+n]); err != nil {
			st.allow(uint32(n))
			return total, err
		}
		total += n
	}
	return total, nil
}

// claim waits for room, and takes of it.
func (st *stream) claim(want int) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for {
		if err := st.mayWrite(); err != nil {
			return 0, err
		}
		if st.room > 0 {
			n := min(want, maxFrame, int(st.room))
			st.room -= uint32(n)
			return n, nil
		}
		st.writable.Wait()
	}
}

// mayWrite says why nothing can be written. Call it with mu held.
func (st *stream) mayWrite() error {
	switch {
	case st.writeErr != nil:
		return st.writeErr
	case st.closed:
		return errWriteClosed
	case st.writeLimit.isOver():
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (st *stream) whyNot() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.mayWrite()
}

// frame gives the header of data whose turn has come. What is said of the stream
// from then on, its end or its reset, comes after it.
func (st *stream) frame(n int) (header, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.mayWrite(); err != nil {
		return header{}, err
	}
	st.s.out.collect()
	return header{kind: kindData, flags: st.opening(), id: st.id, length: uint32(n)}, nil
}

// cutter is closed when who waits for its turn is to look again.
func (st *stream) cutter() <-chan struct{} {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.mayWrite() != nil {
		return closedNow
	}
	if st.cut == nil {
		st.cut = make(chan struct{})
	}
	return st.cut
}

// CloseWrite ends our way.
func (st *stream) CloseWrite() error {
	st.mu.Lock()
	if st.closed || st.writeErr != nil {
		defer st.mu.Unlock()
		return st.writeErr
	}
	st.closed = true
	st.rouse()
	st.s.out.later(header{kind: kindWindow, flags: st.opening() | flagFIN, id: st.id})
	over := st.isOver()
	st.mu.Unlock()
	st.s.out.flush()
	if over {
		st.leave()
	}
	return nil
}

// CloseRead drops what comes from now on; the peer is not told.
func (st *stream) CloseRead() error {
	st.mu.Lock()
	if st.readErr != nil || st.eof && !st.has() {
		st.mu.Unlock()
		return nil
	}
	st.readErr = fmt.Errorf("%w: closed for reading", network.ErrReset)
	st.forget()
	st.rouse()
	over := st.isOver()
	st.mu.Unlock()
	st.s.in.revoke(st)
	if over {
		st.leave()
	}
	return nil
}

// Close ends both ways.
func (st *stream) Close() error {
	_ = st.CloseRead()
	return st.CloseWrite()
}

// Reset is ResetWithError without a code.
func (st *stream) Reset() error { return st.ResetWithError(0) }

// ResetWithError ends both ways at once, and tells the peer. It does not wait.
func (st *stream) ResetWithError(code network.StreamErrorCode) error {
	st.mu.Lock()
	gone, unknown := st.gone, st.opens&flagSYN != 0
	st.opens &^= flagSYN // nor will it be
	st.mu.Unlock()
	if gone {
		return nil
	}
	st.fail(&network.StreamError{ErrorCode: code, TransportError: errReset})
	if !unknown {
		st.s.out.soon(header{kind: kindWindow, flags: flagRST, id: st.id, length: uint32(code)})
	}
	st.leave()
	return nil
}

// SetDeadline sets both deadlines; the zero time is none.
func (st *stream) SetDeadline(t time.Time) error {
	_ = st.SetReadDeadline(t)
	return st.SetWriteDeadline(t)
}

// SetReadDeadline sets when Read is to fail, also one that waits.
func (st *stream) SetReadDeadline(t time.Time) error {
	st.mu.Lock()
	st.readLimit.set(t, st.gone, st.hurryRead)
	over := st.readLimit.isOver()
	st.mu.Unlock()
	if over {
		st.hurryRead()
	}
	return nil
}

// SetWriteDeadline sets when Write is to fail, also one that waits.
func (st *stream) SetWriteDeadline(t time.Time) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.writeLimit.set(t, st.gone, st.hurryWrite)
	if st.writeLimit.isOver() {
		st.rouse()
	}
	return nil
}

func (st *stream) hurryRead() {
	st.mu.Lock()
	st.readable.Broadcast()
	st.mu.Unlock()
	st.s.in.revoke(st)
}

func (st *stream) hurryWrite() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.rouse()
}

// limit is a deadline.
type limit struct {
	at    time.Time // zero for none
	timer *time.Timer
}

func (l *limit) isOver() bool { return !l.at.IsZero() && !time.Now().Before(l.at) }

func (l *limit) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

// set has f called when the time has come, unless the stream is gone.
func (l *limit) set(t time.Time, gone bool, f func()) {
	l.stop()
	l.at, l.timer = t, nil
	if left := time.Until(t); !t.IsZero() && !gone && left > 0 {
		l.at = time.Now().Add(left) // by the clock that the timer has
		l.timer = time.AfterFunc(left, f)
	}
}
