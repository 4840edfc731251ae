//go:build unix

package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"p2ptun/access"
	"p2ptun/daemon"
	"p2ptun/registry"
)

// What is on disk: who may read it, what a crash leaves, what is refused.

func TestControlSocketAndHomeAreOursAlone(t *testing.T) {
	n := newNode(t)
	startDaemon(n)
	for path, want := range map[string]fs.FileMode{n.home: 0o700, n.socket(): 0o600, filepath.Join(n.home, "identity.key"): 0o600, filepath.Join(n.home, "lock"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", filepath.Base(path), got, want)
		}
	}
}

func TestSocketAndLockOfAKilledOwnerAreNoObstacle(t *testing.T) {
	n := newNode(t)
	startDaemon(n).kill()
	if _, err := os.Stat(n.socket()); err != nil {
		t.Fatalf("the killed owner left no socket: %v", err)
	}
	wantExit(t, n.start("ls"), 7)
	startDaemon(n)
	if n.run("ls"); n.tunnels() != "" {
		t.Fatal("there are tunnels")
	}
}

func TestHomeWhosePathIsTooLongForASocketWorks(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", shortDir(t))
	n, echo := newNode(t), serve(t, echoBack)
	n.home = filepath.Join(n.home, strings.Repeat("long", 40))
	p := startListen(n, overTCP, testProtocol, echo.addr())
	attached := offer(n, "/x/second", echo.addr())
	if got := n.tunnels(); got != "/x/second "+testProtocol && got != testProtocol+" /x/second" {
		t.Fatalf("tunnels %q", got)
	}
	info, err := os.Stat(n.socket())
	if err != nil || info.Mode().Perm() != 0o600 || !strings.HasPrefix(n.socket(), os.Getenv("XDG_RUNTIME_DIR")) {
		t.Fatalf("socket %s: %v %v", n.socket(), info, err)
	}
	p.kill()
	attached.saysOnStderr(t, "taking over")
	await(t, "it works again", func() bool { return n.tunnels() == "/x/second" })
}

func TestStateThatCanNotBeUsedIsRefusedAndLeftAlone(t *testing.T) {
	const tunnels, key = "tunnels.json", "identity.key"
	good := `{"version":1,"tunnels":[]}`
	for name, c := range map[string]struct {
		file, text string
		mode       fs.FileMode
		says       string
	}{
		"tunnels no JSON":             {tunnels, "{", 0o600, tunnels},
		"tunnels empty":               {tunnels, "", 0o600, tunnels},
		"tunnels cut off":             {tunnels, good[:20], 0o600, tunnels},
		"tunnels with a tail":         {tunnels, good + "x", 0o600, tunnels},
		"tunnels of a later version":  {tunnels, `{"version":2,"tunnels":[]}`, 0o600, "version 2"},
		"tunnels with an unknown key": {tunnels, `{"version":1,"tunnels":[],"x":1}`, 0o600, "unknown field"},
		"tunnels of no kind":          {tunnels, `{"version":1,"tunnels":[{"id":"1","protocol":"/x/a"}]}`, 0o600, "kind"},
		"tunnels without id":          {tunnels, `{"version":1,"tunnels":[{"kind":"listen","protocol":"/x/a","target":"22"}]}`, 0o600, "id"},
		"tunnels others may write":    {tunnels, good, 0o666, "others may write"},
		"key corrupt":                 {key, "no key", 0o600, "not a libp2p private key"},
		"key empty":                   {key, "", 0o600, "empty"},
		"key for all to read":         {key, "", 0o644, "others may read"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			path := filepath.Join(n.home, c.file)
			text := []byte(c.text)
			if c.file == key && c.mode != 0o600 {
				text, _ = os.ReadFile(path)
			}
			writeMode(t, path, text, c.mode)
			for _, args := range [][]string{{"daemon"}, {"listen", testProtocol, "22"}} {
				wantExit(t, n.hosting(args...), 1, c.says)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, text) {
				t.Errorf("the file was changed: %q, %v", got, err)
			}
		})
	}
}

func writeMode(t testing.TB, path string, text []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, text, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestHomeThatOthersMayWriteToIsRefused(t *testing.T) {
	n := newNode(t)
	if err := os.Chmod(n.home, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"daemon"}, {"id"}, {"ls"}, {"allow", "ssh", n.id}, {"listen", "ssh", "22"}} {
		wantExit(t, n.start(args...), 1, "others may write", "hint: chmod go-w "+n.home)
	}
}

func TestKeptTunnelIsOnDiskBeforeTheAnswer(t *testing.T) {
	n := newNode(t)
	owner := startDaemon(n)
	n.run("listen", testProtocol, closedAddr(t), "--bg")
	owner.kill()
	text, err := os.ReadFile(filepath.Join(n.home, "tunnels.json"))
	if err != nil || !strings.Contains(string(text), testProtocol) {
		t.Fatalf("tunnels.json is %q, %v", text, err)
	}
	startDaemon(n)
	if got := n.tunnels(); got != testProtocol {
		t.Fatalf("after a restart tunnels %q", got)
	}
	n.run("close", "-p", testProtocol)
	text, _ = os.ReadFile(filepath.Join(n.home, "tunnels.json"))
	if strings.Contains(string(text), testProtocol) {
		t.Fatalf("after close tunnels.json is %q", text)
	}
}

func TestForwardKeptWhileItsPeerIsAwayOpensAtTheNextStart(t *testing.T) {
	tun := startTunnel(t, overTCP, serve(t, echoBack).addr())
	addr := closedAddr(t)
	tun.client.run("forward", testProtocol, addr, tun.listen.addr, "--bg")
	kept := &forwarding{process: tun.forward.process, bind: multiaddr(addr)}
	await(t, "the kept tunnel works", func() bool { return echoes(kept) })
	tun.forward.kill()
	tun.listen.kill()
	startDaemon(tun.client)
	wantResetAtOnce(t, kept)
	startListen(tun.service, tun.listen.where(), testProtocol, serve(t, echoBack).addr())
	await(t, "the kept tunnel works again", func() bool { return echoes(kept) })
}

// hammer changes the state over and over through the control API, and knows
// what was answered.
type hammer struct {
	client *daemon.Client
	target string
	peer   string

	mu   sync.Mutex
	kept map[string]bool // by protocol, as of the last answer; absent: unknown
}

// run returns when the owner does not answer any more.
func (h *hammer) run(worker int) {
	ctx := context.Background()
	for i := 0; ; i++ {
		protocol := fmt.Sprintf("/x/w%d-%d", worker, i%3)
		h.set(protocol, nil)
		if i%2 == 0 {
			_, err := h.client.Keep(ctx, keptTunnel(protocol, h.target))
			if dup := err != nil && strings.Contains(err.Error(), registry.ErrDuplicate.Error()); err != nil && !dup {
				return
			}
			h.set(protocol, new(true))
			continue
		}
		if h.client.SetRule(ctx, access.Rule{Allow: true, Protocol: protocol, Peer: h.peer}) != nil {
			return
		}
		if _, err := h.client.Close(ctx, registry.Selector{Protocol: protocol}, 0); err != nil {
			return
		}
		h.set(protocol, new(false))
	}
}

func (h *hammer) set(protocol string, kept *bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if delete(h.kept, protocol); kept != nil {
		h.kept[protocol] = *kept
	}
}

func TestOwnerKilledAtAnyMomentLeavesAStateThatStarts(t *testing.T) {
	const kills, workers = 20, 3
	n := newNode(t)
	h := &hammer{client: n.client(), target: closedAddr(t), peer: newNode(t).id, kept: map[string]bool{}}
	for range kills {
		owner := startDaemon(n)
		h.check(t, n)
		var all sync.WaitGroup
		for w := range workers {
			all.Go(func() { h.run(w) })
		}
		<-time.After(time.Duration(rand.IntN(150)) * time.Millisecond) // any moment
		owner.kill()
		all.Wait()
	}
	startDaemon(n)
	h.check(t, n)
	n.run("access", "ls")
}

// check compares what runs after a start with what was answered before.
func (h *hammer) check(t testing.TB, n *node) {
	t.Helper()
	runs := map[string]bool{}
	for _, p := range strings.Fields(n.tunnels()) {
		runs[p] = true
	}
	for protocol, kept := range h.kept {
		if runs[protocol] != kept {
			t.Errorf("%s: kept is %v, answered was %v", protocol, runs[protocol], kept)
		}
	}
}

func TestClosedWhileItIsHandedOverATunnelDoesNotComeBack(t *testing.T) {
	const rounds = 60
	n := newNode(t)
	owner := startDaemon(n)
	client, target := n.client(), closedAddr(t)
	for range rounds {
		var both sync.WaitGroup
		both.Go(func() { _, _ = client.Keep(context.Background(), keptTunnel(testProtocol, target)) })
		both.Go(func() { _, _ = client.Close(context.Background(), registry.Selector{All: true}, 0) })
		both.Wait()
		onDisk, _ := os.ReadFile(filepath.Join(n.home, "tunnels.json"))
		if runs := n.tunnels() != ""; runs != strings.Contains(string(onDisk), testProtocol) {
			t.Fatalf("the tunnel runs: %v; on disk:\n%s", runs, onDisk)
		}
		if _, err := client.Close(context.Background(), registry.Selector{All: true}, 0); err != nil {
			t.Fatal(err)
		}
	}
	interrupt(t, owner)
	if code := owner.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
}

func TestReloadTakesAddedChangedAndRemovedTunnels(t *testing.T) {
	n, old, other := newNode(t), closedAddr(t), closedAddr(t)
	startDaemon(n)
	n.run("listen", "/x/stays", old, "--bg")
	n.run("listen", "/x/changes", old, "--bg")
	n.run("listen", "/x/goes", old, "--bg")
	foreground := offer(n, "/x/foreground", old)
	book := fmt.Sprintf(`{"version":1,"tunnels":[
		{"id":"1","kind":"listen","protocol":"/x/stays","target":%q},
		{"id":"2","kind":"listen","protocol":"/x/changes","target":%q},
		{"id":"9","kind":"listen","protocol":"/x/new","target":%q}]}`, old, other, old)
	writeMode(t, filepath.Join(n.home, "tunnels.json"), []byte(book), 0o600)
	n.run("reload")
	list, err := n.client().Tunnels(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range list {
		got[s.Protocol] = s.ID + " " + s.Target[strings.LastIndexByte(s.Target, '/')+1:]
	}
	port := func(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
	want := map[string]string{
		"/x/stays": "1 " + port(old), "/x/changes": "2 " + port(other), "/x/new": "9 " + port(old), "/x/foreground": "4 " + port(old),
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("tunnels %v, want %v", got, want)
	}
	if !foreground.alive() {
		t.Error("the foreground command has ended")
	}
}

func TestReloadOfABrokenFileChangesNothing(t *testing.T) {
	n := newNode(t)
	startDaemon(n)
	n.run("listen", testProtocol, closedAddr(t), "--bg")
	writeMode(t, filepath.Join(n.home, "tunnels.json"), []byte("{"), 0o600)
	wantExit(t, n.start("reload"), 1, "tunnels.json")
	if got := n.tunnels(); got != testProtocol {
		t.Fatalf("tunnels %q", got)
	}
	wantExit(t, n.start("listen", "/x/more", closedAddr(t), "--bg"), 1, "tunnels.json")
	if text, _ := os.ReadFile(filepath.Join(n.home, "tunnels.json")); string(text) != "{" {
		t.Fatalf("the file a person broke is now %q", text)
	}
}
