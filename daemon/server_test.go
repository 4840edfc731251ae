package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/forward"
	"p2ptun/home"
	"p2ptun/registry"
)

// newHome is short enough for a socket.
func newHome(t testing.TB) home.Dir {
	t.Helper()
	path, err := os.MkdirTemp("", "daemon")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(path) })
	dir, err := home.Open(path)
	must(t, err)
	return dir
}

func optionsOf(dir home.Dir) Options {
	return Options{Home: dir, Hosting: Hosting{Network: NetworkNone, ListenAddrs: []string{"/ip4/127.0.0.1/tcp/0"}}}
}

// own starts a server, which is stopped at the end of the test.
func own(t testing.TB, dir home.Dir) (*Client, *Server) {
	t.Helper()
	c, s, err := Attach(t.Context(), optionsOf(dir))
	must(t, err)
	if s == nil {
		t.Fatal("the home has an owner")
	}
	t.Cleanup(func() { _ = s.Stop(0, false) })
	return c, s
}

func TestStoppedServerLeavesNothingBehind(t *testing.T) {
	dir := newHome(t)
	for range 3 {
		c, s := own(t, dir)
		_, err := c.Keep(t.Context(), keeps("", "/x/kept"))
		if err != nil && !strings.Contains(err.Error(), registry.ErrDuplicate.Error()) {
			t.Fatal(err)
		}
		must(t, s.Stop(time.Hour, false))
		path, _ := dir.Socket()
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the socket is left: %v", err)
		}
		if _, err := Find(t.Context(), dir); !errors.Is(err, ErrNoOwner) {
			t.Fatalf("found %v", err)
		}
	}
}

func TestOnlyOneOfManyBecomesTheOwner(t *testing.T) {
	const many = 10
	dir := newHome(t)
	servers := make(chan *Server, many)
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			c, s, err := Attach(t.Context(), optionsOf(dir))
			if err != nil || c == nil {
				t.Errorf("attach: %v", err)
			}
			if s != nil {
				servers <- s
			}
		})
	}
	all.Wait()
	if n := len(servers); n != 1 {
		t.Errorf("%d owners", n)
	}
	for range len(servers) {
		must(t, (<-servers).Stop(0, false))
	}
}

func TestBecomeWhereAnotherOwnsTheHomeFails(t *testing.T) {
	dir := newHome(t)
	own(t, dir)
	if s, err := Become(t.Context(), optionsOf(dir)); !errors.Is(err, ErrOwned) || s != nil {
		t.Fatalf("%v", err)
	}
}

func TestAttachEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, s, err := Attach(ctx, optionsOf(newHome(t))); !errors.Is(err, context.Canceled) || s != nil {
		t.Fatalf("%v", err)
	}
}

func TestAttachWaitsForAnOwnerThatDrains(t *testing.T) {
	dir := newHome(t)
	c, s := own(t, dir)
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	var apiErr *Error
	if _, err := c.Keep(t.Context(), keeps("", "/x/a")); !errors.As(err, &apiErr) || apiErr.Code != CodeStopping {
		t.Fatalf("a stopping owner takes a tunnel: %v", err)
	}
	if _, err := c.Open(t.Context(), keeps("", "/x/a"), false, nil); !errors.Is(err, ErrOwnerGone) {
		t.Fatalf("open: %v, want that the owner is gone", err)
	}
	next := make(chan *Server)
	go func() {
		_, s, _ := Attach(context.WithoutCancel(t.Context()), optionsOf(dir))
		next <- s
	}()
	must(t, s.Stop(0, true))
	heir := <-next
	if heir == nil {
		t.Fatal("nobody owns the home")
	}
	must(t, heir.Stop(0, false))
}

func TestFailedStartGivesTheHomeBack(t *testing.T) {
	dir := newHome(t)
	must(t, os.WriteFile(dir.Tunnels(), []byte("{"), 0o600))
	if _, err := Become(t.Context(), optionsOf(dir)); asError(err).Code != CodeState {
		t.Fatalf("%v", err)
	}
	must(t, os.Remove(dir.Tunnels()))
	own(t, dir)
}

func TestHandlerThatNeverEndsDoesNotHoldUpTheStop(t *testing.T) {
	dir := newHome(t)
	_, s := own(t, dir)
	path, _ := dir.Socket()
	c, err := net.Dial("unix", path)
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte("POST /tunnels HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")) // and no more
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Stop(0, false) }()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(time.Minute):
		t.Fatal("it hangs")
	}
}

func TestStopAskedBeforeAnybodyListensIsNotLost(t *testing.T) {
	c, s := own(t, newHome(t))
	must(t, c.Stop(t.Context()))
	asked := make(chan StopReason, 1)
	s.OnStop(func(r StopReason) { asked <- r })
	if r := <-asked; r != StopAsked {
		t.Fatalf("asked by %q", r)
	}
}

func TestKilledDrainEndsAtOnce(t *testing.T) {
	dir := newHome(t)
	c, s := own(t, dir)
	ended := openUntilEnd(t, c)
	s.Kill()
	must(t, s.Stop(time.Hour, false))
	if reason := <-ended; reason != EndStopped {
		t.Fatalf("ended by %q", reason)
	}
}

func TestHostingThatIsNotAskedForIsNotCompared(t *testing.T) {
	has := Hosting{Network: NetworkLAN, ListenAddrs: []string{"/ip4/127.0.0.1/tcp/1"}}
	for name, c := range map[string]struct {
		asked Hosting
		good  bool
	}{
		"nothing":       {Hosting{}, true},
		"the same":      {has, true},
		"network":       {Hosting{Network: NetworkNone}, false},
		"address":       {Hosting{ListenAddrs: []string{"/ip4/127.0.0.1/tcp/2"}}, false},
		"one more":      {Hosting{ListenAddrs: append([]string{"/ip4/127.0.0.1/tcp/2"}, has.ListenAddrs...)}, false},
		"only one part": {Hosting{ListenAddrs: has.ListenAddrs}, true},
	} {
		err := checkHosting(has, c.asked)
		if good := err == nil; good != c.good || err != nil && asError(err).Code != CodeHosting {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostingIsAskedForOrInheritedOrDefault(t *testing.T) {
	before := Hosting{Network: NetworkNone, ListenAddrs: []string{"/ip4/127.0.0.1/tcp/1"}}
	for name, c := range map[string]struct {
		opts    Options
		network string
		addrs   int
	}{
		"default":   {Options{}, NetworkPublic, 0},
		"relay":     {Options{Relay: &RelayOptions{}}, NetworkOwn, 0},
		"no relay":  {Options{Inherit: Hosting{Network: NetworkOwn}}, NetworkPublic, 0},
		"inherited": {Options{Inherit: before}, NetworkNone, 1},
		"asked":     {Options{Hosting: Hosting{Network: NetworkLAN}, Inherit: before}, NetworkLAN, 1},
	} {
		if h := c.opts.hosting(); h.Network != c.network || len(h.ListenAddrs) != c.addrs {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func TestErrorsCrossTheSocketWithTheirCode(t *testing.T) {
	for err, want := range map[error]Code{
		forward.ErrAddrTaken:   CodeAddrTaken,
		forward.ErrRefused:     CodeRefused,
		forward.ErrServiceDown: CodeServiceDown,
		forward.ErrNoService:   CodeNoService,
		forward.ErrNotReached:  CodeNotReached,
		registry.ErrDuplicate:  CodeDuplicate,
		home.ErrNoPeer:         CodeNotFound,
		os.ErrPermission:       CodeFailed,
		usage("no"):            CodeUsage,
	} {
		if got := asError(errors.Join(errors.New("context"), err)); got.Code != want {
			t.Errorf("%v: %s, want %s", err, got.Code, want)
		}
		if status := httpStatus[want]; want != CodeFailed && (status < 400 || status == http.StatusInternalServerError) {
			t.Errorf("%s has status %d", want, status)
		}
	}
}

func TestRefusalsAreToldOneByOneThenCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const strangers = 1000
		events := registry.NewDispatcher()
		sub, err := registry.Subscribe[registry.RefusedEvent](events, "test", strangers)
		must(t, err)
		defer sub.Close()
		r := newRefusals(events)
		for i := range strangers {
			r.add(fmt.Sprint("peer", i), "/x/\x1b[2J", NotAllowed, true)
		}
		for range refusalBurst {
			e, _, err := sub.Next(t.Context())
			must(t, err)
			if e.Unsaid != 0 || strings.Contains(e.Protocol, "\x1b") {
				t.Fatalf("event %+v", e)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), refusalEvery)
		defer cancel()
		if e, _, err := sub.Next(ctx); err == nil {
			t.Fatalf("one more is told: %+v", e)
		}
		r.add("peer", "/x/ssh", NotAllowed, true)
		e, _, err := sub.Next(t.Context())
		must(t, err)
		if e.Unsaid != strangers-refusalBurst {
			t.Fatalf("%d not told, want %d", e.Unsaid, strangers-refusalBurst)
		}
	})
}

func TestOneThatAsksAgainAndAgainHidesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := registry.NewDispatcher()
		sub, err := registry.Subscribe[registry.RefusedEvent](events, "test", 100)
		must(t, err)
		defer sub.Close()
		r := newRefusals(events)
		next := func() registry.RefusedEvent {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			e, _, err := sub.Next(ctx)
			must(t, err)
			return e
		}
		flood := func() {
			for range 200 {
				r.add("flooder", "/x/ssh", NotAllowed, true)
			}
		}
		flood()
		r.add("friend", "/x/ssh", NotAllowed, true)
		if e := next(); e.Peer != "flooder" || e.Unsaid != 0 {
			t.Fatalf("first: %+v", e)
		}
		if e := next(); e.Peer != "friend" || e.Unsaid != 199 {
			t.Fatalf("second: %+v", e)
		}
		<-time.After(refusalAgain)
		flood()
		if e := next(); e.Peer != "flooder" || e.Unsaid != 0 {
			t.Fatalf("after a while: %+v", e)
		}
	})
}

func TestToldRefusalsAreRememberedUpToABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRefusals(registry.NewDispatcher())
		for i := range 2 * maxRecent {
			r.offered.remember(asker{fmt.Sprint(i), "/x/ssh"})
			<-time.After(time.Millisecond)
		}
		if n := len(r.offered.recent); n != maxRecent {
			t.Errorf("%d are remembered, want %d", n, maxRecent)
		}
		for i := range maxRecent {
			if _, ok := r.offered.recent[asker{fmt.Sprint(maxRecent + i), "/x/ssh"}]; !ok {
				t.Fatalf("the %dth of the latest is forgotten", i)
			}
		}
	})
}

func TestNamesThatNobodyListensOnHideNoRefusalOfOneThatIsOffered(t *testing.T) {
	events := registry.NewDispatcher()
	sub, err := registry.Subscribe[registry.RefusedEvent](events, "test", 100)
	must(t, err)
	defer sub.Close()
	r := newRefusals(events)
	for range 1000 {
		r.add("stranger", "/x/guess", NotAllowed, false)
	}
	r.add("friend", "/x/ssh", NotAllowed, true)
	for range refusalBurst + 1 {
		e, _, err := sub.Next(t.Context())
		must(t, err)
		if e.Peer == "friend" && e.Unsaid == 0 {
			return
		}
	}
	t.Error("the friend's refusal was not told")
}
