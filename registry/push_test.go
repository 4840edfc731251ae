package registry

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"

	"p2ptun/proto"
)

// trunkEnd is a memEnd that is written to in frames, and pushes what comes.
type trunkEnd struct {
	*memEnd
	frame []byte
	sizes []int // of the frames that were sent

	mu     sync.Mutex
	change sync.Cond
	parked bool
	to     func([]byte) int
	wake   func()
	pushed int // bytes that went that way
	woken  int
	data   []byte
	lent   int
	err    error
}

var _ interface {
	Pusher
	Framer
} = (*trunkEnd)(nil)

func newTrunkEnd(e *memEnd) *trunkEnd {
	t := &trunkEnd{memEnd: e, frame: make([]byte, 1000)}
	t.change.L = &t.mu
	return t
}

func (t *trunkEnd) Frame() []byte { return t.frame }

func (t *trunkEnd) Drop() {}

func (t *trunkEnd) Send(n int) (int, error) {
	t.sizes = append(t.sizes, n)
	return t.Write(t.frame[:n])
}

func (t *trunkEnd) Push(to func([]byte) int, wake func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.to, t.wake = to, wake
	if len(t.data) > 0 {
		t.pushed = to(t.data)
		t.data = t.data[t.pushed:]
	}
}

func (t *trunkEnd) Park() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parked = len(t.data) == 0 && t.err == nil
	return t.parked
}

// rouse wakes the reader. Call it with mu held.
func (t *trunkEnd) rouse() {
	if t.parked {
		t.parked = false
		t.woken++
		t.wake()
	}
	t.change.Broadcast()
}

func (t *trunkEnd) Lend(most int) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.data) == 0 && t.err == nil {
		t.change.Wait()
	}
	if len(t.data) == 0 {
		return nil, t.err
	}
	t.lent = min(most, len(t.data))
	return t.data[:t.lent], nil
}

func (t *trunkEnd) Return() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = t.data[t.lent:]
}

// comes is a frame from the peer.
func (t *trunkEnd) comes(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	took := 0
	if t.parked {
		took = t.to(b)
		t.pushed += took
	}
	if t.data = append(t.data, b[took:]...); len(t.data) > 0 {
		t.rouse()
	}
}

func (t *trunkEnd) ends(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
	t.rouse()
}

// isTaken says that nothing waits to be taken.
func (t *trunkEnd) isTaken() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.data) == 0
}

func (t *trunkEnd) Reset(code proto.Code) error {
	t.ends(&ResetError{Code: code})
	return t.memEnd.Reset(code)
}

// tcpAndTrunk pipes a TCP connection to an end of a trunk.
func (g *rig) tcpAndTrunk(bound int) (client *net.TCPConn, peer *memEnd, remote *trunkEnd) {
	g.Helper()
	client, local := tcpPair(g)
	peer, inner := memPair(bound)
	remote = newTrunkEnd(inner)
	g.pipe(connEndOf(g, local), remote)
	return client, peer, remote
}

func TestWhatComesIsPushedInItsOrder(t *testing.T) {
	g := newRig(t)
	client, _, remote := g.tcpAndTrunk(1 << 20)
	want := pattern(64 << 20) // more than the sockets hold
	done := background(func() error {
		for b := range slices.Chunk(want, 5000) {
			remote.comes(b)
		}
		remote.ends(io.EOF)
		return nil
	})
	eventually(t, func() bool { return !remote.isTaken() }) // the sockets are full
	got, err := io.ReadAll(client)
	must(t, err)
	must(t, <-done)
	must(t, client.CloseWrite())
	g.drained()
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, not those", len(got))
	}
	if n := g.bytesIn.Load(); n != int64(len(want)) {
		t.Errorf("counted %d", n)
	}
	if remote.pushed == 0 || remote.pushed == len(want) {
		t.Errorf("%d bytes were pushed: both ways are to be seen", remote.pushed)
	}
}

// A RST that the push hears of, and nobody else.
func TestRSTThatAPushHearsOfIsNoEnd(t *testing.T) {
	for range 200 {
		g := newRig(t)
		client, _, remote := g.tcpAndTrunk(1 << 20)
		pouring := background(func() error {
			for block := make([]byte, 32<<10); len(remote.codes()) == 0; {
				if remote.isTaken() {
					remote.comes(block)
				}
			}
			return nil
		})
		g.wantReset(client, pouring, remote.memEnd)
	}
}

func TestBytesGoInFrames(t *testing.T) {
	g := newRig(t)
	client, peer, remote := g.tcpAndTrunk(1 << 20)
	want := pattern(100_000)
	must(t, writeOf(client, want)())
	must(t, client.CloseWrite())
	got, err := io.ReadAll(peer)
	must(t, err)
	remote.ends(io.EOF)
	g.drained()
	if !bytes.Equal(got, want) || g.bytesOut.Load() != int64(len(want)) {
		t.Errorf("%d bytes, counted %d", len(got), g.bytesOut.Load())
	}
	if len(remote.sizes) > len(want)/len(remote.frame)+10 {
		t.Errorf("%d frames", len(remote.sizes))
	}
}

// A rate holds frames and pushes back as it does all else, also where it is set
// in the middle.
func TestARateHoldsATrunkBack(t *testing.T) {
	g := newRig(t)
	client, local := tcpPair(t)
	_, inner := memPair(1 << 20)
	remote := newTrunkEnd(inner)
	throttle := g.entry.Throttle("peer", func() int64 { return 0 })
	must(t, g.Pipe(g.entry, &Stream{Peer: "peer", Throttle: throttle}, connEndOf(t, local), remote))
	remote.comes(make([]byte, 5000))
	readN(t, client, 5000)
	g.entry.SetPeerRates(func(string) int64 { return 1000 })
	const more = 2 * leastBurst // than a bucket holds
	remote.comes(make([]byte, more))
	must(t, writeOf(client, make([]byte, more))())
	eventually(t, func() bool { return throttle.of.peersSlowed.text(LimitPeerRate) != "" })
	if in, out := g.bytesIn.Load(), g.bytesOut.Load(); in >= 5000+more || out >= more {
		t.Errorf("%d bytes in, %d out", in, out)
	}
	if err := remote.Reset(proto.CodeReset); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, client); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the reset comes out as %v", err)
	}
}

// TestWhatCameBeforeThePipeIsPushed, without a goroutine that would carry it.
func TestWhatCameBeforeThePipeIsPushed(t *testing.T) {
	g := newRig(t)
	client, local := tcpPair(t)
	_, inner := memPair(10)
	remote := newTrunkEnd(inner)
	remote.comes([]byte("hello"))
	g.pipe(connEndOf(t, local), remote)
	readN(t, client, 5)
	if !remote.parked || remote.pushed != 5 || remote.woken != 0 || g.bytesIn.Load() != 5 {
		t.Errorf("parked %v, %d bytes pushed, woken %d times, counted %d", remote.parked, remote.pushed, remote.woken, g.bytesIn.Load())
	}
	remote.ends(io.EOF)
	must(t, client.CloseWrite())
	g.drained()
}

func TestAnIdleWayHasNoGoroutine(t *testing.T) {
	g := newRig(t)
	before, many := runtime.NumGoroutine(), 100
	for range many {
		client, _, remote := g.tcpAndTrunk(1 << 10)
		remote.comes([]byte("hello"))
		readN(t, client, 5)
	}
	eventually(t, func() bool { return runtime.NumGoroutine() <= before+many+5 })
}
