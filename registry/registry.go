package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"p2ptun/proto"
)

// Bounds of the tables. A table that is full refuses, it never grows.
const (
	MaxTunnels = 1024
	MaxStreams = 1 << 17
)

var (
	// ErrDuplicate is returned for a second listener on a protocol or a second
	// forward on an address.
	ErrDuplicate = errors.New("already in use")
	// ErrFull is returned when a table has reached its bound.
	ErrFull = errors.New("table is full")
)

// now is the wall clock, at which events and streams are stamped.
func now() time.Time { return time.Now() }

// Registry holds the live tables. The zero value does not work: New.
type Registry struct {
	// Events tells subscribers what happens.
	Events *Dispatcher

	mu         sync.RWMutex
	tunnels    map[string]*Entry
	listens    map[string]*Entry // by protocol
	streams    map[uint64]*Stream
	lastTunnel uint64
	lastStream uint64
	idle       chan struct{} // closed when streams became empty; nil while nobody waits

	pumps    crew
	opened   atomic.Int64
	bytesIn  atomic.Int64
	bytesOut atomic.Int64
	resets   resetCounts

	tooMany, peerTooMany atomic.Int64 // connections refused because of a limit
}

// New makes an empty registry.
func New() *Registry {
	return &Registry{
		Events:  NewDispatcher(),
		tunnels: map[string]*Entry{},
		listens: map[string]*Entry{},
		streams: map[uint64]*Stream{},
	}
}

// Register puts a tunnel into the table, in state starting. Its Context ends
// with ctx or by Close. Whoever registers must Deregister.
func (r *Registry) Register(ctx context.Context, t Tunnel) (*Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.tunnels) >= MaxTunnels {
		return nil, fmt.Errorf("tunnels: %w: %d", ErrFull, MaxTunnels)
	}
	if err := r.checkDuplicate(t); err != nil {
		return nil, err
	}
	t.ID = r.chooseID(t.ID)
	e := newEntry(ctx, r, t)
	r.tunnels[t.ID] = e
	if t.Kind == KindListen {
		r.listens[t.Protocol] = e
	}
	e.publish() // before anybody else can know of it
	return e, nil
}

func (r *Registry) checkDuplicate(t Tunnel) error {
	if t.Kind == KindListen {
		if old, taken := r.listens[t.Protocol]; taken {
			return fmt.Errorf("protocol %s: %w by tunnel %s", t.Protocol, ErrDuplicate, old.Tunnel.ID)
		}
		return nil
	}
	for _, old := range r.tunnels {
		if old.Tunnel.Kind == KindForward && old.Tunnel.Bind == t.Bind && !freePort(t.Bind) {
			return fmt.Errorf("address %s: %w by tunnel %s", t.Bind, ErrDuplicate, old.Tunnel.ID)
		}
	}
	return nil
}

func freePort(bind string) bool {
	return strings.HasSuffix(bind, "/tcp/0")
}

// chooseID honours a wish that no live tunnel stands in the way of.
func (r *Registry) chooseID(wish string) string {
	if _, taken := r.tunnels[wish]; wish == "" || taken {
		return r.freeID()
	}
	if n, err := strconv.ParseUint(wish, 10, 32); err == nil {
		r.lastTunnel = max(r.lastTunnel, n)
	}
	return wish
}

// freeID gives the next number that no tunnel of this process ever had.
func (r *Registry) freeID() string {
	for {
		r.lastTunnel++
		id := strconv.FormatUint(r.lastTunnel, 10)
		if _, taken := r.tunnels[id]; !taken {
			return id
		}
	}
}

// ReserveIDs makes new ids start above n, so that a kept tunnel that is not
// open yet finds its own id free.
func (r *Registry) ReserveIDs(n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastTunnel = max(r.lastTunnel, n)
}

// Deregister takes a tunnel out, resets its live streams with the code and
// publishes its end. A second call does nothing.
func (r *Registry) Deregister(e *Entry, code proto.Code) {
	r.mu.Lock()
	if r.tunnels[e.Tunnel.ID] != e {
		r.mu.Unlock()
		return
	}
	delete(r.tunnels, e.Tunnel.ID)
	if r.listens[e.Tunnel.Protocol] == e {
		delete(r.listens, e.Tunnel.Protocol)
	}
	r.mu.Unlock()
	e.cancel(ErrClosed)
	r.ResetStreams(func(s *Stream) bool { return s.entry == e }, code)
	e.SetState(StateClosed, "")
}

// Listener finds the tunnel that offers a protocol here.
func (r *Registry) Listener(protocol string) (*Entry, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e, ok := r.listens[protocol]
	return e, ok
}

// Tunnels lists all entries, in order of their ids.
func (r *Registry) Tunnels() []*Entry {
	r.mu.RLock()
	list := make([]*Entry, 0, len(r.tunnels))
	for _, e := range r.tunnels {
		list = append(list, e)
	}
	r.mu.RUnlock()
	slices.SortFunc(list, func(a, b *Entry) int { return compareIDs(a.Tunnel.ID, b.Tunnel.ID) })
	return list
}

// compareIDs orders numbers by value, before any other id.
func compareIDs(a, b string) int {
	m, aErr := strconv.ParseUint(a, 10, 64)
	n, bErr := strconv.ParseUint(b, 10, 64)
	if aErr != nil {
		m = math.MaxUint64
	}
	if bErr != nil {
		n = math.MaxUint64
	}
	return cmp.Or(cmp.Compare(m, n), cmp.Compare(a, b))
}

// Selector picks tunnels. Fields that are set must all match; All picks
// everything; an empty selector picks nothing.
type Selector struct {
	IDs      []string
	Protocol string
	Bind     string
	Target   string
	All      bool
}

// Match says whether the selector picks that tunnel.
func (sel Selector) Match(s TunnelStatus) bool {
	if sel.All {
		return true
	}
	if len(sel.IDs) == 0 && sel.Protocol == "" && sel.Bind == "" && sel.Target == "" {
		return false
	}
	return (len(sel.IDs) == 0 || slices.Contains(sel.IDs, s.ID)) &&
		(sel.Protocol == "" || sel.Protocol == s.Protocol) &&
		(sel.Bind == "" || s.Kind == KindForward && sel.Bind == s.Bind) &&
		(sel.Target == "" || s.Kind == KindListen && sel.Target == s.Target)
}

// Select lists the entries that the selector picks, in order of their ids.
func (r *Registry) Select(sel Selector) []*Entry {
	var picked []*Entry
	for _, e := range r.Tunnels() {
		if sel.Match(e.Status()) {
			picked = append(picked, e)
		}
	}
	return picked
}

// Streams lists the live streams, in order of age.
func (r *Registry) Streams() []StreamStatus {
	r.mu.RLock()
	list := make([]StreamStatus, 0, len(r.streams))
	for _, s := range r.streams {
		list = append(list, s.Status())
	}
	r.mu.RUnlock()
	slices.SortFunc(list, func(a, b StreamStatus) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// ResetStreams resets the live streams that pick picks and says how many. pick
// must not call the registry, which is locked; nor must Drain's.
func (r *Registry) ResetStreams(pick func(*Stream) bool, code proto.Code) int {
	r.mu.RLock()
	var picked []*Stream
	for _, s := range r.streams {
		if pick(s) {
			picked = append(picked, s)
		}
	}
	r.mu.RUnlock()
	r.resetAll(picked, code)
	return len(picked)
}

// resetAll resets local ends at once, each by a goroutine of its own, as a
// socket's close waits for the pump to let go of it; and the remote ones by a
// goroutine for each peer: a peer whose link is stuck must not delay another's
// reset.
func (r *Registry) resetAll(streams []*Stream, code proto.Code) {
	var locals sync.WaitGroup
	byPeer := map[string][]End{}
	for _, s := range streams {
		if s.markAborted(code) {
			locals.Go(func() { _ = s.local.Reset(code) })
			byPeer[s.Peer] = append(byPeer[s.Peer], s.remote)
		}
	}
	for _, ends := range byPeer {
		r.pumps.run(func() { resetEach(ends, code) })
	}
	locals.Wait()
}

func resetEach(ends []End, code proto.Code) {
	for _, end := range ends {
		_ = end.Reset(code)
	}
}

// Drain returns when no stream that pick picks is live, or with ctx.
func (r *Registry) Drain(ctx context.Context, pick func(*Stream) bool) error {
	for {
		changed, busy := r.busy(pick)
		if !busy {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Registry) busy(pick func(*Stream) bool) (changed <-chan struct{}, busy bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.idle == nil {
		r.idle = make(chan struct{})
	}
	for _, s := range r.streams {
		if pick(s) {
			return r.idle, true
		}
	}
	return r.idle, false
}

// Wait returns when no goroutine of the pump runs any more. Reset the streams
// first.
func (r *Registry) Wait() { r.pumps.wait() }
