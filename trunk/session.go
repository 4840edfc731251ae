package trunk

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"p2ptun/proto"
	"p2ptun/registry"
)

// MaxStreams bounds the streams of one trunk that one side has opened.
const MaxStreams = 24_000

// session is a yamux over a pipe, at either side.
type session struct {
	pipe    *pipe
	mux     *yamux.Session
	control *control
	budget  *Budget
	initer  bool // this side opened the trunk: its streams have odd ids
	tasks   sync.WaitGroup

	mu      sync.Mutex
	came    sync.Cond // a stream of the peer's, or the end
	streams map[uint32]*Stream
	highest uint32 // id of the newest stream of the peer's
	code    proto.Code
	over    bool
}

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = MaxStreams
	c.EnableKeepAlive = false                   // a link may be away for long
	c.ConnectionWriteTimeout = 1000 * time.Hour // writes to the pipe do not block
	c.MaxStreamWindowSize = windowMax           // our own credit is what binds
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = 0
	c.LogOutput = io.Discard
	return c
}

// newSession starts yamux over a pipe; on the initiator's side the control
// stream is opened, on the other it is the first to come.
func newSession(p *pipe, budget *Budget, initer bool) (*session, error) {
	s := &session{pipe: p, budget: budget, initer: initer, streams: map[uint32]*Stream{}}
	s.came.L = &s.mu
	start := yamux.Server
	if initer {
		start = yamux.Client
	}
	var err error
	if s.mux, err = start(p, muxConfig()); err != nil {
		return nil, err
	}
	if initer {
		first, err := s.mux.OpenStream()
		if err != nil {
			return nil, err
		}
		s.begin(first)
	}
	return s, nil
}

// begin starts the control stream.
func (s *session) begin(first *yamux.Stream) {
	s.control = newControl(first)
	s.tasks.Go(func() { s.control.send(s.pipe.ended) })
	s.tasks.Go(s.obey)
}

// obey carries out what the peer says on the control stream.
func (s *session) obey() {
	for {
		kind, id, value, err := readControl(s.control.stream)
		if err != nil {
			s.end(proto.CodeNone)
			return
		}
		st := s.find(id)
		if st == nil {
			continue // it is gone here
		}
		switch kind {
		case ctlReset:
			st.cutOff(&registry.ResetError{Code: proto.Code(value), Err: errReset})
		case ctlCredit:
			st.allow(value)
		case ctlBlocked:
			st.blocked(value)
		case ctlEnd:
			st.finish(value)
		}
	}
}

// find gives a stream; one of the peer's that is on its way is waited for.
func (s *session) find(id uint32) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	theirs := (id%2 == 1) != s.initer
	for theirs && id > s.highest && !s.over {
		s.came.Wait()
	}
	return s.streams[id]
}

// open opens a stream; nothing waits for the peer.
func (s *session) open() (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, s.reason()
	}
	if len(s.streams) >= MaxStreams {
		return nil, fmt.Errorf("trunk: %w: %d streams", registry.ErrFull, MaxStreams)
	}
	if !s.budget.force(leastWindow) {
		return nil, fmt.Errorf("trunk: %w: no memory left for another stream", registry.ErrFull)
	}
	ys, err := s.mux.OpenStream()
	if err != nil {
		s.budget.give(leastWindow)
		return nil, err
	}
	st := newStream(s, ys)
	s.streams[ys.StreamID()] = st
	st.widen(windowStart, budgetForStart)
	return st, nil
}

// accept hands the peer's streams to f until the session ends. The first is
// the control stream.
func (s *session) accept(f func(*Stream)) {
	for {
		ys, err := s.mux.AcceptStream()
		if err != nil {
			return
		}
		if s.control == nil {
			s.begin(ys)
			continue
		}
		if st := s.admit(ys); st != nil {
			st.widen(windowStart, budgetForStart)
			f(st)
		}
	}
}

// admit takes a stream of the peer's into the table.
func (s *session) admit(ys *yamux.Stream) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.highest = ys.StreamID()
	s.came.Broadcast()
	if s.over || len(s.streams) >= MaxStreams || !s.budget.force(leastWindow) {
		s.control.reset(ys.StreamID(), proto.CodeTooMany)
		_ = ys.Close()
		return nil
	}
	st := newStream(s, ys)
	s.streams[ys.StreamID()] = st
	return st
}

func (s *session) remove(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, id)
}

// end resets all streams with that code, once.
func (s *session) end(code proto.Code) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over, s.code = true, code
	streams := make([]*Stream, 0, len(s.streams))
	for _, st := range s.streams {
		streams = append(streams, st)
	}
	s.came.Broadcast()
	s.mu.Unlock()
	for _, st := range streams {
		st.cutOff(s.why())
	}
	s.pipe.end(errEnded)
	_ = s.mux.Close()
}

// why is nil while the session lives.
func (s *session) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		return nil
	}
	return s.reason()
}

// reason is why it ended. Call it with mu held.
func (s *session) reason() error {
	return &registry.ResetError{Code: s.code, Err: errEnded}
}

// count is how many streams live.
func (s *session) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}
