package trunk

import (
	"fmt"
	"sync"
	"time"

	"p2ptun/proto"
)

// Bounds of the trunks that peers have opened.
const (
	maxPerPeer = 16
	maxTrunks  = 1024
)

// Server takes trunks of peers. Fill the fields, then call its methods from any
// goroutine; Close it.
type Server struct {
	// Allowed is asked at each link, before anything is kept for it.
	Allowed func(peer, protocol string) bool
	// Accept takes a stream of a peer, and owns it. It is called on a goroutine
	// of its own.
	Accept func(peer, protocol string, st *Stream)
	// Survive gives the longest time that a trunk of that protocol is kept
	// without a link.
	Survive func(protocol string) time.Duration
	Budget  *Budget
	// Told is told what happens. It must not block. If nil, nobody is.
	Told func(Event)

	mu     sync.Mutex
	closed bool
	trunks map[trunkKey]*incoming
	tasks  sync.WaitGroup
}

// trunkKey: only the peer that has opened a session may resume it.
type trunkKey struct {
	peer, protocol string
	id             sessionID
}

// incoming is a session of a Server.
type incoming struct {
	*session
	key     trunkKey
	survive time.Duration

	joining sync.Mutex // one link after the other
	attempt uint32

	mu   sync.Mutex
	back chan struct{} // closed when it has a link again
}

// Serve takes a link of a peer, whose ID is proven, to one protocol. It returns
// when the link is in use or refused.
func (s *Server) Serve(link Link, peer, protocol string) error {
	if !s.Allowed(peer, protocol) { // what it may have had, Revoke has ended
		return s.refuse(link, verdictRefused)
	}
	late := time.AfterFunc(helloLimit, link.Reset)
	defer late.Stop()
	h, err := readHello(link)
	if err != nil {
		link.Reset()
		return err
	}
	key := trunkKey{peer, protocol, h.session}
	in, v := s.session(key, h)
	if v != verdictOK {
		return s.refuse(link, v)
	}
	return s.join(in, link, h)
}

func (s *Server) refuse(link Link, v verdict) error {
	_ = answer{verdict: v}.write(link)
	if closer, ok := link.(interface{ CloseWrite() error }); ok {
		_ = closer.CloseWrite() // a reset could overtake the answer
		time.AfterFunc(helloLimit, link.Reset)
	} else {
		link.Reset()
	}
	return fmt.Errorf("trunk: hello: %w", errVerdict(v))
}

// session finds the one that a hello is about, or makes it.
func (s *Server) session(key trunkKey, h hello) (*incoming, verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.trunks[key]
	switch {
	case s.closed:
		return nil, verdictRefused
	case h.resume && (in == nil || in.why() != nil):
		return nil, verdictUnknown
	case h.resume:
		return in, verdictOK
	case in != nil:
		return nil, verdictStale
	case len(s.trunks) >= maxTrunks || s.countOf(key.peer) >= maxPerPeer:
		return nil, verdictFull
	}
	return s.make(key, h)
}

// countOf counts a peer's trunks. Call it with mu held.
func (s *Server) countOf(peer string) (n int) {
	for key := range s.trunks {
		if key.peer == peer {
			n++
		}
	}
	return n
}

// make starts a session. Call it with mu held.
func (s *Server) make(key trunkKey, h hello) (*incoming, verdict) {
	in := &incoming{key: key, survive: min(h.survive, s.Survive(key.protocol)), back: make(chan struct{})}
	p := newPipe(func(_ *attachment, err error) { s.away(in, err) })
	mux, err := newSession(p, s.Budget, false)
	if err != nil {
		return nil, verdictFull
	}
	in.session = mux
	if s.trunks == nil {
		s.trunks = map[trunkKey]*incoming{}
	}
	s.trunks[key] = in
	s.tasks.Go(func() {
		in.accept(func(st *Stream) { go s.Accept(key.peer, key.protocol, st) })
		in.end(proto.CodePeerAway)
		s.mu.Lock()
		delete(s.trunks, key)
		s.mu.Unlock()
	})
	return in, verdictOK
}

// join answers a hello and goes on over the link.
func (s *Server) join(in *incoming, link Link, h hello) error {
	in.joining.Lock()
	defer in.joining.Unlock()
	if !h.resume && !s.Allowed(in.key.peer, in.key.protocol) {
		in.end(proto.CodeRevoked) // Revoke may have passed before it was there
		return s.refuse(link, verdictRefused)
	}
	if h.attempt <= in.attempt {
		return s.refuse(link, verdictStale)
	}
	if !s.Allowed(in.key.peer, in.key.protocol) { // the right has gone in the meantime
		in.end(proto.CodeRevoked)
		return s.refuse(link, verdictRefused)
	}
	in.attempt = h.attempt
	a := answer{verdict: verdictOK, received: in.pipe.offsets(), survive: in.survive}
	if err := a.write(link); err != nil {
		link.Reset()
		return err
	}
	if _, err := in.pipe.attach(link, h.received); err != nil {
		link.Reset()
		in.end(proto.CodeNone)
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if !isClosed(in.back) {
		close(in.back)
	}
	return nil
}

// away is called when the link of a session is lost: the peer has survive to
// come back.
func (s *Server) away(in *incoming, why error) {
	in.mu.Lock()
	in.back = make(chan struct{})
	back := in.back
	in.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	since := wall()
	s.tell(in, Event{Op: Parked, Streams: in.count(), Reason: why.Error()})
	s.tasks.Go(func() {
		if in.park(since, in.survive, back) {
			s.tell(in, Event{Op: Ended, Streams: in.count(), Reason: "no link for too long"})
			in.end(proto.CodePeerAway)
			return
		}
		if in.why() == nil {
			s.tell(in, Event{Op: Resumed, Away: wall().Sub(since), Streams: in.count()})
		}
	})
}

func (s *Server) tell(in *incoming, e Event) {
	if s.Told != nil {
		e.Peer, e.Protocol = in.key.peer, in.key.protocol
		s.Told(e)
	}
}

// Revoke ends the trunks of those who are not allowed any more, parked ones
// too.
func (s *Server) Revoke() {
	s.mu.Lock()
	var out []*incoming
	for key, in := range s.trunks {
		if !s.Allowed(key.peer, key.protocol) {
			out = append(out, in)
		}
	}
	s.mu.Unlock()
	for _, in := range out {
		in.end(proto.CodeRevoked)
	}
}

// Close ends all trunks, and returns when nothing of them runs.
func (s *Server) Close(code proto.Code) {
	s.mu.Lock()
	s.closed = true
	var all []*incoming
	for _, in := range s.trunks {
		all = append(all, in)
	}
	s.mu.Unlock()
	for _, in := range all {
		in.end(code)
		in.tasks.Wait()
	}
	s.tasks.Wait()
}
