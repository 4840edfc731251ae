package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"p2ptun/proto"
	"p2ptun/registry"
)

// patience bounds what a test waits for on a real socket.
const patience = 30 * time.Second

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if is() {
			return
		}
		<-time.After(2 * time.Millisecond)
	}
	t.Fatalf("not so in %v: %s", patience, what)
}

// echo is the far side of a stream: it says hello first, then echoes, and ends
// when its client does.
func echo(t testing.TB) func(context.Context) (registry.End, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprint(c, "hello\n")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return func(context.Context) (registry.End, error) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return registry.NewConnEnd(c)
	}
}

// codeEnd is a far side that resets with a code at the first read.
type codeEnd struct{ code proto.Code }

func (e codeEnd) Read([]byte) (int, error)  { return 0, &registry.ResetError{Code: e.code} }
func (codeEnd) Write(b []byte) (int, error) { return len(b), nil }
func (codeEnd) CloseWrite() error           { return nil }
func (codeEnd) Reset(proto.Code) error      { return nil }
func (codeEnd) Close() error                { return nil }

func resets(code proto.Code) func(context.Context) (registry.End, error) {
	return func(context.Context) (registry.End, error) { return codeEnd{code}, nil }
}

// served is a rig that serves on a real address until the test ends.
func served(t testing.TB, bind string, peers map[string]func(*fakePeer), order ...string) *rig {
	t.Helper()
	r := newRig(t, registry.Tunnel{Bind: bind}, order...)
	for id, make := range peers {
		r.do(id, make)
	}
	if err := r.Bind(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.serve())
	return r
}

func (r *rig) dial(t testing.TB) net.Conn {
	t.Helper()
	m, err := ma.NewMultiaddr(r.Entry.Status().Bind)
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	c, err = manet.Dial(m)
	if err != nil {
		return resetConn{err: err}
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// resetConn is a connection that was reset, or failed, before it was dialled.
type resetConn struct {
	net.Conn
	err error
}

func (c resetConn) Read([]byte) (int, error)  { return 0, c.err }
func (c resetConn) Write([]byte) (int, error) { return 0, c.err }

func wantEcho(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello\nping" {
		t.Fatalf("read %q, %v", got, err)
	}
}

func wantReset(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read ends with %v, want a reset", err)
	}
}

func upWith(open func(context.Context) (registry.End, error)) func(*fakePeer) {
	return func(p *fakePeer) { p.reachable, p.up, p.verdict, p.open = true, true, ok, open }
}

func TestEachConnectionGetsAStream(t *testing.T) {
	for _, bind := range []string{"/ip4/127.0.0.1/tcp/0", "/unix" + filepath.Join(t.TempDir(), "s")} {
		t.Run(strings.Split(bind, "/")[1], func(t *testing.T) {
			r := served(t, bind, map[string]func(*fakePeer){anna: upWith(echo(t))}, anna)
			for range 5 {
				wantEcho(t, r.dial(t))
			}
			eventually(t, "all streams ended", func() bool { return r.Entry.Status().Streams == 0 })
			eventually(t, "nothing held", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.holds == 0 })
			if n := r.Entry.Status().Total; n != 5 {
				t.Errorf("%d streams, want 5", n)
			}
		})
	}
}

func TestWhileThePeerIsAwayConnectionsAreResetAtOnce(t *testing.T) {
	r := served(t, "/ip4/127.0.0.1/tcp/0", nil, anna)
	const conns = 20
	for range conns {
		wantReset(t, r.dial(t))
	}
	eventually(t, "one word for each", func() bool { return len(look(r.world, &r.failed)) == conns })
	if word := look(r.world, &r.failed)[0]; word != anna+": "+ErrNotReached.Error() {
		t.Errorf("told of %q", word)
	}
}

func TestAPeerThatIsBackCarriesConnectionsAgain(t *testing.T) {
	open := echo(t)
	r := served(t, "/ip4/127.0.0.1/tcp/0", nil, anna)
	wantReset(t, r.dial(t))
	r.do(anna, upWith(open))
	wantEcho(t, r.dial(t))
}

func TestAStreamThatHangsInItsOpenHoldsUpNoOther(t *testing.T) {
	open, entered := echo(t), make(chan struct{})
	var first atomic.Bool
	r := served(t, "/ip4/127.0.0.1/tcp/0", map[string]func(*fakePeer){anna: upWith(func(ctx context.Context) (registry.End, error) {
		if first.CompareAndSwap(false, true) {
			close(entered)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return open(ctx)
	})}, anna)
	hanging := r.dial(t)
	<-entered
	for range 3 {
		wantEcho(t, r.dial(t))
	}
	r.cancel() // ends the one that hangs too
	wantReset(t, hanging)
}

func TestAPeersReasonIsTold(t *testing.T) {
	for code, told := range map[proto.Code]bool{
		proto.CodeRefused: true, proto.CodeTargetDown: true, proto.CodeNoService: true,
		proto.CodeRevoked: true, proto.CodePeerAway: true, proto.CodeTooMany: true,
		proto.CodeNone: false, proto.CodeReset: false, proto.CodeClosed: false,
	} {
		t.Run(code.String(), func(t *testing.T) {
			r := served(t, "/ip4/127.0.0.1/tcp/0", map[string]func(*fakePeer){anna: upWith(resets(code))}, anna)
			wantReset(t, r.dial(t))
			eventually(t, "the stream is gone", func() bool { s := r.Entry.Status(); return s.Streams == 0 && s.Total == 1 })
			if !told {
				r.Registry.Wait() // OnClosed has been called
			}
			eventually(t, "told", func() bool { return (len(look(r.world, &r.failed)) == 1) == told })
		})
	}
}

func TestAConnectionFailsOverToTheNextPeer(t *testing.T) {
	r := served(t, "/ip4/127.0.0.1/tcp/0", map[string]func(*fakePeer){anna: upWith(nil), ben: upWith(echo(t))}, anna, ben)
	wantEcho(t, r.dial(t))
	if n := len(look(r.world, &r.failed)); n != 0 {
		t.Errorf("told of %d failures", n)
	}
}

func TestServeReturnsWithNothingRunningAndTheAddressFree(t *testing.T) {
	open := echo(t)
	for range 10 {
		r := newRig(t, registry.Tunnel{}, anna, ben)
		r.do(anna, upWith(open))
		if err := r.Bind(); err != nil {
			t.Fatal(err)
		}
		at := r.Entry.Status().Bind
		stop := r.serve()
		c := r.dial(t)
		if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		stop()
		wantReset(t, c) // its tunnel is deregistered
		l, _, err := bind(at)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}
