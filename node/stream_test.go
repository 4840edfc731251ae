package node

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"p2ptun/proto"
	"p2ptun/registry"
)

func TestAStreamSaysWhoItIs(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		a, b := pair(t, addr)
		streams := taken(b)
		end, path, err := a.Open(within(t), b.ID(), "/x/t")
		must(t, err)
		_, err = end.Write([]byte("x"))
		must(t, err)
		in := next(t, streams)
		if in.Peer != a.ID() || in.Protocol != "/x/t" || in.Path.Relayed || in.Path.Transport != path.Transport {
			t.Errorf("got %+v", in)
		}
		if want := strings.Split(t.Name(), "/")[1]; path.Transport != want || !strings.HasPrefix(path.Addr, "/ip4/127.0.0.1/") {
			t.Errorf("path %+v", path)
		}
	})
}

// Each side names its own end as the other side names it.
func TestAPathHasBothEndsOfItsConnection(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		a, b := pair(t, addr)
		streams := taken(b)
		end, path, err := a.Open(within(t), b.ID(), "/x/t")
		must(t, err)
		_, err = end.Write([]byte("x"))
		must(t, err)
		in := next(t, streams)
		if in.Path.Local != path.Addr || in.Path.Addr != path.Local || in.Path.Local == in.Path.Addr {
			t.Errorf("%s → %s, and from there %s → %s", path.Local, path.Addr, in.Path.Addr, in.Path.Local)
		}
	})
}

func TestHalfCloseKeepsReplyFlowing(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		a, b := pair(t, addr)
		streams := taken(b)
		for range 2 { // negotiated, then lazily
			end := open(t, a, b.ID(), "/x/t")
			_, err := io.WriteString(end, "question")
			must(t, errors.Join(err, end.CloseWrite()))
			in := next(t, streams)
			if got, err := io.ReadAll(in.End); err != nil || string(got) != "question" {
				t.Errorf("read %q, %v", got, err)
			}
			reply := strings.Repeat("answer", 1<<16)
			go func() { // more than a window holds
				_, _ = io.WriteString(in.End, reply)
				_ = in.End.CloseWrite()
			}()
			if got, err := io.ReadAll(end); err != nil || string(got) != reply {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
			must(t, errors.Join(end.Close(), in.End.Close()))
		}
	})
}

func TestTheServerMaySpeakFirst(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		a, b := pair(t, addr)
		b.Handle(func(in registry.Incoming) {
			_, _ = io.WriteString(in.End, "hello")
			_ = in.End.CloseWrite()
		})
		for range 2 {
			end := open(t, a, b.ID(), "/x/t")
			if got, err := io.ReadAll(end); err != nil || string(got) != "hello" {
				t.Errorf("read %q, %v", got, err)
			}
			_ = end.Reset(proto.CodeNone)
		}
	})
}

func wantCode(t testing.TB, r io.Reader, want proto.Code) {
	t.Helper()
	_, err := io.ReadAll(r)
	var reset *registry.ResetError
	if !errors.As(err, &reset) || reset.Code != want {
		t.Errorf("read ends with %v, want code %v", err, want)
	}
}

func TestResetCodesCrossBothWays(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		a, b := pair(t, addr)
		streams := taken(b)
		for code := proto.CodeRefused; code <= proto.CodeStopped; code++ {
			for _, byDialler := range []bool{true, false} {
				end := open(t, a, b.ID(), "/x/t")
				_, err := end.Write([]byte("x"))
				must(t, err)
				in := next(t, streams)
				_, err = io.ReadFull(in.End, make([]byte, 1))
				must(t, err)
				if byDialler {
					must(t, end.Reset(code))
					wantCode(t, in.End, code)
				} else {
					must(t, in.End.Reset(code))
					wantCode(t, end, code)
				}
			}
		}
	})
}

func TestALostConnectionReadsAsPeerAway(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		a, b := pair(t, addr)
		streams := taken(b)
		end := open(t, a, b.ID(), "/x/t")
		_, err := end.Write([]byte("x"))
		must(t, err)
		next(t, streams)
		must(t, b.Close())
		_, err = io.ReadAll(end)
		var reset *registry.ResetError
		if !errors.As(err, &reset) {
			t.Errorf("read ends with %v", err)
		}
	})
}

func TestAProtocolThatNobodyHasIsNoService(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	reach(t, a, plain)
	_, _, err := a.Open(within(t), plain.ID().String(), "/x/t")
	var reset *registry.ResetError
	if !errors.As(err, &reset) || reset.Code != proto.CodeNoService {
		t.Errorf("err = %v", err)
	}
}

// libp2p remembers that a peer had a protocol, and then negotiates lazily.
func TestAProtocolThatIsGoneIsNoServiceAtTheFirstRead(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	offerX(plain, func(s network.Stream) { _ = s.Close() })
	reach(t, a, plain)
	_, err := io.ReadAll(open(t, a, plain.ID().String(), "/x/t"))
	must(t, err)
	plain.RemoveStreamHandler("/x/")
	for range 10 { // identify pushes the news once, at any time
		must(t, a.host.Peerstore().AddProtocols(plain.ID(), "/x/t"))
		end, _, err := a.Open(within(t), plain.ID().String(), "/x/t")
		if err == nil {
			wantCode(t, end, proto.CodeNoService)
			return
		}
		wantReset(t, err, proto.CodeNoService)
	}
	t.Error("it is never negotiated lazily")
}

// A peer that takes streams and never answers multistream: the first Read ends
// with the dial's limit, not never.
func TestAMutePeerIsGivenUpWithTheDialsLimit(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	offerX(plain, func(s network.Stream) { _ = s.Close() })
	reach(t, a, plain)
	_, err := io.ReadAll(open(t, a, plain.ID().String(), "/x/t"))
	must(t, err)
	plain.Network().SetStreamHandler(func(network.Stream) {}) // mute from now on

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	end, _, err := a.Open(ctx, plain.ID().String(), "/x/t")
	must(t, err)
	start := time.Now()
	_, err = end.Read(make([]byte, 1))
	var reset *registry.ResetError
	if !errors.As(err, &reset) || reset.Code != proto.CodePeerAway {
		t.Errorf("err = %v", err)
	}
	if d := time.Since(start); d > patience/2 {
		t.Errorf("given up after %v", d)
	}
	_ = end.Reset(proto.CodeNone)

	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, _, err = a.Open(ctx, plain.ID().String(), "/x/never-used"); err == nil { // not lazily
		t.Error("opened what nobody has answered")
	}
}

// The limit is the negotiation's alone: afterwards a stream may be silent.
func TestTheDialsLimitEndsWithTheNegotiation(t *testing.T) {
	a, b := pair(t, onTCP)
	streams := taken(b)
	_, err := open(t, a, b.ID(), "/x/t").Write([]byte("x"))
	must(t, err)
	_ = next(t, streams).End.Reset(proto.CodeNone)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	end := openLazily(ctx, t, a, b, streams)
	go func() {
		in := <-streams
		<-ctx.Done() // longer than the limit
		_, _ = in.End.Write([]byte("late"))
		_ = in.End.CloseWrite()
	}()
	if got, err := io.ReadAll(end); err != nil || string(got) != "late" {
		t.Errorf("read %q, %v", got, err)
	}
}

// openLazily opens a stream of a protocol that is known: identify, when it is
// told anew, throws out what negotiation has found, so it may take a few.
func openLazily(ctx context.Context, t testing.TB, a, b *testNode, streams <-chan registry.Incoming) *streamEnd {
	t.Helper()
	for range 20 {
		end, _, err := a.Open(ctx, b.ID(), "/x/t")
		must(t, err)
		if s, ok := end.(*streamEnd); ok && !s.negotiateBy.IsZero() {
			return s
		}
		_ = next(t, streams).End.Reset(proto.CodeNone)
	}
	t.Fatal("no stream is negotiated lazily: nothing is tested")
	return nil
}

func TestIdentifyNeverShowsAServicesName(t *testing.T) {
	n, plain := newTestNode(t, onTCP), newPlain(t)
	n.Handle(func(in registry.Incoming) { _ = in.End.Reset(proto.CodeRefused) })
	defer n.Offer("/my/custom/1.0.0")()
	reach(t, n, plain)
	var shown []protocol.ID
	eventually(t, "the plain host has identified the node", func() bool {
		shown, _ = plain.Peerstore().GetProtocols(n.host.ID())
		return len(shown) > 0
	})
	matcher := false
	for _, p := range shown {
		matcher = matcher || p == "/x/"
		if strings.HasPrefix(string(p), "/x/") && p != "/x/" || strings.Contains(string(p), "custom") {
			t.Errorf("identify shows %s", p)
		}
	}
	if !matcher {
		t.Errorf("identify shows %v, without /x/", shown)
	}
}

func TestACustomProtocolIsTakenOnlyWhileOffered(t *testing.T) {
	a, b := pair(t, onTCP)
	streams := taken(b)
	end := b.Offer("/my/custom/1.0.0")
	also := b.Offer("/my/custom/1.0.0")
	end()
	end() // a second call does nothing
	_, err := open(t, a, b.ID(), "/my/custom/1.0.0").Write([]byte("x"))
	must(t, err)
	if in := next(t, streams); in.Protocol != "/my/custom/1.0.0" {
		t.Errorf("got %s", in.Protocol)
	}
	also()
	wantNoService(t, a, b, "/my/custom/1.0.0")
}

// wantNoService opens a stream that must fail for want of the protocol: at once,
// or at the first read where it was negotiated lazily.
func wantNoService(t testing.TB, a, b *testNode, protocol string) {
	t.Helper()
	end, _, err := a.Open(within(t), b.ID(), protocol)
	if err == nil {
		wantCode(t, end, proto.CodeNoService)
		return
	}
	var reset *registry.ResetError
	if !errors.As(err, &reset) || reset.Code != proto.CodeNoService {
		t.Errorf("err = %v", err)
	}
}

// A name as only a hostile peer sends it comes to the handler as it is: who
// shows it escapes it.
func TestAHostileNameReachesTheHandlerOnly(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	streams := taken(a)
	reach(t, a, plain)
	name := protocol.ID("/x/\x1b[2J\x07\u202e")
	s, err := plain.NewStream(within(t), a.host.ID(), name)
	must(t, err)
	_, err = s.Write([]byte("x"))
	must(t, err)
	if in := next(t, streams); in.Protocol != string(name) {
		t.Errorf("got %q", in.Protocol)
	}
}

// Streams that send nothing hold up no other stream, and end with the node.
func TestSilentStreamsHoldUpNothing(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	a.Handle(func(in registry.Incoming) { _ = in.End.Reset(proto.CodeRefused) })
	reach(t, a, plain)
	conn := plain.Network().ConnsToPeer(a.host.ID())[0]
	for range 50 {
		_, err := conn.NewStream(within(t)) // and not a byte
		must(t, err)
	}
	s, err := plain.NewStream(within(t), a.host.ID(), "/x/t")
	if err == nil { // else the refusal was there before the negotiation's end
		_, err = io.ReadAll(s)
	}
	var reset *network.StreamError
	if !errors.As(err, &reset) || reset.ErrorCode != network.StreamErrorCode(proto.CodeRefused) {
		t.Errorf("err = %v", err)
	}
	must(t, a.Close())
}
