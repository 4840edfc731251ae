//go:build unix

package registry

import (
	"bytes"
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

func readyWriterOf(t *testing.T, c syscall.Conn) *ReadyWriter {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	w, err := NewReadyWriter(raw)
	must(t, err)
	return w
}

func TestReadyWriterWritesMoreThanTheSocketHolds(t *testing.T) {
	reader, c := tcpPair(t)
	w := readyWriterOf(t, c)
	want := pattern(64 << 20)
	done := background(func() error {
		for _, b := range [][]byte{nil, want[:1], want[1:]} {
			if n, err := w.Write(b); n != len(b) || err != nil {
				return errors.Join(err, os.ErrInvalid)
			}
		}
		return nil
	})
	if got := readN(t, reader, len(want)); !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
	must(t, <-done)
}

// A Write that waits ends as that of a net.Conn would, and says how far it came.
func TestReadyWriterIsToldWhyItWaitsInVain(t *testing.T) {
	much := make([]byte, 64<<20)
	for name, c := range map[string]struct {
		stop func(reader, writer *net.TCPConn) error
		want []error // one of them
	}{
		"deadline":    {func(_, w *net.TCPConn) error { return w.SetWriteDeadline(time.Now()) }, []error{os.ErrDeadlineExceeded}},
		"closed":      {func(_, w *net.TCPConn) error { return w.Close() }, []error{net.ErrClosed}},
		"reset by it": {func(r, _ *net.TCPConn) error { return errors.Join(r.SetLinger(0), r.Close()) }, []error{syscall.ECONNRESET, syscall.EPIPE}},
	} {
		reader, conn := tcpPair(t)
		w := readyWriterOf(t, conn)
		var n int
		done := background(func() (err error) { n, err = w.Write(much); return err })
		readN(t, reader, 1)
		must(t, c.stop(reader, conn))
		err := <-done
		if n == 0 || n == len(much) {
			t.Errorf("%s: %d bytes", name, n)
		}
		if !slices.ContainsFunc(c.want, func(target error) bool { return errors.Is(err, target) }) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestASocketThatBlocksHoldsNoProcessor: its owner may have asked for its file, which
// makes it one. The scheduler does not know of our calls, and nothing else would run.
func TestASocketThatBlocksHoldsNoProcessor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	far, near := tcpPair(t)
	raw, err := near.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = syscall.SetNonblock(int(fd), false) }))
	must(t, err)
	r, err := NewReadyReader(near)
	must(t, err)
	room := &pooledRoom{}
	read := background(func() error { _, err := r.Read(room, 10); return err })
	runtime.Gosched() // it waits
	must(t, writeOf(far, []byte("x"))())
	must(t, <-read)
	room.Release()
	w := readyWriterOf(t, near)
	want := pattern(64 << 20)
	wrote := background(func() error { _, err := w.Write(want); return err })
	runtime.Gosched()
	if got := readN(t, far, len(want)); !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
	must(t, <-wrote)
}
