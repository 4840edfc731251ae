package registry

import (
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

func TestSilenceResetsBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRigOf(t, Tunnel{Silence: Duration(time.Minute)})
		_, _, local, remote := g.memBoth(100)
		start := time.Now()
		g.drained()
		if took := time.Since(start); took < time.Minute || took > 75*time.Second {
			t.Errorf("reset after %v", took)
		}
		for _, e := range []*memEnd{local, remote} {
			if !slices.Equal(e.codes(), []proto.Code{proto.CodeSilence}) {
				t.Errorf("reset with %v", e.codes())
			}
		}
	})
}

func TestAByteEitherWayBreaksSilence(t *testing.T) {
	for _, way := range []string{"out", "in"} {
		synctest.Test(t, func(t *testing.T) { byteBreaksSilence(t, way) })
	}
}

func byteBreaksSilence(t *testing.T, way string) {
	g := newRigOf(t, Tunnel{Silence: Duration(time.Minute)})
	from, to, _, _ := g.memBoth(100)
	if way == "in" {
		from, to = to, from
	}
	for range 10 {
		time.Sleep(59 * time.Second)
		must(t, writeOf(from, []byte("x"))())
		readN(t, to, 1)
	}
	if len(g.Streams()) != 1 {
		t.Errorf("%s: reset although a byte passed each minute", way)
	}
	start := time.Now()
	g.drained()
	if took := time.Since(start); took < time.Minute || took > 75*time.Second {
		t.Errorf("%s: reset %v after the last byte", way, took)
	}
}

func TestSilenceCountsForHalfClosedStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRigOf(t, Tunnel{Silence: Duration(time.Minute)})
		client, peer, _, _ := g.memBoth(100)
		must(t, client.CloseWrite())
		for range 5 {
			time.Sleep(50 * time.Second)
			must(t, writeOf(peer, []byte("x"))())
			readN(t, client, 1)
		}
		must(t, peer.CloseWrite())
		start := time.Now()
		g.drained()
		if time.Since(start) != 0 {
			t.Error("a clean end waits for nothing")
		}
	})
}

func TestWithoutSilenceNoAgeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		client, peer, _, _ := g.memBoth(100)
		must(t, client.CloseWrite())
		time.Sleep(365 * 24 * time.Hour)
		must(t, writeOf(peer, []byte("still here"))())
		must(t, peer.CloseWrite())
		if got := readAll(t, client); string(got) != "still here" {
			t.Errorf("read %q", got)
		}
		g.drained()
	})
}

func TestWaitCoversTheResetForSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRigOf(t, Tunnel{Silence: Duration(time.Minute)})
		client, _, _, remote := g.memBoth(100)
		returned := false
		remote.onReset = func() { time.Sleep(time.Hour); returned = true }
		_, err := io.Copy(io.Discard, client)
		if err == nil {
			t.Error("the client saw a clean end")
		}
		g.Wait()
		if !returned {
			t.Error("Wait returned while a Reset was still under way")
		}
	})
}
