package node

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	manet "github.com/multiformats/go-multiaddr/net"

	"p2ptun/home"
)

// defaultAddrs are where the node listens unless told otherwise: TCP and QUIC,
// IPv4 and IPv6, on one port.
func defaultAddrs(port int, withQUIC bool) []string {
	var addrs []string
	for _, ip := range []string{"/ip4/0.0.0.0", "/ip6/::"} {
		addrs = append(addrs, fmt.Sprintf("%s/tcp/%d", ip, port))
		if withQUIC {
			addrs = append(addrs, fmt.Sprintf("%s/udp/%d/quic-v1", ip, port))
		}
	}
	return addrs
}

// choosePort gives the port of the last run where it is still free, else a
// free one; the first that is chosen is kept in the file.
func choosePort(path string) (int, error) {
	kept := readPort(path)
	if kept != 0 && portFree(kept) {
		return kept, nil
	}
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	if kept == 0 {
		err = home.WriteFile(path, []byte(strconv.Itoa(port)+"\n"))
	}
	return port, err
}

// readPort gives 0 for no port or none that can be used: the port is a
// convenience, not an identity.
func readPort(path string) int {
	data, err := home.ReadFile(path)
	if err != nil {
		return 0
	}
	port, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 16)
	if err != nil {
		return 0
	}
	return int(port)
}

func portFree(port int) bool {
	addr := ":" + strconv.Itoa(port)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	return u.Close() == nil
}

func freePort() (int, error) {
	const tries = 16
	var last error
	for range tries {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			last = err
			continue
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		if portFree(port) {
			return port, nil
		}
		last = fmt.Errorf("port %d is taken for UDP", port)
	}
	return 0, fmt.Errorf("find a free port: %w", last)
}

// LikelyAddrs are the addresses that the node of that peer ID will have where
// it listens on the port of its last run; none where it never ran.
func LikelyAddrs(portPath, id string) []string {
	port := readPort(portPath)
	ips, err := manet.InterfaceMultiaddrs()
	if port == 0 || err != nil {
		return nil
	}
	var addrs []string
	for _, ip := range ips {
		if !manet.IsIP6LinkLocal(ip) {
			addrs = append(addrs, fmt.Sprintf("%s/tcp/%d/p2p/%s", ip, port, id), fmt.Sprintf("%s/udp/%d/quic-v1/p2p/%s", ip, port, id))
		}
	}
	return addrs
}
