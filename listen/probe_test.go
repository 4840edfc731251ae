package listen

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

func TestAnswers(t *testing.T) {
	r := newRig()
	_, stop := r.run(t, registry.Tunnel{})
	for _, c := range []struct {
		peer, protocol string
		want           proto.Verdict
	}{
		{friend, "/x/t", proto.Verdict_VERDICT_OK},
		{friend, "/x/none", proto.Verdict_VERDICT_NO_SERVICE},
		{stranger, "/x/t", proto.Verdict_VERDICT_REFUSED},
		{stranger, "/x/none", proto.Verdict_VERDICT_REFUSED},
	} {
		if got := r.Answer(c.peer, c.protocol); got != c.want {
			t.Errorf("%s asks for %s: %v, want %v", c.peer, c.protocol, got, c.want)
		}
	}
	stop()
	if got := r.Answer(friend, "/x/t"); got != proto.Verdict_VERDICT_NO_SERVICE {
		t.Errorf("after the end: %v", got)
	}
}

// However many peers ask for however long, the target is dialled once in 10 s.
func TestATargetIsProbedAtMostOnceInTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		r.answerDialsBy(func(context.Context) (net.Conn, error) {
			time.Sleep(3 * time.Second) // a slow one
			return nil, errDown
		})
		_, stop := r.run(t, registry.Tunnel{})
		var askers sync.WaitGroup
		for range 100 {
			askers.Go(func() {
				for range 60 {
					if v := r.Answer(friend, "/x/t"); v != proto.Verdict_VERDICT_SERVICE_DOWN {
						t.Errorf("the answer is %v", v)
					}
					time.Sleep(time.Second)
				}
			})
		}
		askers.Wait()
		stop()
		if n := r.dialCount(); n < 4 || n > 10 {
			t.Errorf("%d dials in a minute and more", n)
		}
		for i := 1; i < len(r.at); i++ {
			if gap := r.at[i].Sub(r.at[i-1]); gap < probeEvery {
				t.Errorf("dial %d came %v after the last", i, gap)
			}
		}
	})
}

func TestAProbeSeesATargetComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		r.answerDialsBy(down)
		e, stop := r.run(t, registry.Tunnel{})
		defer stop()
		here, there := net.Pipe()
		defer here.Close()
		r.answerDialsBy(func(context.Context) (net.Conn, error) { return there, nil })
		if v := r.Answer(friend, "/x/t"); v != proto.Verdict_VERDICT_SERVICE_DOWN {
			t.Errorf("at once: %v", v)
		}
		time.Sleep(probeEvery)
		if v := r.Answer(friend, "/x/t"); v != proto.Verdict_VERDICT_OK {
			t.Errorf("after %v: %v", probeEvery, v)
		}
		if s := e.Status(); s.Reason != "" {
			t.Errorf("reason %q", s.Reason)
		}
		if _, err := here.Read(make([]byte, 1)); err == nil {
			t.Error("the probe's connection is open")
		}
	})
}
