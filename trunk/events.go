package trunk

import "time"

// Op says what happened to a trunk.
type Op string

const (
	Parked  Op = "parked"  // it has no link
	Resumed Op = "resumed" // it has one again
	Moved   Op = "moved"   // to a better one, without being parked
	Ended   Op = "ended"
)

// Event is told by a Client and a Server.
type Event struct {
	Op       Op
	Peer     string
	Protocol string
	Away     time.Duration // of Resumed: how long there was none
	Replayed uint64        // of Resumed and Moved: bytes sent again
	Streams  int           // that live on it
	Reason   string        // of Parked and Ended
}
