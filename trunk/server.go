package trunk

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

// Bounds of the trunks that peers have opened.
const (
	maxPerPeer = 16
	maxTrunks  = 1024
	// finishLimit bounds how long a session that ends waits for its last bytes
	// to arrive.
	finishLimit = 2 * time.Second
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
	// Budget bounds memory. If nil, there is no bound but those of each trunk.
	Budget *Budget
	// Told is told what happens. It must not block. If nil, nobody is.
	Told func(Event)

	mu     sync.Mutex
	closed bool
	made   uint64
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
	number  uint64 // rises with each session of the server
	survive time.Duration

	joining sync.Mutex // one link after the other
	attempt uint32     // guarded by joining

	mu    sync.Mutex
	since time.Time     // without a link since then; zero while there is one
	back  chan struct{} // closed when it has a link again
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
	if errors.Is(err, errVersion) {
		return s.refuse(link, verdictVersion)
	}
	if err != nil {
		link.Reset()
		return err
	}
	in, v := s.session(trunkKey{peer, protocol, h.session}, h)
	if v != verdictOK {
		return s.refuse(link, v)
	}
	return s.join(in, link, h)
}

func (s *Server) refuse(link Link, v verdict) error {
	time.AfterFunc(farewell, link.Reset) // also where the answer can't be written
	_ = answer{verdict: v}.write(link)
	_ = link.CloseWrite() // a reset could overtake the answer
	return fmt.Errorf("trunk: hello: %w", errVerdict(v))
}

// session finds the one that a hello is about, or makes it.
func (s *Server) session(key trunkKey, h hello) (*incoming, verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.trunks[key]
	switch {
	case s.closed:
		return nil, verdictFull
	case h.attempt == 0: // they count from 1: join would refuse it
		return nil, verdictStale
	case h.resume && (in == nil || in.why() != nil):
		return nil, verdictUnknown
	case h.resume:
		return in, verdictOK
	case in != nil:
		return nil, verdictStale
	}
	for _, old := range s.trunks {
		s.supersede(old, key)
	}
	if len(s.trunks) >= maxTrunks || s.countOf(key.peer) >= maxPerPeer {
		return nil, verdictFull
	}
	return s.make(key, h)
}

// supersede ends a session without a link that its peer has forgotten: it opens
// another in its place. Call it with mu held.
func (s *Server) supersede(old *incoming, key trunkKey) {
	if old.key.peer != key.peer || old.key.protocol != key.protocol || !old.isParked() {
		return
	}
	s.tasks.Go(func() { s.conclude(old, proto.CodeRestarted, ErrRestarted.Error()) })
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

// make starts a session, which is about to have its first link. Call it
// with mu held.
func (s *Server) make(key trunkKey, h hello) (*incoming, verdict) {
	s.made++
	in := &incoming{key: key, number: s.made, survive: min(h.survive, s.Survive(key.protocol)), back: make(chan struct{})}
	mux, err := newSession(s.Budget, false, func(a *attachment, err error) { s.away(in, a, err) })
	if err != nil {
		return nil, verdictFull
	}
	in.session = mux
	if s.trunks == nil {
		s.trunks = map[trunkKey]*incoming{}
	}
	s.trunks[key] = in
	s.tasks.Go(func() {
		in.accept(func(st *Stream) { s.tasks.Go(func() { s.Accept(key.peer, key.protocol, st) }) })
		in.end(proto.CodePeerAway)
		in.tasks.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.trunks[key] == in {
			delete(s.trunks, key)
		}
	})
	return in, verdictOK
}

// join answers a hello and goes on over the link.
func (s *Server) join(in *incoming, link Link, h hello) error {
	in.joining.Lock()
	defer in.joining.Unlock()
	if h.attempt <= in.attempt {
		return s.refuse(link, verdictStale)
	}
	if !s.Allowed(in.key.peer, in.key.protocol) { // Revoke may have passed before it was there
		in.end(proto.CodeRevoked)
		return s.refuse(link, verdictRefused)
	}
	in.attempt = h.attempt
	a := answer{verdict: verdictOK, received: in.pipe.position(), survive: in.survive}
	from, before := in.pipe.path(), in.pipe.replays()
	if err := a.write(link); err != nil {
		link.Reset()
		if !h.resume {
			s.away(in, nil, err) // the peer may have the answer all the same
		}
		return err
	}
	now, had, err := in.pipe.attach(link, h.received, a.received)
	if err != nil {
		link.Reset()
		in.end(proto.CodeNone)
		return err
	}
	if e := in.linked(now, h, had, from, in.pipe.replays()-before); e.Op != "" {
		s.tell(in, e)
	}
	return nil
}

// linked notes a new link, and gives the event, if it is one. A link that is
// lost already was none: away has passed, or will.
func (in *incoming) linked(a *attachment, h hello, had bool, from registry.Path, replayed uint64) Event {
	in.mu.Lock()
	defer in.mu.Unlock()
	if isClosed(a.gone) {
		return Event{}
	}
	since := in.since
	in.since = time.Time{}
	if !isClosed(in.back) {
		close(in.back)
	}
	switch {
	case !h.resume:
		return Event{}
	case h.move && had:
		return in.moved(from, replayed)
	case since.IsZero(): // the peer has noticed before us
		return in.resumed(0, replayed)
	}
	return in.resumed(wall().Sub(since), replayed)
}

// away is called when the link of a session is lost: the peer has survive to
// come back, unless it has said that it will not. Where another link has taken
// its place meanwhile, that is the one that counts.
func (s *Server) away(in *incoming, a *attachment, why error) {
	in.mu.Lock()
	if a != nil && !in.pipe.isNewest(a) {
		in.mu.Unlock()
		return
	}
	if !isClosed(in.back) { // who waits since an earlier loss
		close(in.back)
	}
	in.back = make(chan struct{})
	back, since := in.back, wall()
	in.since = since
	in.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.tasks.Go(func() {
		var bye endError
		switch {
		case errors.As(why, &bye):
			in.end(bye.code)
		case s.isForgotten(in):
			s.conclude(in, proto.CodeRestarted, ErrRestarted.Error())
		default:
			s.wait(in, since, back, why)
		}
	})
}

// isForgotten says that the peer has opened another session in place of this
// one.
func (s *Server) isForgotten(in *incoming) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, other := range s.trunks {
		if key.peer == in.key.peer && key.protocol == in.key.protocol && other.number > in.number {
			return true
		}
	}
	return false
}

// wait keeps a session without a link.
func (s *Server) wait(in *incoming, since time.Time, back <-chan struct{}, why error) {
	in.parked(since)
	s.tell(in, Event{Op: Parked, Streams: in.count(), Survive: in.survive, Reason: why.Error()})
	if in.park(since, in.survive, back) {
		s.conclude(in, proto.CodePeerAway, "no link for "+in.survive.String())
	}
}

// conclude ends a session that had streams, and tells.
func (s *Server) conclude(in *incoming, code proto.Code, reason string) {
	in.mu.Lock()
	since := in.since
	in.mu.Unlock()
	s.tell(in, Event{Op: Ended, Away: wall().Sub(since), Streams: in.count(), Reason: reason})
	in.end(code)
}

func (in *incoming) isParked() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return !in.since.IsZero()
}

func (s *Server) tell(in *incoming, e Event) {
	if s.Told != nil {
		e.Peer, e.Protocol, e.To = in.key.peer, in.key.protocol, in.pipe.path()
		s.Told(e)
	}
}

// Revoke ends the trunks of those who are not allowed any more, parked ones
// too: their streams at once, and what ended before that may arrive, as on a
// stream of its own.
func (s *Server) Revoke() {
	for _, in := range s.list() {
		if s.Allowed(in.key.peer, in.key.protocol) {
			continue
		}
		in.cutOff(proto.CodeRevoked)
		s.conclusion(in, proto.CodeRevoked)
	}
}

// conclusion finishes a session, but does not wait for that.
func (s *Server) conclusion(in *incoming, code proto.Code) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed { // else Close does it
		s.tasks.Go(func() { in.finish(code, finishLimit) })
	}
}

func (s *Server) list() (all []*incoming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, in := range s.trunks {
		all = append(all, in)
	}
	return all
}

// Count is how many trunks there are, and how many of them have no link.
func (s *Server) Count() (all, parked int) {
	list := s.list()
	for _, in := range list {
		if in.isParked() {
			parked++
		}
	}
	return len(list), parked
}

// Close ends all trunks, and returns when nothing of them runs.
func (s *Server) Close(code proto.Code) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	var ending sync.WaitGroup
	for _, in := range slices.Clone(s.list()) {
		ending.Go(func() { in.finish(code, finishLimit) })
	}
	ending.Wait()
	s.tasks.Wait()
}
