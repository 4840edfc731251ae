package trunk

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// errCut is what a fake link fails with that was cut.
var errCut = errors.New("cut")

// wire is one way of a fake link: bytes that were written and not read yet.
type wire struct {
	mu      sync.Mutex
	changed sync.Cond
	data    []byte
	written int
	left    int  // bytes that it still carries before it cuts the link; -1: no end
	lossy   bool // what was not read at the cut is lost
	err     error
	late    bool // reads are over
	cut     func()
}

func newWire(left int, lossy bool) *wire {
	w := &wire{left: left, lossy: lossy}
	w.changed.L = &w.mu
	return w
}

func (w *wire) write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	n := len(b)
	if w.left >= 0 {
		n = min(n, w.left)
		w.left -= n
	}
	w.data = append(w.data, b[:n]...)
	w.written += n
	w.changed.Broadcast()
	if w.left == 0 {
		go w.cut()
		return n, errCut
	}
	return n, nil
}

func (w *wire) read(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.late:
			return 0, os.ErrDeadlineExceeded
		case len(w.data) > 0:
			n := copy(b, w.data)
			w.data = w.data[n:]
			return n, nil
		case w.err != nil:
			return 0, w.err
		}
		w.changed.Wait()
	}
}

func (w *wire) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	if err != io.EOF && w.lossy {
		w.data = nil
	}
	w.changed.Broadcast()
}

// fakeLink is one end of a link in memory.
type fakeLink struct{ in, out *wire }

// newFakeLink makes a link that is cut when so many bytes have gone that way
// from the client, or from the server; -1 for never.
func newFakeLink(fromClient, fromServer int, lossy bool) (client, server *fakeLink) {
	up, down := newWire(fromClient, lossy), newWire(fromServer, lossy)
	client, server = &fakeLink{in: down, out: up}, &fakeLink{in: up, out: down}
	up.cut, down.cut = client.Reset, client.Reset
	return client, server
}

func (l *fakeLink) Read(b []byte) (int, error)  { return l.in.read(b) }
func (l *fakeLink) Write(b []byte) (int, error) { return l.out.write(b) }
func (l *fakeLink) CloseWrite() error           { l.out.end(io.EOF); return nil }
func (l *fakeLink) Reset()                      { l.in.end(errCut); l.out.end(errCut) }

func (l *fakeLink) SetReadDeadline(t time.Time) error {
	l.in.mu.Lock()
	defer l.in.mu.Unlock()
	l.in.late = !t.IsZero()
	l.in.changed.Broadcast()
	return nil
}
