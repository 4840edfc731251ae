package forward

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

const (
	anna = "anna"
	ben  = "ben"
	ok   = proto.Verdict_VERDICT_OK
)

func TestAcceptWaitsOutErrorsWithoutSpinning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.do(anna, func(p *fakePeer) { p.up, p.verdict = true, ok })
		l := r.bindFake()
		l.fail(syscall.EMFILE)
		stop := r.serve()
		defer stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := l.count(); n < 60 || n > 75 {
			t.Errorf("%d accepts in a minute", n)
		}
		r.wantState(t, registry.StateRetrying, "accept: too many open files")
		l.fail(nil)
		time.Sleep(maxAcceptPause)
		here, there := net.Pipe() // not a stream: closed at once
		l.next <- accepted{conn: there}
		if _, err := here.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is still open")
		}
		synctest.Wait()
		r.wantState(t, registry.StateReady, "")
	})
}

func TestAClosedListenerEndsTheAcceptLoopAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeListener{next: make(chan accepted), closed: make(chan struct{})}
		l.Close()
		acceptAll(t.Context(), l, func(net.Conn) {}, func(err error) { t.Error(err) })
		if l.count() != 1 {
			t.Errorf("%d accepts", l.count())
		}
	})
}

func TestTheEndOfATunnelIsNotHeldUpByAnAcceptPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.bindFake().fail(syscall.ENFILE)
		stop := r.serve()
		time.Sleep(time.Minute + time.Millisecond)
		before := time.Now()
		stop()
		if d := time.Since(before); d != 0 {
			t.Errorf("took %v", d)
		}
	})
}

func TestReconnectsForEverWithGrowingBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.bindFake()
		stop := r.serve()
		defer stop()
		time.Sleep(time.Hour)
		synctest.Wait()
		r.wantState(t, registry.StateWaiting, "peer away: "+errAway.Error())
		checkBackoff(t, look(r.world, &r.dials))

		r.do(anna, func(p *fakePeer) { p.reachable, p.verdict = true, ok })
		time.Sleep(backoffMax * 6 / 5)
		synctest.Wait()
		r.wantState(t, registry.StateReady, "")
		if n := len(look(r.world, &r.asks)); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
	})
}

func checkBackoff(t *testing.T, dials []time.Duration) {
	t.Helper()
	if len(dials) < 3600/18 {
		t.Fatalf("%d dials in an hour", len(dials))
	}
	want := backoffMin
	for i := 1; i < len(dials); i++ {
		gap := dials[i] - dials[i-1]
		if gap < want*4/5 || gap > want*6/5 {
			t.Fatalf("pause %d is %v, want about %v", i, gap, want)
		}
		want = min(2*want, backoffMax)
	}
}

func TestAPeerThatIsFoundIsDialledAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.bindFake()
		stop := r.serve()
		defer stop()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		r.do(anna, func(p *fakePeer) { p.reachable, p.verdict = true, ok; p.wake() })
		synctest.Wait()
		r.wantState(t, registry.StateReady, "")
	})
}

func TestAPeerThatIsLostIsDialledAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.do(anna, func(p *fakePeer) { p.reachable, p.verdict = true, ok })
		r.bindFake()
		stop := r.serve()
		defer stop()
		time.Sleep(time.Hour)
		r.do(anna, func(p *fakePeer) { p.up = false })
		synctest.Wait()
		r.wantState(t, registry.StateReady, "")
		if n := len(look(r.world, &r.dials)); n != 2 {
			t.Errorf("%d dials, want 2", n)
		}
		if n := len(look(r.world, &r.asks)); n != 2 { // a new process may say something else
			t.Errorf("asked %d times, want 2", n)
		}
	})
}

func TestAPeerThatComesAndGoesIsDialledEverMoreSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.do(anna, func(p *fakePeer) { p.reachable, p.askErr = true, errBroken })
		r.bindFake()
		stop := r.serve()
		defer stop()
		for range 10 * 60 { // each second it is lost
			time.Sleep(time.Second)
			r.do(anna, func(p *fakePeer) { p.up = false })
		}
		if n := len(look(r.world, &r.dials)); n < 20 || n > 80 {
			t.Errorf("%d dials in 10 minutes", n)
		}
	})
}

// Connections learn that their link is gone a moment after the node does.
func TestAPeerThatComesAndGoesIsDialledAtOnceForConnectionsThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.do(anna, func(p *fakePeer) { p.reachable, p.verdict = true, ok })
		var parked atomic.Bool
		r.Parked = func(string) bool { return parked.Load() }
		r.bindFake()
		stop := r.serve()
		defer stop()
		for range 5 {
			time.Sleep(time.Second)
			r.do(anna, func(p *fakePeer) { p.up = false; p.wake() })
			time.Sleep(10 * time.Millisecond)
			parked.Store(true)
			time.Sleep(parkedPause)
			synctest.Wait()
			r.wantState(t, registry.StateReady, "")
			parked.Store(false)
		}
	})
}

func TestAPeerThatRefusesIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.do(anna, func(p *fakePeer) { p.reachable, p.verdict = true, proto.Verdict_VERDICT_REFUSED })
		r.bindFake()
		stop := r.serve()
		defer stop()
		time.Sleep(askSoonFor + time.Second)
		r.wantState(t, registry.StateRetrying, ErrRefused.Error())
		soon := len(look(r.world, &r.asks)) // its owner may be about to answer
		if want := int(askSoonFor/askPause) + 1; soon != want {
			t.Errorf("asked %d times in %v, want %d", soon, askSoonFor, want)
		}
		time.Sleep(10 * askEvery)
		if n := len(look(r.world, &r.asks)) - soon; n != 10 {
			t.Errorf("asked %d times in the next %v, want 10", n, 10*askEvery)
		}
		r.do(anna, func(p *fakePeer) { p.verdict = ok })
		time.Sleep(askEvery)
		synctest.Wait()
		r.wantState(t, registry.StateReady, "")
		asked := len(look(r.world, &r.asks))
		time.Sleep(time.Hour)
		if n := len(look(r.world, &r.asks)); n != asked {
			t.Errorf("asked %d more times after a good answer", n-asked)
		}
	})
}

// However many connections a peer resets, it is asked once in a while.
func TestResetsHaveThePeerAskedButNotOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.do(anna, func(p *fakePeer) { p.reachable, p.verdict = true, ok })
		r.bindFake()
		stop := r.serve()
		defer stop()
		synctest.Wait()
		r.do(anna, func(p *fakePeer) { p.verdict = proto.Verdict_VERDICT_SERVICE_DOWN })
		for range 60 {
			r.closed(r.remotes[0], "o", proto.CodeTargetDown)
			time.Sleep(time.Second)
		}
		r.wantState(t, registry.StateRetrying, ErrServiceDown.Error())
		if n := len(look(r.world, &r.asks)); n < 5 || n > 13 {
			t.Errorf("asked %d times in a minute", n)
		}
		if n := len(look(r.world, &r.failed)); n != 60 {
			t.Errorf("told of %d failures, want 60", n)
		}
	})
}

func TestAPeerThatCannotBeAskedIsReadyButNotVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna)
		r.do(anna, func(p *fakePeer) { p.reachable, p.askErr = true, errNoAsk })
		r.bindFake()
		if err := r.Prove(t.Context()); err != nil {
			t.Error(err)
		}
		stop := r.serve()
		defer stop()
		time.Sleep(time.Hour)
		r.wantState(t, registry.StateReady, Unverifiable)
	})
}

func TestProveNamesWhatIsMissing(t *testing.T) {
	say := func(v proto.Verdict) func(*fakePeer) {
		return func(p *fakePeer) { p.reachable, p.verdict = true, v }
	}
	away := func(*fakePeer) {}
	for name, c := range map[string]struct {
		anna, ben func(*fakePeer)
		want      error
		peer      string
	}{
		"both well":                    {say(ok), say(ok), nil, anna},
		"first away":                   {away, say(ok), nil, ben},
		"first refuses":                {say(proto.Verdict_VERDICT_REFUSED), say(ok), nil, ben},
		"nobody there":                 {away, away, ErrNotReached, anna},
		"refused":                      {say(proto.Verdict_VERDICT_REFUSED), away, ErrRefused, anna},
		"the second came nearer":       {away, say(proto.Verdict_VERDICT_SERVICE_DOWN), ErrServiceDown, anna},
		"service down":                 {say(proto.Verdict_VERDICT_SERVICE_DOWN), say(proto.Verdict_VERDICT_REFUSED), ErrServiceDown, anna},
		"no service":                   {say(proto.Verdict_VERDICT_NO_SERVICE), away, ErrNoService, anna},
		"reached but no answer":        {func(p *fakePeer) { p.reachable, p.askErr = true, errBroken }, away, ErrNotReached, anna},
		"reached but can't be asked":   {func(p *fakePeer) { p.reachable, p.askErr = true, errNoAsk }, away, nil, anna},
		"an answer of a later version": {say(proto.Verdict_VERDICT_UNKNOWN), away, nil, anna},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, registry.Tunnel{Peers: []string{anna, ben}}, anna, ben)
			defer r.cancel()
			r.do(anna, c.anna)
			r.do(ben, c.ben)
			r.bindFake()
			if err := r.Prove(t.Context()); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("err = %v, want %v", err, c.want)
			}
			if got := r.Entry.Status().Peer; got != c.peer {
				t.Errorf("the tunnel goes to %s, want %s", got, c.peer)
			}
		})
	}
}

func TestTheDialLimitBoundsProofAndConnection(t *testing.T) {
	for given, want := range map[time.Duration]time.Duration{0: 30 * time.Second, 3 * time.Second: 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, registry.Tunnel{DialTimeout: registry.Duration(given)}, anna)
			defer r.cancel()
			r.do(anna, func(p *fakePeer) { p.up, p.hangs = true, true })
			r.bindFake()
			start := time.Now()
			if err := r.Prove(t.Context()); !errors.Is(err, ErrNotReached) || time.Since(start) != want {
				t.Errorf("Prove: %v after %v, want %v", err, time.Since(start), want)
			}
			start = time.Now()
			if _, _, _, err := r.Forward.open(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != want {
				t.Errorf("open: %v after %v, want %v", err, time.Since(start), want)
			}
		})
	}
}

func TestConnectionsGoToTheFirstPeerThatWorks(t *testing.T) {
	opens := func(context.Context) (registry.End, error) { return nil, nil }
	for name, c := range map[string]struct {
		anna, ben func(*fakePeer)
		want      string
	}{
		"preference":            {func(p *fakePeer) { p.up = true }, func(p *fakePeer) { p.up = true }, anna},
		"first away":            {func(p *fakePeer) {}, func(p *fakePeer) { p.up = true }, ben},
		"first fails to open":   {func(p *fakePeer) { p.up, p.open = true, nil }, func(p *fakePeer) { p.up = true }, ben},
		"first refused":         {func(p *fakePeer) { p.up, p.verdict = true, proto.Verdict_VERDICT_REFUSED }, func(p *fakePeer) { p.up = true }, ben},
		"both refused":          {func(p *fakePeer) { p.up, p.verdict = true, proto.Verdict_VERDICT_REFUSED }, func(p *fakePeer) { p.up, p.verdict = true, proto.Verdict_VERDICT_REFUSED }, anna},
		"refused, second broke": {func(p *fakePeer) { p.up, p.verdict = true, proto.Verdict_VERDICT_REFUSED }, func(p *fakePeer) { p.up, p.open = true, nil }, anna},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, registry.Tunnel{}, anna, ben)
			defer r.cancel()
			for id, make := range map[string]func(*fakePeer){anna: c.anna, ben: c.ben} {
				r.do(id, func(p *fakePeer) { p.verdict, p.open = ok, opens; make(p) })
			}
			r.bindFake()
			for _, remote := range r.remotes {
				_ = remote.ask(t.Context())
			}
			got, _, path, err := r.Forward.open(t.Context())
			if err != nil || got.id != c.want || path.Addr != "/fake/"+c.want || r.Entry.Status().Peer != c.want {
				t.Errorf("went to %s, %v; want %s", got.id, err, c.want)
			}
		})
	}
}

func TestTheStateIsThatOfTheBestPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna, ben)
		r.do(ben, func(p *fakePeer) { p.reachable, p.verdict = true, ok })
		r.bindFake()
		stop := r.serve()
		defer stop()
		synctest.Wait()
		r.wantState(t, registry.StateReady, "")
		if got := r.Entry.Status().Peer; got != ben {
			t.Errorf("the tunnel goes to %s", got)
		}
		r.do(anna, func(p *fakePeer) { p.reachable, p.verdict = true, ok; p.wake() })
		synctest.Wait()
		if got := r.Entry.Status().Peer; got != anna {
			t.Errorf("the preferred peer is back, the tunnel goes to %s", got)
		}
		time.Sleep(2 * backoffMax)
		r.do(anna, func(p *fakePeer) { p.reachable, p.up = false, false })
		r.do(ben, func(p *fakePeer) { p.reachable, p.up = false, false })
		synctest.Wait()
		r.wantState(t, registry.StateWaiting, "peer away: "+errAway.Error())
	})
}

// A client that tries again and again must not have this node kept out for it.
func TestAPeerThatRefusesIsTriedByClientsOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &remote{asked: true, verdict: proto.Verdict_VERDICT_REFUSED}
		tried := 0
		for range 100 { // ten seconds
			if r.mayTry() {
				tried++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if tried != 10 {
			t.Errorf("tried %d times in 10 s, want 10", tried)
		}
		r.verdict = ok
		for range 2 {
			if !r.mayTry() {
				t.Error("a peer that lets in was not tried")
			}
		}
	})
}
