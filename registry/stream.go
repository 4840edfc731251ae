package registry

import (
	"sync"
	"time"

	"p2ptun/proto"
)

// Path says over what a stream runs, taken from its own connection.
type Path struct {
	Relayed   bool   `json:"relayed"`
	Relay     string `json:"relay,omitempty"` // the relay's peer ID
	Transport string `json:"transport"`       // tcp, quic
	Addr      string `json:"addr"`            // the peer's, or the relay's, multiaddr
	// RTTms is the last round trip that was measured on that connection; 0 for
	// none yet.
	RTTms float64 `json:"rtt_ms,omitempty"`
	// What is left of a relay's limit when this was asked; 0 where there is
	// none.
	LimitBytes   int64  `json:"limit_bytes,omitempty"`
	LimitSeconds int64  `json:"limit_seconds,omitempty"`
	Local        string `json:"-"` // this node's own end of the connection, a multiaddr
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
	OnClosed func(*Stream)
	Throttle *Throttle // if nil, the stream goes as fast as it can

	id      uint64
	entry   *Entry
	opened  time.Time
	local   End
	remote  End
	in, out way

	mu       sync.Mutex
	ended    int // ways that have ended
	aborted  bool
	code     proto.Code
	aborting chan struct{} // closed by the abort; nil while nobody waits for it, see abortion
	silence  *watchdog
}

// StreamStatus is what `stream ls` shows at one moment. In is from the peer to
// the local side, out the other way.
type StreamStatus struct {
	ID       uint64 `json:"id"`
	Tunnel   string `json:"tunnel"`
	Kind     Kind   `json:"kind"`
	Protocol string `json:"protocol"`
	Peer     string `json:"peer"`
	Origin   string `json:"origin"`
	Path     Path   `json:"path"`
	// Trunk is how the trunk under the stream has fared; nil for a plain stream.
	Trunk    *TrunkStatus `json:"trunk,omitempty"`
	Opened   time.Time    `json:"opened"`
	BytesIn  int64        `json:"bytes_in"`
	BytesOut int64        `json:"bytes_out"`
	Reset    string       `json:"reset,omitempty"` // why it was reset; empty while live and after a clean end

	Code proto.Code `json:"-"`
}

// ID is unique in this process.
func (s *Stream) ID() uint64 { return s.id }

// Code is why the stream was reset; CodeNone while it is live and after a clean
// end.
func (s *Stream) Code() proto.Code {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.code
}

// Entry is the tunnel that the stream belongs to.
func (s *Stream) Entry() *Entry { return s.entry }

// pathNow is the path with what changes: the round trip, what is left of a
// limit. An End that runs over a network knows it.
func (s *Stream) pathNow() Path {
	if end, ok := s.remote.(interface{ Path() Path }); ok {
		return end.Path()
	}
	return s.Path
}

// trunkNow is how the trunk under the stream has fared; nil where there is
// none.
func (s *Stream) trunkNow() *TrunkStatus {
	end, ok := s.remote.(interface{ Trunk() TrunkStatus })
	if !ok {
		return nil
	}
	st := end.Trunk()
	return &st
}

// Status is the stream at this moment.
func (s *Stream) Status() StreamStatus {
	st := StreamStatus{
		ID: s.id, Tunnel: s.entry.Tunnel.ID, Kind: s.entry.Tunnel.Kind, Protocol: s.entry.Tunnel.Protocol,
		Peer: s.Peer, Origin: s.Origin, Path: s.pathNow(), Trunk: s.trunkNow(), Opened: s.opened,
		BytesIn: s.in.n.Load(), BytesOut: s.out.n.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted {
		st.Reset, st.Code = s.code.String(), s.code
	}
	return st
}

// TrunkStatus says how the trunk under a stream has fared: it outlives its
// links.
type TrunkStatus struct {
	// Parked is since when it has no link; zero while it has one.
	Parked   time.Time `json:"parked,omitzero"`
	Resumed  int       `json:"resumed"`        // times that it got a link again
	Moved    int       `json:"moved"`          // times that it went over to a better path
	Replayed uint64    `json:"bytes_replayed"` // that this side sent again
	AwayMs   int64     `json:"away_ms"`        // without a link, in all
}
