package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	natpmp "github.com/jackpal/go-nat-pmp"
	"github.com/libp2p/go-libp2p/core/network"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-netroute"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Port mapping: the router is asked for a way in by UPnP, which is libp2p's, and
// by NAT-PMP (RFC 6886), which is here. libp2p's own never begins on Linux: its
// v0.51 looks for the gateway by asking go-netroute v0.4 for the way to 0.0.0.0,
// which that refuses.

const (
	// pmpLimit bounds one question to the router, and so how long closing a
	// node may wait for one.
	pmpLimit = time.Second
	// pmpLife is how long the router is asked to keep a port open, and pmpEvery
	// how often it is asked. It may be another one by then, or have restarted.
	pmpLife  = 2 * time.Minute
	pmpEvery = pmpLife / 3
)

// farAway is where the default gateway is the way to. Nothing is sent there.
var farAway = net.IPv4(1, 1, 1, 1)

var errNoGateway = errors.New("no gateway to the internet")

// mapper is libp2p's port mapping with NAT-PMP.
type mapper struct {
	basichost.NATManager // by UPnP
	net                  network.Network
	log                  *slog.Logger

	end   context.CancelFunc
	tasks sync.WaitGroup
	again chan struct{} // holds one where there is another address to listen on

	mu   sync.Mutex
	open map[mappedPort]netip.AddrPort // as seen from outside
}

// mappedPort is a port of this machine.
type mappedPort struct {
	protocol string // tcp, udp
	port     int
}

func newMapper(log *slog.Logger) func(network.Network) basichost.NATManager {
	return func(net network.Network) basichost.NATManager {
		ctx, end := context.WithCancel(context.Background()) // ends with Close, as libp2p's
		m := &mapper{NATManager: basichost.NewNATManager(net), net: net, log: log, end: end, again: make(chan struct{}, 1)}
		m.tasks.Go(func() { m.serve(ctx) })
		return m
	}
}

// serve keeps the ports open until ctx ends.
func (m *mapper) serve(ctx context.Context) {
	listens := &network.NotifyBundle{ListenF: func(network.Network, ma.Multiaddr) { m.renewSoon() }}
	m.net.Notify(listens)
	defer m.net.StopNotify(listens)
	tick := time.NewTicker(pmpEvery)
	defer tick.Stop()
	for {
		m.renew(ctx)
		select {
		case <-tick.C:
		case <-m.again:
		case <-ctx.Done():
			m.giveBack()
			return
		}
	}
}

func (m *mapper) renewSoon() {
	select {
	case m.again <- struct{}{}:
	default:
	}
}

// renew asks the router of this moment for all ports that are listened on.
func (m *mapper) renew(ctx context.Context) {
	open := map[mappedPort]netip.AddrPort{}
	router, outside, err := findRouter()
	if err != nil {
		m.log.Debug("NAT-PMP", "err", err)
	}
	for _, a := range m.net.ListenAddresses() {
		p, ok := portToMap(a)
		if _, done := open[p]; !ok || done || err != nil || ctx.Err() != nil {
			continue
		}
		got, err := router.AddPortMapping(p.protocol, p.port, p.port, int(pmpLife/time.Second))
		if err != nil {
			m.log.Info("NAT-PMP: open a port", "port", p.port, "protocol", p.protocol, "err", err)
			continue
		}
		open[p] = netip.AddrPortFrom(outside, got.MappedExternalPort)
	}
	m.mu.Lock()
	m.open = open
	m.mu.Unlock()
}

// findRouter gives the default gateway, where it speaks NAT-PMP, and its public
// address.
func findRouter() (*natpmp.Client, netip.Addr, error) {
	routes, err := netroute.New()
	if err != nil {
		return nil, netip.Addr{}, err
	}
	_, gateway, _, err := routes.Route(farAway)
	if err != nil || gateway == nil {
		return nil, netip.Addr{}, cmp.Or(err, errNoGateway)
	}
	router := natpmp.NewClientWithTimeout(gateway, pmpLimit)
	r, err := router.GetExternalAddress()
	if err != nil {
		return nil, netip.Addr{}, err
	}
	outside := netip.AddrFrom4(r.ExternalIPAddress)
	if outside.IsUnspecified() { // it is not connected
		return nil, outside, errNoGateway
	}
	return router, outside, nil
}

// giveBack closes the ports.
func (m *mapper) giveBack() {
	m.mu.Lock()
	open := m.open
	m.open = nil
	m.mu.Unlock()
	if len(open) == 0 {
		return
	}
	router, _, err := findRouter()
	if err != nil {
		return // they end by themselves
	}
	for p := range open {
		_, _ = router.AddPortMapping(p.protocol, p.port, 0, 0)
	}
}

// portToMap gives the port of an address that is listened on for others over
// IPv4.
func portToMap(a ma.Multiaddr) (p mappedPort, ok bool) {
	ip, err := manet.ToIP(a)
	if err != nil || ip.To4() == nil || !ip.IsUnspecified() && !ip.IsGlobalUnicast() {
		return p, false
	}
	for code, protocol := range map[int]string{ma.P_TCP: "tcp", ma.P_UDP: "udp"} {
		if text, err := a.ValueForProtocol(code); err == nil {
			port, err := strconv.Atoi(text)
			return mappedPort{protocol, port}, err == nil && port > 0
		}
	}
	return p, false
}

// GetMapping gives the address of an address that is listened on, as seen from
// outside, or nil.
func (m *mapper) GetMapping(a ma.Multiaddr) ma.Multiaddr {
	if mapped := m.NATManager.GetMapping(a); mapped != nil {
		return mapped
	}
	p, ok := portToMap(a)
	m.mu.Lock()
	outside, open := m.open[p]
	m.mu.Unlock()
	if !ok || !open {
		return nil
	}
	way, err := ma.NewMultiaddr(fmt.Sprintf("/ip4/%s/%s/%d", outside.Addr(), p.protocol, outside.Port()))
	if err != nil {
		return nil
	}
	_, rest := ma.SplitFirst(a)
	_, rest = ma.SplitFirst(rest)
	return way.Encapsulate(rest)
}

// HasDiscoveredNAT says that the router opens ports.
func (m *mapper) HasDiscoveredNAT() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.open) > 0 || m.NATManager.HasDiscoveredNAT()
}

// Close gives the ports back.
func (m *mapper) Close() error {
	m.end()
	m.tasks.Wait()
	return m.NATManager.Close()
}
