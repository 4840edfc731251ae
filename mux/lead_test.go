package mux

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// leaderPair is a stream whose reader leads at its session: it waits inside.
// What it reads next comes over the channel.
func leaderPair(t *testing.T, a, b network.MuxedConn) (out network.MuxedStream, in *stream) {
	t.Helper()
	x, y := streamPair(t, a, b)
	in = y.(*stream)
	for range 100 {
		_, err := x.Write([]byte{1})
		must(t, err)
		_, err = io.ReadFull(in, make([]byte, 1))
		must(t, err)
		if in.s.in.leads(in) {
			return x, in
		}
	}
	t.Fatal("nobody leads")
	return nil, nil
}

// reads has a stream read once, inside as a leader, and gives what comes of it.
func reads(t *testing.T, in *stream) (came chan error) {
	t.Helper()
	came = make(chan error, 1)
	go func() {
		_, err := in.Read(make([]byte, 1))
		came <- err
	}()
	await(t, "the leader is inside", func() bool {
		in.s.in.mu.Lock()
		defer in.s.in.mu.Unlock()
		return in.s.in.inside
	})
	return came
}

func TestTheOnlyReaderLeads(t *testing.T) {
	a, b := pairOf(t, Transport{}, leading{})
	out, in := leaderPair(t, a, b)
	came := reads(t, in)
	_, err := out.Write([]byte{1})
	must(t, err)
	must(t, <-came)
}

func TestALeaderIsInterrupted(t *testing.T) {
	for name, c := range map[string]struct {
		by   func(out network.MuxedStream, in *stream) error
		want error
	}{
		"by a deadline that comes": {func(_ network.MuxedStream, in *stream) error {
			return in.SetReadDeadline(time.Now().Add(time.Millisecond))
		}, os.ErrDeadlineExceeded},
		"by a deadline that is set": {func(_ network.MuxedStream, in *stream) error { return in.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		"by its reset":              {func(_ network.MuxedStream, in *stream) error { return in.Reset() }, network.ErrReset},
		"by its end":                {func(_ network.MuxedStream, in *stream) error { return in.Close() }, network.ErrReset},
		"by the peer's reset":       {func(out network.MuxedStream, _ *stream) error { return out.Reset() }, network.ErrReset},
		"by the peer's end":         {func(out network.MuxedStream, _ *stream) error { return out.CloseWrite() }, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pairOf(t, Transport{}, leading{})
			out, in := leaderPair(t, a, b)
			came := reads(t, in)
			must(t, c.by(out, in))
			if err := <-came; !errors.Is(err, c.want) {
				t.Errorf("it reads %v, want %v", err, c.want)
			}
			x, y := streamPair(t, a, b) // the session goes on
			go func() { _, _ = x.Write(pattern(1 << 20)); _ = x.CloseWrite() }()
			wantBytes(t, y, pattern(1<<20))
		})
	}
}

func TestTheSessionEndsUnderALeader(t *testing.T) {
	a, b := pairOf(t, Transport{}, leading{})
	_, in := leaderPair(t, a, b)
	came := reads(t, in)
	must(t, b.Close())
	if err := <-came; !errors.Is(err, network.ErrReset) {
		t.Errorf("it reads %v", err)
	}
}

func TestALeaderThatStaysAwayHoldsNobodyUp(t *testing.T) {
	a, b := pairOf(t, Transport{}, leading{})
	_, in := leaderPair(t, a, b)
	if !in.s.in.leads(in) {
		t.Fatal("it leads no more")
	}
	for range 50 { // it reads nothing, all others do
		x, y := streamPair(t, a, b)
		must(t, x.Close())
		must(t, y.Close())
	}
}

func TestALeaderReceivesForOthers(t *testing.T) {
	a, b := pairOf(t, Transport{}, leading{})
	_, in := leaderPair(t, a, b)
	came := reads(t, in)
	x, y := streamPair(t, a, b)
	go func() { _, _ = x.Write(pattern(3 << 20)); _ = x.CloseWrite() }()
	wantBytes(t, y, pattern(3<<20))
	must(t, in.Reset())
	<-came
}

func TestTwoReadersOfOneStream(t *testing.T) {
	a, b := pairOf(t, Transport{}, leading{})
	out, in := leaderPair(t, a, b)
	var all sync.WaitGroup
	var mu sync.Mutex
	sum := 0
	for range 2 {
		all.Go(func() {
			for buf := make([]byte, 1000); ; {
				n, err := in.Read(buf)
				mu.Lock()
				sum += n
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	_, err := out.Write(make([]byte, 1<<20))
	must(t, err)
	must(t, out.CloseWrite())
	all.Wait()
	if sum != 1<<20 {
		t.Errorf("they read %d bytes", sum)
	}
}

// TestAnythingAtAnyTime has streams of every kind of use side by side, of which
// each byte is looked at: a model is what was written.
func TestAnythingAtAnyTime(t *testing.T) {
	for name, m := range map[string]network.Multiplexer{"leader": leading{}, "loop": Transport{}} {
		t.Run(name, func(t *testing.T) {
			a, b := pairOf(t, m, m)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			var all sync.WaitGroup
			for i := range uint64(12) {
				rnd := rand.New(rand.NewPCG(seed, i))
				all.Go(func() {
					for range 40 {
						oneUse(t, rnd, a, b)
					}
				})
			}
			all.Wait()
		})
	}
}

// accepting pairs streams: their first 8 bytes say which they are.
var accepting sync.Mutex

func oneUse(t *testing.T, rnd *rand.Rand, a, b network.MuxedConn) {
	accepting.Lock()
	if rnd.IntN(2) == 0 {
		a, b = b, a
	}
	x, err := a.OpenStream(t.Context())
	if err == nil {
		_, err = x.Write([]byte{1})
	}
	if err != nil {
		accepting.Unlock()
		t.Error(err)
		return
	}
	y, err := b.AcceptStream()
	accepting.Unlock()
	if err != nil {
		t.Error(err)
		return
	}
	if _, err = io.ReadFull(y, make([]byte, 1)); err != nil {
		t.Error(err)
		return
	}
	if rnd.IntN(2) == 0 {
		x, y = y, x
	}
	carry(t, rnd, x, y)
	_, _ = x.Reset(), y.Reset()
}

// carry sends in pieces, and reads in others, with deadlines between, to the end
// or to a reset.
func carry(t *testing.T, rnd *rand.Rand, x, y network.MuxedStream) {
	data := pattern(rnd.IntN(1 << (4 + rnd.IntN(17))))
	stop := rnd.IntN(4) == 0
	pieces := rand.New(rand.NewPCG(rnd.Uint64(), 1))
	var all sync.WaitGroup
	all.Go(func() {
		for left := data; len(left) > 0; {
			n := min(len(left), 1+pieces.IntN(1<<(1+pieces.IntN(18))))
			if _, err := x.Write(left[:n]); err != nil {
				return // the reader has stopped
			}
			left = left[n:]
		}
		_ = x.CloseWrite()
	})
	got, most := []byte{}, len(data)
	if stop {
		most = rnd.IntN(len(data) + 1)
	}
	buf := make([]byte, 1+rnd.IntN(100_000))
	var err error
	for err == nil && (!stop || len(got) < most) {
		if rnd.IntN(8) == 0 {
			_ = y.SetReadDeadline(time.Now().Add(time.Duration(rnd.IntN(300)) * time.Microsecond))
		}
		var n int
		n, err = y.Read(buf)
		got = append(got, buf[:n]...)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = y.SetReadDeadline(time.Time{})
		}
	}
	if stop {
		_ = y.Reset()
	}
	all.Wait()
	if !bytes.HasPrefix(data, got) || !stop && (len(got) != len(data) || err != io.EOF) {
		t.Errorf("read %d bytes of %d, or others: %v", len(got), len(data), err)
	}
}

// TestALeaderWhoseWordIsNotTakenHoldsNobodyUp: a leader that cannot write what it
// has read does not keep the session from receiving, or two would wait for each
// other.
func TestALeaderWhoseWordIsNotTakenHoldsNobodyUp(t *testing.T) {
	x, y := net.Pipe()
	c, err := leading{}.NewConn(x, true, nil)
	must(t, err)
	defer y.Close()
	defer c.Close()
	done := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, y); close(done) }()
	send := func(h header, body int) {
		t.Helper()
		_, err := y.Write(append(frames(h), make([]byte, body)...))
		must(t, err)
	}
	send(header{kind: kindData, flags: flagSYN, id: 1, length: 1}, 1)
	st, err := c.AcceptStream()
	must(t, err)
	in := st.(*stream)
	_, err = io.ReadFull(in, make([]byte, 1))
	must(t, err)
	for range 100 {
		if in.s.in.leads(in) {
			break
		}
		send(header{kind: kindData, id: 1, length: 1}, 1)
		_, err = io.ReadFull(in, make([]byte, 1))
		must(t, err)
	}
	reads := make(chan struct{})
	go func() { _, _ = io.ReadFull(in, make([]byte, windowStart/2)); close(reads) }()
	time.Sleep(50 * time.Millisecond)
	must(t, y.SetReadDeadline(time.Unix(1, 0))) // from now on it takes nothing
	<-done
	must(t, y.SetWriteDeadline(time.Now().Add(3*time.Second)))
	send(header{kind: kindData, id: 1, length: windowStart/2 + 1000}, windowStart/2+1000)
	send(header{kind: kindData, flags: flagSYN, id: 3, length: 1}, 1)
	other, err := c.AcceptStream()
	must(t, err)
	_, err = io.ReadFull(other.(*stream), make([]byte, 1))
	must(t, err)
}
