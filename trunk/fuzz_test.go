package trunk

import (
	"context"
	"encoding/binary"
	"io"
	"runtime"
	"testing"
	"time"

	"p2ptun/proto"
)

// patience bounds what a fuzzer waits for: far above what is needed.
const patience = 20 * time.Second

// FuzzPeer: whatever a peer says after its hello, to a server and to a client,
// nothing panics, Close does not hang, and no memory stays reserved. The first
// byte says whether the rest goes as it is, or as the bytes of the pipe, in
// frames.
func FuzzPeer(f *testing.F) {
	for _, seed := range peerSeeds() {
		f.Add(append([]byte{0}, seed...))
		f.Add(append([]byte{1}, seed...))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 256<<10 {
			return
		}
		if in[0]&1 == 1 {
			in = framed(in[1:])
		} else {
			in = in[1:]
		}
		before := runtime.NumGoroutine()
		fuzzServer(t, in)
		fuzzClient(t, in)
		wantNothingLeft(t, before)
	})
}

// peerSeeds are conversations of honest and of hostile peers.
func peerSeeds() (all [][]byte) {
	hello := join(syn(1), syn(3), bodyOf(3, 5), say(ctlEnd, 3, 5), mux(muxWindow, muxFIN, 3, 0))
	all = append(all, hello, framed(hello))
	all = append(all, join(syn(2), bodyOf(2, leastWindow), say(ctlBlocked, 2, leastWindow)))
	for kind := range byte(ctlKinds + 1) {
		all = append(all, join(syn(1), syn(3), say(kind, 3, 0x2104), say(kind, 2, 1<<63), mux(muxData, muxFIN, 3, 0)))
	}
	for kind := range byte(5) {
		all = append(all, join(syn(1), mux(kind, 2, 1, 1<<20), mux(kind, 15, 3, 9)))
	}
	ack := make([]byte, headerSize)
	header{kind: kindAck, offset: 12}.put(ack)
	end := make([]byte, headerSize)
	header{kind: kindEnd, offset: 0x2106}.put(end)
	return append(all, join(framed(syn(1)), ack, end), ack, end)
}

func join(parts ...[]byte) (all []byte) {
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

// framed gives bytes of the pipe as frames of a link, of growing sizes.
func framed(b []byte) (out []byte) {
	for at, size := 0, 12; at < len(b); size = min(3*size, maxData) {
		n := min(size, len(b)-at)
		head := make([]byte, headerSize)
		kind := kindData
		if at%2 == 1 {
			kind = kindAsk
		}
		header{kind: kind, length: n, offset: uint64(at)}.put(head)
		out = append(append(out, head...), b[at:at+n]...)
		at += n
	}
	return out
}

func fuzzServer(t *testing.T, in []byte) {
	w := newFakeWorld(plan{}, echo)
	w.server.Survive = func(string) time.Duration { return time.Hour }
	client, server := newFakeLink(-1, -1, false)
	w.serving.Go(func() { _ = w.server.Serve(server, foePeer, testProtocol) })
	must(t, hello{attempt: 1, survive: time.Hour}.write(client))
	_, err := readAnswer(client)
	must(t, err)
	_, _ = client.Write(in)
	_ = client.CloseWrite()
	drain(t, client)
	inTime(t, func() { w.server.Close(proto.CodeStopped) })
	client.Reset()
	w.serving.Wait()
	if used := w.server.Budget.Used(); used != 0 {
		t.Errorf("the server did not give back %d bytes", used)
	}
}

// fuzzClient answers a client that has two streams open and uses one.
func fuzzClient(t *testing.T, in []byte) {
	w := newFakeWorld(plan{}, echo)
	client, server := newFakeLink(-1, -1, false)
	dialled := false
	w.Dial = func(context.Context) (Link, error) {
		if dialled {
			return nil, errCut
		}
		dialled = true
		return client, nil
	}
	must(t, answer{survive: time.Hour}.write(server))
	for range 2 {
		st, err := w.Open(t.Context())
		must(t, err)
		w.serving.Go(func() {
			_, _ = st.Write(binary.BigEndian.AppendUint64(nil, 7))
			echo(st)
		})
	}
	_, _ = server.Write(in)
	_ = server.CloseWrite()
	inTime(t, func() { drainAndClose(t, w, server) })
	server.Reset()
	w.serving.Wait()
	if used := w.Budget.Used(); used != 0 {
		t.Errorf("the client did not give back %d bytes", used)
	}
}

func drainAndClose(t *testing.T, w *fakeWorld, link *fakeLink) {
	drain(t, link)
	w.Client.Close(proto.CodeClosed)
}

// drain reads until the other side has read all, and has let go of the link.
func drain(t *testing.T, link *fakeLink) {
	inTime(t, func() { _, _ = io.Copy(io.Discard, link) })
}

// inTime does not wait for ever for f.
func inTime(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("it hangs: %s", buf[:runtime.Stack(buf, true)])
	}
}

// wantNothingLeft waits for the goroutines that a session's end leaves for a
// moment.
func wantNothingLeft(t *testing.T, before int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines were left: %s", runtime.NumGoroutine()-before, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}
