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
	limit  *rate.Limiter

	mu     sync.Mutex
	unsaid int64
}

func newRefusals(events *registry.Dispatcher) *refusals {
	return &refusals{events: events, limit: rate.NewLimiter(rate.Every(refusalEvery), refusalBurst)}
}

// add takes one refusal of a peer. Nothing of it is kept.
func (r *refusals) add(peer, protocol string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.limit.Allow() {
		r.unsaid++
		return
	}
	r.events.Publish(registry.RefusedEvent{
		Time: time.Now(), Peer: peer, Protocol: proto.Printable(protocol, proto.MaxName),
		Reason: "not allowed", Unsaid: r.unsaid,
	})
	r.unsaid = 0
}
