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
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"p2ptun/listen"
	"p2ptun/registry"
)

// proxyServer is a real program that wants a PROXY protocol header of each
// connection, and answers each HTTP request with what it read there:
// "SOURCE PORT DESTINATION PORT".
type proxyServer struct {
	*process
	addr string
}

// proxyServers are the programs, each with the Debian package that has it.
var proxyServers = map[string]struct {
	pkg   string
	start func(t testing.TB, program, addr string) *process
}{
	"nginx":   {"nginx-light", startNginx},
	"haproxy": {"haproxy", startHAProxy},
}

func eachProxyServer(t *testing.T, test func(t *testing.T, name string)) {
	for name := range proxyServers {
		t.Run(name, func(t *testing.T) { test(t, name) })
	}
}

// findServer says where a program is that is often not in a user's $PATH.
func findServer(t testing.TB, name, pkg string) string {
	t.Helper()
	for _, path := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Fatalf("no %s on this machine: apt-get install %s", name, pkg)
	return ""
}

// startProxyServer returns when the program answers. Another program may take
// its port first: then it ends, and is started on another.
func startProxyServer(t testing.TB, name string) *proxyServer {
	t.Helper()
	server := proxyServers[name]
	program := findServer(t, name, server.pkg)
	const tries = 3
	for range tries {
		s := &proxyServer{addr: closedAddr(t)}
		s.process = server.start(t, program, s.addr)
		if within(patience, func() bool { return s.answers() || !s.alive() }) && s.alive() {
			return s
		}
		t.Logf("%s: %s %s", name, s.out.String(), s.err.String())
	}
	t.Fatalf("%s does not start", name)
	return nil
}

// answers says whether the program answers a request without a peer.
func (s *proxyServer) answers() bool {
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	h := proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}
	if _, err := h.WriteTo(c); err != nil {
		return false
	}
	_, err = get(c)
	return err == nil
}

func startNginx(t testing.TB, program, addr string) *process {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir+"/nginx.conf", fmt.Sprintf(`daemon off;
master_process off;
pid "%[1]s/pid";
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path "%[1]s/body";
	proxy_temp_path "%[1]s/proxy";
	fastcgi_temp_path "%[1]s/fastcgi";
	uwsgi_temp_path "%[1]s/uwsgi";
	scgi_temp_path "%[1]s/scgi";
	server {
		listen %[2]s proxy_protocol;
		location / {
			return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
		}
	}
}
`, dir, addr))
	return startFrom(t, program, "nginx", "-e", "stderr", "-p", dir, "-c", dir+"/nginx.conf")
}

func startHAProxy(t testing.TB, program, addr string) *process {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir+"/haproxy.cfg", fmt.Sprintf(`global
	log stdout format raw local0
	nbthread 1
	maxconn 100
defaults
	mode http
	log global
	option httplog
	timeout client 1m
	timeout server 1m
	timeout connect 1m
frontend web
	bind %s accept-proxy
	http-request return status 200 content-type text/plain lf-string "%%[src] %%[src_port] %%[dst] %%[dst_port]"
`, addr))
	return startFrom(t, program, "haproxy", "-db", "-f", dir+"/haproxy.cfg")
}

// wantNoComplaint fails where the program has logged a header that it did not
// like, or missed.
func (s *proxyServer) wantNoComplaint(t testing.TB) {
	t.Helper()
	if said := s.out.String() + s.err.String(); strings.Contains(said, "PROXY") || strings.Contains(said, "[error]") {
		t.Errorf("the service says: %s", said)
	}
}

// get sends a request, and leaves the connection open.
func get(c net.Conn) (string, error) {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", answer.Status)
	}
	return string(body), err
}

// words are the IP and the port of a multiaddr.
func words(addr string) string {
	parts := strings.Split(addr, "/")
	return parts[2] + " " + parts[4]
}

// peerEnd is the peer's end of the connection of a listener's only live
// stream, as the listener knows it.
func (tun *tunnel) peerEnd(t testing.TB) string {
	t.Helper()
	var line string
	await(t, "the listener shows the stream", func() bool {
		line = tun.service.run("stream", "ls", "--json")
		return line != ""
	})
	var stream registry.StreamStatus
	if err := json.Unmarshal([]byte(line), &stream); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return stream.Path.Addr
}

func TestARealServerSeesThePeersAddressByTheProxyProtocol(t *testing.T) {
	eachProxyServer(t, func(t *testing.T, name string) {
		eachTransport(t, func(t *testing.T, transport string) {
			server := startProxyServer(t, name)
			tun := startTunnel(t, transport, server.addr, "--proxy-protocol")
			c := tun.forward.dial(t)
			got, err := get(c)
			want := words(tun.peerEnd(t)) + " " + words(tun.listen.where())
			if err != nil || got != want {
				t.Errorf("%s sees %q, %v, want %q", name, got, err, want)
			}
			server.wantNoComplaint(t)
		})
	})
}

// tellHeader answers with what the header says and what came after it.
func tellHeader(c net.Conn) {
	in := bufio.NewReader(c)
	h, err := proxyproto.Read(in)
	if err != nil || h.Command == proxyproto.LOCAL {
		return // a probe
	}
	said, _ := io.ReadAll(in)
	fmt.Fprintf(c, "%v → %v", h.SourceAddr, h.DestinationAddr)
	fields, _ := h.TLVs()
	for _, f := range fields {
		fmt.Fprintf(c, ", %#x %s", f.Type, f.Value)
	}
	fmt.Fprintf(c, ", said %s", said)
}

func TestAGoServiceReadsThePeersIDFromTheProxyProtocol(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		tun := startTunnel(t, transport, serve(t, tellHeader).addr(), "--proxy-protocol")
		c := tun.forward.dial(t)
		fmt.Fprint(c, "my own words")
		source := tun.peerEnd(t)
		_ = c.CloseWrite()
		end := func(addr string) string { return strings.ReplaceAll(words(addr), " ", ":") }
		want := fmt.Sprintf("%s → %s, 0xe0 %s, said my own words", end(source), end(tun.listen.where()), tun.client.id)
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	})
}

// serveOver has a listening service of this process, without a node, carry one
// connection of a peer that comes over a path, and gives its peer's end.
func serveOver(t testing.TB, target string, path registry.Path) net.Conn {
	t.Helper()
	s := &listen.Service{Registry: registry.New(), Allowed: func(string, string) bool { return true }}
	ctx, cancel := context.WithCancel(context.Background())
	host, port, _ := net.SplitHostPort(target)
	e, err := s.Registry.Register(ctx, registry.Tunnel{
		Kind: registry.KindListen, Protocol: testProtocol, Target: "/ip4/" + host + "/tcp/" + port, ProxyProtocol: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan error, 1), make(chan struct{})
	go func() { defer close(done); s.Run(e, func(err error) { ready <- err }) }()
	if err := <-ready; err != nil {
		t.Error(err)
	}
	here, there := connected(t)
	t.Cleanup(func() { here.Close(); cancel(); <-done; s.Registry.Wait() })
	end, err := registry.NewConnEnd(there)
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(registry.Incoming{Peer: "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X", Protocol: testProtocol, Path: path, End: end})
	return here
}

// connected is a connection, from both sides.
func connected(t testing.TB) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here = dialTCP(t, l.Addr().String())
	if there, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return here, there
}

func TestARealServerReadsEachKindOfProxyProtocolHeader(t *testing.T) {
	for kind, c := range map[string]struct {
		path registry.Path
		want string
	}{
		"IPv4": {registry.Path{Addr: "/ip4/203.0.113.7/tcp/40001", Local: "/ip4/192.0.2.2/tcp/4001"}, "203.0.113.7 40001 192.0.2.2 4001"},
		"IPv6": {registry.Path{Addr: "/ip6/2001:db8::7/udp/40001/quic-v1", Local: "/ip6/2001:db8::2/udp/4001/quic-v1"},
			"2001:db8::7 40001 2001:db8::2 4001"},
	} {
		t.Run(kind, func(t *testing.T) {
			eachProxyServer(t, func(t *testing.T, name string) {
				server := startProxyServer(t, name)
				if got, err := get(serveOver(t, server.addr, c.path)); err != nil || got != c.want {
					t.Errorf("%s sees %q, %v, want %q", name, got, err, c.want)
				}
				server.wantNoComplaint(t)
			})
		})
	}
}

// No address of the peer's, nor one that is taken for it: nginx says that it
// has none, HAProxy names the connection that it sees.
func TestARealServerAnswersARelayedPeerOfWhomItSeesNoAddress(t *testing.T) {
	relayed := registry.Path{Relayed: true, Addr: "/ip4/203.0.113.7/tcp/40001", Local: "/ip4/192.0.2.2/tcp/4001"}
	eachProxyServer(t, func(t *testing.T, name string) {
		server := startProxyServer(t, name)
		got, err := get(serveOver(t, server.addr, relayed))
		own := strings.HasPrefix(got, "127.0.0.1 ") && strings.HasSuffix(got, strings.ReplaceAll(" "+server.addr, ":", " "))
		if err != nil || strings.TrimSpace(got) != "" && !own {
			t.Errorf("%s sees %q, %v", name, got, err)
		}
		server.wantNoComplaint(t)
	})
}
