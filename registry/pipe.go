package registry

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"p2ptun/proto"
)

// Lingering: the local side has sent everything and gone, and the peer still
// answers. A reset at once would destroy bytes of the local side that are
// still under way to the peer, so the answer is taken and thrown away for a
// moment, up to a bound, before the reset.
const (
	lingerTime  = 10 * time.Second
	lingerBytes = 1 << 20
)

// Path says over what a stream runs, taken from its own connection.
type Path struct {
	Relayed   bool   `json:"relayed"`
	Relay     string `json:"relay,omitempty"` // the relay's peer ID
	Transport string `json:"transport"`       // tcp, quic
	Addr      string `json:"addr"`            // the peer's, or the relay's, multiaddr
}

// Incoming is a stream that a peer has opened. Its receiver owns End.
type Incoming struct {
	Peer     string
	Protocol string // as the peer sent it
	Path     Path
	End      End
}

// Stream is one forwarded connection in the table, from Pipe until both ways
// have ended.
type Stream struct {
	// Set by the caller of Pipe.
	Peer     string
	Path     Path
	Origin   string // the local client's or target's address
	OnClosed func(StreamStatus)

	id      uint64
	entry   *Entry
	opened  time.Time
	local   End
	remote  End
	in, out atomic.Int64

	mu       sync.Mutex
	ended    int  // ways that have ended
	sentAll  bool // local to remote ended with a half-close
	aborted  bool
	code     proto.Code
	watchdog *time.Timer

	small [2][smallRead]byte
}

// StreamStatus is what `stream ls` shows at one moment. In is from the peer to
// the local side, out the other way.
type StreamStatus struct {
	ID       uint64    `json:"id"`
	Tunnel   string    `json:"tunnel"`
	Kind     Kind      `json:"kind"`
	Protocol string    `json:"protocol"`
	Peer     string    `json:"peer"`
	Origin   string    `json:"origin"`
	Path     Path      `json:"path"`
	Opened   time.Time `json:"opened"`
	BytesIn  int64     `json:"bytes_in"`
	BytesOut int64     `json:"bytes_out"`
	Reset    string    `json:"reset,omitempty"` // why it was reset; empty while live and after a clean end

	Code proto.Code `json:"-"`
}

// ID is unique in this process.
func (s *Stream) ID() uint64 { return s.id }

// Entry is the tunnel that the stream belongs to.
func (s *Stream) Entry() *Entry { return s.entry }

// Status is the stream at this moment.
func (s *Stream) Status() StreamStatus {
	st := StreamStatus{
		ID: s.id, Tunnel: s.entry.Tunnel.ID, Kind: s.entry.Tunnel.Kind, Protocol: s.entry.Tunnel.Protocol,
		Peer: s.Peer, Origin: s.Origin, Path: s.Path, Opened: s.opened,
		BytesIn: s.in.Load(), BytesOut: s.out.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted {
		st.Reset, st.Code = s.code.String(), s.code
	}
	return st
}

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
	if r.Events.Active() {
		r.Events.Publish(StreamEvent{Time: s.opened, Op: StreamOpened, Stream: s.Status()})
	}
	if silence := time.Duration(e.Tunnel.Silence); silence > 0 {
		s.watch(silence)
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
	r.pumps.Add(2)
	r.opened.Add(1)
	s.entry.total.Add(1)
	s.entry.live.Add(1)
	return nil
}

// carryOut pumps local to remote.
func (s *Stream) carryOut() {
	defer s.entry.reg.pumps.Done()
	err := copyEnd(s.remote, s.local, s.small[0][:], s.countOut)
	if err == nil {
		s.mu.Lock()
		s.sentAll = true
		s.mu.Unlock()
		err = s.remote.CloseWrite()
	}
	s.end(err)
}

// carryIn pumps remote to local.
func (s *Stream) carryIn() {
	defer s.entry.reg.pumps.Done()
	err := copyEnd(s.local, s.remote, s.small[1][:], s.countIn)
	if err == nil {
		// The local side may have gone altogether: then there is nobody left
		// to tell, and the way out finds out by itself.
		_ = s.local.CloseWrite()
	} else if errors.As(err, new(writeError)) && s.localGone() {
		err = s.linger(err)
	}
	s.end(err)
}

func (s *Stream) localGone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sentAll && !s.aborted
}

// linger takes the peer's answer and drops it, until the peer is done, the
// bound is reached and the time is over, or the stream is reset.
func (s *Stream) linger(cause error) error {
	timer := time.AfterFunc(lingerTime, func() { s.abort(proto.CodeReset) })
	defer timer.Stop()
	for taken := 0; taken < lingerBytes; {
		n, err := s.remote.Read(s.small[1][:])
		taken += n
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return cause
		}
	}
	return cause
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
	s.mu.Lock()
	first = !s.aborted
	if first {
		s.aborted, s.code = true, code
	}
	s.mu.Unlock()
	if first {
		_ = s.local.Reset(code)
	}
	return first
}

func (r *Registry) remove(s *Stream) {
	r.mu.Lock()
	delete(r.streams, s.id)
	if r.idle != nil {
		close(r.idle)
		r.idle = nil
	}
	r.mu.Unlock()
	s.entry.live.Add(-1)
	s.mu.Lock()
	if s.aborted {
		r.resets.add(s.code)
	}
	if s.watchdog != nil {
		s.watchdog.Stop()
	}
	s.mu.Unlock()
	if r.Events.Active() {
		r.Events.Publish(StreamEvent{Time: now(), Op: StreamClosed, Stream: s.Status()})
	}
	if s.OnClosed != nil {
		s.OnClosed(s.Status())
	}
}

// watch resets the stream when no byte has passed either way for the limit;
// it looks four times in that time, so the reset comes up to a quarter late.
func (s *Stream) watch(limit time.Duration) {
	const looks = 4
	var seen int64
	quiet := 0
	step := max(limit/looks, time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchdog = time.AfterFunc(step, func() {
		if passed := s.in.Load() + s.out.Load(); passed != seen {
			seen, quiet = passed, 0
		} else if quiet++; quiet >= looks {
			s.abort(proto.CodeSilence)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ended < 2 {
			s.watchdog.Reset(step)
		}
	})
}

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
