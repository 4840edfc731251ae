package daemon

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"p2ptun/proto"
	"p2ptun/registry"
)

// Refusals are told one by one up to a small number, then one in a while with
// the count of those that were not told: a stranger can't make the owner's
// screen scroll.
const (
	refusalBurst = 5
	refusalEvery = 10 * time.Second
)

type refusals struct {
	events *registry.Dispatcher
	// Names that nobody listens on have a limit of their own: whoever makes
	// them up must not use up the lines of those that the owner is to see.
	offered, others told
}

// told limits lines, and counts those that were not said.
type told struct {
	limit *rate.Limiter

	mu     sync.Mutex
	unsaid int64
}

func newRefusals(events *registry.Dispatcher) *refusals {
	r := &refusals{events: events}
	r.offered.limit = rate.NewLimiter(rate.Every(refusalEvery), refusalBurst)
	r.others.limit = rate.NewLimiter(rate.Every(refusalEvery), refusalBurst)
	return r
}

// add takes one refusal of a peer; offered says that somebody listens on the
// protocol here. Nothing of it is kept.
func (r *refusals) add(peer, protocol, reason string, offered bool) {
	t := &r.others
	if offered {
		t = &r.offered
	}
	unsaid, say := t.say()
	if !say {
		return
	}
	r.events.Publish(registry.RefusedEvent{
		Time: time.Now(), Peer: peer, Protocol: proto.Printable(protocol, proto.MaxName), Reason: reason, Unsaid: unsaid,
	})
}

// say says whether a line may be said now, and how many were not since the
// last.
func (t *told) say() (unsaid int64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.limit.Allow() {
		t.unsaid++
		return 0, false
	}
	unsaid, t.unsaid = t.unsaid, 0
	return unsaid, true
}
