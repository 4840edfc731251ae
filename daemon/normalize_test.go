package daemon

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"p2ptun/registry"
)

const somePeer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"

func listens(change func(*registry.Tunnel)) registry.Tunnel {
	t := registry.Tunnel{Kind: registry.KindListen, Protocol: "ssh", Target: "22"}
	change(&t)
	return t
}

func forwards(change func(*registry.Tunnel)) registry.Tunnel {
	t := registry.Tunnel{Kind: registry.KindForward, Protocol: "ssh", Bind: "2222", Peers: []string{somePeer}}
	change(&t)
	return t
}

func TestNormalFormsOfTunnels(t *testing.T) {
	for name, c := range map[string]struct{ in, want registry.Tunnel }{
		"listen": {
			listens(func(t *registry.Tunnel) { t.Allow = []string{"/p2p/" + somePeer} }),
			registry.Tunnel{Kind: registry.KindListen, Protocol: "/x/ssh", Target: "/ip4/127.0.0.1/tcp/22", Allow: []string{somePeer}},
		},
		"forward": {
			forwards(func(t *registry.Tunnel) {
				t.Peers = []string{somePeer, "/ip4/192.0.2.1/tcp/1/p2p/" + somePeer, "/dnsaddr/example.com"}
			}),
			registry.Tunnel{
				Kind: registry.KindForward, Protocol: "/x/ssh", Bind: "/ip4/127.0.0.1/tcp/2222",
				Peers: []string{"/p2p/" + somePeer, "/ip4/192.0.2.1/tcp/1/p2p/" + somePeer, "/dnsaddr/example.com"},
			},
		},
		"custom protocol": {
			listens(func(t *registry.Tunnel) { t.Protocol, t.Custom = "/y/ssh", true }),
			registry.Tunnel{Kind: registry.KindListen, Protocol: "/y/ssh", Custom: true, Target: "/ip4/127.0.0.1/tcp/22"},
		},
	} {
		got := c.in
		for range 2 { // the second time changes nothing
			if err := Normalize(&got); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
			}
		}
	}
}

func TestTunnelsThatCanNotBeMeantAreWrongUse(t *testing.T) {
	for name, tun := range map[string]registry.Tunnel{
		"no kind":              {Protocol: "ssh", Target: "22"},
		"another kind":         {Kind: "both", Protocol: "ssh", Target: "22"},
		"no protocol":          listens(func(t *registry.Tunnel) { t.Protocol = "" }),
		"outside /x/":          listens(func(t *registry.Tunnel) { t.Protocol = "/y/ssh" }),
		"reserved":             listens(func(t *registry.Tunnel) { t.Protocol, t.Custom = "/p2ptun/ask/1.0.0", true }),
		"no target":            listens(func(t *registry.Tunnel) { t.Target = "" }),
		"target port 0":        listens(func(t *registry.Tunnel) { t.Target = "0" }),
		"negative silence":     listens(func(t *registry.Tunnel) { t.Silence = -1 }),
		"open and allow":       listens(func(t *registry.Tunnel) { t.Open, t.Allow = true, []string{somePeer} }),
		"allow a name":         listens(func(t *registry.Tunnel) { t.Allow = []string{"bob"} }),
		"allow a domain":       listens(func(t *registry.Tunnel) { t.Allow = []string{"/dnsaddr/example.com"} }),
		"allow nonsense":       listens(func(t *registry.Tunnel) { t.Allow = []string{"/ip4/1.2.3.4"} }),
		"listen with bind":     listens(func(t *registry.Tunnel) { t.Bind = "22" }),
		"listen with peers":    listens(func(t *registry.Tunnel) { t.Peers = []string{somePeer} }),
		"listen that waits":    listens(func(t *registry.Tunnel) { t.Wait = true }),
		"listen that dials":    listens(func(t *registry.Tunnel) { t.DialTimeout = registry.Duration(time.Second) }),
		"no bind":              forwards(func(t *registry.Tunnel) { t.Bind = "" }),
		"bind is a peer":       forwards(func(t *registry.Tunnel) { t.Bind = somePeer }),
		"no peer":              forwards(func(t *registry.Tunnel) { t.Peers = nil }),
		"peer without id":      forwards(func(t *registry.Tunnel) { t.Peers = []string{"/ip4/192.0.2.1/tcp/1"} }),
		"peer is a name":       forwards(func(t *registry.Tunnel) { t.Peers = []string{"bob"} }),
		"too many peers":       forwards(func(t *registry.Tunnel) { t.Peers = strings.Split(strings.Repeat(somePeer+" ", maxPeers+1), " ") }),
		"negative timeout":     forwards(func(t *registry.Tunnel) { t.DialTimeout = -1 }),
		"forward with target":  forwards(func(t *registry.Tunnel) { t.Target = "22" }),
		"forward that is open": forwards(func(t *registry.Tunnel) { t.Open = true }),
		"forward that allows":  forwards(func(t *registry.Tunnel) { t.Allow = []string{somePeer} }),
		"forward that reports": forwards(func(t *registry.Tunnel) { t.ReportPeerID = true }),
	} {
		var e *Error
		if err := Normalize(&tun); !errors.As(err, &e) || e.Code != CodeUsage || e.Message == "" {
			t.Errorf("%s: %v, want an error of use", name, err)
		}
	}
}
