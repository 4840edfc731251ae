package registry

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"

	"p2ptun/proto"
)

// duplex is what net.TCPConn, net.UnixConn and memEnd have in common.
type duplex interface {
	io.ReadWriter
	CloseWrite() error
}

// everyKind runs a test over each kind of local end against each of remote.
func everyKind(t *testing.T, f func(t *testing.T, g *rig, client, peer duplex)) {
	kinds := map[string]func(testing.TB) (duplex, End){
		"tcp":  func(tb testing.TB) (duplex, End) { c, a := tcpPair(tb); return c, connEndOf(tb, a) },
		"unix": func(tb testing.TB) (duplex, End) { c, a := unixPair(tb); return c, connEndOf(tb, a) },
		"mem":  func(testing.TB) (duplex, End) { c, a := memPair(64 << 10); return c, a },
	}
	for localName, local := range kinds {
		for remoteName, remote := range kinds {
			t.Run(localName+" to "+remoteName, func(t *testing.T) {
				client, localEnd := local(t)
				peer, remoteEnd := remote(t)
				g := newRig(t)
				g.pipe(localEnd, remoteEnd)
				f(t, g, client, peer)
			})
		}
	}
}

func TestHalfCloseKeepsReplyFlowing(t *testing.T) {
	everyKind(t, func(t *testing.T, g *rig, client, peer duplex) { replyAfterShutdown(g, client, peer) })
}

func TestHalfCloseByPeerKeepsUploadFlowing(t *testing.T) {
	everyKind(t, func(t *testing.T, g *rig, client, peer duplex) { replyAfterShutdown(g, peer, client) })
}

// replyAfterShutdown: one side asks and shuts down; the other reads to the end
// and only then answers, with 10 MB.
func replyAfterShutdown(g *rig, asker, answerer duplex) {
	g.Helper()
	question, answer := pattern(3000), pattern(10<<20)
	must(g, writeOf(asker, question)())
	must(g, asker.CloseWrite())
	if got := readAll(g, answerer); !bytes.Equal(got, question) {
		g.Fatalf("%d bytes of %d asked came through", len(got), len(question))
	}
	done := background(writeOf(answerer, answer))
	if got := readN(g, asker, len(answer)); !bytes.Equal(got, answer) {
		g.Fatal("the answer was changed on its way")
	}
	must(g, <-done)
	must(g, answerer.CloseWrite())
	readAll(g, asker)
	g.drained()
}

func readAll(tb testing.TB, r io.Reader) []byte {
	tb.Helper()
	b, err := io.ReadAll(r)
	must(tb, err)
	return b
}

func readN(tb testing.TB, r io.Reader, n int) []byte {
	tb.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	must(tb, err)
	return b
}

func TestBothWaysFlowAtOnceByteExact(t *testing.T) {
	everyKind(t, func(t *testing.T, g *rig, client, peer duplex) {
		up, down := pattern(4<<20), pattern(3<<20)
		send := func(d duplex, b []byte) <-chan error {
			return background(func() error { return errors.Join(writeOf(d, b)(), d.CloseWrite()) })
		}
		upDone, downDone := send(client, up), send(peer, down)
		var gotUp []byte
		read := background(func() (err error) { gotUp, err = io.ReadAll(peer); return err })
		if got := readAll(t, client); !bytes.Equal(got, down) {
			t.Error("the way in was changed")
		}
		must(t, errors.Join(<-read, <-upDone, <-downDone))
		if !bytes.Equal(gotUp, up) {
			t.Error("the way out was changed")
		}
		g.drained()
	})
}

func TestEndsAreClosedOnlyAfterBothWaysEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, peer, local, remote := g.memBoth(100)
		must(t, client.CloseWrite())
		synctest.Wait()
		if local.closes+remote.closes != 0 || remote.halfCloses != 1 {
			t.Fatal("the end of one way must end that way only")
		}
		must(t, writeOf(peer, []byte("late"))())
		must(t, peer.CloseWrite())
		if got := readAll(t, client); string(got) != "late" {
			t.Fatalf("read %q", got)
		}
		g.drained()
		for _, e := range []*memEnd{local, remote} {
			if e.closes != 1 || e.closedSoon || len(e.resets) != 0 || e.halfCloses != 1 {
				t.Errorf("closes %d (too soon: %v), resets %v, half-closes %d", e.closes, e.closedSoon, e.resets, e.halfCloses)
			}
		}
	})
}

func TestEndBothWaysReleasesSockets(t *testing.T) {
	g := newRig(t)
	client, peer, s := g.tcpBoth()
	must(t, client.CloseWrite())
	must(t, peer.CloseWrite())
	g.drained()
	if readAll(t, client); s.Status().Reset != "" {
		t.Errorf("ended with %q", s.Status().Reset)
	}
	if _, err := s.local.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("local end is still open: %v", err)
	}
	if _, err := s.remote.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("remote end is still open: %v", err)
	}
}

func TestByteCountersAreExact(t *testing.T) {
	for _, n := range []int{0, 1, smallRead - 1, smallRead, smallRead + 1, bufferSize, bufferSize + smallRead, 1<<20 + 7} {
		g := newRig(t)
		client, peer, s := g.tcpBoth()
		sent := background(func() error { return errors.Join(writeOf(client, pattern(n))(), client.CloseWrite()) })
		must(t, writeOf(peer, pattern(2 * n)[:n/2])())
		must(t, peer.CloseWrite())
		readAll(t, client)
		readAll(t, peer)
		must(t, <-sent)
		g.drained()
		st, e := s.Status(), g.entry.Status()
		if want := [2]int64{int64(n), int64(n / 2)}; [2]int64{st.BytesOut, st.BytesIn} != want ||
			[2]int64{e.BytesOut, e.BytesIn} != want || [2]int64{g.bytesOut.Load(), g.bytesIn.Load()} != want {
			t.Errorf("%d bytes: stream %+v, tunnel %+v", n, st, e)
		}
	}
}

func TestBytesOfFailedWriteAreCountedAsFarAsTheyWent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, peer, _, remote := g.memBoth(100)
		done := background(writeOf(client, pattern(150)))
		synctest.Wait()
		must(t, peer.Reset(proto.CodeTargetDown))
		<-done
		g.drained()
		if got, want := g.bytesOut.Load(), remote.out.taken; got != want || want != 100 {
			t.Errorf("counted %d, went %d", got, want)
		}
	})
}

func TestSlowReaderBoundsMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, local := memPair(bufferSize)
		peer, remote := memPair(100)
		g.pipe(local, remote)
		data := pattern(10 * bufferSize)
		writing := background(writeOf(client, data))
		synctest.Wait()
		if taken := client.out.taken; taken > 3*bufferSize {
			t.Errorf("%d bytes were taken of a source whose reader takes none", taken)
		}
		if got := readN(t, peer, len(data)); !bytes.Equal(got, data) {
			t.Error("changed on its way")
		}
		must(t, <-writing)
	})
}

// shortEnd breaks io.Writer's contract.
type shortEnd struct{ End }

func (e shortEnd) Write(b []byte) (int, error) { return e.End.Write(b[:len(b)/2]) }

func TestShortWriteIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, local := memPair(100)
		_, remote := memPair(100)
		s := g.pipe(local, shortEnd{remote})
		must(t, writeOf(client, pattern(10))())
		synctest.Wait()
		if s.Status().Reset == "" {
			t.Error("half of what was sent is missing and nobody is told")
		}
	})
}

func TestNewConnEndRefusesWhatCannotBeHalfClosed(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := NewConnEnd(a); !errors.Is(err, ErrNotAStream) {
		t.Errorf("got %v", err)
	}
}

func TestPipeOnClosedTunnelResetsBothEnds(t *testing.T) {
	g := newRig(t)
	g.Deregister(g.entry, proto.CodeClosed)
	_, local := memPair(1)
	_, remote := memPair(1)
	if err := g.Pipe(g.entry, &Stream{}, local, remote); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	for _, e := range []*memEnd{local, remote} {
		if !slices.Equal(e.codes(), []proto.Code{proto.CodeClosed}) {
			t.Errorf("reset with %v", e.codes())
		}
	}
}

func TestOnClosedIsToldTheLastFigures(t *testing.T) {
	g := newRig(t)
	client, local := memPair(10)
	peer, remote := memPair(10)
	var last StreamStatus
	s := &Stream{Peer: "p", Origin: "o", Path: Path{Transport: "quic"}, OnClosed: func(s *Stream) { last = s.Status() }}
	must(t, g.Pipe(g.entry, s, local, remote))
	must(t, writeOf(client, []byte("abc"))())
	must(t, client.CloseWrite())
	must(t, peer.CloseWrite())
	readAll(t, peer)
	g.Wait()
	want := s.Status()
	if last != want || last.BytesOut != 3 || last.Peer != "p" || last.Path.Transport != "quic" || last.ID != s.ID() {
		t.Errorf("told %+v, is %+v", last, want)
	}
}
