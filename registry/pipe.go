package registry

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"p2ptun/proto"
)

// Pipe registers a stream of a tunnel and pumps it both ways until both have
// ended, then takes it out again and releases both ends, which it owns from
// the call on. It returns at once; two goroutines carry the stream. A
// half-close one way closes one way; an error resets both.
//
// Errors: ErrClosed for a tunnel that has gone, ErrFull; both ends are then
// reset.
func (r *Registry) Pipe(e *Entry, s *Stream, local, remote End) error {
	s.join(e, local, remote)
	s.opened = now()
	if err := r.admit(s); err != nil {
		s.unthrottle()
		_ = local.Reset(proto.CodeClosed)
		_ = remote.Reset(proto.CodeClosed)
		return err
	}
	r.tell(StreamOpened, s)
	if silence := time.Duration(e.Tunnel.Silence); silence > 0 {
		s.silence = s.watch(silence, s.passed, proto.CodeSilence)
	}
	for _, w := range []*way{&s.out, &s.in} {
		if !w.push(func() { go s.carry(w) }) {
			go s.carry(w)
		}
	}
	return nil
}

func (r *Registry) admit(s *Stream) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tunnels[s.entry.Tunnel.ID] != s.entry {
		return ErrClosed
	}
	if len(r.streams) >= MaxStreams {
		return fmt.Errorf("streams: %w: %d", ErrFull, MaxStreams)
	}
	r.lastStream++
	s.id = r.lastStream
	r.streams[s.id] = s
	r.pumps.join(2)
	r.opened.Add(1)
	s.entry.total.Add(1)
	s.entry.live.Add(1)
	return nil
}

// join makes the two ways between the ends.
func (s *Stream) join(e *Entry, local, remote End) {
	s.entry, s.local, s.remote = e, local, remote
	s.out.dst, s.out.src, s.out.back = remote, local, &s.in
	s.out.sums = [2]*atomic.Int64{&e.bytesOut, &e.reg.bytesOut}
	s.in.dst, s.in.src, s.in.back = local, remote, &s.out
	s.in.sums = [2]*atomic.Int64{&e.bytesIn, &e.reg.bytesIn}
	if s.Throttle != nil {
		s.Throttle.pace(s)
	}
}

func (s *Stream) unthrottle() {
	if s.Throttle != nil {
		s.Throttle.leave()
	}
}

// carry copies one way, until it is parked or has ended.
func (s *Stream) carry(w *way) {
	err := s.copyToEnd(w)
	if err == errParked {
		return
	}
	defer s.entry.reg.pumps.leave()
	switch {
	case err == nil:
	case s.byLocal(w, err):
		s.abortByLocal(resetCode(err))
	default:
		s.abort(resetCode(err))
	}
	s.end()
}

func (s *Stream) copyToEnd(w *way) error {
	err := w.copy()
	switch {
	case err == nil:
		return s.passEnd(w)
	case errors.As(err, new(writeError)) && s.mayLinger(w, err):
		return s.linger(w, err)
	}
	return err
}

// passEnd ends the way at dst, which may have gone. Where it is the local
// side, nobody is left to tell, and the way out finds out by itself; of a socket
// whose other way has ended, the Close that follows ends both. Where it is a peer
// that has sent all and reads no more, as Kubo over QUIC, that is no reason to reset
// the local side.
func (s *Stream) passEnd(w *way) error {
	if _, socket := w.dst.(*connEnd); socket && s.otherWayEnded() {
		return nil
	}
	err := w.dst.CloseWrite()
	if err == nil || w == &s.in {
		return nil
	}
	if s.otherWayEnded() {
		_ = w.dst.Reset(proto.CodeReset)
		return nil
	}
	return err
}

func (s *Stream) otherWayEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended == 1 && !s.aborted
}

// end notes that one way has ended. The second to end releases the ends and
// takes the stream out.
func (s *Stream) end() {
	s.mu.Lock()
	s.ended++
	last, aborted := s.ended == 2, s.aborted
	s.mu.Unlock()
	if !last {
		return
	}
	if !aborted {
		_ = s.local.Close()
		_ = s.remote.Close()
	}
	s.entry.reg.remove(s)
}

// resetCode gives the reason that travels on.
func resetCode(err error) proto.Code {
	var reset *ResetError
	if errors.As(err, &reset) {
		return reset.Code
	}
	return proto.CodeReset
}

// abort resets both ends, once: the local one first, which never blocks for
// long. A remote Reset may wait for room on a link that is stuck.
func (s *Stream) abort(code proto.Code) {
	if s.markAborted(code) {
		_ = s.local.Reset(code)
		_ = s.remote.Reset(code)
	}
}

// markAborted reports false where there is nothing to reset any more: what
// both ways have sent may still be under way, and a reset would destroy it.
func (s *Stream) markAborted(code proto.Code) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted || s.ended == 2 {
		return false
	}
	s.aborted, s.code = true, code
	if s.aborting != nil {
		close(s.aborting)
	}
	return true
}

// remove takes the stream out and tells of it. What is counted is up to date
// before anybody can see that the stream has gone.
func (r *Registry) remove(s *Stream) {
	if s.silence != nil {
		s.silence.stop()
	}
	if s.aborted { // nobody writes it any more
		r.resets.add(s.code)
	}
	s.unthrottle()
	r.takeOut(s)
	r.tell(StreamClosed, s)
	if s.OnClosed != nil {
		s.OnClosed(s)
	}
}

// tell publishes a stream's beginning or end, where somebody listens.
func (r *Registry) tell(op StreamOp, s *Stream) {
	if r.Events.StreamsWanted() {
		r.publish(op, s)
	}
}

// publish has a large frame, which most streams are spared.
//
//go:noinline
func (r *Registry) publish(op StreamOp, s *Stream) {
	at := s.opened
	if op == StreamClosed {
		at = now()
	}
	r.Events.Publish(StreamEvent{Time: at, Op: op, Stream: s.Status()})
}

func (r *Registry) takeOut(s *Stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.streams, s.id)
	s.entry.live.Add(-1)
	if r.idle != nil {
		close(r.idle)
		r.idle = nil
	}
}

// passed counts the bytes of both ways, as far as moved does.
func (s *Stream) passed() int64 { return s.in.moved() + s.out.moved() }
