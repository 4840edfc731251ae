//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"p2ptun/daemon"
	"p2ptun/registry"
)

// The control API as any program uses it: HTTP over the home's socket.

// request makes one, and gives the status and the body.
func request(t testing.TB, c *http.Client, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://p2ptun"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestAPIListsTunnels(t *testing.T) {
	n := newNode(t)
	startDaemon(n)
	c := overSocket(n)
	if code, body := request(t, c, "GET", "/tunnels", ""); code != 200 || strings.TrimSpace(body) != "[]" {
		t.Errorf("without tunnels %d %q, want an empty list", code, body)
	}
	offer(n, testProtocol, closedAddr(t))
	code, body := request(t, c, "GET", "/tunnels", "")
	var list []map[string]any
	if err := json.Unmarshal([]byte(body), &list); code != 200 || err != nil || len(list) != 1 {
		t.Fatalf("%d %q, %v", code, body, err)
	}
	for _, key := range []string{"id", "kind", "protocol", "target", "state", "reason", "streams", "bytes_in", "bytes_out"} {
		if _, ok := list[0][key]; !ok {
			t.Errorf("no %q in %s", key, body)
		}
	}
}

func TestAPIRefusesWhatItDoesNotUnderstand(t *testing.T) {
	n := newNode(t)
	startDaemon(n)
	c := overSocket(n)
	good := marshal(t, keptTunnel(testProtocol, "127.0.0.1:9"))
	for name, r := range map[string]struct {
		method, path, body string
		status             int
	}{
		"unknown field":      {"POST", "/tunnels", good[:len(good)-1] + `,"x":1}`, 400},
		"no JSON":            {"POST", "/tunnels", "listen", 400},
		"nothing":            {"POST", "/tunnels", "", 400},
		"a second value":     {"POST", "/tunnels", good + good, 400},
		"large":              {"POST", "/tunnels", good[:len(good)-1] + `,"reason":"` + strings.Repeat("x", 1<<20) + `"}`, 400},
		"large blank tail":   {"POST", "/tunnels", good + strings.Repeat(" ", 1<<20), 400},
		"negative duration":  {"POST", "/tunnels", good[:len(good)-1] + `,"silence":"-1s"}`, 400},
		"outside /x/":        {"POST", "/tunnels", strings.Replace(good, "/x/", "/y/", 1), 400},
		"reserved protocol":  {"POST", "/tunnels", `{"kind":"listen","protocol":"/p2ptun/ask/1.0.0","target":"22","custom":true}`, 400},
		"stream id":          {"DELETE", "/streams?id=x", "", 400},
		"drain":              {"DELETE", "/tunnels?id=1&drain=soon", "", 400},
		"rule without peer":  {"POST", "/access", `{"allow":true,"protocol":"/x/a"}`, 400},
		"rule of another id": {"POST", "/access", `{"allow":true,"protocol":"/x/a","peer":"everybody"}`, 400},
		"ping of nobody":     {"POST", "/ping", `{"peers":[]}`, 400},
		"path":               {"GET", "/nothing", "", 404},
		"method":             {"PUT", "/tunnels", "", 405},
	} {
		if code, body := request(t, c, r.method, r.path, r.body); code != r.status {
			t.Errorf("%s: %d %s, want %d", name, code, body, r.status)
		}
	}
	if got := n.tunnels(); got != "" {
		t.Errorf("tunnels %q", got)
	}
}

// line is one event of a stream of them.
func line(t testing.TB, lines *bufio.Scanner, want func(daemon.Event) bool) daemon.Event {
	t.Helper()
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), `{"event":"`) {
			t.Fatalf("line %q does not begin with its event", lines.Text())
		}
		var e daemon.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if want(e) {
			return e
		}
	}
	t.Fatalf("the stream ended without it: %v", lines.Err())
	return daemon.Event{}
}

func TestEventsTellOfTunnelsAndStreams(t *testing.T) {
	tun := startTunnel(t, overTCP, serve(t, echoBack).addr())
	resp, err := overSocket(tun.service).Get("http://p2ptun/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	c := tun.forward.dial(t)
	wantEcho(t, c, "hello")
	line(t, lines, func(e daemon.Event) bool {
		return e.Event == "stream" && e.Op == string(registry.StreamOpened) && e.Stream.Peer == tun.client.id
	})
	c.Close()
	line(t, lines, func(e daemon.Event) bool {
		return e.Event == "stream" && e.Op == string(registry.StreamClosed) && e.Stream.BytesIn == int64(len("hello"))
	})
	other := offer(tun.service, "/x/other", closedAddr(t))
	line(t, lines, func(e daemon.Event) bool {
		return e.Event == "state" && e.Protocol == "/x/other" && e.State == registry.StateReady
	})
	other.kill()
	line(t, lines, func(e daemon.Event) bool {
		return e.Event == "state" && e.Protocol == "/x/other" && e.State == registry.StateClosed
	})
	interrupt(t, tun.listen.process)
	for lines.Scan() { // ends with the owner
	}
	if code := tun.listen.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
}

func TestMetricsShowTheQueueOfEachSubscriber(t *testing.T) {
	n := newNode(t)
	startDaemon(n)
	c := overSocket(n)
	queue := regexp.MustCompile(`(?m)^p2ptun_event_queue_depth\{subscriber="events"\} \d+$`)
	if code, body := request(t, c, "GET", "/metrics", ""); code != 200 || queue.MatchString(body) || !strings.Contains(body, "# TYPE p2ptun_streams gauge\np2ptun_streams 0\n") {
		t.Errorf("without a subscriber %d\n%s", code, body)
	}
	resp, err := c.Get("http://p2ptun/events")
	if err != nil {
		t.Fatal(err)
	}
	if _, body := request(t, c, "GET", "/metrics", ""); !queue.MatchString(body) {
		t.Errorf("with a subscriber\n%s", body)
	}
	resp.Body.Close()
	await(t, "the subscriber's queue is gone", func() bool {
		_, body := request(t, c, "GET", "/metrics", "")
		return !queue.MatchString(body)
	})
}

func TestReaderOfEventsThatDoesNotReadHoldsUpNobody(t *testing.T) {
	n := newNode(t)
	owner := startDaemon(n)
	c := overSocket(n)
	resp, err := c.Get("http://p2ptun/events") // never read
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lost := regexp.MustCompile(`(?m)^p2ptun_events_lost_total [1-9]`)
	client, i := n.client(), 0
	await(t, "events are lost, not waited for", func() bool {
		for range 100 {
			i++
			cycle(t, client, fmt.Sprintf("/x/r%d", i))
		}
		_, body := request(t, c, "GET", "/metrics", "")
		return lost.MatchString(body)
	})
	interrupt(t, owner)
	if code := owner.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
}

func TestOwnerKeepsNoGoroutineOfWhatHasEnded(t *testing.T) {
	const rounds, slack = 200, 5
	tun := startTunnel(t, overTCP, serve(t, echoBack).addr())
	tun.client.run("ping", tun.listen.addr, "-c", "1")
	goroutines := func() int64 {
		st, _ := tun.service.status()
		return int64(st.Goroutines)
	}
	for range 5 { // what is made once is there
		wantOneEcho(t, tun.forward)
	}
	before := settled(t, "goroutines", 2*1e9, goroutines)
	client := tun.service.client()
	for i := range rounds {
		cycle(t, client, fmt.Sprintf("/x/r%d", i))
		wantOneEcho(t, tun.forward)
	}
	await(t, "only the one tunnel of before is left", func() bool {
		st, ok := tun.service.status()
		return ok && st.Sessions == 1 && st.Tunnels == 1 && st.Streams == 0
	})
	await(t, "the number of goroutines returns", func() bool { return goroutines() <= before+slack })
}

func wantOneEcho(t testing.TB, f *forwarding) {
	t.Helper()
	if !echoes(f) {
		t.Fatal("no echo")
	}
}

// cycle opens a tunnel for as long as its ready line takes.
func cycle(t testing.TB, c *daemon.Client, protocol string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready := false
	_, err := c.Open(ctx, keptTunnel(protocol, "127.0.0.1:9"), false, func(daemon.Event) {
		ready = true
		cancel()
	})
	if !ready {
		t.Fatalf("open: %v", err)
	}
}

func TestStopDoesNotHangOnAPingOfASilentPeer(t *testing.T) {
	n, away := newNode(t), newNode(t)
	owner := startDaemon(n)
	dialled := make(chan struct{}, 16)
	silent := serve(t, func(net.Conn) { dialled <- struct{}{}; <-t.Context().Done() })
	ping := n.start("ping", multiaddr(silent.addr())+"/p2p/"+away.id)
	<-dialled
	interrupt(t, owner)
	if code := owner.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	ping.kill()
}
