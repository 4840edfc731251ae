package daemon

import (
	"maps"
	"slices"
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

// One that asks again and again is told once in a while: it must not use up
// the lines of the others.
const (
	refusalAgain = 10 * time.Minute
	maxRecent    = 256 // of these are remembered
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
	recent map[asker]time.Time // when each was told
}

// asker is a peer and what it asked for.
type asker struct{ peer, protocol string }

func newRefusals(events *registry.Dispatcher) *refusals {
	r := &refusals{events: events}
	r.offered.limit = rate.NewLimiter(rate.Every(refusalEvery), refusalBurst)
	r.others.limit = rate.NewLimiter(rate.Every(refusalEvery), refusalBurst)
	return r
}

// add takes one refusal of a peer; offered says that somebody listens on the
// protocol here.
func (r *refusals) add(peer, protocol, reason string, offered bool) {
	t := &r.others
	if offered {
		t = &r.offered
	}
	who := asker{peer, proto.Printable(protocol, proto.MaxName)}
	unsaid, say := t.say(who)
	if !say {
		return
	}
	r.events.Publish(registry.RefusedEvent{
		Time: time.Now(), Peer: peer, Protocol: who.protocol, Reason: reason, Unsaid: unsaid,
	})
}

// say says whether a line may be said now, and how many were not since the
// last.
func (t *told) say(who asker) (unsaid int64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at, ok := t.recent[who]; ok && time.Since(at) < refusalAgain || !t.limit.Allow() {
		t.unsaid++
		return 0, false
	}
	t.remember(who)
	unsaid, t.unsaid = t.unsaid, 0
	return unsaid, true
}

// remember notes one that is told now, instead of the oldest where there are
// too many.
func (t *told) remember(who asker) {
	delete(t.recent, who)
	if len(t.recent) >= maxRecent {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(t.recent)), func(a, b asker) int { return t.recent[a].Compare(t.recent[b]) })
		delete(t.recent, oldest)
	}
	if t.recent == nil {
		t.recent = map[asker]time.Time{}
	}
	t.recent[who] = time.Now()
}
