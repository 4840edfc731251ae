package forward

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

const (
	// backoffMin and backoffMax are the pauses between attempts to reach a
	// peer that is away.
	backoffMin = time.Second
	backoffMax = 15 * time.Second
	// provePatience is how long a peer that was not found at once is waited
	// for at start: as long as a LAN takes to answer.
	provePatience = 8 * time.Second
	// askEvery is how often a peer that said no is asked again, and askPause
	// how soon at the earliest. For askSoonFor its owner may be about to let
	// this node in, and it is asked as soon as that.
	askEvery   = 30 * time.Second
	askPause   = 5 * time.Second
	askSoonFor = 5 * time.Minute
	// While connections wait for a peer it is dialled anew every parkedDial,
	// since what is sent into a dead network is repeated at growing intervals:
	// a network that returns is to be noticed within a second. Each
	// parkedPatient-th attempt has parkedSlow, for a slow path. The pause
	// between attempts is parkedPause, and parkedLate after parkedLong.
	parkedDial    = 2 * time.Second
	parkedSlow    = 8 * time.Second
	parkedPatient = 4
	parkedPause   = 250 * time.Millisecond
	parkedLate    = 2 * time.Second
	parkedLong    = 5 * time.Minute
	// learnPause is what connections may take, after us, to learn that the peer
	// is gone.
	learnPause = 50 * time.Millisecond
	// retryRefused is how often a connection of a client may try a peer that
	// refuses: it keeps those out for a while that try again and again.
	retryRefused = time.Second
)

// remote is one peer of a forward and what it said last.
type remote struct {
	f    *Forward
	id   string
	poke chan struct{} // ask again soon

	mu      sync.Mutex
	asked   bool
	since   time.Time // of the first time that it said no, in a row
	tried   time.Time // when a client's connection tried it last although it refuses
	verdict proto.Verdict
	failure error // why it is not reached, or could not be asked
}

// prove reaches the peer and asks it, once.
func (r *remote) prove(ctx context.Context) error {
	limit := time.Duration(r.f.Entry.Tunnel.DialTimeout)
	if limit <= 0 {
		limit = defaultDial
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := r.f.Connect(ctx, r.id, min(provePatience, limit)); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotReached, r.id, err)
	}
	return r.ask(ctx)
}

// ask asks the connected peer and keeps its answer.
func (r *remote) ask(ctx context.Context) error {
	v, err := r.f.Ask(ctx, r.id, r.f.Entry.Tunnel.Protocol)
	if err != nil && r.f.CannotAsk(err) {
		err = nil
	}
	r.mu.Lock()
	if err != nil || v != proto.Verdict_VERDICT_REFUSED {
		r.since = time.Time{}
	} else if r.since.IsZero() {
		r.since = time.Now()
	}
	r.asked, r.verdict, r.failure = err == nil, v, err
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotReached, r.id, err)
	}
	return verdictError(v)
}

func verdictError(v proto.Verdict) error {
	switch v {
	case proto.Verdict_VERDICT_REFUSED:
		return ErrRefused
	case proto.Verdict_VERDICT_SERVICE_DOWN:
		return ErrServiceDown
	case proto.Verdict_VERDICT_NO_SERVICE:
		return ErrNoService
	case proto.Verdict_VERDICT_INVITE_USED:
		return fmt.Errorf("%w: it has no uses left", ErrInvite)
	case proto.Verdict_VERDICT_INVITE_OVER:
		return fmt.Errorf("%w: it is over", ErrInvite)
	case proto.Verdict_VERDICT_INVITE_LATER:
		return fmt.Errorf("%w: its owner's rules can't be read or written; it is not lost", ErrInviteLater)
	}
	return nil
}

// works says that the peer's last answer was good, or that it can't be asked.
func (r *remote) works() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked && verdictError(r.verdict) == nil
}

// state is the peer's part of the tunnel's state.
func (r *remote) state() (registry.State, string) {
	up, _ := r.f.Watch(r.id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !up {
		if r.failure != nil {
			return registry.StateWaiting, "peer away: " + r.failure.Error()
		}
		return registry.StateWaiting, "peer away"
	}
	switch {
	case r.failure != nil:
		return registry.StateRetrying, r.failure.Error()
	case !r.asked:
		return registry.StateWaiting, "asking the peer"
	case verdictError(r.verdict) != nil:
		return registry.StateRetrying, verdictError(r.verdict).Error()
	case r.verdict == proto.Verdict_VERDICT_UNKNOWN:
		return registry.StateReady, Unverifiable
	}
	return registry.StateReady, ""
}

// keep reaches the peer again and again until ctx ends, and asks it whenever
// it has come, and now and then while its answer is bad.
func (r *remote) keep(ctx context.Context) {
	backoff := backoffMin
	var reached time.Time
	for ctx.Err() == nil {
		up, changed := r.f.Watch(r.id)
		if up {
			if !r.works() {
				_ = r.ask(ctx)
			}
			r.f.Report()
			r.rest(ctx, changed)
			continue
		}
		r.forget()
		r.f.Report()
		if time.Since(reached) > backoffMax {
			backoff = backoffMin // it was here for a while
		} else if !reached.IsZero() && !r.parked() {
			backoff = r.hold(ctx, changed, backoff) // it comes and goes
		}
		r.regain(ctx, backoff)
		reached = time.Now()
	}
}

// regain dials until the peer is there.
func (r *remote) regain(ctx context.Context, backoff time.Duration) {
	lost := time.Now()
	for try := 1; !r.reach(ctx, r.dialLimit(try)) && ctx.Err() == nil; try++ {
		r.f.Report()
		_, changed := r.f.Watch(r.id)
		switch {
		case !r.parked():
			backoff = r.hold(ctx, changed, backoff)
		case time.Since(lost) < parkedLong:
			pause(ctx, changed, parkedPause)
		default:
			pause(ctx, changed, parkedLate)
		}
	}
}

// regainParked dials the peer whenever connections wait for it, until ctx ends.
func (r *remote) regainParked(ctx context.Context) {
	for try := 1; ctx.Err() == nil; try++ {
		up, changed := r.f.Watch(r.id)
		if !up && r.parked() {
			r.reach(ctx, r.dialLimit(try))
		}
		pause(ctx, changed, parkedPause)
	}
}

// parked says that connections wait for the peer.
func (r *remote) parked() bool { return r.f.Parked != nil && r.f.Parked(r.id) }

func (r *remote) dialLimit(try int) time.Duration {
	switch {
	case !r.parked():
		return defaultDial
	case try%parkedPatient == 0:
		return parkedSlow
	}
	return parkedDial
}

// hold pauses for about backoff and gives the next.
func (r *remote) hold(ctx context.Context, changed <-chan struct{}, backoff time.Duration) time.Duration {
	rest := jitter(backoff)
	pause(ctx, changed, learnPause)
	if r.parked() {
		return backoff
	}
	pause(ctx, changed, rest-learnPause)
	return min(2*backoff, backoffMax)
}

// forget drops an answer that no longer holds.
func (r *remote) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = false
}

// reach dials once, and says whether the peer is there.
func (r *remote) reach(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := r.f.Connect(ctx, r.id, 0)
	r.mu.Lock()
	r.failure = err
	r.mu.Unlock()
	return err == nil
}

// rest returns when the peer is to be looked at again.
func (r *remote) rest(ctx context.Context, changed <-chan struct{}) {
	var again <-chan time.Time
	if !r.works() {
		again = time.After(r.nextAsk())
	}
	select {
	case <-changed:
	case <-again:
	case <-r.poke:
		r.forget()
		pause(ctx, changed, askPause)
	case <-ctx.Done():
	}
}

// mayTry says whether a client's connection may be offered to the peer now.
func (r *remote) mayTry() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.asked || r.verdict != proto.Verdict_VERDICT_REFUSED {
		return true
	}
	if time.Since(r.tried) < retryRefused {
		return false
	}
	r.tried = time.Now()
	return true
}

// nextAsk is the pause before a peer that said no is asked again.
func (r *remote) nextAsk() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked && r.verdict == proto.Verdict_VERDICT_REFUSED && time.Since(r.since) < askSoonFor {
		return askPause
	}
	return askEvery
}

// askSoon has the peer asked again.
func (r *remote) askSoon() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

func pause(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// jitter spreads a pause by a fifth either way, so that many that lost the
// same peer do not all come back at once.
func jitter(d time.Duration) time.Duration {
	return d*4/5 + rand.N(d*2/5)
}
