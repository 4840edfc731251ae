package registry

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

// rst closes a TCP connection with a RST.
func rst(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	must(tb, c.SetLinger(0))
	must(tb, c.Close())
}

// wantRST reads until the connection was reset.
func wantRST(tb testing.TB, c net.Conn) {
	tb.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		tb.Errorf("want ECONNRESET, got %v", err)
	}
}

func TestRSTByClientIsECONNRESETAtPeer(t *testing.T) {
	g := newRig(t)
	client, peer, s := g.tcpBoth()
	rst(t, client)
	wantRST(t, peer)
	g.drained()
	if got := s.Status().Reset; got != proto.CodeReset.String() {
		t.Errorf("stream ended with %q", got)
	}
}

func TestRSTByPeerIsECONNRESETAtClient(t *testing.T) {
	g := newRig(t)
	client, peer, _ := g.tcpBoth()
	rst(t, peer)
	wantRST(t, client)
	g.drained()
}

func TestRSTAfterHalfCloseOfOtherSideIsStillRST(t *testing.T) {
	g := newRig(t)
	client, peer, _ := g.tcpBoth()
	must(t, client.CloseWrite())
	readAll(t, peer)
	rst(t, peer)
	wantRST(t, client)
	g.drained()
}

func TestClientRSTGivesRemoteTheCodeReset(t *testing.T) {
	g := newRig(t)
	client, _, remote := g.tcpAndMem(100)
	rst(t, client)
	g.drained()
	if !slices.Equal(remote.codes(), []proto.Code{proto.CodeReset}) {
		t.Errorf("remote was reset with %v", remote.codes())
	}
}

func TestResetByPeerIsRSTAtClientWhateverTheCode(t *testing.T) {
	for _, code := range []proto.Code{proto.CodeNone, proto.CodeRefused, proto.CodeTargetDown, 0x1008} {
		g := newRig(t)
		client, peer, remote := g.tcpAndMem(100)
		must(t, peer.Reset(code))
		wantRST(t, client)
		g.drained()
		if !slices.Equal(remote.codes(), []proto.Code{code}) {
			t.Errorf("code %v went on as %v", code, remote.codes())
		}
	}
}

// A write takes a socket's pending error away, and the read beside it then
// sees an end: RST must not come out as a half-close of what was cut off.
func TestRSTAmidReplyNeverLooksLikeHalfClose(t *testing.T) {
	for range 200 {
		g := newRig(t)
		client, peer, remote := g.tcpAndMem(1 << 20)
		pouring := background(func() error { return pourUntilError(peer) })
		g.wantReset(client, pouring, remote)
	}
}

// wantReset has a client send a RST in the middle of what is poured to it, and
// fails unless its peer sees that, and nothing else.
func (g *rig) wantReset(client *net.TCPConn, pouring <-chan error, remote *memEnd) {
	g.Helper()
	readN(g, client, 100_000)
	rst(g, client)
	<-pouring
	g.drained()
	if remote.halfCloses != 0 || !slices.Equal(remote.codes(), []proto.Code{proto.CodeReset}) {
		g.Fatalf("remote saw %d half-closes and resets %v", remote.halfCloses, remote.codes())
	}
}

func pourUntilError(w io.Writer) error {
	block := make([]byte, 32<<10)
	for {
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
}

// The client has sent all and gone, the peer has not read it yet and answers:
// the answer fails, and what the client sent must come through all the same.
func TestUploadSurvivesClientThatIsGoneBeforeTheAnswer(t *testing.T) {
	g := newRig(t)
	client, peer, remote := g.tcpAndMem(1)
	data := pattern(96 << 10)
	must(t, writeOf(client, data)())
	must(t, client.Close())
	for range 20 {
		must(t, writeOf(peer, []byte("x"))())
	}
	if got := readAll(t, peer); !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d came through", len(got), len(data))
	}
	must(t, peer.CloseWrite())
	g.drained()
	if len(remote.codes()) != 0 {
		t.Errorf("remote was reset with %v", remote.codes())
	}
}

// goneClient gives a peer that has half-read what a client sent that is gone.
func goneClient(t *testing.T) (g *rig, peer, remote *memEnd, rest []byte) {
	g = newRig(t)
	client, local := memPair(32 << 10)
	peer, remote = memPair(4 << 10)
	g.pipe(local, remote)
	data := pattern(20 << 10)
	must(t, writeOf(client, data)())
	client.leave()
	readN(t, peer, len(data)/2)
	return g, peer, remote, data[len(data)/2:]
}

func TestLingerLetsUploadArriveUnderAFloodOfAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, peer, remote, rest := goneClient(t)
		flood := background(func() error { return pourUntilError(peer) })
		time.Sleep(lingerTime / 2)
		if len(remote.codes()) != 0 {
			t.Fatal("reset while bytes are under way")
		}
		if got := readAll(t, peer); !bytes.Equal(got, rest) {
			t.Errorf("%d bytes of the last %d came through", len(got), len(rest))
		}
		<-flood
		g.drained()
		if !slices.Equal(remote.codes(), []proto.Code{proto.CodeReset}) {
			t.Errorf("reset with %v", remote.codes())
		}
		if taken := peer.out.taken; taken > lingerBytes+64<<10 {
			t.Errorf("%d bytes of answer were taken for nobody", taken)
		}
	})
}

func TestLingerEndsByResetAtItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, peer, remote, rest := goneClient(t)
		must(t, writeOf(peer, []byte("answer"))())
		readN(t, peer, len(rest))
		start := time.Now()
		g.drained()
		if took := time.Since(start); took < lingerTime || took > lingerTime*3/2 {
			t.Errorf("lingered for %v", took)
		}
		if !slices.Equal(remote.codes(), []proto.Code{proto.CodeReset}) {
			t.Errorf("reset with %v", remote.codes())
		}
	})
}

func TestLingerMeasuresSilenceNotAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, peer, _, remote := g.memBoth(1 << 10)
		data := pattern(30 << 10)
		sent := background(func() error { defer client.leave(); return writeOf(client, data)() })
		client.in.fail(io.ErrClosedPipe, syscall.EPIPE)
		must(t, writeOf(peer, []byte("answer"))())
		var got []byte
		for len(got) < len(data) {
			time.Sleep(lingerTime / 3)
			got = append(got, readN(t, peer, 1<<10)...)
		}
		must(t, <-sent)
		must(t, peer.CloseWrite())
		g.drained()
		if !bytes.Equal(got, data) || len(remote.codes()) != 0 {
			t.Errorf("%d bytes, resets %v", len(got), remote.codes())
		}
	})
}

func TestLingerIsCleanWhenThePeerEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, peer, remote, _ := goneClient(t)
		must(t, writeOf(peer, []byte("answer"))())
		readAll(t, peer)
		must(t, peer.CloseWrite())
		g.drained()
		if len(remote.codes()) != 0 || remote.closes != 1 {
			t.Errorf("resets %v, closes %d", remote.codes(), remote.closes)
		}
	})
}

func TestLingerGivesWayToReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, peer, remote, _ := goneClient(t)
		flood := background(func() error { return pourUntilError(peer) })
		synctest.Wait()
		start := time.Now()
		if n := g.ResetStreams(all, proto.CodeRevoked); n != 1 {
			t.Errorf("%d streams reset", n)
		}
		<-flood
		g.drained()
		if time.Since(start) != 0 || !slices.Equal(remote.codes(), []proto.Code{proto.CodeRevoked}) {
			t.Errorf("after %v, codes %v", time.Since(start), remote.codes())
		}
	})
}

// A peer that cancels its reading, as a QUIC stream can, may still send.
func TestReplySurvivesPeerThatReadsNoMore(t *testing.T) {
	for _, why := range []error{syscall.EPIPE, &ResetError{Code: proto.CodeNone}} {
		synctest.Test(t, func(t *testing.T) { replyOfPeerThatReadsNoMore(t, why) })
	}
}

func replyOfPeerThatReadsNoMore(t *testing.T, why error) {
	g := newRig(t)
	client, peer, local, _ := g.memBoth(1 << 10)
	peer.in.fail(why, why)
	must(t, writeOf(client, []byte("more questions"))())
	reply := pattern(9 << 10)
	sent := background(func() error { return errors.Join(writeOf(peer, reply)(), peer.CloseWrite()) })
	synctest.Wait()
	if got := readAll(t, client); !bytes.Equal(got, reply) {
		t.Errorf("%d bytes of the reply came through", len(got))
	}
	must(t, <-sent)
	must(t, client.CloseWrite())
	g.drained()
	if len(local.codes()) != 0 {
		t.Errorf("reset with %v", local.codes())
	}
}

func TestWriteThatFailsByAResetWithAReasonResetsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, peer, local, _ := g.memBoth(1 << 10)
		why := &ResetError{Code: proto.CodeTargetDown}
		peer.in.fail(why, why)
		must(t, writeOf(client, []byte("question"))())
		start := time.Now()
		g.drained()
		if time.Since(start) != 0 || !slices.Equal(local.codes(), []proto.Code{proto.CodeTargetDown}) {
			t.Errorf("after %v, codes %v", time.Since(start), local.codes())
		}
	})
}

// Not every system tells a write after the client's end from one after a RST.
func TestLingerAfterClientsEndWhateverTheWriteSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, peer, _, remote := g.memBoth(1 << 10)
		must(t, writeOf(client, []byte("last words"))())
		must(t, client.CloseWrite())
		synctest.Wait()
		client.in.fail(io.ErrClosedPipe, &ResetError{Code: proto.CodeReset})
		must(t, writeOf(peer, []byte("answer"))())
		synctest.Wait()
		if got := readAll(t, peer); string(got) != "last words" || len(remote.codes()) != 0 {
			t.Errorf("read %q, resets %v", got, remote.codes())
		}
		must(t, peer.CloseWrite())
		g.drained()
	})
}

// deafEnd can't be told of the end, as a QUIC stream whose peer reads no more.
type deafEnd struct{ *memEnd }

func (deafEnd) CloseWrite() error { return errors.New("close called for canceled stream") }

func TestPeerThatHasSentAllAndReadsNoMoreEndsCleanly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, local := memPair(100)
		peer, remote := memPair(100)
		s := g.pipe(local, deafEnd{remote})
		must(t, writeOf(peer, []byte("reply"))())
		must(t, peer.CloseWrite())
		synctest.Wait()
		must(t, client.CloseWrite())
		g.drained()
		if got := readAll(t, client); string(got) != "reply" || len(local.codes()) != 0 || s.Status().Reset != "" {
			t.Errorf("read %q, reset with %v, ended with %q", got, local.codes(), s.Status().Reset)
		}
		if len(remote.codes()) != 1 {
			t.Error("the peer is not told that nothing comes any more")
		}
	})
}

func TestClientThatCannotBeToldOfTheEndMaySendOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, local := memPair(100)
		peer, remote := memPair(100)
		s := g.pipe(deafEnd{local}, remote)
		must(t, peer.CloseWrite())
		synctest.Wait()
		must(t, writeOf(client, []byte("still here"))())
		must(t, client.CloseWrite())
		g.drained()
		if got := readAll(t, peer); string(got) != "still here" || s.Status().Reset != "" {
			t.Errorf("read %q, ended with %q", got, s.Status().Reset)
		}
	})
}

func TestPeerThatCannotBeToldOfTheEndIsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, local := memPair(100)
		_, remote := memPair(100)
		g.pipe(local, deafEnd{remote})
		must(t, client.CloseWrite())
		g.drained()
		if len(remote.codes()) != 1 || len(local.codes()) != 1 {
			t.Errorf("resets: local %v, remote %v", local.codes(), remote.codes())
		}
	})
}

func TestResetWhileClosingDoesNotDestroyWhatWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, peer, local, remote := g.memBoth(100)
		local.onClose = func() { g.ResetStreams(all, proto.CodeStopped) }
		must(t, writeOf(client, []byte("last words"))())
		must(t, client.CloseWrite())
		must(t, peer.CloseWrite())
		g.drained()
		if len(remote.codes()) != 0 {
			t.Errorf("a stream whose both ways had ended was reset with %v", remote.codes())
		}
		if got := readAll(t, peer); string(got) != "last words" {
			t.Errorf("peer read %q", got)
		}
	})
}

func TestFirstResetReasonStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, local := memPair(10)
		_, remote := memPair(10)
		s := g.pipe(local, remote)
		g.ResetStreams(all, proto.CodeRevoked)
		g.ResetStreams(all, proto.CodeStopped)
		must(t, client.Reset(proto.CodeReset))
		g.drained()
		if got := s.Status().Reset; got != proto.CodeRevoked.String() {
			t.Errorf("ended with %q", got)
		}
		if len(remote.codes()) != 1 || len(local.codes()) != 1 {
			t.Errorf("reset %d and %d times", len(local.codes()), len(remote.codes()))
		}
	})
}

func TestOnePeersBlockedResetDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		unblock := make(chan struct{})
		locals, remotes := manyPeers(g, 4, func() { <-unblock })
		if n := g.ResetStreams(all, proto.CodeStopped); n != 4 {
			t.Errorf("%d reset", n)
		}
		synctest.Wait()
		for i := range locals {
			if len(locals[i].codes()) != 1 || len(remotes[i].codes()) != 1 {
				t.Errorf("stream %d: local %v, remote %v", i, locals[i].codes(), remotes[i].codes())
			}
		}
		waited := background(func() error { g.Wait(); return nil })
		synctest.Wait()
		select {
		case <-waited:
			t.Error("Wait returned while a Reset was still under way")
		default:
		}
		close(unblock)
		<-waited
	})
}

// Closing a socket waits until the pump has let go of it.
func TestManyStreamsAreResetAtOnceNotOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		for range 100 {
			_, local := memPair(10)
			_, remote := memPair(10)
			local.onReset = func() { time.Sleep(time.Second) }
			g.pipe(local, remote)
		}
		start := time.Now()
		g.ResetStreams(all, proto.CodeStopped)
		g.drained()
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// manyPeers pipes n streams, each of its own peer; the first's Reset blocks.
func manyPeers(g *rig, n int, block func()) (locals, remotes []*memEnd) {
	for i := range n {
		_, local := memPair(10)
		_, remote := memPair(10)
		if i == 0 {
			remote.onReset = block
		}
		must(g, g.Pipe(g.entry, &Stream{Peer: string(rune('a' + i))}, local, remote))
		locals, remotes = append(locals, local), append(remotes, remote)
	}
	return locals, remotes
}

func TestResetStreamsPicksByPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		_, remotes := manyPeers(g, 3, func() {})
		if n := g.ResetStreams(func(s *Stream) bool { return s.Peer == "b" }, proto.CodeRevoked); n != 1 {
			t.Errorf("%d reset", n)
		}
		synctest.Wait()
		if len(g.Streams()) != 2 || !slices.Equal(remotes[1].codes(), []proto.Code{proto.CodeRevoked}) {
			t.Errorf("%d live, code %v", len(g.Streams()), remotes[1].codes())
		}
	})
}

func TestResetErrorSaysWhy(t *testing.T) {
	cause := errors.New("broken")
	err := error(&ResetError{Code: proto.CodeRefused, Err: cause})
	if !errors.Is(err, cause) || err.Error() != "refused: broken" {
		t.Errorf("%v", err)
	}
	if got := (&ResetError{Code: proto.CodeSilence}).Error(); got != "silent for too long" {
		t.Errorf("%v", got)
	}
}
