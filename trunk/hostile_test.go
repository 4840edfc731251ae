package trunk

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

// foePeer is allowed, and hostile.
const foePeer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"

// siege is a server with a friend, whom it serves all the time, and a foe. Its
// readers of the foe's streams are stuck.
type siege struct {
	*fakeWorld
	t      *testing.T
	friend *Stream
}

// underSiege runs a test in virtual time; afterwards the friend is served still,
// nothing of the server runs, and all memory has been given back.
func underSiege(t *testing.T, f func(*siege)) {
	t.Helper()
	bubble(t, func(t *testing.T) {
		w := &siege{fakeWorld: newFakeWorld(plan{}, echo), t: t}
		w.server.Accept = func(peer, _ string, st *Stream) {
			if peer == foePeer {
				stuck(st)
				return
			}
			echo(st)
		}
		w.server.Survive = func(string) time.Duration { return time.Minute }
		var err error
		w.friend, err = w.Open(t.Context())
		must(t, err)
		w.wantFriendServed()
		f(w)
		w.wantFriendServed()
		w.close()
		if used := w.server.Budget.Used() + w.Budget.Used(); used != 0 {
			t.Errorf("%d bytes of the budget were not given back", used)
		}
	})
}

// stuck reads nothing, until the stream is over.
func stuck(st *Stream) {
	select {
	case <-st.cut:
	case <-st.s.pipe.ended:
	}
	_ = st.Reset(proto.CodeReset)
}

func (w *siege) wantFriendServed() {
	w.t.Helper()
	_, err := w.friend.Write([]byte("still there?"))
	must(w.t, err)
	got := make([]byte, 12)
	_, err = io.ReadFull(w.friend, got)
	must(w.t, err)
	if string(got) != "still there?" {
		w.t.Errorf("the friend got %q", got)
	}
}

// foe speaks on a link by hand.
type foe struct {
	*fakeLink
	t      testing.TB
	offset uint64 // of what it sends next
}

// foe brings a link of a peer to the server.
func (w *siege) foe(peer string) *foe {
	client, server := newFakeLink(-1, -1, false)
	w.mu.Lock()
	w.links = append(w.links, client)
	w.mu.Unlock()
	w.serving.Go(func() { _ = w.server.Serve(server, peer, testProtocol) })
	return &foe{fakeLink: client, t: w.t}
}

// greeted is a foe whose hello was taken.
func (w *siege) greeted() *foe {
	w.t.Helper()
	f := w.foe(foePeer)
	if v := f.hello(hello{attempt: 1, survive: time.Minute}).verdict; v != verdictOK {
		w.t.Fatalf("hello: verdict %d", v)
	}
	return f
}

func (f *foe) hello(h hello) answer {
	f.t.Helper()
	must(f.t, h.write(f))
	a, err := readAnswer(f)
	must(f.t, err)
	return a
}

// frame writes one frame of the link.
func (f *foe) frame(h header, body []byte) {
	b := make([]byte, headerSize, headerSize+len(body))
	h.put(b)
	_, _ = f.Write(append(b, body...)) // fails where the link was reset: that is looked at later
}

// send writes bytes of the pipe.
func (f *foe) send(parts ...[]byte) {
	for part := range slices.Chunk(slices.Concat(parts...), maxData) {
		f.frame(header{kind: kindData, length: len(part), offset: f.offset}, part)
		f.offset += uint64(len(part))
	}
}

// mux makes a header of yamux.
func mux(kind byte, flags uint16, id uint32, length int) []byte {
	b := []byte{0, kind, byte(flags >> 8), byte(flags)}
	b = binary.BigEndian.AppendUint32(b, id)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// syn opens a stream.
func syn(id uint32) []byte { return mux(muxWindow, muxSYN, id, 0) }

// bodyOf is a data frame with so many bytes.
func bodyOf(id uint32, n int) []byte { return append(mux(muxData, 0, id, n), make([]byte, n)...) }

// say makes a message on the control stream.
func say(kind byte, id uint32, value uint64) []byte {
	return append(mux(muxData, 0, 1, ctlSize), appendControl(nil, kind, id, value)...)
}

// session is the foe's on the server; nil where there is none.
func (w *siege) session() *incoming {
	for _, in := range w.server.list() {
		if in.key.peer == foePeer && in.why() == nil {
			return in
		}
	}
	return nil
}

// isOver says that the server has let go of the link.
func (f *foe) isOver() bool {
	_, err := f.Write([]byte{0})
	return err != nil
}

func TestWhatNoPeerMaySendEndsItsSessionAtOnce(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"more than its credit":             slices.Concat(syn(1), syn(3), bodyOf(3, 64<<10-36), bodyOf(3, 64<<10-36), bodyOf(3, 64<<10-36), bodyOf(3, 64<<10-36), bodyOf(3, 64<<10-36)),
		"data with a flag":                 slices.Concat(syn(1), syn(3), mux(muxData, muxFIN, 3, 0)),
		"a ping":                           slices.Concat(syn(1), mux(2, muxSYN, 0, 7)),
		"a frame of another version":       {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"a frame of unknown type":          mux(4, 0, 1, 0),
		"a frame above the limit":          slices.Concat(syn(1), mux(muxData, 0, 1, maxBody+1)),
		"a stream with an id of ours":      slices.Concat(syn(1), syn(2)),
		"a stream with no id":              slices.Concat(syn(1), syn(0)),
		"a stream twice":                   slices.Concat(syn(1), syn(3), syn(3)),
		"a stream again after its reset":   slices.Concat(syn(1), syn(3), mux(muxWindow, muxRST, 3, 0), syn(3)),
		"an id left out":                   slices.Concat(syn(1), syn(5)),
		"a first stream that is not first": syn(3),
		"the end of the control stream":    slices.Concat(syn(1), mux(muxWindow, muxFIN, 1, 0)),
		"a reset of the control stream":    slices.Concat(syn(1), mux(muxWindow, muxRST, 1, 0)),
		"a second end of a stream":         slices.Concat(syn(1), syn(3), mux(muxWindow, muxFIN, 3, 0), mux(muxWindow, muxFIN, 3, 0)),
	} {
		t.Run(name, func(t *testing.T) {
			underSiege(t, func(w *siege) {
				f := w.greeted()
				f.send(bytes)
				synctest.Wait()
				if w.session() != nil {
					t.Error("the session goes on")
				}
				if time.Sleep(2 * farewell); !f.isOver() {
					t.Error("the link goes on")
				}
			})
		})
	}
}

// TestANewStreamHasLittleCredit: until it is taken, which nobody does here. Once
// it is, more is given, so over a link it depends on who is quicker. What was
// promised it holds too.
func TestANewStreamHasLittleCredit(t *testing.T) {
	for n, c := range map[int]struct{ within, promised bool }{
		leastWindow: {true, false}, leastWindow + 1: {false, false}, aheadWindow: {true, true}, aheadWindow + 1: {false, true},
	} {
		s, err := newSession(NewBudget(DefaultBudget), false, func(*attachment, error) {})
		must(t, err)
		must(t, s.arrived(controlID, muxSYN))
		if c.promised {
			s.control = newControl(nil)
			s.highest = controlID
			s.promise()
			s.control = nil
		}
		must(t, s.arrived(3, muxSYN))
		_, err = s.deliver(3, newBody(maxBody), n)
		if (err == nil) != c.within || err != nil && !errors.Is(err, errFrame) {
			t.Errorf("%d bytes: %v", n, err)
		}
		s.end(proto.CodeNone)
		s.tasks.Wait()
	}
}

// What breaks the rules of a link ends it; the session lives as long as it
// would after any loss of a link, and no longer.
func TestWhatNoLinkMayCarryEndsIt(t *testing.T) {
	for name, attack := range map[string]func(*foe){
		"an acknowledgement of what was not sent": func(f *foe) { f.frame(header{kind: kindAck, offset: 1 << 40}, nil) },
		"bytes from the future":                   func(f *foe) { f.frame(header{kind: kindData, length: 1, offset: 1000}, []byte{0}) },
		"bytes from the far future":               func(f *foe) { f.frame(header{kind: kindData, length: 9, offset: 1<<64 - 4}, make([]byte, 9)) },
		"no frame":                                func(f *foe) { f.frame(header{kind: 9, length: 3}, []byte("abc")) },
		"too large a frame":                       func(f *foe) { f.frame(header{kind: kindData, length: maxData + 1}, nil) },
		"an empty frame":                          func(f *foe) { f.frame(header{kind: kindData}, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			underSiege(t, func(w *siege) {
				f := w.greeted()
				f.send(syn(1), syn(3))
				attack(f)
				if synctest.Wait(); !f.isOver() {
					t.Error("the link goes on")
				}
				if in := w.session(); in == nil || !in.isParked() {
					t.Error("the session is not parked")
				}
				if time.Sleep(2 * time.Minute); w.session() != nil {
					t.Error("the session was never ended")
				}
			})
		})
	}
}

func TestWhatMeansNothingIsIgnored(t *testing.T) {
	underSiege(t, func(w *siege) {
		f := w.greeted()
		f.send(syn(1), syn(3), bodyOf(77, 1000), mux(muxWindow, 0, 78, 5))
		for kind := range 256 {
			f.send(say(byte(kind), 2, 1<<63), say(byte(kind), 0, 0)) // of a stream of ours that was not there
		}
		for range 100_000 {
			f.send(say(ctlReset, 1000, 1))
		}
		f.send(say(ctlCredit, 3, 1<<63), say(ctlHolds, 3, 5), say(ctlBlocked, 3, 1<<62), say(ctlEnd, 3, 1<<62), say(ctlReclaim, 3, 0))
		synctest.Wait()
		in := w.session()
		if in == nil {
			t.Fatal("the session has ended")
		}
		if n := in.count(); n != 1 {
			t.Errorf("%d streams", n)
		}
	})
}

func TestWordsAboutAStreamThatNeverComesAreBounded(t *testing.T) {
	underSiege(t, func(w *siege) {
		f := w.greeted()
		f.send(syn(1))
		some := slices.Repeat(say(ctlCredit, 3, 1), 1000)
		for sent := 0; sent < 2*maxControl; sent += ctlSize * 1000 {
			f.send(some)
		}
		if synctest.Wait(); w.session() != nil {
			t.Error("the session goes on")
		}
	})
}

func TestAGreetingThatNeverEndsIsCutOff(t *testing.T) {
	for name, n := range map[string]int{"nothing": 0, "half a hello": helloSize / 2, "all but a byte": helloSize - 1} {
		t.Run(name, func(t *testing.T) {
			underSiege(t, func(w *siege) {
				f := w.foe(foePeer)
				_, err := f.Write(append([]byte{version}, make([]byte, helloSize)...)[:n])
				must(t, err)
				time.Sleep(helloLimit + time.Second)
				if _, err := f.Read(make([]byte, 1)); err == nil || !f.isOver() {
					t.Error("the link goes on")
				}
			})
		})
	}
}

// A hello and nothing more is a session of an honest peer that has nothing to
// say; it ends with its link, and its peer has few of them.
func TestSessionsOfPeersThatSayNothingAreFew(t *testing.T) {
	underSiege(t, func(w *siege) {
		var links []*foe
		for i := range 2 * maxPerPeer {
			f := w.foe(foePeer)
			a := f.hello(hello{session: sessionID{byte(i + 1)}, attempt: 1, survive: time.Minute})
			if full := i >= maxPerPeer; (a.verdict == verdictFull) != full {
				t.Fatalf("session %d: verdict %d", i, a.verdict)
			}
			links = append(links, f)
		}
		for _, f := range links {
			f.Reset()
		}
		if time.Sleep(2 * time.Minute); w.session() != nil {
			t.Error("a session was never ended")
		}
	})
}

// The attempts of a session begin with 1: one that begins with 0 is refused,
// and nothing is kept for it.
func TestASessionThatIsRefusedItsFirstLinkIsNotKept(t *testing.T) {
	underSiege(t, func(w *siege) {
		if v := w.foe(foePeer).hello(hello{attempt: 0, survive: time.Minute}).verdict; v != verdictStale {
			t.Errorf("verdict %d", v)
		}
		if time.Sleep(2 * time.Minute); w.session() != nil {
			t.Error("the session is kept for ever")
		}
	})
}

func TestNobodyResumesTheSessionOfAnother(t *testing.T) {
	underSiege(t, func(w *siege) {
		stolen := w.server.list()[0].key.id // the friend's
		if v := w.foe(foePeer).hello(hello{resume: true, session: stolen, attempt: 99}).verdict; v != verdictUnknown {
			t.Errorf("verdict %d", v)
		}
	})
}

// blockedLink takes no byte that is written.
type blockedLink struct{ *fakeLink }

func (l blockedLink) Write([]byte) (int, error) {
	for {
		if _, err := l.in.read(make([]byte, 1)); err != nil {
			return 0, err
		}
	}
}

// A peer that is refused, and does not let that be written, holds nobody up.
func TestARefusalThatCantBeWrittenIsGivenUp(t *testing.T) {
	underSiege(t, func(w *siege) {
		w.server.Allowed = func(peer, _ string) bool { return peer != foePeer }
		_, server := newFakeLink(-1, -1, false)
		served := make(chan error, 1)
		w.serving.Go(func() { served <- w.server.Serve(blockedLink{server}, foePeer, testProtocol) })
		time.Sleep(2 * helloLimit)
		select {
		case err := <-served:
			if err == nil {
				t.Error("served")
			}
		default:
			t.Error("it still waits")
			server.Reset()
		}
	})
}

func TestOfTwoResumesAtOnceTheLaterHolds(t *testing.T) {
	underSiege(t, func(w *siege) {
		first := w.greeted()
		first.send(syn(1), syn(3))
		synctest.Wait()
		var both sync.WaitGroup
		answers := make([]answer, 2)
		links := []*foe{w.foe(foePeer), w.foe(foePeer)}
		for i, f := range links {
			both.Go(func() { answers[i] = f.hello(hello{resume: true, attempt: uint32(2 + i)}) })
		}
		both.Wait()
		synctest.Wait()
		if answers[1].verdict != verdictOK || answers[1].received != first.offset {
			t.Errorf("the later: %+v", answers[1])
		}
		if v := answers[0].verdict; v != verdictOK && v != verdictStale {
			t.Errorf("the earlier: verdict %d", v)
		}
		if time.Sleep(2 * farewell); !first.isOver() || !links[0].isOver() {
			t.Error("an older link goes on")
		}
		links[1].offset = first.offset
		links[1].send(syn(5))
		synctest.Wait()
		if in := w.session(); in == nil || in.count() != 2 {
			t.Error("the session does not go on over the later")
		}
	})
}

func TestAResumeThatHasReceivedTheFutureEndsTheSession(t *testing.T) {
	underSiege(t, func(w *siege) {
		w.greeted().send(syn(1), syn(3))
		w.foe(foePeer).hello(hello{resume: true, attempt: 2, received: 1 << 40})
		if synctest.Wait(); w.session() != nil {
			t.Error("the session goes on")
		}
	})
}
