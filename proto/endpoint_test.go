package proto

import (
	"encoding/json"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

// endpoints are all the ways to type one, with the arguments for net.Dial.
var endpoints = []struct{ typed, addr, network, address string }{
	{"22", "/ip4/127.0.0.1/tcp/22", "tcp4", "127.0.0.1:22"},
	{":22", "/ip4/127.0.0.1/tcp/22", "tcp4", "127.0.0.1:22"},
	{"65535", "/ip4/127.0.0.1/tcp/65535", "tcp4", "127.0.0.1:65535"},
	{"0022", "/ip4/127.0.0.1/tcp/22", "tcp4", "127.0.0.1:22"},
	{"11", "/ip4/127.0.0.1/tcp/11", "tcp4", "127.0.0.1:11"},          // base58 of an empty multihash
	{"161", "/ip4/127.0.0.1/tcp/161", "tcp4", "127.0.0.1:161"},       // of one with one byte
	{"12111", "/ip4/127.0.0.1/tcp/12111", "tcp4", "127.0.0.1:12111"}, // of one with two
	{"10.1.2.3:22", "/ip4/10.1.2.3/tcp/22", "tcp4", "10.1.2.3:22"},
	{"0.0.0.0:22", "/ip4/0.0.0.0/tcp/22", "tcp4", "0.0.0.0:22"},
	{"[10.1.2.3]:22", "/ip4/10.1.2.3/tcp/22", "tcp4", "10.1.2.3:22"},
	{"/ip4/127.0.0.1/tcp/22", "/ip4/127.0.0.1/tcp/22", "tcp4", "127.0.0.1:22"},
	{"/ip4/127.0.0.1/tcp/22/", "/ip4/127.0.0.1/tcp/22", "tcp4", "127.0.0.1:22"},

	{"[::1]:22", "/ip6/::1/tcp/22", "tcp6", "[::1]:22"},
	{"[0:0::0:1]:22", "/ip6/::1/tcp/22", "tcp6", "[::1]:22"},
	{"/ip6/::1/tcp/22", "/ip6/::1/tcp/22", "tcp6", "[::1]:22"},
	{"/ip6/::/tcp/22", "/ip6/::/tcp/22", "tcp6", "[::]:22"},
	{"[::ffff:10.1.2.3]:22", "/ip4/10.1.2.3/tcp/22", "tcp4", "10.1.2.3:22"},
	{"[fe80::1%eth0]:22", "/ip6zone/eth0/ip6/fe80::1/tcp/22", "tcp6", "[fe80::1%eth0]:22"},
	{"/ip6zone/eth0/ip6/fe80::1/tcp/22", "/ip6zone/eth0/ip6/fe80::1/tcp/22", "tcp6", "[fe80::1%eth0]:22"},
	{"/ip6zone/eth0:1/ip6/fe80::1/tcp/22", "/ip6zone/eth0:1/ip6/fe80::1/tcp/22", "tcp6", "[fe80::1%eth0:1]:22"},

	{"localhost:22", "/dns/localhost/tcp/22", "tcp", "localhost:22"},
	{"my_db.host-1.example.:22", "/dns/my_db.host-1.example./tcp/22", "tcp", "my_db.host-1.example.:22"},
	{"1.example:22", "/dns/1.example/tcp/22", "tcp", "1.example:22"},
	{"/dns/localhost/tcp/80", "/dns/localhost/tcp/80", "tcp", "localhost:80"},
	{"/dns4/localhost/tcp/80", "/dns4/localhost/tcp/80", "tcp4", "localhost:80"},
	{"/dns6/localhost/tcp/80", "/dns6/localhost/tcp/80", "tcp6", "localhost:80"},

	{"unix:/run/app.sock", "/unix/run/app.sock", "unix", "/run/app.sock"},
	{"/unix/run/app.sock", "/unix/run/app.sock", "unix", "/run/app.sock"},
	{"/unix//run/./x/../app.sock/", "/unix/run/app.sock", "unix", "/run/app.sock"},
	{"unix:/../run/app.sock", "/unix/run/app.sock", "unix", "/run/app.sock"},
	{"unix:/home/me/My App/ü:1.sock", "/unix/home/me/My App/ü:1.sock", "unix", "/home/me/My App/ü:1.sock"},
	{"/unix/run/tcp/22", "/unix/run/tcp/22", "unix", "/run/tcp/22"},
	{"unix:/" + strings.Repeat("s", maxUnixPath-1), "/unix/" + strings.Repeat("s", maxUnixPath-1), "unix", "/" + strings.Repeat("s", maxUnixPath-1)},
}

func TestParseTargetAndBindReadWhatPeopleType(t *testing.T) {
	for _, c := range endpoints {
		for what, parse := range map[string]func(string) (ma.Multiaddr, error){"ParseTarget": ParseTarget, "ParseBind": ParseBind} {
			if got, err := parse(c.typed); err != nil || got.String() != c.addr {
				t.Errorf("%s(%q) = %v, %v; want %s", what, c.typed, got, err, c.addr)
			}
		}
	}
}

func TestDialArgsAreWhatNetDialTakes(t *testing.T) {
	for _, c := range endpoints {
		network, address, err := DialArgs(ma.StringCast(c.addr))
		if err != nil || network != c.network || address != c.address {
			t.Errorf("DialArgs(%s) = %q, %q, %v; want %q, %q", c.addr, network, address, err, c.network, c.address)
		}
		checkDialable(t, network, address)
	}
}

func TestDialArgsBindAndDial(t *testing.T) {
	for _, typed := range []string{"0", ":0", "127.0.0.1:0", "[::ffff:127.0.0.1]:0", "unix:" + filepath.Join(t.TempDir(), "s")} {
		bind, err := ParseBind(typed)
		if err != nil {
			t.Errorf("ParseBind(%q): %v", typed, err)
			continue
		}
		network, address, err := DialArgs(bind)
		if err != nil {
			t.Errorf("DialArgs(%s): %v", bind, err)
			continue
		}
		l, err := net.Listen(network, address)
		if err != nil {
			t.Errorf("listen on %s: %v", bind, err)
			continue
		}
		conn, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Errorf("dial %s: %v", l.Addr(), err)
		} else {
			conn.Close()
		}
		l.Close()
	}
}

func TestDialArgsRefusesWhatIsNoEndpoint(t *testing.T) {
	for _, s := range []string{
		"/ip4/127.0.0.1", "/tcp/22", "/ip4/127.0.0.1/udp/53", "/ip4/127.0.0.1/udp/53/quic-v1",
		"/ip4/127.0.0.1/tcp/22/ws", "/ip4/127.0.0.1/udp/1/tcp/22", "/dnsaddr/example.com/tcp/22", "/dnsaddr/example.com",
		"/p2p/" + ed25519ID + "/tcp/22", "/ip4/127.0.0.1/tcp/22/p2p/" + ed25519ID,
		"/ip6zone/eth0", "/ip6zone/eth0/tcp/22", "/ip6zone/eth0/ip4/127.0.0.1/tcp/22", "/ip6zone/a/ip6zone/b/ip6/fe80::1/tcp/22",
		"/ip6zone/a%b/ip6/fe80::1/tcp/22", "/ip6zone/a]/ip6/fe80::1/tcp/22",
		"/dns6/\ufe01", "/dns6/\x1b[31m\xff/tcp/22",
		"/ip6/::ffff:10.1.2.3/tcp/22", "/dns4/a:b/tcp/22", "/dns4/[::1]/tcp/22", "/dns6/127.0.0.1/tcp/22",
	} {
		network, address, err := DialArgs(ma.StringCast(s))
		if err == nil {
			t.Errorf("DialArgs(%q) = %q, %q", s, network, address)
			continue
		}
		checkShowable(t, err.Error())
	}
	if network, address, err := DialArgs(nil); err == nil {
		t.Errorf("DialArgs(nil) = %q, %q", network, address)
	}
}

func TestPort0BindsButIsNoTarget(t *testing.T) {
	for typed, want := range map[string]string{
		"0": "/ip4/127.0.0.1/tcp/0", ":0": "/ip4/127.0.0.1/tcp/0", "000": "/ip4/127.0.0.1/tcp/0",
		"[::1]:0": "/ip6/::1/tcp/0", "localhost:0": "/dns/localhost/tcp/0", "/ip4/127.0.0.1/tcp/0": "/ip4/127.0.0.1/tcp/0",
		"/ip6zone/eth0/ip6/fe80::1/tcp/0": "/ip6zone/eth0/ip6/fe80::1/tcp/0",
	} {
		if got, err := ParseBind(typed); err != nil || got.String() != want {
			t.Errorf("ParseBind(%q) = %v, %v; want %s", typed, got, err, want)
		}
		if got, err := ParseTarget(typed); err == nil || !strings.Contains(err.Error(), "port 0") {
			t.Errorf("ParseTarget(%q) = %v, %v", typed, got, err)
		}
	}
}

// Long: one table.
func TestParseTargetAndBindSayWhatIsWrong(t *testing.T) {
	const shape = "want /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT or /unix/PATH"
	const plain = "want a port, HOST:PORT, unix:/PATH or a multiaddr"
	for _, c := range []struct{ typed, want string }{
		{"", plain},
		{" ", plain},
		{" 22", plain},
		{"65536", plain},
		{"-1", plain},
		{"+22", plain},
		{"0x16", plain},
		{"1_000", plain},
		{"٢٢", plain},
		{"ssh", plain},
		{"localhost", plain},
		{"localhost:", plain},
		{"localhost:ssh", plain},
		{":", plain},
		{"[::1]", plain},
		{"::", plain},
		{ed25519ID, plain},
		{"http://localhost:80", "neither an IP address nor a host name"},
		{"me@host:22", "neither"},
		{"a b:22", "neither"},
		{"[]:22", "neither"},
		{"[localhost]:22", "neither"},
		{"[::1:22", "neither"},
		{"::1]:22", "neither"},
		{"-a:22", "neither"},
		{"a-:22", "neither"},
		{"a..b:22", "neither"},
		{".:22", "neither"},
		{"8080:80", "neither"},
		{"10.0.0.256:22", "neither"},
		{"010.0.0.1:22", "neither"},
		{"größe:22", "neither"},
		{strings.Repeat("a", 64) + ":22", "neither"},
		{strings.Repeat("a.", 127) + "a:22", "neither"},
		{"::1:22", "brackets: [::1]:22"},
		{"fe80::1%eth0:22", "brackets: [fe80::1%eth0]:22"},
		{"::ffff:10.1.2.3:22", "brackets"},
		{"[::ffff:10.1.2.3%eth0]:22", "is an IPv4 address"},
		{"[fe80::1%eth0/tcp/1]:22", shape},
		{"[fe80::1%a%b]:22", "a%b is not the zone"},
		{"[fe80::1%a]b]:22", "a]b is not the zone"},
		{"[fe80::1%]:22", "neither"},
		{"[fe80::1%" + strings.Repeat("z", maxZone+1) + "]:22", "is not the zone"},

		{"udp:53", "udp is not supported"},
		{"/ip4/127.0.0.1/udp/53", "udp is not supported"},
		{"/ip6zone/eth0/ip6/fe80::1/udp/53", "udp is not supported"},
		{"/ip4/127.0.0.1/udp/53/quic-v1", shape},
		{"/ip4/127.0.0.1", shape},
		{"/ip4/127.0.0.1/tcp/22/ws", shape},
		{"/ip4/127.0.0.1/tcp/22/p2p/" + ed25519ID, shape},
		{"/p2p/" + ed25519ID, shape},
		{"/dnsaddr/example.com/tcp/22", shape},
		{"/ip4/127.0.0.1/sctp/22", shape},
		{"/tcp/22", shape},
		{"/ip6zone/eth0/ip4/127.0.0.1/tcp/22", shape},
		{"/ip6zone/eth0/tcp/22", shape},
		{"/ip6zone/a%b/ip6/fe80::1/tcp/22", "a%b is not the zone"},
		{"/ip6/::ffff:10.1.2.3/tcp/22", "write /ip4/10.1.2.3"},
		{"/dns4/127.0.0.1/tcp/22", "127.0.0.1 is not a host name"},
		{"/dns4/a:b/tcp/22", "a:b is not a host name"},
		{"/", "not a multiaddr"},
		{"/x/ssh", "not a multiaddr"},
		{"/run/app.sock", "not a multiaddr"},
		{"/ip4/localhost/tcp/22", "not a multiaddr"},
		{"/ip4/127.0.0.1/tcp/65536", "not a multiaddr"},
		{"/ip4/127.0.0.1/tcp", "not a multiaddr"},
		{"/unix", "not a multiaddr"},

		{"unix:", "absolute path"},
		{"unix:app.sock", "absolute path"},
		{"unix:/", "needs a path"},
		{"/unix/", "needs a path"},
		{"/unix/a/..", "needs a path"},
		{"unix:/" + strings.Repeat("s", maxUnixPath), "at most 107 bytes"},

		{"localhost\n:22", "control or invisible"},
		{"/dns4/\x1b[31m/tcp/22", "control or invisible"},
		{"unix:/a\x00b", "control or invisible"},
		{"unix:/a\xff", "control or invisible"},
		{"unix:/a\u202eb", "control or invisible"},
		{strings.Repeat("2", maxTyped+1), "longer than 1024 bytes"},
	} {
		for what, parse := range map[string]func(string) (ma.Multiaddr, error){"target ": ParseTarget, "bind address ": ParseBind} {
			got, err := parse(c.typed)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), what) {
				t.Errorf("%s%q = %v, %v; want an error with %q", what, c.typed, got, err, c.want)
				continue
			}
			checkShowable(t, err.Error())
		}
	}
}

// checkDialable fails what net.Dial would not understand. It looks no name up.
func checkDialable(t testing.TB, network, address string) {
	t.Helper()
	if network == "unix" {
		if addr, err := net.ResolveUnixAddr(network, address); err != nil || !filepath.IsAbs(addr.Name) {
			t.Errorf("unix %q: %v", address, err)
		}
		return
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || net.JoinHostPort(host, port) != address {
		t.Errorf("%s %q splits into %q, %q, %v", network, address, host, port, err)
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		t.Errorf("%s %q: %v", network, address, err)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if host == "" || strings.ContainsAny(host, ":/%[] ") || network != "tcp" && network != "tcp4" && network != "tcp6" {
			t.Errorf("%s %q has no host name", network, address)
		}
		return
	}
	if want := map[bool]string{true: "tcp4", false: "tcp6"}[ip.Unmap().Is4()]; network != want {
		t.Errorf("%s %q wants %s", network, address, want)
	}
	if addr, err := net.ResolveTCPAddr(network, address); err != nil || addr.AddrPort().Addr().Unmap() != ip.Unmap() {
		t.Errorf("%s %q is %v, %v", network, address, addr, err)
	}
}

func FuzzParseEndpoint(f *testing.F) {
	for _, c := range endpoints {
		f.Add(c.typed)
	}
	for _, s := range []string{
		"0", "udp:53", "[fe80::1%a/b]:22", "[::ffff:1.2.3.4%e]:1", "/dns6/127.0.0.1/tcp/22", "/ip6/1.2.3.4/tcp/1", "a\x1b:1",
		"8080:80", "unix:/\xff", ed25519ID, "/p2p/" + ed25519ID, "/dnsaddr/example.com", "home",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		bind, bindErr := ParseBind(s)
		target, targetErr := ParseTarget(s)
		_, peerErr := ParsePeer(s)
		if LooksLikeEndpoint(s) != (bindErr == nil) {
			t.Errorf("LooksLikeEndpoint(%q) = %v, ParseBind says %v", s, LooksLikeEndpoint(s), bindErr)
		}
		if bindErr == nil && peerErr == nil {
			t.Errorf("%q is both an endpoint and a peer", s)
		}
		if targetErr != nil {
			checkShowable(t, targetErr.Error())
		}
		if bindErr != nil {
			checkShowable(t, bindErr.Error())
			if targetErr == nil {
				t.Errorf("ParseTarget(%q) = %s, ParseBind says %v", s, target, bindErr)
			}
			return
		}
		if port, err := bind.ValueForProtocol(ma.P_TCP); (err == nil && port == "0") != (targetErr != nil) {
			t.Errorf("ParseBind(%q) = %s, ParseTarget says %v", s, bind, targetErr)
		}
		if targetErr == nil && !target.Equal(bind) {
			t.Errorf("%q is target %s and bind %s", s, target, bind)
		}
		checkShowable(t, bind.String())
		if again, err := ParseBind(bind.String()); err != nil || !again.Equal(bind) {
			t.Errorf("ParseBind(%q) = %s, and of that %s, %v", s, bind, again, err)
		}
		checkJSON(t, bind)
		network, address, err := DialArgs(bind)
		if err != nil {
			t.Fatalf("DialArgs(%s): %v", bind, err)
		}
		checkDialable(t, network, address)
		// What net.Dial is given reads as the same endpoint when typed.
		typed := map[bool]string{true: "unix:"}[network == "unix"] + address
		again, err := ParseBind(typed)
		if err != nil {
			t.Fatalf("ParseBind(%q) = %s, dialled as %q: %v", s, bind, typed, err)
		}
		if _, second, err := DialArgs(again); err != nil || second != address {
			t.Errorf("ParseBind(%q) is dialled as %q, and that as %q, %v", s, address, second, err)
		}
	})
}

// checkJSON fails an address that the registry could not keep on disk.
func checkJSON(t testing.TB, addr ma.Multiaddr) {
	t.Helper()
	text, err := json.Marshal(addr)
	if err != nil {
		t.Errorf("%s: %v", addr, err)
	}
	var again ma.Multiaddr
	if err := json.Unmarshal(text, &again); err != nil || !again.Equal(addr) {
		t.Errorf("%s as JSON reads as %s, %v", addr, again, err)
	}
}

// FuzzDialArgs: of any multiaddr at all, DialArgs makes what net.Dial
// understands or an error.
func FuzzDialArgs(f *testing.F) {
	for _, c := range endpoints {
		f.Add(ma.StringCast(c.addr).Bytes())
	}
	for _, s := range []string{"/dns4/a:b/tcp/22", "/ip6/::ffff:1.2.3.4/tcp/22", "/ip6zone/a%b/ip6/fe80::1/tcp/22", "/ip6zone/e", "/p2p-circuit", "/dns6/\ufe01"} {
		f.Add(ma.StringCast(s).Bytes())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		addr, err := ma.NewMultiaddrBytes(in)
		if err != nil {
			return
		}
		network, address, err := DialArgs(addr)
		if err != nil {
			checkShowable(t, err.Error())
			return
		}
		checkDialable(t, network, address)
	})
}
