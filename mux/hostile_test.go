package mux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// foe is a peer that writes what it likes; what it is sent it takes and drops.
func foe(t testing.TB, m network.Multiplexer, scope network.PeerScope) (s *session, peer net.Conn) {
	t.Helper()
	x, y := tcpPair(t)
	c, err := m.NewConn(x, true, scope)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*session), y
}

func TestWhatIsNoFrameEndsTheSession(t *testing.T) {
	syn := header{kind: kindWindow, flags: flagSYN, id: 1}
	for name, bytes := range map[string][]byte{
		"another version":      append([]byte{1}, make([]byte, headerSize)...),
		"a type beyond":        frames(header{kind: 4}),
		"a stream of ours":     frames(header{kind: kindWindow, flags: flagSYN, id: 2}),
		"stream 0":             frames(header{kind: kindWindow, flags: flagSYN}),
		"a stream twice":       frames(syn, syn),
		"beyond the window":    frames(syn, header{kind: kindData, id: 1, length: windowStart + 1}),
		"far beyond":           frames(syn, header{kind: kindData, id: 1, length: 1<<32 - 1}),
		"with the first frame": frames(header{kind: kindData, flags: flagSYN, id: 1, length: windowStart + 1}),
	} {
		t.Run(name, func(t *testing.T) {
			s, peer := foe(t, leading{}, nil)
			go func() { _, _ = io.Copy(io.Discard, peer) }()
			_, err := peer.Write(bytes)
			must(t, err)
			<-s.done
			if err := s.why(); !errors.Is(err, errFrame) {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

func TestWhatIsOfNoStreamIsDropped(t *testing.T) {
	s, peer := foe(t, Transport{}, nil)
	go func() { _, _ = io.Copy(io.Discard, peer) }()
	b := slices.Concat(
		frames(header{kind: kindWindow, id: 9, length: 1<<32 - 1}, header{kind: kindWindow, flags: flagRST | flagFIN | flagACK, id: 8}),
		frames(header{kind: kindData, flags: flagFIN, id: 7, length: 300_000}), make([]byte, 300_000),
		frames(header{kind: kindPing, flags: flagACK, length: 12345}, header{kind: kindData, flags: flagSYN, id: 1, length: 2}), []byte("ok"))
	_, err := peer.Write(b)
	must(t, err)
	st, err := s.AcceptStream()
	must(t, err)
	got := make([]byte, 2)
	_, err = io.ReadFull(st, got)
	if must(t, err); string(got) != "ok" {
		t.Errorf("read %q", got)
	}
}

func TestMoreThanTheBacklogIsReset(t *testing.T) {
	scope := newScope(1 << 30)
	s, peer := foe(t, Transport{}, scope)
	for i := range uint32(backlog + 1000) {
		_, err := peer.Write(frames(header{kind: kindWindow, flags: flagSYN, id: 2*i + 1}))
		must(t, err)
	}
	resets := 0
	for resets < 1000 {
		var raw [headerSize]byte
		_, err := io.ReadFull(peer, raw[:])
		must(t, err)
		if h, err := parseHeader(&raw); err == nil && h.has(flagRST) {
			resets++
		}
	}
	if spans, _ := scope.holds(); spans != backlog {
		t.Errorf("%d streams hold memory", spans)
	}
	must(t, s.Close())
}

// TestAPeerThatReadsNothing makes us answer and takes no answer: what waits for
// it is bounded, and it is given up after writeLimit.
func TestAPeerThatReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		c, err := Transport{}.NewConn(x, true, nil)
		must(t, err)
		s, start := c.(*session), time.Now()
		pings := bytes.Repeat(frames(header{kind: kindPing, flags: flagSYN}), 1000)
		for err == nil {
			_, err = y.Write(pings)
			s.out.mu.Lock()
			if n := len(s.out.waiting); n > maxWaiting+headerSize {
				t.Errorf("%d bytes wait", n)
			}
			s.out.mu.Unlock()
		}
		<-s.done
		if took := time.Since(start); took > writeLimit+time.Second {
			t.Errorf("it is given up after %s", took)
		}
		_, _ = c.Close(), y.Close()
	})
}

// TestBytesOneByOneShareTheirRoom: a window of single bytes does not hold many
// times its size.
func TestBytesOneByOneShareTheirRoom(t *testing.T) {
	s, peer := foe(t, leading{}, nil)
	one := append(frames(header{kind: kindData, id: 1, length: 1}), 'x')
	_, err := peer.Write(frames(header{kind: kindWindow, flags: flagSYN, id: 1}))
	must(t, err)
	_, err = peer.Write(bytes.Repeat(one, 10_000))
	must(t, err)
	c, err := s.AcceptStream()
	must(t, err)
	st := c.(*stream)
	await(t, "all have come", func() bool {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.due == windowStart-10_000
	})
	st.mu.Lock()
	held := 0
	for _, p := range st.parts {
		held += cap(p)
	}
	st.mu.Unlock()
	if held > 2*10_000+leastPart {
		t.Errorf("they hold %d bytes", held)
	}
	wantBytes(t, io.LimitReader(st, 10_000), bytes.Repeat([]byte("x"), 10_000))
}

// FuzzReceive feeds a session what it may, in pieces: it must end or go on, and
// give back what it took.
func FuzzReceive(f *testing.F) {
	f.Add([]byte(nil), uint8(3))
	f.Add(frames(header{kind: kindData, flags: flagSYN, id: 1, length: 4}, header{kind: kindPing, flags: flagSYN}), uint8(1))
	f.Add(slices.Concat(frames(header{kind: kindWindow, flags: flagSYN, id: 1}), frames(header{kind: kindData, flags: flagFIN, id: 1, length: 3}), []byte("abc"), frames(header{kind: kindWindow, flags: flagRST, id: 1, length: 9})), uint8(7))
	f.Add(frames(header{kind: kindGoAway, length: 5}), uint8(255))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		x, y := net.Pipe()
		scope := newScope(1 << 20)
		c, err := leading{}.NewConn(x, true, scope)
		must(t, err)
		go func() { _, _ = io.Copy(io.Discard, y) }()
		go func() {
			for {
				st, err := c.AcceptStream()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(st, st)
					_ = st.Close()
				}()
			}
		}()
		for part := range slices.Chunk(b, int(piece)+1) {
			if _, err := y.Write(part); err != nil {
				break
			}
		}
		_ = y.Close()
		_ = c.Close()
		if spans, used := scope.holds(); spans != 0 || used != 0 {
			t.Errorf("%d spans hold %d bytes", spans, used)
		}
	})
}

// TestNumbersBeyondAnInt are none that are negative, where an int has 32 bits.
func TestNumbersBeyondAnInt(t *testing.T) {
	s, peer := foe(t, Transport{}, nil)
	_, err := peer.Write(slices.Concat(
		frames(header{kind: kindData, flags: flagSYN, id: 1, length: 1}), []byte{1},
		frames(header{kind: kindWindow, id: 1, length: 0xf0000000}),
		frames(header{kind: kindData, id: 99, length: 0xf0000000}), make([]byte, 100)))
	must(t, err)
	st, err := s.AcceptStream()
	must(t, err)
	await(t, "the window has grown", func() bool {
		st.(*stream).mu.Lock()
		defer st.(*stream).mu.Unlock()
		return st.(*stream).room > windowStart
	})
	_, err = st.Write([]byte("x"))
	must(t, err)
	time.Sleep(20 * time.Millisecond)
	if s.IsClosed() {
		t.Error("it ended")
	}
}
