package trunk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

// Link is what carries a pipe for a while: a libp2p stream, whose reader and
// writer are authenticated. Read and Write may be called at once. CloseWrite
// ends the way out after what was written. Reset ends both ways at once, makes
// blocked calls return, may be called more than once and must not block.
type Link interface {
	io.Reader
	io.Writer
	CloseWrite() error
	SetReadDeadline(time.Time) error
	Reset()
}

const (
	// maxUnsent bounds what waits to be sent, in bytes: whatever is behind it in
	// the queue waits as long.
	maxUnsent = 128 << 10
	// slowUnsent is that of a link where a large frame takes longer than slowFrame:
	// with what is being written, enough for it to have no pause.
	slowUnsent = 16 << 10
	slowFrame  = 20 * time.Millisecond
	// historyMin and historyMax bound what is kept until it is acknowledged, in
	// bytes: it grows with need, beyond historyFree where the link makes who
	// writes wait, or a round trip shows that it is the path's length that needs it,
	// and no queue on the way. It bounds the rate to historyMax a round trip.
	historyMin  = 256 << 10
	historyFree = 512 << 10
	historyMax  = 16 << 20
	// historySmall is what of small writes may be kept beyond that, in bytes: who
	// says little is not to wait until the peer has acknowledged another's much.
	historySmall = 64 << 10
	// historySlack is what may be kept beyond that, in bytes, of words that no
	// admission holds back: yamux's and the control stream's, for as long as a
	// session is parked.
	historySlack = 8 << 20
	// quickFrame is up to how long the largest frame may take on the way.
	quickFrame = 5 * time.Millisecond
	// ackEvery is how many bytes may come unacknowledged where no ack is asked
	// for; ackLate is when fewer are.
	ackEvery = 1 << 20
	ackLate  = 100 * time.Millisecond
	// smallWrite is what is copied behind its header rather than written after
	// it.
	smallWrite = 8 << 10
	// farewell bounds how long a link may take for its last frame.
	farewell = 2 * time.Second
)

var (
	// errEnded is returned by a pipe that was ended without a reason.
	errEnded = errors.New("trunk: ended")
	// errUnacknowledged ends a pipe whose peer takes all and says nothing.
	errUnacknowledged = errors.New("trunk: the peer acknowledges nothing")
)

// pipe is a byte pipe in both directions that no link's end interrupts. One
// goroutine may call Read; the others' may be called by any.
type pipe struct {
	away   func(*attachment, error) // a link was lost; called without locks
	budget *Budget                  // of what the history may hold beyond historyMin

	mu      sync.Mutex
	changed sync.Cond // link or err

	history history
	acked   uint64 // all before it has arrived at the peer
	sent    uint64 // all before it was given to the link
	most    uint64 // the most that sent ever was: over an older link it may have arrived
	limit   int    // of the history now
	busy    *chunk // being written from
	calm    uint64 // acked when tidy looked last
	asked   uint64 // all before it is acknowledged without delay

	received uint64 // all before it was given to the reader
	told     uint64 // the last ack that was given to a link
	due      bool   // an ack is, whether or not there is data to send with it
	late     *time.Timer

	quickest atomic.Int64 // round trip of the link, in ns; 0 before it was measured

	link     *attachment // nil while there is none
	last     Link        // the newest; nil before the first
	newest   *attachment // likewise
	active   *attachment // whose link is being written to; one at a time
	err      error       // why it ended
	ended    chan struct{}
	flushed  chan struct{} // closed when all has arrived; nil while nobody waits
	queue    []*ticket     // writers that wait to be admitted
	held     int           // bytes of those that are in, and not written yet
	replayed uint64        // bytes that were sent again
}

// attachment is a link while the pipe uses it.
type attachment struct {
	Link
	in   *bufio.Reader
	left int  // of the data frame that is being read
	skip int  // of those, that have arrived before
	ask  bool // it is to be acknowledged at once
	trip trip
	// waits says that who writes to the link waits for the path.
	waits bool
	work  chan struct{} // holds one while there may be something to write
	gone  chan struct{} // closed when the pipe has let go of it
	last  *header       // what is written when it has; nil for nothing
	said  bool          // somebody is writing it
	done  chan struct{} // closed when last is said, or can't be
	// scratch is for who writes.
	scratch [headerSize + headerSize + smallWrite]byte
}

func newPipe(budget *Budget, away func(*attachment, error)) *pipe {
	p := &pipe{away: away, budget: budget, limit: historyMin, ended: make(chan struct{})}
	p.changed.L = &p.mu
	return p
}

// attach makes the pipe go on over a link, on which the peer has said how far
// it has received, and was told how far we have. A link that is there is let
// go; had says that there was one. Errors: a peer that can't have received
// that.
func (p *pipe) attach(l Link, peerReceived, told uint64) (a *attachment, had bool, err error) {
	a = &attachment{Link: l, waits: waitsOn(l), in: bufio.NewReaderSize(l, 1<<10), work: make(chan struct{}, 1), gone: make(chan struct{}), done: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, false, p.err
	}
	peerReceived = max(peerReceived, p.acked) // an ack may have overtaken the hello
	if peerReceived > p.most {
		return nil, false, fmt.Errorf("trunk: the peer has received %d of %d", peerReceived, p.most)
	}
	had = p.link != nil
	p.letGo(nil)
	if p.sent > peerReceived {
		p.replayed += p.sent - peerReceived
	}
	p.sent, p.asked = peerReceived, peerReceived
	p.acknowledge(peerReceived)
	p.told = told // what came since over the old link is acknowledged over the new
	p.due = p.told < p.received
	p.link, p.last = a, l
	p.quickest.Store(0)
	a.wake()
	p.changed.Broadcast()
	p.newest = a
	go p.serve(a)
	return a, had, nil
}

// isNewest says that no other link has taken the place of one since.
func (p *pipe) isNewest(a *attachment) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.newest == a
}

// lastGone is closed when the newest link is let go.
func (p *pipe) lastGone() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.newest.gone
}

// letGo drops the link, after a last frame if there is one to say. Call it with
// mu held.
func (p *pipe) letGo(last *header) {
	a := p.link
	if a == nil {
		return
	}
	p.link = nil
	a.last = last
	close(a.gone)
	if last == nil {
		a.Reset()
		return
	}
	_ = a.SetReadDeadline(time.Unix(1, 0)) // the reader is done
	time.AfterFunc(farewell, a.Reset)
}

// lost lets go of a link that failed, unless that has been done.
func (p *pipe) lost(a *attachment, err error) {
	p.mu.Lock()
	ours := p.link == a
	if ours {
		p.letGo(nil)
		p.changed.Broadcast()
	}
	p.mu.Unlock()
	if ours {
		p.away(a, err)
	}
}

// end makes Read and Write fail, for ever, and tells the peer why, where there
// is a link and it does not hang.
func (p *pipe) end(code proto.Code) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail(errEnded, &header{kind: kindEnd, offset: uint64(code)})
}

// fail makes Read and Write fail with that error. Call it with mu held.
func (p *pipe) fail(err error, last *header) {
	if p.err != nil {
		return
	}
	p.err = err
	p.letGo(last)
	if p.late != nil {
		p.late.Stop()
	}
	p.history = history{}
	p.budget.give(int64(p.limit - historyMin))
	close(p.ended)
	p.changed.Broadcast()
}

// Close ends the pipe, as yamux asks for when its session ends.
func (p *pipe) Close() error {
	p.end(proto.CodeNone)
	return nil
}

// wait returns when the peer has had the last frame of a pipe that has ended, or
// after farewell. Nobody may be in Read. It takes what still comes until the peer
// lets go of the link too: what carries the link is closed next, and a socket
// that is closed with bytes unread is reset, and takes from the peer what that
// has not read (RFC 2525, 2.17).
func (p *pipe) wait() {
	p.mu.Lock()
	a := p.newest
	said := a != nil && a.last != nil
	p.mu.Unlock()
	if !said {
		return
	}
	<-a.done
	_ = a.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, a.Link)
}

// flush waits until all that was written has arrived, or for limit; not while
// there is no link.
func (p *pipe) flush(limit time.Duration) {
	late := time.NewTimer(limit)
	defer late.Stop()
	for {
		p.mu.Lock()
		if p.err != nil || p.link == nil || p.acked == p.history.next {
			p.mu.Unlock()
			return
		}
		flushed, gone := make(chan struct{}), p.link.gone
		p.flushed = flushed
		p.mu.Unlock()
		select {
		case <-flushed:
		case <-gone:
		case <-late.C:
			return
		}
	}
}

// path is that of the newest link, where it knows it.
func (p *pipe) path() registry.Path {
	p.mu.Lock()
	last := p.last
	p.mu.Unlock()
	return pathOf(last)
}

func pathOf(l Link) registry.Path {
	if l, ok := l.(interface{ Path() registry.Path }); ok {
		return l.Path()
	}
	return registry.Path{}
}

// position is how far this side has received, for a hello.
func (p *pipe) position() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.received
}

// replays is how many bytes were sent again, in all.
func (p *pipe) replays() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.replayed
}

// append takes both at once. It fails with the pipe's end alone.
func (p *pipe) append(head, body []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.add(head, body, nil); err != nil {
		return err
	}
	if p.link != nil {
		p.link.wake()
	}
	return nil
}

// add is append without a word to the writer. Call it with mu held.
func (p *pipe) add(head, body []byte, c *chunk) error {
	if p.err == nil && p.history.next-p.acked > historyMax+historySlack {
		p.fail(errUnacknowledged, nil)
	}
	switch {
	case p.err != nil:
	case c != nil:
		p.history.take(c, len(head)+len(body))
	default:
		p.history.append(head, body)
	}
	return p.err
}

// send is append for the data of a stream, which was admitted; where it is the
// body of a chunk, the pipe takes that. Where nobody
// writes to the link it does so itself, up to that data: a hand-over to another
// goroutine costs more than all copying.
func (p *pipe) send(id uint32, data []byte, c *chunk) error {
	var own [muxHeader]byte
	head := own[:]
	if c != nil {
		head = c.head()
	}
	muxFrame(head).putData(id, len(data))
	p.mu.Lock()
	err := p.add(head, data, c)
	p.held -= len(data)
	p.letIn()
	a, upTo := p.link, p.history.next
	mine := err == nil && a != nil && p.active == nil
	if mine {
		p.active = a
	}
	p.mu.Unlock()
	if mine {
		p.write(a, upTo)
	}
	return err
}

// fits says that n bytes may be written now. Call it with mu held.
func (p *pipe) fits(n int) bool {
	if p.room()-p.held > 0 {
		return true
	}
	unsent, kept := int(p.history.next-p.sent)+p.held, int(p.history.next-p.acked)+p.held
	return n <= smallWrite && unsent < maxUnsent && kept < p.limit+historySmall
}

// room is how many bytes may be written now. Call it with mu held.
func (p *pipe) room() int {
	unsent, kept := int(p.history.next-p.sent), int(p.history.next-p.acked)
	if kept >= p.limit && unsent < maxUnsent && p.mayGrow() && p.budget.take(int64(p.limit), budgetForAll) {
		p.limit *= 2 // the link takes it faster than the peer acknowledges
		if p.link != nil {
			p.link.trip.forget()
		}
	}
	most := maxUnsent
	if p.link.isSlow() {
		most = slowUnsent
	}
	return max(0, min(most-unsent, p.limit-kept))
}

// isQuick says that a large frame keeps nobody waiting for long.
func (p *pipe) isQuick() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link != nil && p.link.trip.isQuick()
}

// isSlow says that frames are to be short, since others wait behind them.
func (p *pipe) isSlow() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link.isSlow()
}

func (a *attachment) isSlow() bool { return a != nil && a.trip.isSlow() }

// mayGrow says that a longer history can help. Call it with mu held.
func (p *pipe) mayGrow() bool {
	a := p.link
	return p.limit < historyFree || p.limit < historyMax && a != nil && (a.waits && a.trip.holds(p.limit) || a.trip.isShort())
}

// waitsOn says that a link's Write waits while more than a little waits to be sent,
// wherever on its way: however long the history is, it makes no queue there.
func waitsOn(l Link) bool {
	w, ok := l.(interface{ Waits() bool })
	return ok && w.Waits()
}

// tidy gives back what the history has grown to, where nothing has moved since
// the last look.
func (p *pipe) tidy() {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := p.err == nil && p.acked == p.calm && p.acked == p.history.next
	p.calm = p.acked
	if idle && p.limit > historyMin {
		p.budget.give(int64(p.limit - historyMin))
		p.limit = historyMin
	}
}

func (a *attachment) wake() {
	select {
	case a.work <- struct{}{}:
	default:
	}
}

// serve writes what nobody else does, until the link is let go.
func (p *pipe) serve(a *attachment) {
	for {
		select {
		case <-a.work:
			if p.activate(a) {
				p.write(a, math.MaxUint64)
			}
		case <-a.gone:
			if p.activate(a) {
				p.write(a, 0)
			}
			return
		}
	}
}

// activate makes the caller the one who writes, to that link, if nobody does.
func (p *pipe) activate(a *attachment) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active != nil {
		return false
	}
	p.active = a
	return true
}

// write writes acks, and what was written to the pipe up to an offset. The
// caller is the active one, and is not when it returns.
func (p *pipe) write(a *attachment, upTo uint64) {
	for {
		n, body, ok := p.nextWrite(a, upTo)
		if !ok {
			return
		}
		if err := a.writeBoth(a.scratch[:n], body); err != nil {
			p.mu.Lock()
			p.rest(a)
			p.mu.Unlock()
			p.lost(a, err)
			return
		}
	}
}

func (a *attachment) writeBoth(head, body []byte) (err error) {
	if len(head) > 0 {
		_, err = a.Write(head)
	}
	if err == nil && len(body) > 0 {
		_, err = a.Write(body)
	}
	return err
}

// rest ends the turn of who writes. Call it with mu held.
func (p *pipe) rest(a *attachment) {
	p.active, p.busy = nil, nil
	if p.link != nil && (p.link != a || p.sent < p.history.next || p.due) {
		p.link.wake()
	}
	if n := p.newest; p.link != n && n.last != nil && !n.said { // who wrote may have been on an older link
		n.said = true
		go n.sayLast()
	}
}

// sayLast writes the last frame of a link that was let go.
func (a *attachment) sayLast() {
	defer close(a.done)
	a.last.put(a.scratch[:])
	if _, err := a.Write(a.scratch[:headerSize]); err == nil {
		_ = a.CloseWrite() // a reset could overtake the frame
	}
}

// nextWrite puts an ack that is due, and the header of the next data, into
// scratch, and gives the data that follows: small ones in scratch as well; of a
// whole chunk the header is in the chunk. Where there is nothing, or no more
// before upTo, the turn of the caller is over.
func (p *pipe) nextWrite(a *attachment, upTo uint64) (n int, body []byte, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = nil
	if p.link != a || p.sent >= upTo {
		p.rest(a)
		return 0, nil, false
	}
	if p.told < p.received && (p.due || p.sent < p.history.next) {
		header{kind: kindAck, offset: p.received}.put(a.scratch[:])
		n = headerSize
		p.told, p.due = p.received, false
	}
	if p.sent == p.history.next {
		if n == 0 {
			p.active = nil
		}
		return n, nil, n > 0
	}
	n, body = p.nextData(a, n)
	p.most = max(p.most, p.sent)
	p.letIn()
	return n, body, true
}

// nextData is nextWrite's part for data. Call it with mu held.
func (p *pipe) nextData(a *attachment, n int) (int, []byte) {
	c := p.history.at(p.sent)
	data := c.from(p.sent)
	h := header{kind: kindData, length: len(data), offset: p.sent}
	whole := p.sent == c.start
	alone := p.sent == p.acked && a.trip.few()
	p.sent += uint64(len(data))
	if alone || p.sent-p.asked >= uint64(p.limit/2) {
		h.kind, p.asked = kindAsk, p.sent
		a.trip.begin(p.sent, alone, p.sent-p.acked)
	}
	switch {
	case len(data) <= smallWrite:
		h.put(a.scratch[n:])
		n += headerSize
		return n + copy(a.scratch[n:], data), nil
	case whole:
		h.put(c.buf[:])
		p.busy = c
		return n, c.buf[:headerSize+c.n]
	}
	h.put(a.scratch[n:])
	p.busy = c
	return n + headerSize, data
}

// acknowledge forgets what has arrived. Call it with mu held.
func (p *pipe) acknowledge(offset uint64) {
	if offset <= p.acked {
		return
	}
	p.acked, p.sent = offset, max(p.sent, offset)
	p.history.drop(offset, p.busy)
	if p.flushed != nil && p.acked == p.history.next {
		close(p.flushed)
		p.flushed = nil
	}
	p.letIn()
}

// Read gives bytes in their order, or the error with which the pipe ended. It
// blocks while there is no link.
func (p *pipe) Read(b []byte) (int, error) {
	for {
		a, err := p.current()
		if err != nil {
			return 0, err
		}
		n, err := p.readFrom(a, b)
		if err != nil {
			p.lost(a, err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// current waits for a link.
func (p *pipe) current() (*attachment, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.link == nil && p.err == nil {
		p.changed.Wait()
	}
	return p.link, p.err
}

// readFrom reads data that is new from a link; 0 bytes without an error where
// an ack came, or the link is no longer ours.
func (p *pipe) readFrom(a *attachment, b []byte) (int, error) {
	if a.left == 0 {
		return 0, p.readHeader(a)
	}
	if a.skip > 0 {
		n, err := a.in.Discard(min(a.skip, a.left))
		a.skip, a.left = a.skip-n, a.left-n
		return 0, err
	}
	n, err := a.in.Read(b[:min(len(b), a.left)])
	a.left -= n
	if n > 0 && !p.take(a, n) {
		return 0, nil
	}
	return n, err
}

func (p *pipe) readHeader(a *attachment) error {
	raw, err := a.in.Peek(headerSize)
	if err != nil {
		return err
	}
	h, err := parseHeader(raw)
	if err != nil {
		return err
	}
	_, _ = a.in.Discard(headerSize)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link != a {
		return nil
	}
	switch {
	case h.kind == kindEnd:
		return endError{proto.Code(h.offset)}
	case h.kind == kindAck && h.offset > p.most:
		return fmt.Errorf("%w: acknowledges %d of %d", errFrame, h.offset, p.most)
	case h.kind == kindAck:
		a.trip.end(h.offset)
		p.quickest.Store(int64(a.trip.least))
		p.acknowledge(h.offset)
	case h.offset > p.received:
		return fmt.Errorf("%w: offset %d after %d", errFrame, h.offset, p.received)
	default:
		a.left, a.ask = h.length, h.kind == kindAsk
		a.skip = int(min(p.received-h.offset, uint64(h.length)))
	}
	return nil
}

// take counts bytes that were read, and has them acknowledged. It reports false
// where the link was let go meanwhile: then they come again.
func (p *pipe) take(a *attachment, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link != a {
		return false
	}
	p.received += uint64(n)
	switch {
	case p.received-p.told >= ackEvery || a.left == 0 && a.ask:
		a.ask = false
		p.due = true
		a.wake()
	case p.late == nil:
		p.late = time.AfterFunc(ackLate, p.ackNow)
	}
	return true
}

// ackNow has what came acknowledged although it is little.
func (p *pipe) ackNow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = nil
	if p.told < p.received {
		p.due = true
	}
	if p.link != nil && p.due {
		p.link.wake()
	}
}
