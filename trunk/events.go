package trunk

import (
	"time"

	"p2ptun/registry"
)

// Op says what happened to a trunk.
type Op string

const (
	Parked  Op = "parked"  // it has no link
	Resumed Op = "resumed" // it has one again
	Moved   Op = "moved"   // to another link, without being parked
	Ended   Op = "ended"   // with the streams that lived on it
)

// Event is told by a Client and a Server.
type Event struct {
	Op       Op
	Peer     string
	Protocol string
	Opener   bool          // this side has opened the trunk
	Away     time.Duration // of Resumed and Ended: how long there was no link
	Survive  time.Duration // of Parked: for how long it is kept
	Replayed uint64        // of Resumed and Moved: bytes that this side sent again
	From, To registry.Path // of Resumed and Moved: To; of Moved: From
	Streams  int           // that live on it
	Reason   string        // of Parked and Ended
}
