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
	s.entry, s.local, s.remote, s.opened = e, local, remote, now()
	if err := r.admit(s); err != nil {
		_ = local.Reset(proto.CodeClosed)
		_ = remote.Reset(proto.CodeClosed)
		return err
	}
	if r.Events.StreamsWanted() {
		r.Events.Publish(StreamEvent{Time: s.opened, Op: StreamOpened, Stream: s.Status()})
	}
	if silence := time.Duration(e.Tunnel.Silence); silence > 0 {
		s.silence = s.watch(silence, s.passed, proto.CodeSilence)
	}
	go s.carryOut()
	go s.carryIn()
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

// carryOut pumps local to remote.
func (s *Stream) carryOut() {
	defer s.entry.reg.pumps.leave()
	s.end(s.carry(s.remote, s.local, s.countOut, &s.in))
}

// carryIn pumps remote to local.
func (s *Stream) carryIn() {
	defer s.entry.reg.pumps.leave()
	s.end(s.carry(s.local, s.remote, s.countIn, &s.out))
}

// carry copies one way until it ends; back counts the bytes of the other way.
func (s *Stream) carry(dst, src End, count func(int), back *atomic.Int64) error {
	err := copyEnd(dst, src, count)
	if takesNoMore(err) {
		return s.linger(src, back, err)
	}
	if err != nil {
		return err
	}
	err = dst.CloseWrite()
	if dst == s.local {
		// The local side may have gone altogether: then there is nobody left
		// to tell, and the way out finds out by itself.
		return nil
	}
	return err
}

// end notes that one way has ended: cleanly, or with an error, which resets
// both. The second to end releases the ends and takes the stream out.
func (s *Stream) end(err error) {
	if err != nil {
		s.abort(resetCode(err))
	}
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

// abort resets both ends, once.
func (s *Stream) abort(code proto.Code) {
	if s.abortLocal(code) {
		_ = s.remote.Reset(code)
	}
}

// abortLocal resets the local end, which never blocks; the remote end is still
// to be reset where it returns true. A remote Reset may wait for room on a
// link that is stuck.
func (s *Stream) abortLocal(code proto.Code) (first bool) {
	if !s.markAborted(code) {
		return false
	}
	_ = s.local.Reset(code)
	return true
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
	last := s.Status()
	if s.aborted { // nobody writes it any more
		r.resets.add(s.code)
	}
	r.takeOut(s)
	if r.Events.StreamsWanted() {
		r.Events.Publish(StreamEvent{Time: now(), Op: StreamClosed, Stream: last})
	}
	if s.OnClosed != nil {
		s.OnClosed(last)
	}
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

// passed counts the bytes of both ways.
func (s *Stream) passed() int64 { return s.in.Load() + s.out.Load() }

func (s *Stream) countOut(n int) {
	s.out.Add(int64(n))
	s.entry.bytesOut.Add(int64(n))
	s.entry.reg.bytesOut.Add(int64(n))
}

func (s *Stream) countIn(n int) {
	s.in.Add(int64(n))
	s.entry.bytesIn.Add(int64(n))
	s.entry.reg.bytesIn.Add(int64(n))
}
