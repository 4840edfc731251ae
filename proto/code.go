package proto

// Code says why a stream was reset. It crosses the wire as libp2p's stream
// error code (specs: connections, "Error Codes"), in a range of our own:
// libp2p keeps 0x1001-0x1009. A peer that knows none of them, Kubo for one,
// sees a plain reset.
type Code uint32

// The codes are part of the wire protocol: never renumber one.
const (
	CodeNone       Code = 0      // reset without a reason, as Kubo sends it
	CodeRefused    Code = 0x2101 // the peer may not use this protocol
	CodeTargetDown Code = 0x2102 // the service behind the tunnel does not answer
	CodeNoService  Code = 0x2103 // an allowed peer asked for a protocol nobody listens on
	CodeReset      Code = 0x2104 // the TCP connection at the far end was reset
	CodeSilence    Code = 0x2105 // no byte for as long as --silence allows
	CodeClosed     Code = 0x2106 // the owner closed the stream or its tunnel
	CodeRevoked    Code = 0x2107 // the peer's access was taken away
	CodeStopped    Code = 0x2108 // the node stopped
	CodeRestarted  Code = 0x210b // local only: the peer has started anew and knows the connection no more
	CodePeerAway   Code = 0x2109 // local only: no way to the peer at the moment
	CodeTooMany    Code = 0x210a // over a limit of live connections
)

var codeText = map[Code]string{
	CodeNone:       "reset",
	CodeRefused:    "refused",
	CodeTargetDown: "service down",
	CodeNoService:  "no such service",
	CodeReset:      "connection reset",
	CodeSilence:    "silent for too long",
	CodeClosed:     "closed by the owner",
	CodeRevoked:    "access revoked",
	CodeStopped:    "node stopped",
	CodeRestarted:  "peer restarted",
	CodePeerAway:   "peer away",
	CodeTooMany:    "too many connections",
}

// String is the reason in words, as `ls`, events and logs show it.
func (c Code) String() string {
	if text, ok := codeText[c]; ok {
		return text
	}
	return "reset by the peer's libp2p"
}
