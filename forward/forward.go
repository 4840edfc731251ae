// Package forward is the side that brings a peer's service here: it binds a
// local address, keeps in touch with the peer, and gives each accepted
// connection a stream of its own. It knows no libp2p: daemon fills its funcs
// with node's.
package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

// defaultDial bounds dial and negotiation of one connection together.
const defaultDial = 30 * time.Second

// Why a forward could not prove that it works. They are told apart by the exit
// codes of the command line.
var (
	ErrAddrTaken   = errors.New("local address taken")
	ErrRefused     = errors.New("refused by the peer")
	ErrNotReached  = errors.New("peer not reached")
	ErrServiceDown = errors.New("service not answering on the peer's side")
	ErrNoService   = errors.New("no such service on the peer")
	ErrInvite      = errors.New("the peer does not take the invite")
	ErrInviteLater = errors.New("the invite can't be redeemed just now")
)

// Unverifiable is the reason shown for a ready tunnel to a peer that can't be
// asked.
const Unverifiable = "service not verifiable before first use"

// Forward is one forwarding tunnel. Fill the fields, then call Bind, Prove
// (unless the tunnel waits for its peer) and Serve, in this order, from one
// goroutine.
type Forward struct {
	Registry *registry.Registry
	Entry    *registry.Entry
	// Peers are peer IDs in order of preference, at least one.
	Peers []string

	// Open opens a stream to a connected peer. ctx bounds the dial and, in the
	// End's first Read, the negotiation.
	Open func(ctx context.Context, peer, protocol string) (registry.End, registry.Path, error)
	// Ask asks a connected peer; an error that CannotAsk takes is no failure.
	Ask       func(ctx context.Context, peer, protocol string) (proto.Verdict, error)
	CannotAsk func(error) bool
	// Connect reaches a peer, and goes on trying for patience where nothing is
	// left to try.
	Connect func(ctx context.Context, peer string, patience time.Duration) error
	// Watch says whether a peer is connected and when to look again.
	Watch func(peer string) (up bool, changed <-chan struct{})
	// Hold keeps the connection of a peer while a stream of it lives. If nil,
	// nothing is kept.
	Hold func(peer string) (end func())
	// Parked says that connections to a peer wait for its return: new ones wait
	// as well, and it is dialled without long pauses. If nil, none do.
	Parked func(peer string) bool
	// Failed is told of each connection that was not carried, or that the peer
	// reset with a reason. If nil, nobody is.
	Failed func(origin, peer, reason string)

	listener net.Listener
	remotes  []*remote
	handlers sync.WaitGroup

	reporting sync.Mutex // one at a time, so that the last word is the newest
	accept    error      // why no connection is accepted; guarded by reporting
}

// Bind takes the local address. Errors: ErrAddrTaken.
func (f *Forward) Bind() error {
	l, bound, err := bind(f.Entry.Tunnel.Bind)
	if err != nil {
		return err
	}
	f.listener = l
	f.Entry.SetBound(bound)
	for _, p := range f.Peers {
		f.remotes = append(f.remotes, &remote{f: f, id: p, poke: make(chan struct{}, 1)})
	}
	return nil
}

// Unbind gives the local address back where Serve will not be called.
func (f *Forward) Unbind() { _ = f.listener.Close() }

// Serve accepts connections until the tunnel's context ends, and keeps in
// touch with the peers. When it returns nothing of it runs; streams that live
// are the registry's.
func (f *Forward) Serve() {
	ctx := f.Entry.Context()
	var keepers sync.WaitGroup
	for _, r := range f.remotes {
		keepers.Go(func() { r.keep(ctx) })
	}
	f.Report()
	stop := context.AfterFunc(ctx, func() { _ = f.listener.Close() })
	defer stop()
	acceptAll(ctx, f.listener, func(c net.Conn) {
		f.handlers.Go(func() { f.handle(ctx, c) })
	}, f.acceptFailed)
	keepers.Wait()
	f.handlers.Wait()
}

// Regain reaches the peers again that connections wait for, until ctx ends: for
// those that finish after Serve has returned.
func (f *Forward) Regain(ctx context.Context) {
	var all sync.WaitGroup
	for _, r := range f.remotes {
		all.Go(func() { r.regainParked(ctx) })
	}
	all.Wait()
}

// acceptFailed shows why no connection is accepted, until one is.
func (f *Forward) acceptFailed(err error) {
	f.reporting.Lock()
	f.accept = err
	f.reporting.Unlock()
	f.Report()
}

// handle gives one connection its stream.
func (f *Forward) handle(ctx context.Context, c net.Conn) {
	registry.GrowStack()
	local, err := registry.NewConnEnd(c)
	if err != nil {
		c.Close()
		return
	}
	origin := originOf(c)
	r, remoteEnd, path, err := f.open(ctx)
	if err != nil {
		_ = local.Reset(proto.CodePeerAway)
		f.fail(origin, r, err.Error())
		return
	}
	release := func() {}
	if f.Hold != nil {
		release = f.Hold(r.id)
	}
	stream := &registry.Stream{Peer: r.id, Path: path, Origin: origin}
	stream.OnClosed = func(s *registry.Stream) {
		release()
		f.closed(r, origin, s.Code())
	}
	if err := f.Registry.Pipe(f.Entry, stream, local, remoteEnd); err != nil {
		release()
		f.fail(origin, r, err.Error())
	}
}

// closed looks at why a stream ended: a peer that refuses or whose service is
// down is asked again soon. One at its limit would answer as before.
func (f *Forward) closed(r *remote, origin string, code proto.Code) {
	switch code {
	case proto.CodeRefused, proto.CodeTargetDown, proto.CodeNoService, proto.CodeRevoked:
		f.fail(origin, r, code.String())
		r.askSoon()
	case proto.CodePeerAway, proto.CodeTooMany:
		f.fail(origin, r, code.String())
	}
}

func (f *Forward) fail(origin string, r *remote, reason string) {
	if f.Failed == nil || f.Entry.Context().Err() != nil {
		return
	}
	f.Failed(origin, r.id, reason)
}

// open opens a stream to the first peer, in order of preference, that is
// there. While all are away it fails at once, but where connections wait for
// one of them: then this one waits as well, up to the limit.
func (f *Forward) open(ctx context.Context) (*remote, registry.End, registry.Path, error) {
	limit := time.Duration(f.Entry.Tunnel.DialTimeout)
	if limit <= 0 {
		limit = defaultDial
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		waiting, changed := f.parked()
		r, end, path, err := f.openNow(ctx)
		if err == nil || waiting == nil || errors.As(err, new(*registry.ResetError)) {
			return r, end, path, err
		}
		if !waitAny(ctx, changed) {
			return waiting, nil, registry.Path{}, fmt.Errorf("%w within %s", ErrNotReached, limit)
		}
	}
}

// parked gives the first peer that connections wait for, nil for none, and when
// to look again: another that comes will do as well.
func (f *Forward) parked() (waiting *remote, changed []<-chan struct{}) {
	for _, r := range f.remotes {
		_, ch := f.Watch(r.id)
		changed = append(changed, ch)
		if waiting == nil && r.parked() {
			waiting = r
		}
	}
	return waiting, changed
}

// waitAny waits for one of the channels to be closed; false where ctx ends
// before.
func waitAny(ctx context.Context, channels []<-chan struct{}) bool {
	cases := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}}
	for _, ch := range channels {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ch)})
	}
	chosen, _, _ := reflect.Select(cases)
	return chosen > 0
}

// openNow opens a stream to the first peer that is connected.
func (f *Forward) openNow(ctx context.Context) (*remote, registry.End, registry.Path, error) {
	var last error = ErrNotReached
	for _, r := range f.preferred() {
		if up, _ := f.Watch(r.id); !up {
			continue
		}
		if !r.mayTry() {
			last = ErrRefused
			continue
		}
		end, path, err := f.Open(ctx, r.id, f.Entry.Tunnel.Protocol)
		if err == nil {
			f.Entry.SetPeer(r.id)
			return r, end, path, nil
		}
		last = err
		r.askSoon()
	}
	return f.remotes[0], nil, registry.Path{}, last
}

// preferred lists the peers whose last answer was good before the others.
func (f *Forward) preferred() []*remote {
	if len(f.remotes) == 1 {
		return f.remotes
	}
	var good, rest []*remote
	for _, r := range f.remotes {
		if r.works() {
			good = append(good, r)
		} else {
			rest = append(rest, r)
		}
	}
	return append(good, rest...)
}

// Prove reaches a peer and asks it: the first, in order of preference, that
// would carry a connection. Errors: those above, for the peer that came
// nearest.
func (f *Forward) Prove(ctx context.Context) error {
	var worst error
	for _, r := range f.remotes {
		err := r.prove(ctx)
		if err == nil {
			f.Entry.SetPeer(r.id)
			return nil
		}
		if worst == nil || errors.Is(worst, ErrNotReached) {
			worst = err
		}
	}
	return worst
}

// Report shows in the tunnel's state what its peers are like.
func (f *Forward) Report() {
	f.reporting.Lock()
	defer f.reporting.Unlock()
	if f.Entry.Context().Err() != nil {
		return
	}
	if f.accept != nil {
		f.Entry.SetState(registry.StateRetrying, "accept: "+f.accept.Error())
		return
	}
	state, reason := registry.StateWaiting, ""
	for _, r := range f.remotes {
		s, why := r.state()
		if s == registry.StateReady {
			f.Entry.SetPeer(r.id)
			f.Entry.SetState(s, why)
			return
		}
		if reason == "" || s == registry.StateRetrying && state == registry.StateWaiting {
			state, reason = s, why
		}
	}
	f.Entry.SetState(state, reason)
}

// originOf names a client; a unix socket's has no address.
func originOf(c net.Conn) string {
	if s := c.RemoteAddr().String(); s != "" && s != "@" {
		return s
	}
	return fmt.Sprintf("client of %s", c.LocalAddr())
}
