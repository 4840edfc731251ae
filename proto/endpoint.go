package proto

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
)

// maxTyped bounds what the grammars below look at, in bytes.
const maxTyped = 1024

var errUDP = errors.New("udp is not supported: p2ptun carries TCP and unix sockets")

var errShape = errors.New("want /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT or /unix/PATH")

var errInvisible = errors.New("holds a control or invisible character")

// ParseTarget reads the address of a local service: a multiaddr, `22`, `:22`,
// `host:22`, `unix:/path`. A bare port is loopback; a host name is kept, to be
// resolved at each dial; port 0 is refused.
func ParseTarget(s string) (ma.Multiaddr, error) {
	addr, err := parseEndpoint(s)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", Printable(s, maxTyped), err)
	}
	if port, _ := addr.ValueForProtocol(ma.P_TCP); port == "0" {
		return nil, fmt.Errorf("target %s: port 0 can't be dialled", addr)
	}
	return addr, nil
}

// ParseBind reads the address to listen on. Port 0 takes a free port.
func ParseBind(s string) (ma.Multiaddr, error) {
	addr, err := parseEndpoint(s)
	if err != nil {
		return nil, fmt.Errorf("bind address %s: %w", Printable(s, maxTyped), err)
	}
	return addr, nil
}

func parseEndpoint(s string) (ma.Multiaddr, error) {
	switch {
	case len(s) > maxTyped:
		return nil, fmt.Errorf("longer than %d bytes", maxTyped)
	case Printable(s, maxTyped) != s:
		return nil, errInvisible
	case strings.HasPrefix(s, "/unix/"):
		return unixEndpoint(s[len("/unix"):])
	case strings.HasPrefix(s, "/"):
		return tcpEndpoint(s)
	case strings.HasPrefix(s, "unix:"):
		return unixEndpoint(s[len("unix:"):])
	case strings.HasPrefix(s, "udp:"):
		return nil, errUDP
	}
	return hostPort(strings.TrimPrefix(s, "tcp:"))
}

func tcpEndpoint(s string) (ma.Multiaddr, error) {
	addr, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, fmt.Errorf("not a multiaddr: %w", err)
	}
	if _, _, _, err := splitTCP(addr); err != nil {
		return nil, err
	}
	return addr, nil
}

// splitTCP takes [/ip6zone/ZONE]/HOST/tcp/PORT apart and refuses what net.Dial
// would not understand.
func splitTCP(addr ma.Multiaddr) (zone string, host, port *ma.Component, err error) {
	if len(addr) == 3 && addr[0].Code() == ma.P_IP6ZONE && addr[1].Code() == ma.P_IP6 {
		zone, addr = addr[0].Value(), addr[1:]
		if !isZone(zone) {
			return "", nil, nil, fmt.Errorf("%s is not the zone of an IPv6 address", Printable(zone, maxTyped))
		}
	}
	if len(addr) != 2 {
		return "", nil, nil, errShape
	}
	host, port = &addr[0], &addr[1]
	if err := checkHost(host); err != nil {
		return "", nil, nil, err
	}
	switch port.Code() {
	case ma.P_TCP:
		return zone, host, port, nil
	case ma.P_UDP:
		return "", nil, nil, errUDP
	}
	return "", nil, nil, errShape
}

// checkHost refuses an IPv4 address in an /ip6: Go neither dials nor binds it
// as tcp6.
func checkHost(host *ma.Component) error {
	switch host.Code() {
	case ma.P_IP4:
		return nil
	case ma.P_IP6:
		if ip := netip.AddrFrom16([16]byte(host.RawValue())); ip.Is4In6() {
			return fmt.Errorf("%s is an IPv4 address: write /ip4/%s", ip, ip.Unmap())
		}
		return nil
	case ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
		if !isHostName(host.Value()) {
			return fmt.Errorf("%s is not a host name", Printable(host.Value(), maxTyped))
		}
		return nil
	}
	return errShape
}

// maxZone is longer than any system's names of network interfaces, in bytes.
const maxZone = 256

// isZone takes the name of a network interface as net.Dial can read it back
// out of [ADDRESS%ZONE]:PORT.
func isZone(s string) bool {
	return s != "" && len(s) <= maxZone && !strings.ContainsAny(s, "/%[]")
}

// maxUnixPath is what Linux takes in a sockaddr_un, in bytes (unix(7)). Other
// systems take a few less and say so themselves.
const maxUnixPath = 107

func unixEndpoint(p string) (ma.Multiaddr, error) {
	if !strings.HasPrefix(p, "/") {
		return nil, errors.New("a unix socket needs an absolute path")
	}
	p = path.Clean(p)
	switch {
	case p == "/":
		return nil, errors.New("a unix socket needs a path")
	case len(p) > maxUnixPath:
		return nil, fmt.Errorf("the path of a unix socket has at most %d bytes", maxUnixPath)
	}
	return ma.NewMultiaddr("/unix" + p)
}

// hostPort reads `22`, `:22`, `host:22`, `[::1]:22`.
func hostPort(s string) (ma.Multiaddr, error) {
	host, port := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, errors.New("want a port, HOST:PORT, unix:/PATH or a multiaddr")
	}
	if host == "" {
		return ma.NewMultiaddr("/ip4/127.0.0.1/tcp/" + port)
	}
	bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
	if bracketed {
		host = host[1 : len(host)-1]
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil && (bracketed || !isHostName(host)):
		return nil, fmt.Errorf("%s is neither an IP address nor a host name", host)
	case err != nil:
		return tcpEndpoint("/dns/" + host + "/tcp/" + port)
	case ip.Is6() && !bracketed:
		return nil, fmt.Errorf("write an IPv6 address in brackets: [%s]:%s", ip, port)
	case ip.Zone() != "":
		return tcpEndpoint("/ip6zone/" + ip.Zone() + "/ip6/" + ip.WithZone("").String() + "/tcp/" + port)
	case ip.Unmap().Is4():
		return tcpEndpoint("/ip4/" + ip.Unmap().String() + "/tcp/" + port)
	}
	return tcpEndpoint("/ip6/" + ip.String() + "/tcp/" + port)
}

// isHostName takes what RFC 1123 calls a host name, and underscores. A last
// label of digits only is none: `10.0.0.256` and `8080:80` are slips.
func isHostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	for _, label := range labels {
		if !isLabel(label) {
			return false
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && r != '-' && r != '_' {
			return false
		}
	}
	return true
}

// DialArgs splits an endpoint into the arguments of net.Dial and net.Listen.
// It takes what ParseTarget and ParseBind give and refuses other multiaddrs.
func DialArgs(addr ma.Multiaddr) (network, address string, err error) {
	if len(addr) == 1 && addr[0].Code() == ma.P_UNIX {
		return "unix", addr[0].Value(), nil
	}
	zone, host, port, err := splitTCP(addr)
	if err != nil {
		return "", "", fmt.Errorf("address %s: %w", Printable(addr.String(), maxTyped), err)
	}
	name := host.Value()
	if zone != "" {
		name += "%" + zone
	}
	switch host.Code() {
	case ma.P_IP4, ma.P_DNS4:
		return "tcp4", name + ":" + port.Value(), nil
	case ma.P_IP6:
		return "tcp6", "[" + name + "]:" + port.Value(), nil
	case ma.P_DNS6:
		return "tcp6", name + ":" + port.Value(), nil
	}
	return "tcp", name + ":" + port.Value(), nil
}
