package trunk

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
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
	// moveLimit bounds a move, and moveGrace how long it may go on without the link
	// that it leaves, once it has said hello: the peer resets that with its answer,
	// which may be here later.
	moveLimit = 15 * time.Second
	moveGrace = 500 * time.Millisecond
)

// Client keeps a trunk to one protocol of one peer: the side that opens it, and
// its streams. Fill the fields, then call its methods from any goroutine; Close
// it.
type Client struct {
	Peer, Protocol string
	// Dial opens a link to the peer, on its best path, and does not wait for the
	// peer to come. A *registry.ResetError with CodeNoService says that it takes
	// no trunks.
	Dial func(ctx context.Context) (Link, error)
	// Watch says whether the peer is connected and when to look again.
	Watch func() (up bool, changed <-chan struct{})
	// Survive is how long the trunk is kept without a link.
	Survive time.Duration
	// Budget bounds memory. If nil, there is no bound but those of the trunk.
	Budget *Budget
	// Told is told what happens. It must not block. If nil, nobody is.
	Told func(Event)

	mu     sync.Mutex
	closed bool
	cur    *outgoing
	making chan struct{} // closed when the trunk that is being made is, or is not
	giveUp func()        // ends the making
	tasks  sync.WaitGroup
	calm   hysteresis
	moving atomic.Bool // one Move at a time
}

// outgoing is a session of a Client.
type outgoing struct {
	*session
	id sessionID

	joining  chan struct{} // holds one while a link is being made
	attempt  uint32        // guarded by joining
	resuming chan struct{} // holds one while a resume is under way

	mu      sync.Mutex
	survive time.Duration // the lower of both sides'
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
	case verdictVersion:
		return "the peer's trunks are of another version"
	}
	return fmt.Sprintf("answered %d", byte(e))
}

// Open opens a stream. Where the trunk has no link it waits for one until ctx
// ends. Errors: a *registry.ResetError.
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

// Parked says that there is a trunk, and that it has no link.
func (c *Client) Parked() bool {
	o := c.current()
	return o != nil && !isClosed(o.isLinked())
}

// current is the session that lives; nil for none.
func (c *Client) current() *outgoing {
	c.mu.Lock()
	o := c.cur
	c.mu.Unlock()
	if o == nil || o.why() != nil {
		return nil
	}
	return o
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
			ctx, c.giveUp = context.WithCancel(ctx)
			defer c.giveUp()
			c.mu.Unlock()
			return c.make(ctx)
		}
		making := c.making
		c.mu.Unlock()
		select {
		case <-making:
		case <-ctx.Done():
			return nil, &registry.ResetError{Code: proto.CodePeerAway, Err: ctx.Err()}
		}
	}
}

func (c *Client) make(ctx context.Context) (*outgoing, error) {
	o, err := c.begin(ctx)
	if err == nil && !c.keeps(o) {
		o.finish(proto.CodeClosed, 0) // without locks: it waits for a reader that may be in away
		o.tasks.Wait()
		o, err = nil, &registry.ResetError{Code: proto.CodeClosed, Err: errEnded}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.making)
	c.making = nil
	return o, err
}

// keeps notes what make has made, unless the client is closed.
func (c *Client) keeps(o *outgoing) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.cur = o
	}
	return !c.closed
}

// begin makes a new session with its first link.
func (c *Client) begin(ctx context.Context) (*outgoing, error) {
	o := &outgoing{joining: make(chan struct{}, 1), resuming: make(chan struct{}, 1), linked: make(chan struct{}), survive: c.Survive}
	_, _ = crand.Read(o.id[:]) // never fails
	s, err := newSession(c.Budget, true, func(a *attachment, err error) { c.away(o, a, err) })
	if err != nil {
		return nil, err
	}
	o.session = s
	if _, err := c.join(ctx, o, hello{}); err != nil {
		o.end(proto.CodePeerAway)
		return nil, refusal(err)
	}
	return o, nil
}

// refusal gives a verdict the code that a connection is reset with.
func refusal(err error) error {
	var v errVerdict
	if !errors.As(err, &v) {
		return err
	}
	code := proto.CodeNone
	switch verdict(v) {
	case verdictRefused:
		code = proto.CodeRefused
	case verdictFull:
		code = proto.CodeTooMany
	}
	return &registry.ResetError{Code: code, Err: err}
}

// join gives a session a link, in place of the one that it has, and says how
// many bytes are sent again.
func (c *Client) join(ctx context.Context, o *outgoing, h hello) (replayed uint64, err error) {
	select {
	case o.joining <- struct{}{}:
		defer func() { <-o.joining }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if !h.move && isClosed(o.isLinked()) {
		return 0, nil // a move was there before
	}
	link, err := c.dial(ctx, o, h)
	if err != nil {
		return 0, err
	}
	if h.move && !leaves(o.pipe.path(), pathOf(link)) {
		link.Reset()
		return 0, errNoBetter
	}
	o.attempt++
	h.session, h.attempt, h.received, h.survive = o.id, o.attempt, o.pipe.position(), c.Survive
	if h.move {
		var stop func()
		ctx, stop = o.whileLinked(ctx, moveGrace)
		defer stop()
	}
	a, err := greet(ctx, link, h)
	if err != nil {
		link.Reset()
		return 0, err
	}
	before := o.pipe.replays()
	now, _, err := o.pipe.attach(link, a.received, h.received)
	if err != nil {
		link.Reset()
		o.end(proto.CodeNone)
		return 0, err
	}
	o.hasLink(now, min(c.Survive, a.survive))
	return o.pipe.replays() - before, nil
}

// dial gives a link on which nothing was said.
func (c *Client) dial(ctx context.Context, o *outgoing, h hello) (Link, error) {
	if h.move {
		var stop func()
		ctx, stop = o.whileLinked(ctx, 0)
		defer stop()
	}
	link, err := c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil { // before the peer makes a session of it
		link.Reset()
		return nil, err
	}
	return link, nil
}

// hasLink notes a new link, unless it is lost already: away has passed, or
// will.
func (o *outgoing) hasLink(a *attachment, survive time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.survive = survive
	if !isClosed(a.gone) && !isClosed(o.linked) {
		close(o.linked)
	}
}

// hasNone notes that a link was lost, and reports false where another has taken
// its place since.
func (o *outgoing) hasNone(a *attachment) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.pipe.isNewest(a) {
		return false
	}
	if isClosed(o.linked) {
		o.linked = make(chan struct{})
	}
	return true
}

// whileLinked gives a context that ends with the link that there is, or grace
// later: then a resume is to come, which waits for nothing else. Call stop.
func (o *outgoing) whileLinked(ctx context.Context, grace time.Duration) (of context.Context, stop func()) {
	of, cancel := context.WithCancel(ctx)
	gone := o.pipe.lastGone()
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-gone:
		case <-of.Done():
			return
		}
		late := time.NewTimer(grace)
		defer late.Stop()
		select {
		case <-late.C:
			cancel()
		case <-of.Done():
		}
	})
	return of, func() {
		cancel()
		watching.Wait()
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// greet says hello and takes the answer.
func greet(ctx context.Context, link Link, h hello) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, helloLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, link.Reset)
	defer stop()
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
func (c *Client) away(o *outgoing, a *attachment, why error) {
	if !o.hasNone(a) {
		return
	}
	c.calm.lost(o.pipe.path())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.tasks.Go(func() {
		if bye := (endError{}); errors.As(why, &bye) {
			c.tell(o, Event{Op: Ended, Streams: o.count(), Reason: bye.Error()})
			o.end(bye.code)
			return
		}
		o.resuming <- struct{}{}
		defer func() { <-o.resuming }()
		o.joining <- struct{}{} // the loss may be part of a move
		<-o.joining
		if o.pipe.isNewest(a) {
			c.resume(o, why)
		}
	})
}

// resume tries to give the session a link again, until it was parked too long.
func (c *Client) resume(o *outgoing, why error) {
	since, survive := wall(), o.kept()
	o.parked(since)
	c.tell(o, Event{Op: Parked, Streams: o.count(), Survive: survive, Reason: why.Error()})
	ctx, cancel := context.WithCancel(context.Background()) // ends with the session
	defer cancel()
	c.tasks.Go(func() {
		defer cancel()
		if o.park(since, survive, ctx.Done()) {
			o.end(proto.CodePeerAway)
		}
	})
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		replayed, err := c.join(ctx, o, hello{resume: true})
		if err == nil {
			c.tell(o, o.resumed(wall().Sub(since), replayed))
			return
		}
		streams := o.count()
		if o.why() == nil && !c.isFinal(o, err) && c.rest(ctx, o, pause) {
			continue
		}
		if !c.isClosed() {
			c.tell(o, Event{Op: Ended, Away: wall().Sub(since), Streams: streams, Reason: c.fate(o, survive, err)})
		}
		return
	}
}

// fate says why a session has ended.
func (c *Client) fate(o *outgoing, survive time.Duration, err error) string {
	var r *registry.ResetError
	if errors.As(o.why(), &r) && r.Code == proto.CodePeerAway {
		return "no link for " + survive.String()
	}
	return err.Error()
}

// isFinal ends a session that the peer does not take back.
func (c *Client) isFinal(o *outgoing, err error) bool {
	code, final := verdictCode(err)
	if final {
		o.end(code)
	}
	return final
}

// verdictCode is what the streams of a session are reset with that a peer does
// not take back; false where it may still do so.
func verdictCode(err error) (code proto.Code, final bool) {
	var v errVerdict
	var r *registry.ResetError
	switch {
	case errors.As(err, &r) && r.Code == proto.CodeNoService:
		return proto.CodeRestarted, true // as something that has no trunks
	case !errors.As(err, &v):
		return proto.CodeNone, false
	}
	switch verdict(v) {
	case verdictUnknown:
		return proto.CodeRestarted, true
	case verdictRefused:
		return proto.CodeRevoked, true
	case verdictStale, verdictFull:
		return proto.CodeNone, false
	}
	return proto.CodeNone, true
}

// rest waits for the next attempt; false where there is to be none.
func (c *Client) rest(ctx context.Context, o *outgoing, pause time.Duration) bool {
	_, changed := c.Watch()
	timer := time.NewTimer(pause/2 + rand.N(pause))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
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
	o := c.current()
	if o == nil {
		return registry.Path{}, false
	}
	return o.pipe.path(), true
}

// Move takes the trunk to a link on a better path, while it keeps the one it
// has until then. Where such a path was lost just now it waits first: the
// longer, the oftener. Where there is no trunk, or no better path, it does
// nothing; nor where another Move is under way.
func (c *Client) Move(ctx context.Context) error {
	if !c.moving.CompareAndSwap(false, true) {
		return nil
	}
	defer c.moving.Store(false)
	if err := c.calm.wait(ctx); err != nil {
		return err
	}
	o := c.current()
	if o == nil || !isClosed(o.isLinked()) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, moveLimit)
	defer cancel()
	from := o.pipe.path()
	replayed, err := c.join(ctx, o, hello{resume: true, move: true})
	if errors.Is(err, errNoBetter) {
		return nil
	}
	if err != nil {
		_ = c.isFinal(o, err)
		return err
	}
	c.calm.moved()
	c.tell(o, o.moved(from, replayed))
	return nil
}

// Close ends the trunk with all its streams, after what those that have ended
// have said last has arrived, and returns when nothing of it runs.
func (c *Client) Close(code proto.Code) {
	c.mu.Lock()
	c.closed = true
	o, making := c.cur, c.making
	if making != nil {
		c.giveUp()
	}
	c.mu.Unlock()
	if making != nil {
		<-making
	}
	if o != nil {
		o.finish(code, finishLimit)
		o.tasks.Wait()
	}
	c.tasks.Wait()
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *Client) tell(o *outgoing, e Event) {
	if c.Told != nil {
		e.Peer, e.Protocol, e.Opener, e.To = c.Peer, c.Protocol, true, o.pipe.path()
		c.Told(e)
	}
}
