package node

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"p2ptun/proto"
)

func TestAnAnswerComesBack(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		a, b := pair(t, addr)
		var verdict atomic.Int32
		b.HandleAsk(func(ctx context.Context, peer string, q *proto.Question) proto.Verdict {
			protocol := q.GetProtocol()
			if _, bounded := ctx.Deadline(); !bounded || peer != a.ID() || protocol != "/x/t" {
				t.Errorf("asked by %s for %s, bounded: %v", peer, protocol, bounded)
			}
			return proto.Verdict(verdict.Load())
		})
		for _, want := range []proto.Verdict{
			proto.Verdict_VERDICT_OK, proto.Verdict_VERDICT_REFUSED,
			proto.Verdict_VERDICT_SERVICE_DOWN, proto.Verdict_VERDICT_NO_SERVICE,
		} {
			verdict.Store(int32(want))
			if got, err := a.Ask(within(t), b.ID(), &proto.Question{Protocol: "/x/t"}); err != nil || got != want {
				t.Errorf("got %v, %v; want %v", got, err, want)
			}
		}
	})
}

func TestAPeerWithoutTheAskProtocolCannotBeAsked(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	offerX(plain, func(s network.Stream) { _ = s.Close() })
	reach(t, a, plain)
	if _, err := a.Ask(within(t), plain.ID().String(), &proto.Question{Protocol: "/x/t"}); !errors.Is(err, ErrCannotAsk) {
		t.Errorf("err = %v", err)
	}
	must(t, a.host.Peerstore().AddProtocols(plain.ID(), proto.AskProtocol)) // as if it had had it
	if _, err := a.Ask(within(t), plain.ID().String(), &proto.Question{Protocol: "/x/t"}); !errors.Is(err, ErrCannotAsk) {
		t.Errorf("cached but gone: %v", err)
	}
}

func TestABadAnswerIsAnError(t *testing.T) {
	for name, answer := range map[string][]byte{
		"nothing":   {},
		"cut short": {200, 1, 8},
		"oversized": binary.AppendUvarint(nil, proto.MaxAsk+1),
		"garbage":   {3, 0xff, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			a, plain := newTestNode(t, onTCP), newPlain(t)
			plain.SetStreamHandler(proto.AskProtocol, func(s network.Stream) {
				_, _ = s.Write(answer)
				_ = s.CloseWrite()
			})
			reach(t, a, plain)
			if v, err := a.Ask(within(t), plain.ID().String(), &proto.Question{Protocol: "/x/t"}); err == nil || errors.Is(err, ErrCannotAsk) || v != proto.Verdict_VERDICT_UNKNOWN {
				t.Errorf("%v, %v", v, err)
			}
		})
	}
}

func TestAQuestionEndsWithItsContext(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	asked := make(chan network.Stream, 1)
	plain.SetStreamHandler(proto.AskProtocol, func(s network.Stream) { asked <- s })
	reach(t, a, plain)
	ctx, cancel := context.WithCancel(within(t))
	go func() { <-asked; cancel() }()
	if _, err := a.Ask(ctx, plain.ID().String(), &proto.Question{Protocol: "/x/t"}); err == nil {
		t.Error("an answer out of nothing")
	}
}

// Bad questions are answered by a reset, and never reach the one who answers.
func TestABadQuestionIsReset(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	var answered atomic.Int64
	a.HandleAsk(func(context.Context, string, *proto.Question) proto.Verdict {
		answered.Add(1)
		return proto.Verdict_VERDICT_OK
	})
	reach(t, a, plain)
	for name, question := range map[string][]byte{
		"nothing":            {},
		"oversized":          binary.AppendUvarint(nil, 1<<62),
		"endless length":     {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"cut short":          {20, 10, 4, '/', 'x'},
		"control characters": {9, 10, 7, '/', 'x', '/', 0x1b, '[', '2', 'J'},
		"no name":            {0},
	} {
		s, err := plain.NewStream(within(t), a.host.ID(), proto.AskProtocol)
		must(t, err)
		_, _ = s.Write(question) // the reset may come before its end
		_ = s.CloseWrite()
		if got, err := io.ReadAll(s); err == nil || len(got) != 0 {
			t.Errorf("%s: read %q, %v", name, got, err)
		}
	}
	if n := answered.Load(); n != 0 {
		t.Errorf("%d bad questions were answered", n)
	}
}

// A peer that asks slowly, or not at all, is in nobody's way.
func TestASlowQuestionHoldsUpNoOther(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	a.HandleAsk(func(context.Context, string, *proto.Question) proto.Verdict { return proto.Verdict_VERDICT_REFUSED })
	reach(t, a, plain)
	for range 20 {
		s, err := plain.NewStream(within(t), a.host.ID(), proto.AskProtocol)
		must(t, err)
		_, err = s.Write([]byte{20, 10}) // and no more
		must(t, err)
	}
	s, err := plain.NewStream(within(t), a.host.ID(), proto.AskProtocol)
	must(t, err)
	must(t, errors.Join(proto.WriteQuestion(s, &proto.Question{Protocol: "/x/t"}), s.CloseWrite()))
	_ = s.SetReadDeadline(time.Now().Add(patience))
	if v, err := proto.ReadAnswer(s); err != nil || v != proto.Verdict_VERDICT_REFUSED {
		t.Errorf("%v, %v", v, err)
	}
}
