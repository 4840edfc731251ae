package trunk

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const poured = 3 * time.Second

// slowPeer reads frames from a link at a rate and acknowledges what asks for
// it, one way of a path later.
type slowPeer struct {
	*fakeLink
	rate  int // bytes a second; 0: at once
	delay time.Duration
}

func (p *slowPeer) serve() {
	head := make([]byte, headerSize)
	for {
		if _, err := io.ReadFull(p.fakeLink, head); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint32(head) & 0xffffff)
		if p.rate > 0 {
			time.Sleep(time.Duration(n) * time.Second / time.Duration(p.rate))
		}
		if _, err := io.CopyN(io.Discard, p.fakeLink, int64(n)); err != nil {
			return
		}
		if head[0] != kindAsk {
			continue
		}
		ack := make([]byte, headerSize)
		header{kind: kindAck, offset: binary.BigEndian.Uint64(head[4:]) + uint64(n)}.put(ack)
		time.AfterFunc(p.delay, func() { _, _ = p.Write(ack) })
	}
}

// historyAfter pours into a pipe whose peer is so, and gives how
// long its history may be then, how much went, and whether its frames may be large.
func historyAfter(t *testing.T, rate int, delay time.Duration) (limit int, sent uint64, quick bool) {
	t.Helper()
	bubble(t, func(t *testing.T) {
		p := newPipe(NewBudget(DefaultBudget).part(trunkBudget), func(*attachment, error) {})
		client, server := newFakeLink(-1, -1, false)
		var peer sync.WaitGroup
		peer.Go((&slowPeer{fakeLink: server, rate: rate, delay: delay}).serve)
		_, _, err := p.attach(client, 0, 0)
		must(t, err)
		go func() { _, _ = p.Read(make([]byte, 1)) }() // the acks
		go func() {
			block := make([]byte, maxBody)
			for p.admit(len(block), nil) && p.send(3, block, nil) == nil {
			}
		}()
		time.Sleep(poured)
		p.mu.Lock()
		limit, sent = p.limit, p.acked
		p.mu.Unlock()
		quick = p.isQuick()
		p.end(0)
		server.Reset()
		peer.Wait()
	})
	return limit, sent, quick
}

// TestFramesAreLargeWhereTheWayIsFast, and nowhere else.
func TestFramesAreLargeWhereTheWayIsFast(t *testing.T) {
	for _, c := range []struct {
		rate  int
		delay time.Duration
		want  bool
	}{
		{125_000_000, 200 * time.Microsecond, true},
		{1_000_000_000, time.Millisecond, true},
		{20_000_000, 200 * time.Microsecond, false},
		{5_000_000, 10 * time.Millisecond, false},
		{500_000, 50 * time.Millisecond, false},
	} {
		if _, _, quick := historyAfter(t, c.rate, c.delay); quick != c.want {
			t.Errorf("%d bytes a second, %s: %v", c.rate, c.delay, quick)
		}
	}
}

// TestALongPathIsNotHeldBack: 100 ms at 1 Gbit/s need more than 12 MB.
func TestALongPathIsNotHeldBack(t *testing.T) {
	const gigabit = 125_000_000
	limit, sent, _ := historyAfter(t, gigabit, 100*time.Millisecond)
	if limit < 12_500_000 || sent < gigabit {
		t.Errorf("the history grew to %d bytes, and %d MB went in %s", limit, sent/1e6, poured)
	}
}

// TestAQueueIsNotMadeLonger: on a short path more would only wait on the way,
// and all that comes after it as long.
func TestAQueueIsNotMadeLonger(t *testing.T) {
	const rate = 50_000_000
	limit, sent, _ := historyAfter(t, rate, 200*time.Microsecond)
	if limit > 2*historyFree || sent < 2*rate {
		t.Errorf("the history grew to %d bytes, and %d MB went in %s", limit, sent/1e6, poured)
	}
}

// waitingLink says that its Write waits for the path.
type waitingLink struct{ *fakeLink }

func (waitingLink) Waits() bool { return true }

// TestALinkThatMakesItsWriterWaitHasALongHistory: what is longer than its path
// says is what was lost on the way, up to lossTrips; more waits for its reader.
func TestALinkThatMakesItsWriterWaitHasALongHistory(t *testing.T) {
	const trip, frames = time.Millisecond, historyFree / maxData
	for _, c := range []struct {
		waits bool
		frame time.Duration
		want  bool
	}{{false, trip, false}, {true, trip, true}, {true, lossTrips * trip / (frames + 1), true}, {true, lossTrips*trip/frames + 1, false}} {
		p := newPipe(NewBudget(DefaultBudget).part(trunkBudget), func(*attachment, error) {})
		link, peer := newFakeLink(-1, -1, false)
		var l Link = link
		if c.waits {
			l = waitingLink{link}
		}
		a, _, err := p.attach(l, 0, 0)
		must(t, err)
		p.mu.Lock()
		a.trip.least, a.trip.last, a.trip.frame = trip, time.Second, c.frame
		if p.limit = historyFree; p.mayGrow() != c.want {
			t.Errorf("%+v: %v", c, !c.want)
		}
		if p.limit = historyMax; p.mayGrow() {
			t.Errorf("%+v: beyond historyMax", c)
		}
		p.mu.Unlock()
		p.end(0)
		peer.Reset()
		p.wait()
	}
}

// TestLittleWaitsOnASlowLink: what comes next has to wait for no more than a short
// frame, and for what is being written.
func TestLittleWaitsOnASlowLink(t *testing.T) {
	for _, c := range []struct {
		frame time.Duration
		want  int
	}{{0, maxUnsent}, {slowFrame, maxUnsent}, {slowFrame + 1, slowUnsent}} {
		p := newPipe(NewBudget(DefaultBudget).part(trunkBudget), func(*attachment, error) {})
		link, peer := newFakeLink(-1, -1, false)
		a, _, err := p.attach(link, 0, 0)
		must(t, err)
		p.mu.Lock()
		a.trip.frame = c.frame
		if got := p.room(); got != c.want {
			t.Errorf("a frame takes %s: room for %d bytes", c.frame, got)
		}
		p.mu.Unlock()
		st := &Stream{s: &session{pipe: p}}
		if room := len(st.Frame()); (room == slowData) != (c.want == slowUnsent) {
			t.Errorf("a frame takes %s: of %d bytes", c.frame, room)
		}
		p.end(0)
		peer.Reset()
		p.wait()
	}
}

// TestWhatAsksIsAcknowledgedAtOnce, and what does not later.
func TestWhatAsksIsAcknowledgedAtOnce(t *testing.T) {
	for kind, want := range map[byte]time.Duration{kindAsk: 0, kindData: ackLate} {
		bubble(t, func(t *testing.T) {
			p := newPipe(NewBudget(DefaultBudget).part(trunkBudget), func(*attachment, error) {})
			link, peer := newFakeLink(-1, -1, false)
			_, _, err := p.attach(link, 0, 0)
			must(t, err)
			go func() {
				for err := error(nil); err == nil; {
					_, err = p.Read(make([]byte, 10))
				}
			}()
			began := time.Now()
			head := make([]byte, headerSize)
			header{kind: kind, length: 1}.put(head)
			_, _ = peer.Write(append(head, 'x'))
			_, err = io.ReadFull(peer, head)
			must(t, err)
			if h, _ := parseHeader(head); h.kind != kindAck || h.offset != 1 || time.Since(began) != want {
				t.Errorf("%+v after %s", h, time.Since(began))
			}
			p.end(0)
			peer.Reset()
		})
	}
}

// heldLink holds back what is written from the first of those bytes on.
type heldLink struct {
	*fakeLink
	holds  []byte
	inside chan struct{} // closed when it does
	gate   chan struct{}
}

func (l *heldLink) Write(b []byte) (int, error) {
	if bytes.Contains(b, l.holds) {
		close(l.inside)
		<-l.gate
	}
	return l.fakeLink.Write(b)
}

// TestAnAckIsNotForgottenWhileSomebodyWrites: who asks for it meanwhile may have
// nothing more to say before it is there.
func TestAnAckIsNotForgottenWhileSomebodyWrites(t *testing.T) {
	for name, kind := range map[string]byte{"asked for": kindAsk, "late": kindData} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPipe(NewBudget(DefaultBudget).part(trunkBudget), func(*attachment, error) {})
				link, peer := newFakeLink(-1, -1, false)
				gated := &heldLink{fakeLink: link, holds: []byte("held"), inside: make(chan struct{}), gate: make(chan struct{})}
				_, _, err := p.attach(gated, 0, 0)
				must(t, err)
				go func() {
					for err := error(nil); err == nil; {
						_, err = p.Read(make([]byte, 10))
					}
				}()
				go func() {
					if p.admit(4, nil) {
						_ = p.send(3, []byte("held"), nil)
					}
				}()
				<-gated.inside
				head := make([]byte, headerSize)
				header{kind: kind, length: 1}.put(head)
				_, _ = peer.Write(append(head, 'x'))
				time.Sleep(2 * ackLate) // virtual: it is due, and can't be written
				close(gated.gate)
				synctest.Wait()
				_, _ = io.CopyN(io.Discard, peer, headerSize+muxHeader+4)
				if n := peer.in.waiting(); n != headerSize {
					t.Errorf("%d bytes follow, want an ack", n)
				}
				p.end(0)
				peer.Reset()
			})
		})
	}
}

// waiting is how many bytes were not read yet.
func (w *wire) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.data)
}
