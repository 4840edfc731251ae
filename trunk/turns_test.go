package trunk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

// newTrunk gives a session of the server's that has no link yet.
func newTrunk(t *testing.T, s *Server) *incoming {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	in, v := s.make(trunkKey{peer: testPeer, protocol: testProtocol}, hello{survive: time.Hour})
	if v != verdictOK {
		t.Fatal(errVerdict(v))
	}
	return in
}

// attachFake gives a pipe a new link.
func attachFake(t *testing.T, p *pipe) (*attachment, *fakeLink) {
	t.Helper()
	link, _ := newFakeLink(-1, -1, false)
	a, _, err := p.attach(link, 0, 0)
	must(t, err)
	return a, link
}

// TestALinkThatIsLostBeforeItIsNotedIsMissed: else the session waits for a peer
// that never comes, and its streams hang.
func TestALinkThatIsLostBeforeItIsNotedIsMissed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, echo)
		defer w.close()
		in := newTrunk(t, w.server)
		a, link := attachFake(t, in.pipe)
		link.Reset()
		synctest.Wait() // it is missed
		in.linked(a, hello{}, false, in.pipe.path(), 0)
		if !in.isParked() {
			t.Error("the session passes for linked")
		}
		time.Sleep(time.Hour + 2*parkLook)
		if in.why() == nil {
			t.Error("it is kept for longer than it may")
		}
	})
}

// TestALossThatIsNoticedLateDoesNotParkTheLinkAfterIt: nor end it, an hour
// later.
func TestALossThatIsNoticedLateDoesNotParkTheLinkAfterIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, echo)
		defer w.close()
		in := newTrunk(t, w.server)
		first, _ := attachFake(t, in.pipe)
		second, _ := attachFake(t, in.pipe)
		in.linked(second, hello{}, true, in.pipe.path(), 0)
		w.server.away(in, first, errCut)
		if in.isParked() {
			t.Error("the session passes for parked")
		}
		time.Sleep(time.Hour + 2*parkLook)
		if err := in.why(); err != nil {
			t.Errorf("it was ended: %v", err)
		}
	})
}

// TestTheOpenerMissesALinkOnce is both for the side that opens the trunk.
func TestTheOpenerMissesALinkOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, echo)
		defer w.close()
		st, err := w.openSoon(t.Context())
		must(t, err)
		o := w.current()
		first, _ := attachFake(t, o.pipe)
		second, _ := attachFake(t, o.pipe)
		if o.hasNone(first) || w.Parked() {
			t.Error("the link after it passes for lost")
		}
		o.hasNone(second)
		lost := &attachment{gone: make(chan struct{})}
		close(lost.gone)
		if o.hasLink(lost, time.Hour); !w.Parked() {
			t.Error("a lost link passes for one")
		}
		_ = st.Reset(proto.CodeClosed)
	})
}

// TestManyWordsAtOnceEndNoTrunk: they are more than one frame holds.
func TestManyWordsAtOnceEndNoTrunk(t *testing.T) {
	w := newWorld(t, echo)
	st := open(t, w)
	c := w.current().control
	c.mu.Lock()
	for i := range uint32(maxBody/ctlSize + 1000) {
		c.words[ctlCredit][1000+2*i] = 1 // of streams of the server's that it has not
	}
	c.mu.Unlock()
	c.wake()
	exchange(t, st, 1<<20, 1)
	if w.made != 1 || w.current() == nil {
		t.Errorf("the trunk has ended")
	}
}

// TestWordsThatGetNowhereHoldUpNoClose: a peer that never reads the control
// stream.
func TestWordsThatGetNowhereHoldUpNoClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, echo)
		st, err := w.openSoon(t.Context())
		must(t, err)
		_ = st.Reset(proto.CodeClosed)
		synctest.Wait()
		c := w.current().control
		c.mu.Lock()
		c.busy = true
		c.mu.Unlock()
		w.close()
	})
}

// TestAClockThatIsSetBackKeepsNothingForLonger: the wall clock counts a sleep,
// and the other one what the wall clock loses.
func TestAClockThatIsSetBackKeepsNothingForLonger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, echo)
		defer w.close()
		in := newTrunk(t, w.server)
		began := time.Now()
		if back := make(chan struct{}); !in.park(wall().Add(24*time.Hour), time.Minute, back) {
			t.Error("the session got a link")
		}
		if took := time.Since(began); took > time.Minute+2*parkLook {
			t.Errorf("kept for %s", took)
		}
	})
}

// TestAnEndThatWasSaidBeforeTheTrunksEndIsNoReset, each time.
func TestAnEndThatWasSaidBeforeTheTrunksEndIsNoReset(t *testing.T) {
	for range 50 {
		bubble(t, func(t *testing.T) {
			w := newFakeWorld(plan{}, converse)
			defer w.close()
			st, err := w.openSoon(t.Context())
			must(t, err)
			_, err = st.Write([]byte{askEcho, 'x'})
			must(t, err)
			must(t, st.CloseWrite())
			synctest.Wait() // the answer and its end are here, unread
			w.server.Close(proto.CodeStopped)
			synctest.Wait()
			if got, err := io.ReadAll(st); err != nil || string(got) != "x" {
				t.Fatalf("got %q, %v", got, err)
			}
		})
	}
}

// slowLink takes its time for the last frame.
type slowLink struct {
	Link
	ended *atomic.Bool
}

func (l slowLink) Write(b []byte) (int, error) {
	if len(b) != headerSize || b[0] != kindEnd {
		return l.Link.Write(b)
	}
	time.Sleep(farewell / 2)
	n, err := l.Link.Write(b)
	l.ended.Store(err == nil)
	return n, err
}

// TestCloseReturnsWhenThePeerHasBeenTold: what is closed next is what carries
// the word, and the peer would wait for an hour.
func TestCloseReturnsWhenThePeerHasBeenTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, echo)
		var ended atomic.Bool
		in := newTrunk(t, w.server)
		link, _ := newFakeLink(-1, -1, false)
		if err := w.server.join(in, slowLink{link, &ended}, hello{attempt: 1}); err != nil {
			t.Fatal(err)
		}
		w.server.Close(proto.CodeStopped)
		if !ended.Load() {
			t.Error("it was not told")
		}
		w.close()
	})
}

// TestAHelloThatCanNeverBeAnsweredLeavesNothing: attempts are counted from 1.
func TestAHelloThatCanNeverBeAnsweredLeavesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, echo)
		defer w.close()
		client, server := newFakeLink(-1, -1, false)
		must(t, hello{session: sessionID{1}, survive: time.Hour}.write(client))
		if err := w.server.Serve(server, testPeer, testProtocol); !errors.Is(err, errVerdict(verdictStale)) {
			t.Errorf("%v", err)
		}
		time.Sleep(time.Second)
		if all, _ := w.server.Count(); all != 0 {
			t.Errorf("%d trunks", all)
		}
	})
}

// gatedLink writes nothing from when it has a gate until that is closed.
type gatedLink struct {
	Link
	gate *atomic.Pointer[chan struct{}]
}

func (l gatedLink) Write(b []byte) (int, error) {
	if gate := l.gate.Load(); gate != nil {
		<-*gate
	}
	return l.Link.Write(b)
}

// TestARevocationLosesNothingOfWhatEndedBefore: a listen that is closed after
// its drain takes back what it let in.
func TestARevocationLosesNothingOfWhatEndedBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		answer := bytes.Repeat([]byte("answer"), 5000)
		written := make(chan struct{})
		w := newFakeWorld(plan{}, func(st *Stream) {
			_, _ = io.Copy(io.Discard, st)
			time.Sleep(time.Second) // virtual: until an ack waits at the gate, and so nobody else
			_, _ = st.Write(answer)
			_ = st.CloseWrite()
			_ = st.Close()
			close(written)
		})
		defer w.close()
		var gate atomic.Pointer[chan struct{}]
		var denied atomic.Bool
		w.server.Allowed = func(string, string) bool { return !denied.Load() }
		w.Dial = func(context.Context) (Link, error) {
			client, server := newFakeLink(-1, -1, false)
			w.serving.Go(func() { _ = w.server.Serve(gatedLink{server, &gate}, testPeer, testProtocol) })
			return client, nil
		}
		st, err := w.openSoon(t.Context())
		must(t, err)
		_, err = st.Write([]byte("x"))
		must(t, err)
		synctest.Wait()
		open := make(chan struct{})
		gate.Store(&open)
		must(t, st.CloseWrite())
		<-written
		denied.Store(true)
		w.server.Revoke()
		close(open)
		if got, err := io.ReadAll(st); err != nil || !bytes.Equal(got, answer) {
			t.Errorf("got %d of %d bytes, %v", len(got), len(answer), err)
		}
		_ = st.Close()
	})
}
