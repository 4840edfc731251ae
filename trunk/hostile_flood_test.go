package trunk

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/yamux"

	"p2ptun/proto"
	"p2ptun/registry"
)

// sizes is what the server holds for the foe's session: of early ones also
// bytes.
func (in *incoming) sizes() (streams, early, data int) {
	in.session.mu.Lock()
	defer in.session.mu.Unlock()
	for _, e := range in.early {
		data += cap(e.data)
	}
	return len(in.streams), len(in.early), data
}

// unacknowledged is how many bytes the pipe keeps.
func (p *pipe) unacknowledged() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.history.next - p.acked
}

// wantBounded checks what the server holds for the foe, if it still does.
func (w *siege) wantBounded() {
	w.t.Helper()
	synctest.Wait()
	if used := w.server.Budget.Used(); used > w.server.Budget.Max() {
		w.t.Errorf("%d bytes of the budget are used, of %d", used, w.server.Budget.Max())
	}
	in := w.session()
	if in == nil {
		return
	}
	streams, early, data := in.sizes()
	if streams > MaxStreams || early > 2*MaxStreams || data > 0 {
		w.t.Errorf("%d streams, %d refused ones with %d bytes", streams, early, data)
	}
	if kept := in.pipe.unacknowledged(); kept > historyMax+historySlack+maxData {
		w.t.Errorf("%d bytes wait to be acknowledged", kept)
	}
}

// numbered gives the bytes that f makes of each of the first n streams.
func numbered(n int, f func(id uint32) []byte) []byte {
	var all []byte
	for i := range n {
		all = append(all, f(uint32(3+2*i))...)
	}
	return all
}

// A foe opens 50,000 streams, acknowledges nothing, and ends none.
func TestStreamsWithoutEndAreBounded(t *testing.T) {
	underSiege(t, func(w *siege) {
		f := w.greeted()
		f.send(syn(1), numbered(50_000, syn))
		w.wantBounded()
		if in := w.session(); in == nil || in.count() != MaxStreams {
			t.Error("those that came first do not live")
		}
	})
}

// The bytes of streams that were refused are kept nowhere.
func TestBytesOfRefusedStreamsAreDropped(t *testing.T) {
	underSiege(t, func(w *siege) {
		w.server.Budget.used.Add(DefaultBudget) // others have it all
		defer w.server.Budget.used.Add(-DefaultBudget)
		w.server.Budget.max *= 2 // of which a trunk has but its part
		f := w.greeted()
		in := w.session()
		in.budget.used.Add(trunkBudget)
		f.send(syn(1))
		for i := range 8000 {
			f.send(syn(uint32(3+2*i)), bodyOf(uint32(3+2*i), leastWindow))
		}
		w.wantBounded()
		in.budget.used.Add(-trunkBudget)
	})
}

// A foe resets each stream by a message, and never ends it in yamux: its dead
// streams count as if they lived, and it gets no more of them.
func TestZombiesAreBounded(t *testing.T) {
	underSiege(t, func(w *siege) {
		f := w.greeted()
		f.send(syn(1), numbered(50_000, func(id uint32) []byte { return append(syn(id), say(ctlReset, id, 7)...) }))
		w.wantBounded()
		in := w.session()
		if in == nil {
			t.Fatal("the session has ended")
		}
		if n := in.count(); n != 0 {
			t.Errorf("%d streams live", n)
		}
		f.send(numbered(MaxStreams/2, func(id uint32) []byte { return mux(muxWindow, muxFIN, id, 0) }))
		synctest.Wait()
		if n, _, _ := in.sizes(); n > MaxStreams/2 {
			t.Errorf("%d streams are kept of which half have ended", n)
		}
	})
}

// A foe takes all that it is sent, and acknowledges none of it.
func TestAPeerThatNeverAcknowledgesIsSentNoMoreThanIsKept(t *testing.T) {
	underSiege(t, func(w *siege) {
		w.acceptFoe(func(st *Stream) {
			for buf := make([]byte, 64<<10); ; {
				if _, err := st.Write(buf); err != nil {
					_ = st.Reset(proto.CodeReset)
					return
				}
			}
		})
		f := w.greeted()
		f.send(syn(1), mux(muxWindow, 0, 1, 1<<30))
		for id := uint32(3); id < 43; id += 2 {
			f.send(syn(id), mux(muxWindow, 0, id, 1<<30), say(ctlCredit, id, 1<<40))
		}
		w.wantBounded()
		if w.session() == nil {
			t.Error("the session has ended")
		}
	})
}

// acceptFoe has something else done with the foe's streams.
func (w *siege) acceptFoe(f func(*Stream)) {
	before := w.server.Accept
	w.server.Accept = func(peer, protocol string, st *Stream) {
		if peer == foePeer {
			f(st)
			return
		}
		before(peer, protocol, st)
	}
}

// A foe takes yamux's window for our messages away, by one update that makes it
// overflow to nothing.
func TestCloseDoesNotWaitForAPeerThatTakesNoMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := &siege{fakeWorld: newFakeWorld(plan{}, stuck), t: t}
		f := w.greeted()
		f.send(syn(1))
		synctest.Wait()
		f.send(mux(muxWindow, 0, 1, -256<<10), syn(3)) // all but that, unsigned
		synctest.Wait()
		before := time.Now()
		w.server.Close(proto.CodeStopped)
		if took := time.Since(before); took > 2*finishLimit {
			t.Errorf("Close took %v", took)
		}
		w.close()
	})
}

// hostileServer is a server that answers well, and then says what f has it say.
func hostileServer(t *testing.T, f func(*foe)) *fakeWorld {
	t.Helper()
	w := newFakeWorld(plan{}, echo)
	w.Dial = func(context.Context) (Link, error) {
		client, server := newFakeLink(-1, -1, false)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.links = append(w.links, client)
		w.serving.Go(func() {
			if _, err := readHello(server); err == nil {
				f(&foe{fakeLink: server, t: t})
			}
		})
		return client, nil
	}
	return w
}

// A peer that establishes no stream is opened as many as there may be, and the
// next is refused, not waited for.
func TestOpenDoesNotWaitForAPeerThatTakesNoStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := hostileServer(t, func(f *foe) { must(t, answer{survive: time.Hour}.write(f)) })
		opened := make(chan error, 1)
		go func() {
			for range MaxStreams {
				if _, err := w.Open(t.Context()); err != nil {
					opened <- err
					return
				}
			}
			_, err := w.Open(t.Context())
			opened <- err
		}()
		synctest.Wait()
		select {
		case err := <-opened:
			if !errors.Is(err, registry.ErrFull) {
				t.Errorf("opened too many: %v", err)
			}
		default:
			t.Fatal("it waits")
		}
		w.close()
		if used := w.Budget.Used(); used != 0 {
			t.Errorf("%d bytes of the budget were not given back", used)
		}
	})
}

// What a server answers, or says after it, ends in an error, not in a wait.
func TestAHostileServerIsGivenUp(t *testing.T) {
	for name, f := range map[string]func(*foe){
		"nothing":         func(*foe) {},
		"half an answer":  func(f *foe) { _, _ = f.Write([]byte{version, 0, 0, 0}) },
		"another version": func(f *foe) { _, _ = f.Write(append([]byte{9}, make([]byte, answerSize-1)...)) },
		"no verdict":      func(f *foe) { _ = answer{verdict: 77}.write(f) },
		"the future":      func(f *foe) { _ = answer{received: 1 << 40}.write(f) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := hostileServer(t, f)
				before := time.Now()
				if _, err := w.Open(t.Context()); err == nil {
					t.Error("a stream was opened")
				}
				if took := time.Since(before); took > 2*helloLimit {
					t.Errorf("it took %v", took)
				}
				w.close()
				if used := w.Budget.Used(); used != 0 {
					t.Errorf("%d bytes of the budget were not given back", used)
				}
			})
		})
	}
}

// The newest credit is what the peer hears last, whoever gives it: an older
// total in its place would leave the sender waiting for ever.
func TestTheNewestCreditIsWhatIsSaid(t *testing.T) {
	st := newStream(&session{pipe: newPipe(nil, nil), control: newControl(nil)}, new(yamux.Stream))
	for range 500 {
		st.consumed, st.granted, st.window = 0, windowStart, windowStart
		clear(st.s.control.words[ctlCredit])
		var ready atomic.Int32
		meet := func() {
			for ready.Add(1); ready.Load() < 2; { // so that both are as near as can be
			}
		}
		var both sync.WaitGroup
		both.Go(func() { meet(); st.consume(windowStart/2 + 1) })
		both.Go(func() { meet(); st.widen(2*windowStart, 1) })
		both.Wait()
		if said := st.s.control.words[ctlCredit][0]; said != st.granted {
			t.Fatalf("granted %d, said %d", st.granted, said)
		}
	}
}

// More than libp2p's own message may wait, in pieces of any size.
func TestAFrameInPiecesIsOneFrame(t *testing.T) {
	underSiege(t, func(w *siege) {
		f := w.greeted()
		all := slices.Concat(syn(1), syn(3), bodyOf(3, leastWindow), say(ctlBlocked, 3, leastWindow))
		for _, b := range all {
			f.send([]byte{b})
		}
		synctest.Wait()
		in := w.session()
		if in == nil {
			t.Fatal("the session has ended")
		}
		if got := in.list()[0].got; got != leastWindow {
			t.Errorf("%d bytes came", got)
		}
	})
}
