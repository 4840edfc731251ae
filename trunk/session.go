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

const (
	// MaxStreams bounds the streams of one trunk.
	MaxStreams = 24_000
	// tidyEvery is how often what idle streams hold is looked at: who moved
	// nothing in between gives back what it does not need.
	tidyEvery = 5 * time.Second
	// aheadStreams of the peer's that it has not opened yet may send aheadWindow
	// bytes, where the budget has room: else each would begin with a round trip of
	// waiting after leastWindow.
	aheadStreams = 8
	aheadWindow  = 32 << 10
	// trunkMin is what each trunk takes of the budget, in bytes.
	trunkMin = historyMin + historySmall + 2*maxData
)

// session is a yamux over a pipe, at either side.
type session struct {
	pipe   *pipe
	mux    *yamux.Session
	budget *Budget
	initer bool // this side opened the trunk: its streams have odd ids
	tasks  sync.WaitGroup

	mu      sync.Mutex
	came    sync.Cond // a stream of the peer's, or the end
	control *control  // nil until the first stream is there
	words   int64     // bytes for the control stream that came before that
	streams map[uint32]*Stream
	early   map[uint32]early  // streams of the peer's that are not taken yet, or were refused
	ahead   map[uint32]uint64 // first credits of streams that are not open yet, above leastWindow: given by the accepting side
	live    int               // streams that have not left
	highest uint32            // id of the newest stream of the peer's
	opened  uint32            // id of the newest of ours
	next    uint32            // id of the one that the peer opens next
	code    proto.Code
	over    bool
	fate    registry.TrunkStatus
}

// early is what came of a stream before it was taken.
type early struct {
	data    []byte
	fin     bool
	refused bool
}

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	// This also bounds the streams that the peer has not established, and the one
	// beyond would wait in open for ever: the control stream counts, and those
	// whose end yamux has not seen yet.
	c.AcceptBacklog = 2 * MaxStreams
	c.EnableKeepAlive = false                   // a link may be away for long
	c.ConnectionWriteTimeout = 1000 * time.Hour // writes to the pipe do not block
	c.MaxStreamWindowSize = 4 * windowMax       // our own credit is what binds, also before half of this was told
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = 0
	c.LogOutput = io.Discard
	return c
}

// newSession starts yamux over a pipe; on the initiator's side the control
// stream is opened, on the other it is the first to come. Errors: no memory
// left.
func newSession(whole *Budget, initer bool, away func(*attachment, error)) (*session, error) {
	s := &session{budget: whole.part(trunkBudget), initer: initer, streams: map[uint32]*Stream{}, early: map[uint32]early{}, ahead: map[uint32]uint64{}}
	s.came.L = &s.mu
	if s.next = controlID; initer {
		s.next = 2
	}
	if !s.budget.take(trunkMin, 1) {
		return nil, fmt.Errorf("trunk: %w: no memory left for another", registry.ErrFull)
	}
	s.pipe = newPipe(s.budget, away)
	start := yamux.Server
	if initer {
		start = yamux.Client
	}
	var err error
	if s.mux, err = start(&framer{pipe: s.pipe, s: s}, muxConfig()); err != nil {
		s.budget.give(trunkMin)
		return nil, err
	}
	s.tasks.Go(s.tidy)
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
	c := newControl(first)
	s.mu.Lock()
	s.control = c
	c.unread.Store(s.words)
	if !s.initer {
		s.highest = first.StreamID()
	}
	s.promise()
	s.mu.Unlock()
	s.tasks.Go(func() { c.send(s.pipe.ended) })
	s.tasks.Go(func() { s.obey(c) })
}

// obey carries out what the peer says on the control stream.
func (s *session) obey(c *control) {
	for {
		kind, id, value, err := readControl(c.stream)
		if err != nil {
			s.end(proto.CodeNone)
			return
		}
		c.unread.Add(-ctlSize)
		switch st := s.find(id); {
		case st != nil:
			st.obey(kind, value)
		case kind == ctlCredit:
			s.promised(id, value)
		} // else it is gone here
	}
}

// promise gives streams that the peer has not opened yet their first credit. Call
// it with mu held.
func (s *session) promise() {
	if s.over || s.initer {
		return
	}
	for i := range uint32(aheadStreams) {
		id := s.highest + 2*(i+1)
		if id < s.highest {
			return // there are no more ids
		}
		if _, done := s.ahead[id]; done {
			continue
		}
		if !s.budget.take(aheadWindow, budgetForStart) {
			return
		}
		s.ahead[id] = aheadWindow
		s.control.say(ctlCredit, id, aheadWindow)
	}
}

// promised keeps what the peer gives a stream that we have not opened yet, or
// have just.
func (s *session) promised(id uint32, credit uint64) {
	s.mu.Lock()
	st := s.streams[id]
	if st == nil && s.initer && !s.isTheirs(id) && id > s.opened && id <= s.opened+4*aheadStreams {
		s.ahead[id] = min(credit, windowMax)
	}
	s.mu.Unlock()
	if st != nil {
		st.allow(credit)
	}
}

// find gives a stream; one of the peer's that is on its way is waited for.
func (s *session) find(id uint32) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.isTheirs(id) && id > s.highest && !s.over {
		s.came.Wait()
	}
	return s.streams[id]
}

func (s *session) isTheirs(id uint32) bool { return (id%2 == 1) != s.initer }

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
	if !s.budget.take(leastWindow, 1) {
		return nil, fmt.Errorf("trunk: %w: no memory left for another stream", registry.ErrFull)
	}
	ys, err := s.mux.OpenStream()
	if err != nil {
		s.budget.give(leastWindow)
		return nil, err
	}
	s.opened = ys.StreamID()
	st := newStream(s, ys)
	st.credit = max(st.credit, s.firstCredit(s.opened))
	s.streams[s.opened] = st
	s.live++
	st.widen(windowStart, budgetForStart)
	return st, nil
}

// accept hands the peer's streams to f until the session ends. The first is
// the control stream.
func (s *session) accept(f func(*Stream)) {
	for first := true; ; first = false {
		ys, err := s.mux.AcceptStream()
		if err != nil {
			return
		}
		if first {
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
	id := ys.StreamID()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.highest = id
	s.came.Broadcast()
	e, window := s.early[id], s.firstCredit(id)
	defer s.promise()
	if s.over || len(s.streams) >= MaxStreams || window == leastWindow && !s.budget.take(leastWindow, 1) {
		if window > leastWindow {
			s.budget.give(int64(window))
		}
		if e.refused, e.data = true, nil; e.fin {
			delete(s.early, id)
		} else {
			s.early[id] = e
		}
		code := proto.CodeTooMany
		if s.over {
			code = s.code
		}
		s.control.reset(id, code)
		_ = ys.Close()
		return nil
	}
	delete(s.early, id)
	st := newStream(s, ys)
	st.window, st.granted = window, window
	st.got, st.fin = uint64(len(e.data)), e.fin
	if len(e.data) > 0 {
		st.inbox.put(e.data)
	}
	s.streams[id] = st
	s.live++
	return st
}

// firstCredit is what a stream that is about to be may send from the start. Call
// it with mu held.
func (s *session) firstCredit(id uint32) uint64 {
	credit := max(s.ahead[id], leastWindow)
	delete(s.ahead, id)
	return credit
}

// deliver gives a stream what came for it, before yamux would see it; kept says
// that the stream has taken the whole body. What came for one that has ended
// here is dropped. Errors: more than the peer may send.
func (s *session) deliver(id uint32, whole *body, n int) (kept bool, err error) {
	s.mu.Lock()
	if st := s.streams[id]; st != nil {
		s.mu.Unlock()
		return st.deliver(whole, n)
	}
	defer s.mu.Unlock()
	e, known := s.early[id]
	if !known || e.refused {
		return false, nil
	}
	if uint64(len(e.data)+n) > max(s.ahead[id], leastWindow) {
		return false, fmt.Errorf("%w: %d bytes beyond a new stream's credit", errFrame, n)
	}
	e.data = append(e.data, whole.b[:n]...)
	s.early[id] = e
	return false, nil
}

// arrived looks at a frame that begins or ends a stream of the peer's, before
// yamux sees it. Errors: more than may come; a stream that begins out of turn,
// since yamux takes any id, one of ours or one that is used, too, and two would
// be one here.
func (s *session) arrived(id uint32, flags uint16) error {
	fin := flags&(muxFIN|muxRST) != 0
	s.mu.Lock()
	if err := s.begins(id, flags); err != nil {
		s.mu.Unlock()
		return err
	}
	if st := s.streams[id]; st != nil {
		s.mu.Unlock()
		if fin {
			st.finished()
		}
		return nil
	}
	defer s.mu.Unlock()
	e, known := s.early[id]
	if !known {
		return nil // of one that has ended here
	}
	e.fin = e.fin || fin
	if s.early[id] = e; e.refused && e.fin {
		delete(s.early, id)
	}
	return nil
}

// begins notes a stream that the peer opens. Call it with mu held.
func (s *session) begins(id uint32, flags uint16) error {
	if flags&muxSYN == 0 {
		return nil
	}
	if id != s.next {
		return fmt.Errorf("%w: stream %d begins where %d is the next", errFrame, id, s.next)
	}
	s.next += 2
	if len(s.early) >= 2*MaxStreams {
		return fmt.Errorf("%w: more streams than may begin", errFrame)
	}
	if id != controlID {
		s.early[id] = early{}
	}
	return nil
}

// wordsArrived counts what came for the control stream.
func (s *session) wordsArrived(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	unread := s.words + n
	if s.control == nil {
		s.words = unread
	} else {
		unread = s.control.unread.Add(n)
	}
	if unread > maxControl {
		return fmt.Errorf("%w: %d bytes of messages that nobody can read as fast", errFrame, unread)
	}
	return nil
}

// drop takes a stream out that both sides have done with.
func (s *session) drop(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, id)
}

// left counts a stream that this side has done with.
func (s *session) left() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live--
}

// list gives the streams at this moment.
func (s *session) list() []*Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	streams := make([]*Stream, 0, len(s.streams))
	for _, st := range s.streams {
		streams = append(streams, st)
	}
	return streams
}

// tidy has idle streams give back what they hold, until the session ends.
func (s *session) tidy() {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.pipe.ended:
			return
		}
		s.pipe.tidy()
		most := uint64(windowStart)
		if s.budget.scarce() {
			most = leastWindow
		}
		for _, st := range s.list() {
			st.tidy(most)
		}
	}
}

// end resets all streams with that code, once, and tells the peer.
func (s *session) end(code proto.Code) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over, s.code = true, code
	s.came.Broadcast()
	s.mu.Unlock()
	for _, st := range s.list() {
		st.strand(s.why())
	}
	s.pipe.end(code)
	_ = s.mux.Close()
	for _, st := range s.list() {
		st.release()
	}
	s.budget.give(trunkMin)
	if !s.initer {
		s.mu.Lock()
		s.budget.give(aheadWindow * int64(len(s.ahead)))
		clear(s.ahead)
		s.mu.Unlock()
	}
}

// cutOff ends the streams that live here at once; the peer learns it by the
// session's end, which is to come.
func (s *session) cutOff(code proto.Code) {
	for _, st := range s.list() {
		st.cutOff(&registry.ResetError{Code: code, Err: errEnded})
	}
}

// finish ends a session whose streams have ended, after what they have said
// last has arrived, or for as long as limit, and returns when the peer has been
// told, or can't be, by farewell later: its caller may close next what carries
// the link.
func (s *session) finish(code proto.Code, limit time.Duration) {
	by := time.Now().Add(limit)
	s.mu.Lock()
	c := s.control
	s.mu.Unlock()
	if c != nil {
		c.flush(limit)
	}
	s.pipe.flush(time.Until(by))
	s.end(code)
	s.pipe.wait()
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
	return s.live
}
