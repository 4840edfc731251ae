package trunk

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

const (
	askStuck = 's' // reads nothing more
	// bothMin is what a trunk without streams takes of both sides' budgets.
	bothMin = 2*trunkMin + aheadStreams*aheadWindow
)

// converseOrStick is converse, with readers that are stuck.
func converseOrStick(st *Stream) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(st, first); err != nil {
		_ = st.Reset(proto.CodeReset)
		return
	}
	if first[0] == askStuck {
		stuck(st)
		return
	}
	echo(st)
}

// ask opens a stream of a kind.
func (w *fakeWorld) ask(t *testing.T, kind byte) *Stream {
	t.Helper()
	st, err := w.Open(t.Context())
	must(t, err)
	_, err = st.Write([]byte{kind})
	must(t, err)
	return st
}

// wantFast sends 8 MiB to and fro. Links in memory take no time, so time goes by
// only where somebody waits for a timer.
func wantFast(t *testing.T, st *Stream) {
	t.Helper()
	before := time.Now()
	exchange(t, st, 8<<20, 3)
	if took := time.Since(before); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// stick has so many readers be stuck, each sent until its writer blocks.
func (w *fakeWorld) stick(t *testing.T, n int) (end func()) {
	var streams []*Stream
	var writing sync.WaitGroup
	for range n {
		st := w.ask(t, askStuck)
		streams = append(streams, st)
		writing.Go(func() {
			for buf := make([]byte, 64<<10); ; {
				if _, err := st.Write(buf); err != nil {
					return
				}
			}
		})
	}
	synctest.Wait()
	return func() {
		for _, st := range streams {
			must(t, st.Reset(proto.CodeReset))
		}
		writing.Wait()
	}
}

// wantWithin checks that the budgets of both sides hold.
func (w *fakeWorld) wantWithin(t *testing.T) {
	t.Helper()
	for _, b := range []*Budget{w.Budget, w.server.Budget} {
		if used := b.Used(); used > b.Max() || used < 0 {
			t.Errorf("%d bytes are used, of %d", used, b.Max())
		}
	}
}

// rest is what both sides use of their budgets.
func (w *fakeWorld) rest() int64 {
	synctest.Wait()
	return w.Budget.Used() + w.server.Budget.Used()
}

func TestAHundredStuckReadersHoldNobodyUp(t *testing.T) {
	for name, c := range map[string]struct {
		max    int64
		atRest int64 // where there was no room, no stream that is to come has credit
	}{"much memory": {DefaultBudget, bothMin}, "little memory": {8 << 20, 2 * trunkMin}, "hardly any": {2 << 20, 2 * trunkMin}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newFakeWorld(plan{}, converseOrStick)
				w.Budget, w.server.Budget = NewBudget(c.max), NewBudget(c.max)
				end := w.stick(t, 100)
				w.wantWithin(t)
				for range 3 {
					wantFast(t, w.ask(t, askEcho))
					w.wantWithin(t)
					time.Sleep(3 * tidyEvery)
				}
				end()
				time.Sleep(3 * tidyEvery)
				if used := w.rest(); used != c.atRest {
					t.Errorf("%d bytes are used at rest, want %d", used, c.atRest)
				}
				w.close()
			})
		})
	}
}

// echoes sends so much over a stream that stays, reads it back, and says how
// long that took.
func echoes(t *testing.T, st *Stream, size int) time.Duration {
	t.Helper()
	before := time.Now()
	var writing sync.WaitGroup
	writing.Go(func() {
		if _, err := st.Write(make([]byte, size)); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	n, err := io.CopyN(io.Discard, st, int64(size))
	writing.Wait()
	if err != nil {
		t.Errorf("%d bytes of %d: %v", n, size, err)
	}
	return time.Since(before)
}

// farLink is a link whose bytes take a while, and any number of them at once.
type farLink struct {
	*fakeLink
	under chan parcel
	gone  chan struct{}
	once  *sync.Once
}

type parcel struct {
	due time.Time
	b   []byte
}

const farDelay = 50 * time.Millisecond

func newFarLink(l *fakeLink, carrying *sync.WaitGroup) farLink {
	far := farLink{fakeLink: l, under: make(chan parcel, 1<<14), gone: make(chan struct{}), once: new(sync.Once)}
	carrying.Go(func() {
		for {
			select {
			case p := <-far.under:
				time.Sleep(time.Until(p.due))
				_, _ = l.Write(p.b)
			case <-far.gone:
				return
			}
		}
	})
	return far
}

func (l farLink) Write(b []byte) (int, error) {
	select {
	case l.under <- parcel{time.Now().Add(farDelay), append([]byte(nil), b...)}:
		return len(b), nil
	case <-l.gone:
		return 0, errCut
	}
}

func (l farLink) Reset() {
	l.once.Do(func() { close(l.gone) })
	l.fakeLink.Reset()
}

func (l farLink) CloseWrite() error { return nil } // a reset follows

// far makes the world's links take a while.
func (w *fakeWorld) far() {
	w.Dial = func(context.Context) (Link, error) {
		client, server := newFakeLink(-1, -1, false)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.links = append(w.links, client)
		there := newFarLink(server, &w.serving)
		w.serving.Go(func() { _ = w.server.Serve(there, testPeer, testProtocol) })
		return newFarLink(client, &w.serving), nil
	}
}

// Windows grow over a long way, are given back when nothing moves, and grow
// again: the second time is as fast as the first.
func TestIdleStreamsGiveTheirWindowsBackAndWorkOnAtFullSpeed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, converseOrStick)
		w.far()
		const streams, size = 2, 8 << 20
		atRest := int64(bothMin + 2*streams*windowStart)
		var used []*Stream
		for range streams {
			used = append(used, w.ask(t, askEcho))
		}
		var took [2]time.Duration
		for i := range took {
			for _, st := range used {
				took[i] += echoes(t, st, size)
			}
			if busy := w.rest(); busy < atRest+2*streams*windowStart {
				t.Errorf("%d bytes are used: no window has grown", busy)
			}
			w.wantWithin(t)
			time.Sleep(4 * tidyEvery)
			if idle := w.rest(); idle > atRest {
				t.Errorf("%d bytes are used by idle streams, want %d at most", idle, atRest)
			}
		}
		if took[1] > took[0]*5/4 {
			t.Errorf("first it took %v, and then %v", took[0], took[1])
		}
		if least := streams * size / windowStart * 2 * farDelay; took[0] > least/2 {
			t.Errorf("it took %v, not half of what first windows take: %v", took[0], least)
		}
		t.Logf("%d times %d MiB to and fro, %v away: %v", streams, size>>20, farDelay, took)
		w.close()
	})
}

// Where memory is scarce idle streams keep the least, so that others may have a
// first window; and they go on with what there is.
func TestIdleStreamsMakeRoomWhereMemoryIsScarce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, converseOrStick)
		w.Budget, w.server.Budget = NewBudget(4<<20), NewBudget(4<<20)
		var streams []*Stream
		for range 20 {
			streams = append(streams, w.ask(t, askEcho))
		}
		for range 2 {
			for _, st := range streams {
				if took := echoes(t, st, 300<<10); took > time.Second {
					t.Errorf("it took %v", took)
				}
				w.wantWithin(t)
			}
			time.Sleep(4 * tidyEvery)
			if w.rest(); w.Budget.scarce() || w.server.Budget.scarce() {
				t.Errorf("memory stays scarce: %d and %d bytes", w.Budget.Used(), w.server.Budget.Used())
			}
		}
		w.close()
		if used := w.rest(); used != 0 {
			t.Errorf("%d bytes were not given back", used)
		}
	})
}
