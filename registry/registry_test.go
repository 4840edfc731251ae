package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

func listenOn(name string) Tunnel {
	return Tunnel{Kind: KindListen, Protocol: "/x/" + name, Target: "/ip4/127.0.0.1/tcp/22"}
}

func forwardAt(bind string) Tunnel {
	return Tunnel{Kind: KindForward, Protocol: "/x/f", Bind: bind, Peers: []string{"/p2p/first", "/p2p/second"}}
}

func register(tb testing.TB, r *Registry, tunnel Tunnel) *Entry {
	tb.Helper()
	e, err := r.Register(tb.Context(), tunnel)
	must(tb, err)
	return e
}

func idsOf(entries []*Entry) (ids []string) {
	for _, e := range entries {
		ids = append(ids, e.Tunnel.ID)
	}
	return ids
}

func TestIDsAreNeverReused(t *testing.T) {
	r := New()
	seen := map[string]bool{}
	for i := range 50 {
		e := register(t, r, listenOn("a"))
		if seen[e.Tunnel.ID] {
			t.Fatalf("id %s was given twice", e.Tunnel.ID)
		}
		seen[e.Tunnel.ID] = true
		if i%2 == 0 {
			register(t, r, listenOn(fmt.Sprint("kept", i)))
		}
		r.Deregister(e, proto.CodeClosed)
	}
}

func TestKeptIDsAreHonoured(t *testing.T) {
	r := New()
	r.ReserveIDs(7)
	fresh := register(t, r, listenOn("fresh"))
	kept := Tunnel{ID: "5", Kind: KindListen, Protocol: "/x/kept", Keep: true}
	if e := register(t, r, kept); e.Tunnel.ID != "5" {
		t.Errorf("kept id 5 became %s", e.Tunnel.ID)
	}
	if fresh.Tunnel.ID != "8" {
		t.Errorf("new id %s above 7 reserved", fresh.Tunnel.ID)
	}
	high := listenOn("high")
	high.ID = "20"
	register(t, r, high)
	if e := register(t, r, listenOn("next")); e.Tunnel.ID != "21" {
		t.Errorf("new id %s after a kept 20", e.Tunnel.ID)
	}
}

func TestLiveIDIsNotTakenOver(t *testing.T) {
	r := New()
	a := register(t, r, listenOn("a"))
	b := listenOn("b")
	b.ID = a.Tunnel.ID
	if e := register(t, r, b); e.Tunnel.ID == a.Tunnel.ID {
		t.Error("two live tunnels have one id")
	}
	if got := idsOf(r.Tunnels()); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("ids %v", got)
	}
}

func TestTunnelsAreListedByNumber(t *testing.T) {
	r := New()
	for _, id := range []string{"ab", "10", "z", "9", "007", "100"} {
		tunnel := listenOn(id)
		tunnel.ID = id
		register(t, r, tunnel)
	}
	if got := strings.Join(idsOf(r.Tunnels()), " "); got != "007 9 10 100 ab z" {
		t.Errorf("order %s", got)
	}
}

func TestSecondListenerOnAProtocolIsRefused(t *testing.T) {
	r := New()
	first := register(t, r, listenOn("ssh"))
	_, err := r.Register(t.Context(), listenOn("ssh"))
	if !errors.Is(err, ErrDuplicate) || !strings.Contains(err.Error(), "/x/ssh") {
		t.Errorf("got %v", err)
	}
	r.Deregister(first, proto.CodeClosed)
	second := register(t, r, listenOn("ssh"))
	if e, ok := r.Listener("/x/ssh"); !ok || e != second {
		t.Error("the listener is not found")
	}
}

func TestSecondForwardOnAnAddressIsRefused(t *testing.T) {
	r := New()
	register(t, r, forwardAt("/ip4/127.0.0.1/tcp/2222"))
	if _, err := r.Register(t.Context(), forwardAt("/ip4/127.0.0.1/tcp/2222")); !errors.Is(err, ErrDuplicate) {
		t.Errorf("got %v", err)
	}
	register(t, r, forwardAt("/ip4/127.0.0.1/tcp/0"))
	register(t, r, forwardAt("/ip4/127.0.0.1/tcp/0"))
	register(t, r, Tunnel{Kind: KindListen, Protocol: "/x/f"}) // a protocol may be forwarded and offered
}

func TestForwardIsNoListener(t *testing.T) {
	r := New()
	register(t, r, forwardAt("/ip4/127.0.0.1/tcp/1"))
	if _, ok := r.Listener("/x/f"); ok {
		t.Error("a forward is found as the listener of its protocol")
	}
}

func TestTunnelTableIsBounded(t *testing.T) {
	r := New()
	for i := range MaxTunnels {
		register(t, r, listenOn(fmt.Sprint(i)))
	}
	if _, err := r.Register(t.Context(), listenOn("more")); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
}

func TestStreamTableIsBounded(t *testing.T) {
	g := newRig(t)
	for i := range MaxStreams {
		g.streams[^uint64(i)] = nil
	}
	_, local := memPair(1)
	_, remote := memPair(1)
	if err := g.Pipe(g.entry, &Stream{}, local, remote); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
	if len(local.codes()) != 1 || len(remote.codes()) != 1 {
		t.Error("the ends of a refused stream are not released")
	}
	clear(g.streams)
}

func TestDeregisterResetsItsStreamsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		other := register(t, g.Registry, listenOn("other"))
		defer g.Deregister(other, proto.CodeStopped)
		_, _, _, mine := g.memBoth(10)
		_, local := memPair(10)
		_, theirs := memPair(10)
		must(t, g.Pipe(other, &Stream{}, local, theirs))
		g.Deregister(g.entry, proto.CodeRevoked)
		g.Deregister(g.entry, proto.CodeStopped) // does nothing
		synctest.Wait()
		if !slices.Equal(mine.codes(), []proto.Code{proto.CodeRevoked}) || len(theirs.codes()) != 0 {
			t.Errorf("codes: mine %v, theirs %v", mine.codes(), theirs.codes())
		}
		if live := g.Streams(); len(live) != 1 || live[0].Tunnel != other.Tunnel.ID {
			t.Errorf("live: %+v", live)
		}
	})
}

func TestTunnelContextEndsWithItsCause(t *testing.T) {
	r := New()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the opener went")
	a, _ := r.Register(ctx, listenOn("a"))
	b := register(t, r, listenOn("b"))
	c := register(t, r, listenOn("c"))
	cancel(why)
	b.Close(ErrClosed)
	r.Deregister(c, proto.CodeClosed)
	for e, want := range map[*Entry]error{a: why, b: ErrClosed, c: ErrClosed} {
		<-e.Context().Done()
		if got := context.Cause(e.Context()); got != want {
			t.Errorf("tunnel %s ended with %v, want %v", e.Tunnel.ID, got, want)
		}
	}
}

func TestSelector(t *testing.T) {
	r := New()
	ssh := register(t, r, listenOn("ssh"))
	web := register(t, r, listenOn("web"))
	fwd := register(t, r, forwardAt("/ip4/127.0.0.1/tcp/0"))
	fwd.SetBound("/ip4/127.0.0.1/tcp/4321")
	for _, c := range []struct {
		name string
		sel  Selector
		want []*Entry
	}{
		{"empty picks nothing", Selector{}, nil},
		{"all", Selector{All: true}, []*Entry{ssh, web, fwd}},
		{"ids", Selector{IDs: []string{"3", "1"}}, []*Entry{ssh, fwd}},
		{"protocol", Selector{Protocol: "/x/ssh"}, []*Entry{ssh}},
		{"target", Selector{Target: ssh.Tunnel.Target}, []*Entry{ssh, web}},
		{"bound port", Selector{Bind: "/ip4/127.0.0.1/tcp/4321"}, []*Entry{fwd}},
		{"both must match", Selector{IDs: []string{"1"}, Protocol: "/x/web"}, nil},
		{"and do", Selector{Target: ssh.Tunnel.Target, Protocol: "/x/web"}, []*Entry{web}},
		{"unknown", Selector{IDs: []string{"99"}}, nil},
	} {
		if got := r.Select(c.sel); !slices.Equal(got, c.want) {
			t.Errorf("%s: picked %v", c.name, idsOf(got))
		}
	}
}

func TestStatusSaysWhatATunnelIs(t *testing.T) {
	r := New()
	fwd := register(t, r, forwardAt("/ip4/127.0.0.1/tcp/0"))
	if s := fwd.Status(); s.Bind != "/ip4/127.0.0.1/tcp/0" || s.Peer != "/p2p/first" || s.State != StateStarting || s.Access != "" {
		t.Errorf("%+v", s)
	}
	fwd.SetBound("/ip4/127.0.0.1/tcp/7")
	fwd.SetPeer("/p2p/second")
	fwd.SetState(StateReady, "direct")
	if s := fwd.Status(); s.Bind != "/ip4/127.0.0.1/tcp/7" || s.Peer != "/p2p/second" || s.State != StateReady || s.Reason != "direct" {
		t.Errorf("%+v", s)
	}
	open := listenOn("open")
	open.Open = true
	if a, b := register(t, r, open).Status().Access, register(t, r, listenOn("b")).Status().Access; a != "open" || b != "closed" {
		t.Errorf("access %q and %q", a, b)
	}
}

func TestNoTunnelIsSeenWithoutAState(t *testing.T) {
	r := New()
	done := background(func() error {
		for i := range 300 {
			register(t, r, listenOn(fmt.Sprint(i)))
		}
		return nil
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		for _, e := range r.Tunnels() {
			if e.Status().State == "" {
				t.Fatal("a tunnel in the table has no state")
			}
		}
	}
}

func TestLastTunnelEventIsTheLastState(t *testing.T) {
	r := New()
	e := register(t, r, listenOn("a"))
	for range 300 {
		sub := subscribe[TunnelEvent](t, r.Events, 100)
		var both sync.WaitGroup
		for _, state := range []State{StateWaiting, StateReady} {
			both.Go(func() { e.SetState(state, reasonOf(state)) })
		}
		both.Wait()
		events, _ := take(t, sub)
		if last := events[len(events)-1].Tunnel; last.State != e.Status().State {
			t.Fatalf("told %s last, is %s", last.State, e.Status().State)
		}
		sub.Close()
		e.SetState(StateRetrying, "")
	}
}

func reasonOf(s State) string { return "now " + string(s) }

func TestClosedIsTheLastState(t *testing.T) {
	r := New()
	e := register(t, r, listenOn("a"))
	sub := subscribe[TunnelEvent](t, r.Events, 10)
	defer sub.Close()
	r.Deregister(e, proto.CodeClosed)
	e.SetState(StateReady, "too late")
	events, _ := take(t, sub)
	if len(events) != 1 || events[0].Tunnel.State != StateClosed || e.Status().State != StateClosed {
		t.Errorf("events %+v, status %+v", events, e.Status())
	}
}

func TestDrainWaitsForThePickedOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		manyPeers(g, 3, func() {})
		ofB := func(s *Stream) bool { return s.Peer == "b" }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		drain := background(func() error { return g.Drain(ctx, ofB) })
		synctest.Wait()
		g.ResetStreams(func(s *Stream) bool { return s.Peer == "a" }, proto.CodeClosed)
		synctest.Wait()
		select {
		case err := <-drain:
			t.Fatalf("drained too soon: %v", err)
		default:
		}
		g.ResetStreams(ofB, proto.CodeClosed)
		must(t, <-drain)
		if err := g.Drain(ctx, all); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a stream is live, yet: %v", err)
		}
	})
}

func TestAfterDrainTheFiguresAreUpToDate(t *testing.T) {
	for range 300 {
		g := newRig(t)
		client, _, _, _ := g.memBoth(10)
		must(t, client.Reset(proto.CodeReset))
		g.drained()
		if live := g.entry.Status().Streams; live != 0 {
			t.Fatalf("drained, yet %d streams", live)
		}
		if got := g.resets.copy()[proto.CodeReset.String()]; got != 1 {
			t.Fatalf("drained, yet %d resets counted", got)
		}
	}
}

func TestPipeAndResetMayRunBesideWait(t *testing.T) {
	g := newRig(t)
	waiting := background(func() error {
		for range 2000 {
			g.Wait()
		}
		return nil
	})
	for range 300 {
		g.memBoth(10)
		g.ResetStreams(all, proto.CodeStopped)
	}
	must(t, <-waiting)
}

func TestStreamsAreListedByAge(t *testing.T) {
	g := newRig(t)
	for range 20 {
		g.memBoth(10)
	}
	list := g.Streams()
	if len(list) != 20 || !slices.IsSortedFunc(list, func(a, b StreamStatus) int { return int(a.ID) - int(b.ID) }) {
		t.Errorf("%+v", list)
	}
	if st := g.entry.Status(); st.Streams != 20 || st.Total != 20 {
		t.Errorf("%+v", st)
	}
}

func TestTunnelSurvivesJSON(t *testing.T) {
	tunnel := forwardAt("/ip4/127.0.0.1/tcp/1")
	tunnel.Silence, tunnel.DialTimeout, tunnel.Keep = Duration(90*time.Second), Duration(time.Second), true
	text, err := json.Marshal(tunnel)
	must(t, err)
	var back Tunnel
	must(t, json.Unmarshal(text, &back))
	if !reflect.DeepEqual(back, tunnel) || !strings.Contains(string(text), `"silence":"1m30s"`) {
		t.Errorf("%s became %+v", text, back)
	}
	if text, _ = json.Marshal(Tunnel{Kind: KindListen, Protocol: "/x/a"}); string(text) != `{"kind":"listen","protocol":"/x/a"}` {
		t.Errorf("empty fields are written: %s", text)
	}
}

func TestBadDurationIsRefused(t *testing.T) {
	for _, text := range []string{`"-1s"`, `"soon"`, `""`, `5`} {
		if err := json.Unmarshal([]byte(text), new(Duration)); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
}
