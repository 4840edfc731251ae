package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	testsuite "github.com/libp2p/go-libp2p/p2p/muxer/testsuite"
)

func TestItIsALibp2pMuxer(t *testing.T) {
	for name, m := range map[string]network.Multiplexer{"loop": Transport{}, "leader": leading{}} {
		t.Run(name, func(t *testing.T) { testsuite.SubtestAll(t, m) })
	}
}

func TestBytesAndHalfClose(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b network.MuxedConn) {
		up, down := pattern(9<<20+1), pattern(5<<20+3)
		x, y := streamPair(t, a, b)
		var all sync.WaitGroup
		all.Go(func() {
			_, err := x.Write(up)
			if err == nil {
				err = x.CloseWrite()
			}
			if err != nil {
				t.Error(err)
			}
		})
		all.Go(func() { wantBytes(t, x, down) })
		wantBytes(t, y, up)
		_, err := y.Write(down) // after the other way has ended
		must(t, err)
		must(t, y.Close())
		all.Wait()
		must(t, x.Close())
	})
}

func TestStreamsSideBySide(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b network.MuxedConn) {
		const streams = 40
		var all sync.WaitGroup
		all.Go(func() { echoes(t, b, streams) })
		for i := range streams {
			all.Go(func() {
				s, err := a.OpenStream(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				data := pattern(100 + i*20_011)
				all.Go(func() {
					_, _ = s.Write(data)
					_ = s.CloseWrite()
				})
				wantBytes(t, s, data)
				_ = s.Close()
			})
		}
		all.Wait()
	})
}

func TestResetSaysItsCode(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b network.MuxedConn) {
		x, y := streamPair(t, a, b)
		must(t, x.ResetWithError(77))
		_, err := io.ReadAll(y)
		var reset *network.StreamError
		if !errors.As(err, &reset) || !reset.Remote || reset.ErrorCode != 77 || !errors.Is(err, network.ErrReset) {
			t.Errorf("the peer reads %v", err)
		}
		if _, err = y.Write([]byte{1}); !errors.Is(err, network.ErrReset) {
			t.Errorf("the peer writes %v", err)
		}
		if _, err = x.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Remote || reset.ErrorCode != 77 {
			t.Errorf("who reset it reads %v", err)
		}
	})
}

func TestTheEndSaysItsCode(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b network.MuxedConn) {
		x, y := streamPair(t, a, b)
		for _, c := range []network.MuxedConn{a, b} { // what comes after the end would cut its reason off
			await(t, "a first round trip", func() bool { return roundTrip(c) > 0 })
		}
		must(t, a.CloseWithError(99))
		var end *network.ConnError
		for name, err := range map[string]error{"accept": second(b.AcceptStream()), "read": second(y.Read(make([]byte, 1))), "open": second(b.OpenStream(t.Context()))} {
			if !errors.As(err, &end) || !end.Remote || end.ErrorCode != 99 {
				t.Errorf("%s at the peer: %v", name, err)
			}
		}
		if _, err := x.Write([]byte{1}); !errors.As(err, &end) || end.Remote || end.ErrorCode != 99 {
			t.Errorf("who ended it writes %v", err)
		}
		if !a.IsClosed() {
			t.Error("it is not closed")
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestAStreamThatOnlyReadsIsAnnounced(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b network.MuxedConn) {
		x, err := a.OpenStream(t.Context())
		must(t, err)
		var all sync.WaitGroup
		all.Go(func() { wantBytes(t, x, []byte("hello")) })
		y, err := b.AcceptStream()
		must(t, err)
		_, err = y.Write([]byte("hello"))
		must(t, err)
		must(t, y.Close())
		all.Wait()
		must(t, x.Close())
	})
}

func TestAStreamThatOnlyEndsIsAnnounced(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b network.MuxedConn) {
		x, err := a.OpenStream(t.Context())
		must(t, err)
		must(t, x.CloseWrite())
		y, err := b.AcceptStream()
		must(t, err)
		wantBytes(t, y, nil)
		must(t, y.Close())
		wantBytes(t, x, nil)
	})
}

func TestManyMoreStreamsThanTheBacklog(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b network.MuxedConn) {
		const streams = 5 * backlog
		var all sync.WaitGroup
		all.Go(func() { echoes(t, b, streams) })
		for range streams {
			s, err := a.OpenStream(t.Context())
			must(t, err)
			_, err = s.Write([]byte{1, 2, 3})
			must(t, err)
			must(t, s.CloseWrite())
			all.Go(func() {
				wantBytes(t, s, []byte{1, 2, 3})
				_ = s.Close()
			})
		}
		all.Wait()
	})
}

func TestOpeningWaitsForThePeerAndItsContext(t *testing.T) {
	a, _ := pairOf(t, Transport{}, Transport{})
	var s network.MuxedStream
	for range backlog { // nobody takes them
		var err error
		s, err = a.OpenStream(t.Context())
		must(t, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.OpenStream(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("one more than the peer can take: %v", err)
	}
	must(t, s.Reset())
	_, err := a.OpenStream(t.Context())
	must(t, err)
}

func TestDeadlines(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b network.MuxedConn) {
		x, y := streamPair(t, a, b)
		if _, mine := a.(*session); !mine {
			x, y = y, x
		}
		must(t, x.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
		if _, err := x.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		must(t, x.SetReadDeadline(time.Time{}))
		_, err := y.Write([]byte("after"))
		must(t, err)
		_, err = io.ReadFull(x, make([]byte, 5))
		must(t, err)
		must(t, x.SetWriteDeadline(time.Now().Add(20*time.Millisecond)))
		if n, err := x.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n == 64<<20 {
			t.Errorf("wrote %d bytes that nobody reads: %v", n, err)
		}
		must(t, x.SetDeadline(time.Unix(1, 0)))
		if _, err := x.Write([]byte{1}); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %v", err)
		}
	})
}

func TestWindowsGrowWithNeedAndAreGivenBack(t *testing.T) {
	x, y := tcpPair(t)
	scope := newScope(windowMax)
	a, err := Transport{}.NewConn(x, false, nil)
	must(t, err)
	b, err := leading{}.NewConn(delayed{y}, true, scope)
	must(t, err)
	defer a.Close()
	defer b.Close()
	out, in := streamPair(t, a, b)
	await(t, "the first round trip", func() bool { return b.(*session).roundTrip() > 0 })
	b.(*session).trip.Store(int64(time.Hour)) // so that all is within four of them, until pingEvery
	data := pattern(32 << 20)
	var all sync.WaitGroup
	all.Go(func() {
		_, _ = out.Write(data)
		_ = out.CloseWrite()
	})
	wantBytes(t, in, data)
	all.Wait()
	if _, used := scope.holds(); used <= windowStart || used > windowMax {
		t.Errorf("the stream holds %d bytes", used)
	}
	must(t, in.Close())
	must(t, out.Close())
	await(t, "memory is given back", func() bool { spans, used := scope.holds(); return spans == 0 && used == 0 })
}

// TestAWindowIsAheadOfItsSender: one that grew too late would hold back a sender
// that doubles its rate each round trip.
func TestAWindowIsAheadOfItsSender(t *testing.T) {
	const trip = 100 * time.Millisecond
	for _, c := range []struct {
		trip, took   time.Duration // until a part of the window is used
		part, window uint32
		memory       int
	}{
		{trip, windowTrips/2*trip - 1, windowStart / 4, 4 * windowStart, windowMax},
		{trip, windowTrips/2*trip - 1, windowStart / 4, 2 * windowStart, 4*windowStart - 1},
		{trip, windowTrips/2*trip - 1, windowStart / 4, windowStart, 2*windowStart - 1},
		{trip, windowTrips*trip - 1, windowStart / 4, 2 * windowStart, windowMax},
		{trip, windowTrips * trip, windowStart / 4, windowStart, windowMax},
		{trip, 0, windowStart/4 - 1, windowStart, windowMax},
		{0, 0, windowStart / 4, windowStart, windowMax},
	} {
		synctest.Test(t, func(t *testing.T) {
			x, y := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, y) }()
			scope := newScope(c.memory)
			s := newSession(x, true, scope)
			span, err := scope.BeginSpan()
			must(t, err)
			must(t, span.ReserveMemory(windowStart, network.ReservationPriorityAlways))
			s.trip.Store(int64(c.trip))
			st := newStream(s, 1, span)
			time.Sleep(c.took)
			st.consume(int(c.part))
			if st.window != c.window {
				t.Errorf("%+v: a window of %d", c, st.window)
			}
			if due := c.window + c.part; c.part == windowStart/4 && st.due != due {
				t.Errorf("%+v: the peer may send %d, not %d", c, st.due, due)
			}
			_ = x.Close()
			_ = y.Close()
		})
	}
}

// delayed hides what a connection can beyond net.Conn.
type delayed struct{ net.Conn }

func TestThePeerHasToAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		s, err := Transport{}.NewConn(x, false, nil)
		must(t, err)
		start := time.Now()
		go func() { _, _ = io.Copy(io.Discard, y) }()
		_, err = s.AcceptStream()
		if !errors.Is(err, errPing) || time.Since(start) > pingEvery+pingLimit {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		_ = s.Close()
		_ = y.Close()
	})
}

func TestAnIdlePeerThatAnswersStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		a, err := Transport{}.NewConn(x, false, nil)
		must(t, err)
		b, err := Transport{}.NewConn(y, true, nil)
		must(t, err)
		time.Sleep(time.Hour)
		if a.IsClosed() || b.IsClosed() {
			t.Error("it ended")
		}
		_, _ = a.Close(), b.Close()
	})
}

func TestMemoryIsAskedForBeforeAStream(t *testing.T) {
	x, y := tcpPair(t)
	scope := newScope(2 * windowStart)
	a, err := Transport{}.NewConn(x, false, scope)
	must(t, err)
	b, err := Transport{}.NewConn(y, true, nil)
	must(t, err)
	defer a.Close()
	defer b.Close()
	s, err := a.OpenStream(t.Context())
	must(t, err)
	_, err = a.OpenStream(t.Context())
	must(t, err)
	if _, err = a.OpenStream(t.Context()); !errors.Is(err, errNoMemory) {
		t.Errorf("a third: %v", err)
	}
	must(t, s.Reset())
	_, err = a.OpenStream(t.Context())
	must(t, err)
	must(t, a.Close())
	if spans, used := scope.holds(); spans != 0 || used != 0 {
		t.Errorf("after the end %d spans hold %d bytes", spans, used)
	}
}

func TestAllocations(t *testing.T) {
	a, b := pairOf(t, leading{}, leading{})
	x, y := streamPair(t, a, b)
	go func() { _, _ = io.Copy(y, struct{ io.Reader }{y}) }()
	for _, size := range []int{64, 16 << 10, 200 << 10} {
		buf := make([]byte, size)
		got := testing.AllocsPerRun(200, func() {
			if _, err := x.Write(buf); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(x, buf); err != nil {
				t.Error(err)
			}
		})
		if got > 3 && !raceEnabled {
			t.Errorf("%d bytes there and back: %.1f allocations", size, got)
		}
	}
	_ = x.Reset()
}

func TestGoldenFrames(t *testing.T) {
	for text, h := range map[string]header{
		"\x00\x00\x00\x01\x00\x00\x00\x05\x00\x01\x00\x00": {kind: kindData, flags: flagSYN, id: 5, length: 64 << 10},
		"\x00\x01\x00\x06\x00\x00\x01\x00\x00\x00\x00\x00": {kind: kindWindow, flags: flagACK | flagFIN, id: 256},
		"\x00\x01\x00\x08\x00\x00\x00\x02\x00\x00\x00\x4d": {kind: kindWindow, flags: flagRST, id: 2, length: 77},
		"\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07": {kind: kindPing, flags: flagSYN, length: 7},
		"\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01": {kind: kindGoAway, length: awayProtocol},
	} {
		var b [headerSize]byte
		if h.put(b[:]); string(b[:]) != text {
			t.Errorf("%+v is % x", h, b)
		}
		if got, err := parseHeader(&b); err != nil || got != h {
			t.Errorf("% x is %+v: %v", b, got, err)
		}
	}
	for _, bad := range []string{"\x01\x00", "\x00\x04"} {
		var b [headerSize]byte
		copy(b[:], bad)
		if _, err := parseHeader(&b); !errors.Is(err, errFrame) {
			t.Errorf("% x: %v", b, err)
		}
	}
}

func frames(hs ...header) (b []byte) {
	for _, h := range hs {
		b = append(b, make([]byte, headerSize)...)
		h.put(b[len(b)-headerSize:])
	}
	return slices.Clip(b)
}

// TestWhatComesAfterAFrameIsWrittenAfterIt: the end of a stream, or its reset,
// does not overtake the frame whose turn has come.
func TestWhatComesAfterAFrameIsWrittenAfterIt(t *testing.T) {
	for name, end := range map[string]func(*stream) error{"its end": (*stream).CloseWrite, "its reset": (*stream).Reset} {
		t.Run(name, func(t *testing.T) {
			s, peer := foe(t, Transport{}, nil)
			c, err := s.OpenStream(t.Context())
			must(t, err)
			st := c.(*stream)
			s.out.turn <- struct{}{}
			h, err := st.frame(4)
			must(t, err)
			must(t, end(st))
			must(t, s.out.write(&h, []byte("last")))
			s.out.rest()
			for {
				var raw [headerSize]byte
				_, err := io.ReadFull(peer, raw[:])
				must(t, err)
				got, err := parseHeader(&raw)
				must(t, err)
				if got.kind == kindPing {
					continue
				}
				if got != (header{kind: kindData, flags: flagSYN, id: 2, length: 4}) {
					t.Errorf("first comes %+v", got)
				}
				return
			}
		})
	}
}

// TestWhatNobodyTookIsNotSaidToBe: the peer may not open more than the backlog
// before somebody takes some.
func TestWhatNobodyTookIsNotSaidToBe(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b network.MuxedConn) {
		for range backlog {
			_, err := a.OpenStream(t.Context())
			must(t, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := a.OpenStream(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one more than the peer has taken: %v", err)
		}
		_, err := b.AcceptStream()
		must(t, err)
		_, err = a.OpenStream(t.Context())
		must(t, err)
	})
}

// slowly is a connection from which little can be read at once.
type slowly struct {
	net.Conn
	piece int
}

func (s slowly) Read(b []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return s.Conn.Read(b[:min(len(b), s.piece)])
}

// TestASlowLinkIsNoDeadOne: frames that take longer than writeLimit and pingLimit
// to go over end no session, neither at the one end nor at the other.
func TestASlowLinkIsNoDeadOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		a, err := Transport{}.NewConn(x, false, nil)
		must(t, err)
		b, err := Transport{}.NewConn(slowly{y, 1600}, true, nil)
		must(t, err)
		data := pattern(2 << 20)
		go func() {
			st, err := a.OpenStream(context.Background())
			if err == nil {
				_, err = st.Write(data)
			}
			if err == nil {
				err = st.CloseWrite()
			}
			if err != nil {
				t.Errorf("write: %v", err)
			}
		}()
		st, err := b.AcceptStream()
		must(t, err)
		st.(*stream).mu.Lock()
		st.(*stream).due, st.(*stream).window = windowMax, windowMax // so that the reader says nothing
		st.(*stream).mu.Unlock()
		a.(*session).find(1).allow(windowMax)
		wantBytes(t, st, data)
		_, _ = a.Close(), b.Close()
	})
}
