package registry

import (
	"container/list"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// A rate is bytes a second. A bucket holds a share of a second, so that the
// long-run rate is exact and short words go at once, and not less than
// leastBurst; whoever has to wait does so for one share at a time, so that a
// slow rate is smooth.
const (
	sharesASecond = 8
	leastBurst    = 16 << 10
	mostShare     = 1 << 30
)

func shareOf(bytesASecond int64) int { return int(min(max(bytesASecond/sharesASecond, 1), mostShare)) }
func burstOf(bytesASecond int64) int { return max(shareOf(bytesASecond), leastBurst) }

// maxIdleThrottles bounds the peers of a tunnel that are remembered for their
// bucket alone.
const maxIdleThrottles = 1024

// errAborted ends a way whose stream was reset while the way was held back.
var errAborted = errors.New("reset while held back by a rate")

// bucket is a token bucket of bytes. Those who wait for it take turns, and
// only the one whose turn it is has tokens promised: whoever gives up leaves
// no debt to the others, and a new rate holds at once.
type bucket struct {
	most   atomic.Int64 // bytes a second; 0: no limit
	tokens *rate.Limiter
	turn   chan struct{} // holds one
	slowed *slowed
}

func (b *bucket) init(bytesASecond int64, s *slowed) {
	b.tokens = rate.NewLimiter(rate.Limit(bytesASecond), burstOf(bytesASecond))
	b.turn = make(chan struct{}, 1)
	b.slowed = s
	b.most.Store(bytesASecond)
}

func (b *bucket) set(bytesASecond int64) {
	if b.most.Load() == bytesASecond {
		return
	}
	if bytesASecond > 0 {
		b.tokens.SetLimit(rate.Limit(bytesASecond))
		b.tokens.SetBurst(burstOf(bytesASecond))
	}
	b.most.Store(bytesASecond)
}

// full says that a new bucket would let no more pass than this one.
func (b *bucket) full() bool {
	most := b.most.Load()
	return most == 0 || b.tokens.Tokens() >= float64(burstOf(most))
}

// take waits until some of want bytes may pass and says how many: all where
// there is no limit, else a share. Errors: errAborted.
func (b *bucket) take(want int, p *pacer) (int, error) {
	most := b.most.Load()
	if most == 0 {
		return want, nil
	}
	if n := min(want, shareOf(most)); b.tokens.AllowN(time.Now(), n) {
		return n, nil
	}
	b.slowed.note(most)
	p.held.Store(true)
	defer p.held.Store(false)
	select {
	case b.turn <- struct{}{}:
	case <-p.s.abortion():
		return 0, errAborted
	}
	defer func() { <-b.turn }()
	return b.takeShare(want, p)
}

// takeShare waits for the next share. The rate may change at any time.
func (b *bucket) takeShare(want int, p *pacer) (int, error) {
	for {
		most := b.most.Load()
		if most == 0 {
			return want, nil
		}
		n := min(want, shareOf(most), b.tokens.Burst())
		r := b.tokens.ReserveN(time.Now(), n)
		if !r.OK() {
			continue // the burst became less since the line above
		}
		if p.sleep(r.Delay()) {
			return n, nil
		}
		r.Cancel()
		return 0, errAborted
	}
}

// pacer makes one way of a stream keep to the rates of its peer and of its
// tunnel, in this order: what a peer may not pass yet must not use up what the
// tunnel may.
type pacer struct {
	s         *Stream
	peer, all *bucket
	timer     *time.Timer

	held  atomic.Bool
	looks atomic.Int64 // of a watchdog, while held
}

// room is a share of the lower rate, or n where that is less.
func (p *pacer) room(n int) int {
	for _, b := range [...]*bucket{p.peer, p.all} {
		if most := b.most.Load(); most > 0 {
			n = min(n, shareOf(most))
		}
	}
	return n
}

// free says that there is no rate to keep to.
func (p *pacer) free() bool { return p.peer.most.Load() == 0 && p.all.most.Load() == 0 }

// next waits until some of want bytes, of which there was room for all, may
// pass, and says how many. Errors: errAborted.
func (p *pacer) next(want int) (n int, err error) {
	if n, err = p.peer.take(want, p); err != nil {
		return 0, err
	}
	return p.all.take(n, p)
}

// sleep reports false as soon as the stream is reset.
func (p *pacer) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	if p.timer == nil {
		p.timer = time.NewTimer(d)
	} else {
		p.timer.Reset(d)
	}
	select {
	case <-p.timer.C:
		return true
	case <-p.s.abortion():
		p.timer.Stop()
		return false
	}
}

// Throttle is what the streams of one peer on one tunnel share: a bucket for
// each direction. Entry.Throttle gives it, Pipe gives it back.
type Throttle struct {
	peer    string
	in, out bucket
	of      *rates

	// Guarded by of.mu.
	live int
	idle *list.Element // nil while a stream lives
}

func (t *Throttle) set(bytesASecond int64) {
	t.in.set(bytesASecond)
	t.out.set(bytesASecond)
}

// pace makes both ways of a stream keep to it.
func (t *Throttle) pace(s *Stream) {
	s.in.pace = &pacer{s: s, peer: &t.in, all: &t.of.in}
	s.out.pace = &pacer{s: s, peer: &t.out, all: &t.of.out}
}

// rates are a tunnel's buckets and those of its peers.
type rates struct {
	in, out             bucket
	slowed, peersSlowed slowed
	mu                  sync.Mutex
	peers               map[string]*Throttle
	idle                list.List // of the peers' those without a live stream, oldest first
}

// Throttle gives what a new stream of a peer keeps to, for the Stream that is
// given to Pipe next: the tunnel's MaxRate, and the peer's own rate, which
// peerRate gives; 0 is no limit. peerRate must call neither this nor
// SetPeerRates.
func (e *Entry) Throttle(peer string, peerRate func() int64) *Throttle {
	r := &e.rates
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peers == nil {
		r.in.init(e.Tunnel.MaxRate, &r.slowed)
		r.out.init(e.Tunnel.MaxRate, &r.slowed)
		r.peers = map[string]*Throttle{}
	}
	most := peerRate()
	t := r.peers[peer]
	if t == nil {
		t = &Throttle{peer: peer, of: r}
		t.in.init(most, &r.peersSlowed)
		t.out.init(most, &r.peersSlowed)
		r.peers[peer] = t
	}
	t.set(most)
	if t.idle != nil {
		r.idle.Remove(t.idle)
		t.idle = nil
	}
	t.live++
	return t
}

// SetPeerRates sets the rates of all peers with a Throttle anew, also for
// their live streams. rateOf must not call it, nor Throttle.
func (e *Entry) SetPeerRates(rateOf func(peer string) int64) {
	e.rates.mu.Lock()
	defer e.rates.mu.Unlock()
	for peer, t := range e.rates.peers {
		t.set(rateOf(peer))
	}
}

// leave notes the end of a stream. The last of a peer's leaves the buckets
// behind until they are full again: coming back gives no new ones.
func (t *Throttle) leave() {
	r := t.of
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.live--; t.live > 0 {
		return
	}
	t.idle = r.idle.PushBack(t)
	for e := r.idle.Front(); e != nil; e = r.idle.Front() {
		t := e.Value.(*Throttle)
		if r.idle.Len() <= maxIdleThrottles && !(t.in.full() && t.out.full()) {
			break
		}
		r.idle.Remove(e)
		delete(r.peers, t.peer)
	}
}
