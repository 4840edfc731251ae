package registry

import (
	"encoding"
	"fmt"
	"time"
)

// Kind says which end of a tunnel this node is.
type Kind string

const (
	KindListen  Kind = "listen"  // offers a local service
	KindForward Kind = "forward" // brings a peer's service here
)

// Tunnel is the one description of a tunnel: what the command line makes of
// its arguments, what the control API takes and what the disk keeps. Addresses
// and peers are in the normal form that proto's parsers give.
type Tunnel struct {
	// ID is stable for as long as the tunnel lives, across restarts for a kept
	// one. If empty, Register gives one.
	ID       string `json:"id,omitempty"`
	Kind     Kind   `json:"kind"`
	Protocol string `json:"protocol"`

	// Target is where listen dials, a multiaddr.
	Target string `json:"target,omitempty"`
	// Allow are peer IDs let in for as long as the tunnel lives.
	Allow []string `json:"allow,omitempty"`
	// Open lets everybody in.
	Open bool `json:"open,omitempty"`
	// ReportPeerID writes the peer's ID and a newline to the target first.
	ReportPeerID bool `json:"report_peer_id,omitempty"`
	// ProxyProtocol writes a PROXY protocol v2 header to the target first.
	ProxyProtocol bool `json:"proxy_protocol,omitempty"`
	// MaxStreams and MaxRate bound what all peers together may use of a
	// listen: live streams, and bytes a second each way. PeerMaxStreams and
	// PeerMaxRate bound each peer, where no rule says otherwise. Zero: no bound.
	MaxStreams     int   `json:"max_streams,omitempty"`
	MaxRate        int64 `json:"max_rate,omitempty"`
	PeerMaxStreams int   `json:"peer_max_streams,omitempty"`
	PeerMaxRate    int64 `json:"peer_max_rate,omitempty"`

	// Bind is where forward listens, a multiaddr; port 0 takes a free one.
	Bind string `json:"bind,omitempty"`
	// Peers are multiaddrs that end in /p2p/ID, or /dnsaddr/host, in order of
	// preference.
	Peers []string `json:"peers,omitempty"`
	// Invite is the text of an invite that the forward redeems with its first
	// question. It is a secret.
	Invite string `json:"invite,omitempty"`
	// Wait binds even while the peer is away.
	Wait bool `json:"wait,omitempty"`
	// DialTimeout bounds dial and negotiation together, for one connection. If
	// zero, 30 s.
	DialTimeout Duration `json:"dial_timeout,omitempty"`

	// Survive is how long connections are kept while the way to the peer is
	// lost, by the wall clock; for a listen the most that peers may ask for. If
	// nil, 1 h for a forward and 24 h for a listen. With zero a forward opens
	// plain streams, as to a Kubo, and a listen keeps nothing.
	Survive *Duration `json:"survive,omitempty"`
	// Silence ends a connection without a byte for that long. If zero, never.
	Silence Duration `json:"silence,omitempty"`
	// Custom allows a protocol outside /x/.
	Custom bool `json:"custom,omitempty"`
	// Keep makes it outlive the command that opened it, and restarts.
	Keep bool `json:"keep,omitempty"`
}

// What Tunnel.Survive is if it is not given, and at most.
const (
	DefaultSurvive    = time.Hour
	DefaultSurviveMax = 24 * time.Hour
	MaxSurvive        = 30 * 24 * time.Hour
)

// SurviveTime is Survive, or what it is if it is not given.
func (t Tunnel) SurviveTime() time.Duration {
	switch {
	case t.Survive != nil:
		return time.Duration(*t.Survive)
	case t.Kind == KindListen:
		return DefaultSurviveMax
	}
	return DefaultSurvive
}

// access is a listener's, in a word.
func (t Tunnel) access() string {
	if t.Open {
		return "open"
	}
	return "closed"
}

// Duration is a time.Duration that is text ("30s") in JSON.
type Duration time.Duration

var (
	_ encoding.TextMarshaler   = Duration(0)
	_ encoding.TextUnmarshaler = (*Duration)(nil)
)

// MarshalText writes it as time.Duration.String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads; negative is refused.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	if v < 0 {
		return fmt.Errorf("duration %s is negative", v)
	}
	*d = Duration(v)
	return nil
}

// State is where a tunnel is in its life.
type State string

const (
	StateStarting State = "starting"
	StateReady    State = "ready"
	StateWaiting  State = "waiting"  // for the peer
	StateRetrying State = "retrying" // failed, and trying again
	StateClosed   State = "closed"
)

// TunnelStatus is what `ls` shows of a tunnel at one moment.
type TunnelStatus struct {
	ID       string `json:"id"`
	Kind     Kind   `json:"kind"`
	Protocol string `json:"protocol"`
	Bind     string `json:"bind,omitempty"`
	Target   string `json:"target,omitempty"`
	Peer     string `json:"peer,omitempty"`
	// Path is the way that a new stream of a forward takes; nil while there is
	// none. Whoever knows the network fills it in.
	Path     *Path  `json:"path,omitempty"`
	Access   string `json:"access,omitempty"`
	State    State  `json:"state"`
	Reason   string `json:"reason"` // of the state; then what limits did, after "; "
	Kept     bool   `json:"kept"`
	Streams  int64  `json:"streams"`
	Total    int64  `json:"streams_total"`
	BytesIn  int64  `json:"bytes_in"`
	BytesOut int64  `json:"bytes_out"`
}
