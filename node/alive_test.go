package node

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"p2ptun/registry"
)

// Readers that pause use up the window of a QUIC connection, so that no ping
// gets through: that is no dead path.
func TestAQUICConnectionThatNobodyReadsIsNotDead(t *testing.T) {
	a, b := pair(t, onQUIC)
	b.Handle(func(in registry.Incoming) { <-t.Context().Done(); _ = in.End.Reset(0) })
	conn := a.host.Network().ConnsToPeer(b.host.ID())[0]
	for range 4 {
		s := open(t, a, b.ID(), "/x/t")
		full := make(chan struct{})
		go func() {
			defer close(full)
			_ = s.(*streamEnd).SetWriteDeadline(time.Now().Add(time.Second))
			for {
				if _, err := s.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}()
		<-full
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	l := &line{busy: make(chan struct{}, 1)}
	a.prober.ask(ctx, conn, l, 200*time.Millisecond)
	if conn.IsClosed() {
		t.Error("closed although packets are acknowledged")
	}
}

func TestWhatShowsThatAConnectionLives(t *testing.T) {
	for name, c := range map[string]struct {
		last, now counts
		dead      bool
	}{
		"nothing moves":                 {counts{}, counts{}, true},
		"bytes come":                    {counts{}, counts{in: 1}, false},
		"bytes go":                      {counts{}, counts{out: 1}, false},
		"QUIC with nothing to send":     {counts{quic: true}, counts{quic: true}, false},
		"QUIC packets are not answered": {counts{quic: true}, counts{quic: true, sent: 3}, true},
		"QUIC packets are answered":     {counts{quic: true}, counts{quic: true, sent: 3, arrived: 1}, false},
		"QUIC takes bytes of a writer":  {counts{quic: true}, counts{quic: true, out: 1 << 20, sent: 3}, true},
	} {
		if got := c.now.isDead(c.last); got != c.dead {
			t.Errorf("%s: dead %v, want %v", name, got, c.dead)
		}
	}
}

// A peer whose process stands still, as one whose path is cut, answers no ping
// and moves no byte.
func TestAConnectionThatIsSilentIsClosed(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	stuck := make(chan struct{})
	defer close(stuck)
	plain.SetStreamHandler("/ipfs/ping/1.0.0", func(s network.Stream) { <-stuck; _ = s.Reset() })
	reach(t, a, plain)
	conn := a.host.Network().ConnsToPeer(plain.ID())[0]
	a.prober.ask(within(t), conn, &line{busy: make(chan struct{}, 1)}, 200*time.Millisecond)
	eventually(t, "closed", conn.IsClosed)
}
