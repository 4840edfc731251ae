package trunk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

// plan says after how many bytes each link of a fakeWorld is cut, from its
// client and from its server; later ones are not.
type plan struct {
	cuts  [][2]int
	lossy bool
}

// fakeWorld is a client and a server in a bubble of virtual time, with links in
// memory.
type fakeWorld struct {
	*Client
	server *Server
	plan   plan

	mu      sync.Mutex
	made    int
	links   []*fakeLink
	serving sync.WaitGroup
	events  []Event
}

func newFakeWorld(p plan, accept func(*Stream)) *fakeWorld {
	w := &fakeWorld{plan: p}
	w.server = &Server{
		Allowed: func(string, string) bool { return true },
		Accept:  func(_, _ string, st *Stream) { accept(st) },
		Survive: func(string) time.Duration { return time.Hour },
		Budget:  NewBudget(DefaultBudget),
	}
	w.Client = &Client{
		Peer: testPeer, Protocol: testProtocol, Survive: time.Hour, Budget: NewBudget(DefaultBudget),
		Dial: w.dial, Watch: func() (bool, <-chan struct{}) { return true, nil }, Told: w.told,
	}
	return w
}

func (w *fakeWorld) told(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

func (w *fakeWorld) dial(context.Context) (Link, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cut := [2]int{-1, -1}
	if w.made < len(w.plan.cuts) {
		cut = w.plan.cuts[w.made]
	}
	w.made++
	client, server := newFakeLink(cut[0], cut[1], w.plan.lossy)
	w.links = append(w.links, client)
	w.serving.Go(func() { _ = w.server.Serve(server, testPeer, testProtocol) })
	return client, nil
}

// cut resets all links.
func (w *fakeWorld) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.links {
		l.Reset()
	}
	w.links = nil
}

func (w *fakeWorld) close() {
	w.Client.Close(proto.CodeClosed)
	w.server.Close(proto.CodeClosed)
	w.cut()
	w.serving.Wait()
}

// openSoon opens a stream; the first link may be cut before there is a session.
func (w *fakeWorld) openSoon(ctx context.Context) (*Stream, error) {
	for {
		st, err := w.Open(ctx)
		if err == nil || ctx.Err() != nil || errors.As(err, new(*registry.ResetError)) {
			return st, err
		}
	}
}

// What the peer of the conversation does is told by the first byte.
const (
	askEcho    = 'e' // sends back what it gets, and ends when the other has
	askReset   = 'r' // resets after that byte
	askRefused = 'd' // as a target that is down
)

func converse(st *Stream) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(st, first); err != nil {
		_ = st.Reset(proto.CodeReset)
		return
	}
	switch first[0] {
	case askEcho:
		echo(st)
	case askReset:
		_, _ = st.Write([]byte("abc"))
		_, _ = io.ReadFull(st, first) // its "go"
		_ = st.Reset(proto.CodeReset)
	case askRefused:
		_ = st.Reset(proto.CodeTargetDown)
	}
}

// wantConversation has three streams speak at once: one that is half-closed and
// answered, one that is reset in the middle, one that is refused.
func wantConversation(ctx context.Context, w *fakeWorld) error {
	var all sync.WaitGroup
	errs := make([]error, 3)
	for i, one := range []func(*Stream) error{wantEchoed, wantResetInTheMiddle, wantRefused} {
		all.Go(func() {
			st, err := w.openSoon(ctx)
			if err == nil {
				err = one(st)
			}
			if err != nil {
				errs[i] = fmt.Errorf("stream %d: %w", i, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func wantEchoed(st *Stream) error {
	const words = "half-closed and answered"
	if _, err := st.Write([]byte{askEcho}); err != nil {
		return err
	}
	if _, err := io.WriteString(st, words); err != nil {
		return err
	}
	if err := st.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(st)
	if err != nil || string(got) != words {
		return fmt.Errorf("echo of %q: %q, %w", words, got, err)
	}
	return st.Close()
}

func wantResetInTheMiddle(st *Stream) error {
	if _, err := st.Write([]byte{askReset}); err != nil {
		return err
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(st, got); err != nil || string(got) != "abc" {
		return fmt.Errorf("before the reset: %q, %w", got, err)
	}
	if _, err := st.Write([]byte{'g'}); err != nil {
		return err
	}
	_, err := io.ReadAll(st)
	return wantCode(st, err, proto.CodeReset)
}

func wantRefused(st *Stream) error {
	if _, err := st.Write([]byte{askRefused}); err != nil {
		return err
	}
	_, err := io.ReadAll(st)
	return wantCode(st, err, proto.CodeTargetDown)
}

// wantCode checks the reset that a read ended with, and releases the stream as
// its owner would.
func wantCode(st *Stream, err error, want proto.Code) error {
	_ = st.Reset(proto.CodeReset)
	var reset *registry.ResetError
	if !errors.As(err, &reset) || reset.Code != want {
		return fmt.Errorf("ended with %w, want %s", err, want)
	}
	return nil
}

// bubble runs f in virtual time. yamux keeps timers in a pool that knows no
// bubbles: it is emptied on both sides of each.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	empty := func() {
		runtime.GC() // what is in a sync.Pool outlives one collection
		runtime.GC()
	}
	empty()
	defer empty() // also where it fails
	synctest.Test(t, f)
}

// conversation runs one over links that are cut as planned, and gives how many
// bytes went over the first link each way, if it was not. Call it in a bubble.
func conversation(t *testing.T, p plan) (carried [2]int) {
	t.Helper()
	w := newFakeWorld(p, converse)
	defer w.close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := wantConversation(ctx, w); err != nil {
		t.Errorf("%+v: %v", p, err)
	}
	if len(p.cuts) == 0 {
		time.Sleep(time.Second) // until the last ack is out: virtual
		w.mu.Lock()
		link := w.links[0]
		w.mu.Unlock()
		carried = [2]int{link.out.sum(), link.in.sum()}
	}
	return carried
}

// sum is how many bytes were written.
func (w *wire) sum() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written
}

// TestALinkCutAtEveryByteLosesNothing: at every position of each way, in the
// hello and in the conversation; both ways at once; what is under way lost or
// not; and the link after it cut in its hello, or soon after, as well.
func TestALinkCutAtEveryByteLosesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		sums := conversation(t, plan{})
		if sums[0] < helloSize || sums[1] < answerSize {
			t.Fatalf("the conversation takes %v bytes", sums)
		}
		const again = 80 // bytes of a resume: hello or answer, and some frames
		n := 0
		for at := range max(sums[0], sums[1]) {
			for _, first := range [][2]int{{at, -1}, {-1, at}, {at, at}} {
				for _, lossy := range []bool{false, true} {
					n++
					second := at * 7 % again
					conversation(t, plan{lossy: lossy, cuts: [][2]int{first}})
					conversation(t, plan{lossy: lossy, cuts: [][2]int{first, {second, -1}, {-1, second}}})
				}
			}
		}
		t.Logf("%d bytes up, %d down: %d cuts, and as many with two more after it", sums[0], sums[1], n)
	})
}

// TestEveryByteOfAResumeMayBeItsLast cuts the first link in the middle, and the
// next at every position.
func TestEveryByteOfAResumeMayBeItsLast(t *testing.T) {
	bubble(t, func(t *testing.T) {
		sums := conversation(t, plan{})
		middle := [2]int{sums[0] / 2, -1}
		for at := range sums[0] {
			for _, second := range [][2]int{{at, -1}, {-1, at}, {at, at}} {
				conversation(t, plan{lossy: true, cuts: [][2]int{middle, second}})
			}
		}
	})
}
