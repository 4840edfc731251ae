package trunk

import "sync"

// body holds what one yamux frame carries.
type body struct{ b []byte }

var (
	smallBodies = sync.Pool{New: func() any { return &body{make([]byte, smallBody)} }}
	largeBodies = sync.Pool{New: func() any { return &body{make([]byte, maxBody)} }}
)

// newBody makes room for n bytes, up to maxBody.
func newBody(n int) *body {
	if n > smallBody {
		return largeBodies.Get().(*body)
	}
	return smallBodies.Get().(*body)
}

func (w *body) free() {
	if len(w.b) > smallBody {
		largeBodies.Put(w)
		return
	}
	smallBodies.Put(w)
}

// isFull says that with so many bytes it goes to its stream as it is; fewer are
// copied, so that a stream with little holds little.
func (w *body) isFull(n int) bool { return n >= len(w.b)/4 }

// inbox is what came for a stream and was not read yet, in order.
type inbox struct {
	list []piece
	size int // bytes of all
}

// piece is bytes in the order they came; whole is where they lie, nil for bytes
// of their own.
type piece struct {
	data  []byte
	whole *body
}

// put takes a copy of b.
func (in *inbox) put(b []byte) {
	in.size += len(b)
	if last := len(in.list) - 1; last >= 0 && in.list[last].whole == nil && cap(in.list[last].data)-len(in.list[last].data) >= len(b) {
		in.list[last].data = append(in.list[last].data, b...)
		return
	}
	in.list = append(in.list, piece{data: append([]byte(nil), b...)})
}

// keep takes a body of the pool, and of its bytes those from one on, up to
// another.
func (in *inbox) keep(whole *body, from, to int) {
	in.size += to - from
	in.list = append(in.list, piece{data: whole.b[from:to], whole: whole})
}

// head is the next bytes to read; nil for none.
func (in *inbox) head() []byte {
	if len(in.list) == 0 {
		return nil
	}
	return in.list[0].data
}

// drop forgets n bytes of the head.
func (in *inbox) drop(n int) {
	in.size -= n
	p := &in.list[0]
	if p.data = p.data[n:]; len(p.data) > 0 {
		return
	}
	if p.whole != nil {
		p.whole.free()
	}
	*p = piece{}
	if in.list = in.list[1:]; len(in.list) == 0 {
		in.list = nil
	}
}

// clear forgets all. What is read at the moment stays for the collector.
func (in *inbox) clear() { *in = inbox{} }
