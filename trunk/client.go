package trunk

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

const (
	// helloLimit bounds a hello and its answer.
	helloLimit = 10 * time.Second
	// retryMin and retryMax are the pauses between attempts to resume; a peer
	// that comes ends them.
	retryMin = 100 * time.Millisecond
	retryMax = 2 * time.Second
)

// Client keeps a trunk to one protocol of one peer: the side that opens it, and
// its streams. Fill the fields, then call its methods from any goroutine; Close
// it.
type Client struct {
	Peer, Protocol string
	// Dial opens a link to the peer.
	Dial func(ctx context.Context) (Link, error)
	// Watch says whether the peer is connected and when to look again.
	Watch func() (up bool, changed <-chan struct{})
	// Survive is how long the trunk is kept without a link.
	Survive time.Duration
	Budget  *Budget
	// Told is told what happens. It must not block. If nil, nobody is.
	Told func(Event)

	mu     sync.Mutex
	closed bool
	cur    *outgoing
	making chan struct{} // closed when the trunk that is being made is, or is not
	tasks  sync.WaitGroup
}

// outgoing is a session of a Client.
type outgoing struct {
	*session
	id      sessionID
	survive time.Duration // the lower of both sides'

	mu      sync.Mutex
	attempt uint32
	joining chan struct{} // holds one while a link is being made
	linked  chan struct{} // closed while there is a link
}

// ErrRestarted says that the peer does not know the trunk any more.
var ErrRestarted = errors.New("the peer has started anew")

// errVerdict is what a peer answered to a hello, if not that all is well.
type errVerdict verdict

func (e errVerdict) Error() string {
	switch verdict(e) {
	case verdictUnknown:
		return ErrRestarted.Error()
	case verdictRefused:
		return "refused by the peer"
	case verdictFull:
		return "the peer has too many trunks"
	case verdictStale:
		return "a later attempt was there before"
	}
	return fmt.Sprintf("answered %d", byte(e))
}

// Open opens a stream. Where the trunk has no link it waits for one until ctx
// ends.
func (c *Client) Open(ctx context.Context) (*Stream, error) {
	for {
		o, err := c.trunk(ctx)
		if err != nil {
			return nil, err
		}
		select {
		case <-o.isLinked():
		case <-o.pipe.ended:
			continue // a new one
		case <-ctx.Done():
			return nil, &registry.ResetError{Code: proto.CodePeerAway, Err: ctx.Err()}
		}
		st, err := o.open()
		if err != nil && o.why() != nil {
			continue
		}
		return st, err
	}
}

// kept is how long the session is kept without a link.
func (o *outgoing) kept() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.survive
}

func (o *outgoing) isLinked() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.linked
}

// trunk gives the one that lives, or makes one; of several callers one does.
func (c *Client) trunk(ctx context.Context) (*outgoing, error) {
	for {
		c.mu.Lock()
		switch {
		case c.closed:
			c.mu.Unlock()
			return nil, &registry.ResetError{Code: proto.CodeClosed, Err: errEnded}
		case c.cur != nil && c.cur.why() == nil:
			o := c.cur
			c.mu.Unlock()
			return o, nil
		case c.making == nil:
			c.making = make(chan struct{})
			c.mu.Unlock()
			return c.make(ctx)
		}
		making := c.making
		c.mu.Unlock()
		select {
		case <-making:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *Client) make(ctx context.Context) (*outgoing, error) {
	o, err := c.begin(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.making)
	c.making = nil
	if err != nil {
		return nil, err
	}
	if c.closed {
		o.end(proto.CodeClosed)
		return nil, &registry.ResetError{Code: proto.CodeClosed, Err: errEnded}
	}
	c.cur = o
	return o, nil
}

// begin makes a new session with its first link.
func (c *Client) begin(ctx context.Context) (*outgoing, error) {
	o := &outgoing{joining: make(chan struct{}, 1), linked: make(chan struct{}), survive: c.Survive}
	_, _ = crand.Read(o.id[:]) // never fails
	p := newPipe(func(_ *attachment, err error) { c.away(o, err) })
	s, err := newSession(p, c.Budget, true)
	if err != nil {
		return nil, err
	}
	o.session = s
	if err := c.join(ctx, o, false); err != nil {
		o.end(proto.CodePeerAway)
		return nil, err
	}
	return o, nil
}

// join gives a session a link, in place of the one that it has.
func (c *Client) join(ctx context.Context, o *outgoing, resume bool) error {
	select {
	case o.joining <- struct{}{}:
		defer func() { <-o.joining }()
	case <-ctx.Done():
		return ctx.Err()
	}
	link, err := c.Dial(ctx)
	if err != nil {
		return err
	}
	a, err := c.greet(ctx, o, link, resume)
	if err != nil {
		link.Reset()
		return err
	}
	if _, err := o.pipe.attach(link, a.received); err != nil {
		link.Reset()
		o.end(proto.CodeNone)
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.survive = min(c.Survive, a.survive)
	if !isClosed(o.linked) {
		close(o.linked)
	}
	return nil
}

func isClosed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// greet says hello and takes the answer.
func (c *Client) greet(ctx context.Context, o *outgoing, link Link, resume bool) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, helloLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, link.Reset)
	defer stop()
	o.attempt++
	h := hello{resume: resume, session: o.id, attempt: o.attempt, received: o.pipe.offsets(), survive: c.Survive}
	if err := h.write(link); err != nil {
		return answer{}, err
	}
	a, err := readAnswer(link)
	if err != nil {
		return a, err
	}
	if a.verdict != verdictOK {
		return a, errVerdict(a.verdict)
	}
	return a, nil
}

// away is called when the link of a session is lost.
func (c *Client) away(o *outgoing, why error) {
	o.mu.Lock()
	if isClosed(o.linked) {
		o.linked = make(chan struct{})
	}
	o.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.tasks.Go(func() { c.resume(o, why) })
}

// resume tries to give the session a link again, until it was parked too long.
func (c *Client) resume(o *outgoing, why error) {
	since := wall()
	c.tell(Event{Op: Parked, Streams: o.count(), Reason: why.Error()})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	survive := o.kept()
	c.tasks.Go(func() {
		if o.park(since, survive, ctx.Done()) {
			o.end(proto.CodePeerAway)
		}
	})
	before := o.pipe.replays()
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		err := c.join(ctx, o, true)
		if err == nil {
			c.tell(Event{Op: Resumed, Away: wall().Sub(since), Replayed: o.pipe.replays() - before, Streams: o.count()})
			return
		}
		if c.isFinal(o, err) || !c.rest(ctx, o, pause) {
			c.tell(Event{Op: Ended, Streams: o.count(), Reason: err.Error()})
			return
		}
	}
}

// isFinal ends a session that the peer does not take back.
func (c *Client) isFinal(o *outgoing, err error) bool {
	var v errVerdict
	if !errors.As(err, &v) {
		return o.why() != nil
	}
	switch verdict(v) {
	case verdictUnknown:
		o.end(proto.CodeRestarted)
	case verdictRefused:
		o.end(proto.CodeRevoked)
	case verdictStale:
		return false
	default:
		o.end(proto.CodeNone)
	}
	return true
}

// rest waits for the next attempt; false where there is to be none.
func (c *Client) rest(ctx context.Context, o *outgoing, pause time.Duration) bool {
	_, changed := c.Watch()
	select {
	case <-changed:
	case <-time.After(pause/2 + rand.N(pause)):
	case <-o.pipe.ended:
		return false
	case <-ctx.Done():
		return false
	}
	return true
}

// Path is that of the trunk's link, or of its last one; false where there is no
// trunk.
func (c *Client) Path() (registry.Path, bool) {
	c.mu.Lock()
	o := c.cur
	c.mu.Unlock()
	if o == nil || o.why() != nil {
		return registry.Path{}, false
	}
	return o.pipe.path(), true
}

// Move takes the trunk to another link, while it keeps the one it has: for a
// better path. Where there is no trunk it does nothing.
func (c *Client) Move(ctx context.Context) error {
	c.mu.Lock()
	o := c.cur
	c.mu.Unlock()
	if o == nil || o.why() != nil || !isClosed(o.linkedNow()) {
		return nil
	}
	before := o.pipe.replays()
	if err := c.join(ctx, o, true); err != nil {
		return err
	}
	c.tell(Event{Op: Moved, Replayed: o.pipe.replays() - before, Streams: o.count()})
	return nil
}

func (o *outgoing) linkedNow() chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.linked
}

// Close ends the trunk with all its streams, and returns when nothing of it
// runs.
func (c *Client) Close(code proto.Code) {
	c.mu.Lock()
	c.closed = true
	o := c.cur
	c.mu.Unlock()
	if o != nil {
		o.end(code)
		o.tasks.Wait()
	}
	c.tasks.Wait()
}

func (c *Client) tell(e Event) {
	if c.Told != nil {
		e.Peer, e.Protocol = c.Peer, c.Protocol
		c.Told(e)
	}
}
