package trunk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"p2ptun/registry"
)

// Link is what carries a pipe for a while: a libp2p stream, whose reader and
// writer are authenticated. Read and Write may be called at once. Reset ends
// both at once, makes blocked calls return, may be called more than once and
// must not block.
type Link interface {
	io.Reader
	io.Writer
	Reset()
}

const (
	// maxUnsent bounds what waits to be sent, in bytes: whatever is behind it in
	// the queue waits as long.
	maxUnsent = 128 << 10
	// historyMin and historyMax bound what is kept until it is acknowledged, in
	// bytes: it grows with need, and bounds the rate to historyMax a round trip.
	historyMin = 4 << 20
	historyMax = 16 << 20
	// ackEvery is how many bytes may come unacknowledged; ackLate is when fewer
	// are.
	ackEvery = 256 << 10
	ackLate  = 100 * time.Millisecond
	// smallWrite is what is copied behind its header rather than written after
	// it.
	smallWrite = 8 << 10
)

// errEnded is returned by a pipe that was ended without a reason.
var errEnded = errors.New("trunk: ended")

// pipe is a byte pipe in both directions that no link's end interrupts. One
// goroutine may call Read and one Write; the others' may be called by any.
type pipe struct {
	away func(*attachment, error) // a link was lost; called without locks

	mu      sync.Mutex
	changed sync.Cond // link or err

	history history
	acked   uint64 // all before it has arrived at the peer
	sent    uint64 // all before it was given to the link
	limit   int    // of the history now
	busy    *chunk // being written from

	received uint64 // all before it was given to the reader
	told     uint64 // the last ack that was given to a link
	late     *time.Timer

	link     *attachment   // nil while there is none
	last     Link          // the newest; nil before the first
	writer   chan struct{} // done of the newest attachment; nil before the first
	err      error         // why it ended
	ended    chan struct{}
	queue    []*ticket // writers that wait to be admitted
	held     int       // bytes of those that are in, and not written yet
	replayed uint64    // bytes that were sent again
}

// attachment is a link while the pipe uses it.
type attachment struct {
	Link
	in   *bufio.Reader
	left int           // of the data frame that is being read
	skip int           // of those, that have arrived before
	work chan struct{} // holds one while there may be something to write
	gone chan struct{} // closed when the pipe has let go of it
	done chan struct{} // closed when its writer has returned
}

func newPipe(away func(*attachment, error)) *pipe {
	p := &pipe{away: away, limit: historyMin, ended: make(chan struct{})}
	p.changed.L = &p.mu
	return p
}

// attach makes the pipe go on over a link, on which the peer has said how far
// it has received. A link that is there is let go. Errors: a peer that can't
// have received that.
func (p *pipe) attach(l Link, peerReceived uint64) (*attachment, error) {
	a := &attachment{Link: l, in: bufio.NewReaderSize(l, 4<<10), work: make(chan struct{}, 1), gone: make(chan struct{}), done: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, p.err
	}
	peerReceived = max(peerReceived, p.acked) // an ack may have overtaken the hello
	if peerReceived > p.sent {
		return nil, fmt.Errorf("trunk: the peer has received %d of %d", peerReceived, p.sent)
	}
	p.letGo()
	p.replayed += p.sent - peerReceived
	p.sent = peerReceived
	p.acknowledge(peerReceived)
	p.told = p.received // the hello has said it
	p.link, p.last = a, l
	a.wake()
	p.changed.Broadcast()
	before := p.writer
	p.writer = a.done
	go p.write(a, before)
	return a, nil
}

// letGo drops the link. Call it with mu held.
func (p *pipe) letGo() {
	if a := p.link; a != nil {
		p.link = nil
		close(a.gone)
		a.Reset()
	}
}

// lost lets go of a link that failed, unless that has been done.
func (p *pipe) lost(a *attachment, err error) {
	p.mu.Lock()
	ours := p.link == a
	if ours {
		p.letGo()
		p.changed.Broadcast()
	}
	p.mu.Unlock()
	if ours {
		p.away(a, err)
	}
}

// end makes Read and Write fail with that error, for ever.
func (p *pipe) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return
	}
	p.err = err
	p.letGo()
	if p.late != nil {
		p.late.Stop()
	}
	p.history = history{}
	close(p.ended)
	p.changed.Broadcast()
}

// Close ends the pipe, as yamux asks for when its session ends.
func (p *pipe) Close() error {
	p.end(errEnded)
	return nil
}

// path is that of the newest link, where it knows it.
func (p *pipe) path() registry.Path {
	p.mu.Lock()
	last := p.last
	p.mu.Unlock()
	if l, ok := last.(interface{ Path() registry.Path }); ok {
		return l.Path()
	}
	return registry.Path{}
}

// offsets are those that a hello tells.
func (p *pipe) offsets() (received uint64) {
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

// Write takes all of b at once: admit bounds what is written. It fails with the
// pipe's end alone.
func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	p.history.append(b)
	if p.link != nil && !announcesBody(b) {
		p.link.wake()
	}
	return len(b), nil
}

// announcesBody says that b is the header of a yamux data frame whose body is
// written next: both go out together.
func announcesBody(b []byte) bool {
	const size, typeData = 12, 0
	return len(b) == size && b[1] == typeData && (b[8]|b[9]|b[10]|b[11]) != 0
}

// room is how many bytes may be written now. Call it with mu held.
func (p *pipe) room() int {
	unsent, kept := int(p.history.next-p.sent), int(p.history.next-p.acked)
	if kept >= p.limit && p.limit < historyMax && unsent < maxUnsent {
		p.limit *= 2 // the link takes it faster than the peer acknowledges
	}
	return max(0, min(maxUnsent-unsent, p.limit-kept))
}

func (a *attachment) wake() {
	select {
	case a.work <- struct{}{}:
	default:
	}
}

// write is the only writer of a link: acks, and what was written to the pipe.
// The writer before it may still read what is to be written.
func (p *pipe) write(a *attachment, before chan struct{}) {
	defer close(a.done)
	if before != nil {
		<-before
	}
	scratch := make([]byte, headerSize+headerSize+smallWrite)
	for {
		n, body, ok := p.nextWrite(a, scratch)
		if !ok {
			select {
			case <-a.work:
				continue
			case <-a.gone:
				return
			}
		}
		_, err := a.Write(scratch[:n])
		if err == nil && len(body) > 0 {
			_, err = a.Write(body)
		}
		if err != nil {
			p.lost(a, err)
			return
		}
	}
}

// nextWrite puts an ack that is due, and the header of the next data, into
// scratch, and gives the data that follows: small ones in scratch as well; of a
// whole chunk the header is in the chunk.
func (p *pipe) nextWrite(a *attachment, scratch []byte) (n int, body []byte, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = nil
	if p.link != a {
		return 0, nil, false
	}
	if p.told < p.received && (p.received-p.told >= ackEvery || p.sent < p.history.next || p.late == nil) {
		header{kind: kindAck, offset: p.received}.put(scratch)
		n = headerSize
		p.told = p.received
	}
	if p.sent == p.history.next {
		return n, nil, n > 0
	}
	c := p.history.at(p.sent)
	data := c.from(p.sent)
	h := header{kind: kindData, length: len(data), offset: p.sent}
	switch {
	case len(data) <= smallWrite:
		h.put(scratch[n:])
		n += headerSize
		n += copy(scratch[n:], data)
	case p.sent == c.start:
		h.put(c.buf[:])
		body, p.busy = c.buf[:headerSize+c.n], c
	default:
		h.put(scratch[n:])
		n += headerSize
		body, p.busy = data, c
	}
	p.sent += uint64(len(data))
	p.letIn()
	return n, body, true
}

// acknowledge forgets what has arrived. Call it with mu held.
func (p *pipe) acknowledge(offset uint64) {
	if offset <= p.acked {
		return
	}
	p.acked = offset
	p.history.drop(offset, p.busy)
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
	if h.kind == kindAck {
		if h.offset > p.sent {
			return fmt.Errorf("%w: acknowledges %d of %d", errFrame, h.offset, p.sent)
		}
		p.acknowledge(h.offset)
		return nil
	}
	if h.offset > p.received {
		return fmt.Errorf("%w: offset %d after %d", errFrame, h.offset, p.received)
	}
	a.left = h.length
	a.skip = int(min(p.received-h.offset, uint64(h.length)))
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
	case p.received-p.told >= ackEvery:
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
	if p.link != nil && p.told < p.received {
		p.link.wake()
	}
}
