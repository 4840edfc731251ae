package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Event is what a Dispatcher carries: TunnelEvent, StreamEvent, RefusedEvent,
// RedeemedEvent, AccessEvent, PathEvent, TrunkEvent.
type Event interface{ isEvent() }

// TunnelEvent says that a tunnel's state changed.
type TunnelEvent struct {
	Time   time.Time    `json:"time"`
	Tunnel TunnelStatus `json:"tunnel"`
}

// StreamOp says what happened to a stream.
type StreamOp string

const (
	StreamOpened StreamOp = "opened"
	StreamClosed StreamOp = "closed"
)

// StreamEvent says that a stream was opened or has ended.
type StreamEvent struct {
	Time   time.Time    `json:"time"`
	Op     StreamOp     `json:"op"`
	Stream StreamStatus `json:"stream"`
}

// RefusedEvent says that a connection was not carried: a peer without a right
// on the listening side, or a local client while the peer is away.
type RefusedEvent struct {
	Time     time.Time `json:"time"`
	Tunnel   string    `json:"tunnel,omitempty"`
	Protocol string    `json:"protocol"`
	Peer     string    `json:"peer"`
	Reason   string    `json:"reason"`
	// Unsaid counts the refusals since the last event that made none of their
	// own, because there are too many to tell each.
	Unsaid int64 `json:"unsaid,omitempty"`
}

// RedeemedEvent says that a peer was let in by an invite.
type RedeemedEvent struct {
	Time     time.Time `json:"time"`
	Protocol string    `json:"protocol"`
	Peer     string    `json:"peer"`
	Invite   string    `json:"invite"` // its id
	Left     int       `json:"left"`   // uses
	Until    time.Time `json:"until"`
}

// AccessEvent says that somebody may have got a right, or lost one.
type AccessEvent struct {
	Time time.Time `json:"time"`
}

// PathEvent says that the way to a peer has changed, which new streams take;
// those that live stay on their own.
type PathEvent struct {
	Time time.Time `json:"time"`
	Peer string    `json:"peer"`
	Path Path      `json:"path"`
	Up   bool      `json:"up"` // false: there is none
}

// TrunkEvent says what happened to a trunk, and so to all streams on it.
type TrunkEvent struct {
	Time     time.Time `json:"time"`
	Op       string    `json:"op"` // parked, resumed, moved, ended
	Kind     Kind      `json:"kind"`
	Protocol string    `json:"protocol"`
	Peer     string    `json:"peer"`
	Streams  int       `json:"streams"`                  // that live on it
	SurviveS int64     `json:"survive_s,omitempty"`      // parked: for how long it is kept, in seconds
	AwayMs   int64     `json:"away_ms,omitempty"`        // resumed, ended: how long there was no link
	Replayed uint64    `json:"bytes_replayed,omitempty"` // resumed, moved: sent again by this side
	From     *Path     `json:"from,omitempty"`           // moved
	To       *Path     `json:"to,omitempty"`             // resumed, moved
	Reason   string    `json:"reason,omitempty"`         // parked, ended
}

// QuietEvent is every Event but the two that each stream makes.
type QuietEvent interface {
	Event
	isQuiet()
}

func (TunnelEvent) isQuiet()   {}
func (RefusedEvent) isQuiet()  {}
func (RedeemedEvent) isQuiet() {}
func (AccessEvent) isQuiet()   {}
func (PathEvent) isQuiet()     {}
func (TrunkEvent) isQuiet()    {}

func (TunnelEvent) isEvent()   {}
func (StreamEvent) isEvent()   {}
func (RefusedEvent) isEvent()  {}
func (RedeemedEvent) isEvent() {}
func (AccessEvent) isEvent()   {}
func (PathEvent) isEvent()     {}
func (TrunkEvent) isEvent()    {}

// MaxSubscribers bounds the subscribers of one Dispatcher.
const MaxSubscribers = 256

// ErrUnsubscribed is returned by Next after Close.
var ErrUnsubscribed = errors.New("subscription closed")

// Dispatcher hands each event to each subscriber of its type. Publish never
// blocks: a subscriber whose queue is full loses the event, and is told how
// many it lost. The zero value does not work: NewDispatcher.
type Dispatcher struct {
	streams atomic.Int32 // subscribers that take StreamEvents
	lost    atomic.Uint64

	mu   sync.RWMutex
	subs map[subscriber]struct{}
}

type subscriber interface {
	offer(Event) (lost bool)
	depth() QueueDepth
}

// QueueDepth is how full one subscriber's queue is.
type QueueDepth struct {
	Name   string
	Queued int
	Bound  int
	Lost   uint64 // since it subscribed
}

// NewDispatcher makes one without subscribers.
func NewDispatcher() *Dispatcher { return &Dispatcher{subs: map[subscriber]struct{}{}} }

// StreamsWanted says whether anybody takes StreamEvents: they are many, and
// need not be made for nobody.
func (d *Dispatcher) StreamsWanted() bool { return d.streams.Load() > 0 }

// Publish offers an event to every subscriber of its type.
func (d *Dispatcher) Publish(e Event) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for s := range d.subs {
		if s.offer(e) {
			d.lost.Add(1)
		}
	}
}

// Depths lists the queues, by name.
func (d *Dispatcher) Depths() []QueueDepth {
	d.mu.RLock()
	defer d.mu.RUnlock()
	list := make([]QueueDepth, 0, len(d.subs))
	for s := range d.subs {
		list = append(list, s.depth())
	}
	slices.SortFunc(list, func(a, b QueueDepth) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Lost counts the events that any subscriber lost.
func (d *Dispatcher) Lost() uint64 { return d.lost.Load() }

// Subscription is a bounded queue of the events of one type. One goroutine may
// call Next.
type Subscription[T Event] struct {
	name  string
	d     *Dispatcher
	queue chan T
	done  chan struct{}
	once  sync.Once

	lost   atomic.Uint64 // not yet told
	missed atomic.Uint64 // in all
}

// Subscribe gives a queue of up to depth events (at least 1) of type T; the
// interface Event itself takes all types. Name it for the metrics. Close it
// when done. Errors: ErrFull.
func Subscribe[T Event](d *Dispatcher, name string, depth int) (*Subscription[T], error) {
	s := &Subscription[T]{name: name, d: d, queue: make(chan T, max(depth, 1)), done: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.subs) >= MaxSubscribers {
		return nil, fmt.Errorf("subscribers: %w: %d", ErrFull, MaxSubscribers)
	}
	d.subs[s] = struct{}{}
	if s.takesStreams() {
		d.streams.Add(1)
	}
	return s, nil
}

func (s *Subscription[T]) takesStreams() bool {
	_, takes := Event(StreamEvent{}).(T)
	return takes
}

func (s *Subscription[T]) offer(e Event) (lost bool) {
	event, ok := e.(T)
	if !ok {
		return false
	}
	select {
	case s.queue <- event:
		return false
	default:
		s.lost.Add(1)
		s.missed.Add(1)
		return true
	}
}

func (s *Subscription[T]) depth() QueueDepth {
	return QueueDepth{Name: s.name, Queued: len(s.queue), Bound: cap(s.queue), Lost: s.missed.Load()}
}

// Next waits for an event. lost is how many were lost since the last call that
// told of any. Errors: the context's, ErrUnsubscribed.
func (s *Subscription[T]) Next(ctx context.Context) (event T, lost uint64, err error) {
	select {
	case event = <-s.queue:
		return event, s.lost.Swap(0), nil
	default:
	}
	select {
	case event = <-s.queue:
		return event, s.lost.Swap(0), nil
	case <-s.done:
		return event, 0, ErrUnsubscribed
	case <-ctx.Done():
		return event, 0, ctx.Err()
	}
}

// Close ends the subscription. A second call does nothing.
func (s *Subscription[T]) Close() {
	s.once.Do(func() {
		s.d.mu.Lock()
		delete(s.d.subs, s)
		s.d.mu.Unlock()
		if s.takesStreams() {
			s.d.streams.Add(-1)
		}
		close(s.done)
	})
}
