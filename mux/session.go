package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// ID is the protocol's name in negotiation.
const ID protocol.ID = "/yamux/1.0.0"

const (
	// windowStart is what each stream may send from the start, in bytes, as the
	// protocol has it; a window grows to windowMax where the reader keeps up: it
	// doubles where credit is renewed within windowTrips round trips, and twice
	// within half as many.
	windowStart = 256 << 10
	windowMax   = 16 << 20
	windowTrips = 8
	// backlog bounds the streams that the peer has opened and nobody has taken
	// yet, and those of ours that the peer has not taken.
	backlog = 256
	// pingEvery is how often the peer has to show that it is there, and pingLimit
	// how long it may take.
	pingEvery = 30 * time.Second
	pingLimit = 10 * time.Second
	// sayAfter is how long a new stream waits for a first frame that says of it on
	// the way.
	sayAfter = 5 * time.Millisecond
)

var (
	errClosed    = errors.New("yamux: session closed")
	errExhausted = errors.New("yamux: no stream ids left")
	errPing      = errors.New("yamux: the peer answers no ping")
)

// Transport is yamux as libp2p wants it.
type Transport struct{}

var _ network.Multiplexer = Transport{}

// NewConn starts a session on a connection, which it owns from then on. Of the
// scope each stream reserves its window, 256 KiB to 16 MiB; nil has no bound.
func (Transport) NewConn(c net.Conn, isServer bool, scope network.PeerScope) (network.MuxedConn, error) {
	s := newSession(c, !isServer, scope)
	s.tasks.Go(s.receive)
	s.tasks.Go(s.keep)
	return s, nil
}

// session is a connection and its streams.
type session struct {
	conn   net.Conn
	client bool // its streams have odd ids
	scope  network.PeerScope
	tasks  sync.WaitGroup
	out    sender
	in     receiver

	done chan struct{} // closed when it is over
	trip atomic.Int64  // the last round trip, in ns; 0 before the first

	mu      sync.Mutex
	err     error // why it is over
	reason  error // why we are about to end it; nil while we are not
	streams map[uint32]*stream
	next    uint32    // id of our next stream
	unsaid  []*stream // of which the peer may know nothing yet
	saying  *time.Timer
	pingID  uint32
	pinged  time.Time
	heard   uint64 // reads that had given something when it was looked last
	asked   bool   // it is to be looked next whether more have
	waits   bool   // no answer came yet

	opening  chan struct{} // one for each stream of ours that the peer has not taken
	accepted chan *stream
}

var _ network.MuxedConn = (*session)(nil)

func newSession(c net.Conn, client bool, scope network.PeerScope) *session {
	s := &session{
		conn: c, client: client, scope: scope,
		done:     make(chan struct{}),
		streams:  map[uint32]*stream{},
		next:     2,
		opening:  make(chan struct{}, backlog),
		accepted: make(chan *stream, backlog),
	}
	if client {
		s.next = 1
	}
	s.out.init(s)
	s.in.init(s)
	return s
}

// OpenStream opens a stream. It waits while the peer has too many of ours to
// take. Errors: no memory left in the scope, no ids left, the session's end.
func (s *session) OpenStream(ctx context.Context) (network.MuxedStream, error) {
	select {
	case s.opening <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.done:
		return nil, s.why()
	}
	st, err := s.open()
	if err != nil {
		<-s.opening
		return nil, err
	}
	return st, nil
}

func (s *session) open() (*stream, error) {
	span, err := s.reserve()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err = s.err; err == nil && s.next >= math.MaxUint32-1 {
		err = errExhausted
	}
	if err != nil {
		span.Done()
		return nil, err
	}
	st := newStream(s, s.next, span)
	st.opens, st.untaken = flagSYN, true
	s.next += 2
	s.streams[st.id] = st
	s.sayLater(st)
	return st, nil
}

// reserve takes the memory of one stream.
func (s *session) reserve() (span network.ResourceScopeSpan, err error) {
	if s.scope == nil {
		return &network.NullScope{}, nil
	}
	if span, err = s.scope.BeginSpan(); err != nil {
		return nil, fmt.Errorf("yamux: begin a resource span: %w", err)
	}
	if err = span.ReserveMemory(windowStart, network.ReservationPriorityAlways); err != nil {
		span.Done()
		return nil, err
	}
	return span, nil
}

// AcceptStream waits for the peer to open a stream.
func (s *session) AcceptStream() (network.MuxedStream, error) {
	select {
	case st := <-s.accepted:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sayLater(st)
		return st, nil
	case <-s.done:
		return nil, s.why()
	}
}

// begin takes a stream that the peer opens into the table. Errors end the
// session.
func (s *session) begin(id uint32) error {
	if id == 0 || s.client != (id%2 == 0) {
		return fmt.Errorf("%w: the peer opens stream %d", errFrame, id)
	}
	span, err := s.reserve()
	if err != nil {
		return err
	}
	st := newStream(s, id, span)
	st.opens = flagACK
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[id] != nil || s.err != nil {
		span.Done()
		return fmt.Errorf("%w: stream %d begins twice", errFrame, id)
	}
	select {
	case s.accepted <- st:
		s.streams[id] = st
	default:
		span.Done()
		s.out.soon(header{kind: kindWindow, flags: flagRST, id: id})
	}
	return nil
}

// sayLater has the peer told of a stream where no data says so before. Call it
// with mu held.
func (s *session) sayLater(st *stream) {
	switch s.unsaid = append(s.unsaid, st); {
	case len(s.unsaid) > 1:
	case s.saying == nil:
		s.saying = time.AfterFunc(sayAfter, s.sayNow)
	default:
		s.saying.Reset(sayAfter)
	}
}

func (s *session) sayNow() {
	s.mu.Lock()
	unsaid := s.unsaid
	s.unsaid = nil
	s.mu.Unlock()
	for _, st := range unsaid {
		st.announce()
	}
	s.out.wake()
}

func (s *session) find(id uint32) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

// drop takes a stream out that has ended both ways.
func (s *session) drop(st *stream) {
	s.mu.Lock()
	known := s.streams[st.id] == st
	delete(s.streams, st.id)
	s.mu.Unlock()
	if known {
		st.span.Done()
	}
}

// taken notes that the peer has taken a stream of ours, or never will.
func (s *session) taken() {
	select {
	case <-s.opening:
	default:
	}
}

// IsClosed says that the session is over.
func (s *session) IsClosed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *session) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the session and resets its streams; the peer is not told why.
func (s *session) Close() error {
	s.end(&network.ConnError{TransportError: errClosed})
	s.tasks.Wait()
	return nil
}

// CloseWithError tells the peer why, as far as it takes that within 100 ms, and
// ends the session.
func (s *session) CloseWithError(code network.ConnErrorCode) error {
	why := &network.ConnError{ErrorCode: code, TransportError: errClosed}
	s.mu.Lock()
	s.reason = why
	s.mu.Unlock()
	if uint32(code) != awayNormal {
		s.out.farewell(header{kind: kindGoAway, length: uint32(code)})
	}
	s.end(why)
	s.tasks.Wait()
	return nil
}

// As gives nothing: what is inside is nobody's business.
func (s *session) As(any) bool { return false }

// end ends the session, once.
func (s *session) end(why error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	if s.reason != nil { // whatever came of it
		why = s.reason
	}
	if !errors.Is(why, network.ErrReset) {
		why = fmt.Errorf("%w: connection closed: %w", network.ErrReset, why)
	}
	s.err = why
	streams := s.streams
	s.streams = map[uint32]*stream{}
	s.mu.Unlock()
	close(s.done)
	_ = s.conn.Close()
	s.out.ended()
	for _, st := range streams {
		st.fail(why)
		st.span.Done()
	}
}

// fade ends the session after a failed write: the peer may have said before why
// it would end it.
func (s *session) fade(err error) error {
	err = fmt.Errorf("%w: connection closed: %w", network.ErrReset, errEOF(err))
	time.AfterFunc(farewellLimit, func() { s.end(err) })
	return err
}

// keep writes what others have left to be written, and sees that the peer is
// there.
func (s *session) keep() {
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-s.out.work:
			s.out.flush()
		case <-tick.C:
			next, err := s.ping()
			if err != nil {
				s.end(err)
				return
			}
			s.out.flush()
			tick.Reset(next)
		}
	}
}

// ping asks the peer for an answer, or looks whether anything came since it
// looked last: on a slow link an answer waits behind what else is under way. It
// says when to call it next.
func (s *session) ping() (next time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked = !s.asked; !s.asked {
		reads := s.in.reads.Load()
		if s.waits && reads == s.heard {
			return 0, errPing
		}
		s.heard = reads
		return pingEvery - pingLimit, nil
	}
	s.waits, s.pinged = true, time.Now()
	s.pingID++
	s.out.later(header{kind: kindPing, flags: flagSYN, length: s.pingID})
	return pingLimit, nil
}

// pong takes an answer.
func (s *session) pong(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits && id == s.pingID {
		s.waits = false
		s.trip.Store(int64(max(time.Since(s.pinged), 1)))
	}
}

// roundTrip is the last one, 0 before the first.
func (s *session) roundTrip() time.Duration { return time.Duration(s.trip.Load()) }

// errEOF is what the end of a connection means.
func errEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
