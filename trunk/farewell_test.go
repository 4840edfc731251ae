package trunk

import (
	"context"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

// What the peer still sends when this side ends, and closes its host next, does
// not keep the end from arriving: its socket would be reset with it unread.
func TestAnEndArrivesAgainstTheStream(t *testing.T) {
	for range 20 {
		endAgainstTheStream(t)
	}
}

func endAgainstTheStream(t *testing.T) {
	t.Helper()
	w := newHostWorld(t, onTCP, func(st *Stream) {
		defer func() { _ = st.Close() }()
		buf := make([]byte, 256<<10)
		for {
			if _, err := st.Write(buf); err != nil {
				return
			}
		}
	}, directly)
	var parked atomic.Bool
	w.server.Told = func(e Event) { parked.Store(parked.Load() || e.Op == Parked) }
	for range 4 {
		st, err := w.Open(t.Context())
		must(t, err)
		_, err = io.CopyN(io.Discard, st, 4<<20)
		must(t, err)
		w.serving.Go(func() { _, _ = io.Copy(io.Discard, st); _ = st.Close() })
	}
	w.Client.Close(proto.CodeClosed)
	_ = w.from.Close()
	for all, _ := w.server.Count(); all > 0; all, _ = w.server.Count() {
		if parked.Load() {
			t.Fatal("the server keeps the session for its client to come back")
		}
		runtime.Gosched()
	}
}

// lateLink has its writer return a while after the reset.
type lateLink struct {
	*fakeLink
	once  sync.Once
	reset chan struct{}
}

func (l *lateLink) Write([]byte) (int, error) {
	<-l.reset
	time.Sleep(time.Millisecond)
	return 0, errCut
}

func (l *lateLink) Reset() {
	l.once.Do(func() { close(l.reset) })
	l.fakeLink.Reset()
}

// TestAnEndRightAfterAMoveIsSaid: over the new link, though somebody is about to
// return from a Write to the old one.
func TestAnEndRightAfterAMoveIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPipe(nil, func(*attachment, error) {})
		link, _ := newFakeLink(-1, -1, false)
		_, _, err := p.attach(&lateLink{fakeLink: link, reset: make(chan struct{})}, 0, 0)
		must(t, err)
		must(t, p.append([]byte("x"), nil))
		synctest.Wait() // its writer is in Write
		next, peer := newFakeLink(-1, -1, false)
		_, _, err = p.attach(next, 0, 0)
		must(t, err)
		p.end(proto.CodeStopped)
		told := time.Now()
		p.wait()
		if took := time.Since(told); took > farewell {
			t.Errorf("it takes %s", took)
		}
		raw := make([]byte, headerSize)
		_, err = io.ReadFull(peer, raw)
		must(t, err)
		if h, _ := parseHeader(raw); h.kind != kindEnd || proto.Code(h.offset) != proto.CodeStopped {
			t.Errorf("the peer is told %+v", h)
		}
	})
}

// TestCloseEndsATrunkThatIsBeingMade, whatever it takes, and leaves nothing.
func TestCloseEndsATrunkThatIsBeingMade(t *testing.T) {
	for name, patient := range map[string]bool{"a dial that gives up": false, "a dial that does not": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newFakeWorld(plan{}, echo)
				dial := w.Dial
				w.Dial = func(ctx context.Context) (Link, error) {
					late := time.NewTimer(time.Second)
					select {
					case <-late.C:
					case <-ctx.Done():
						if !patient {
							return nil, ctx.Err()
						}
						<-late.C
					}
					return dial(context.WithoutCancel(ctx))
				}
				opened := make(chan error, 1)
				go func() { _, err := w.Open(context.Background()); opened <- err }()
				synctest.Wait()
				began := time.Now()
				w.Client.Close(proto.CodeClosed)
				if took := time.Since(began); took >= time.Second != patient {
					t.Errorf("Close takes %s", took)
				}
				if err := <-opened; err == nil {
					t.Error("a stream was opened")
				}
				synctest.Wait()
				if used := w.Budget.Used(); used != 0 {
					t.Errorf("%d bytes of the budget are used", used)
				}
				if all, _ := w.server.Count(); all != 0 {
					t.Errorf("the server keeps %d sessions", all)
				}
				w.close()
			})
		})
	}
}
