package registry

import (
	"errors"
	"io"
	"sync/atomic"
)

// errParked says that a way waits without a goroutine.
var errParked = errors.New("parked")

// way is one direction of a stream.
type way struct {
	dst, src End
	back     *way
	n        atomic.Int64     // bytes that dst took
	sums     [2]*atomic.Int64 // of the tunnel and of the registry, likewise
	pace     *pacer           // nil: as fast as it goes
}

// moved stands still while the way is idle, but not while a rate holds bytes
// back: that is no silence.
func (w *way) moved() int64 {
	n := w.n.Load()
	if w.pace == nil {
		return n
	}
	if w.pace.held.Load() {
		return n + w.pace.looks.Add(1)
	}
	return n + w.pace.looks.Load()
}

// room is how many of n bytes are read at once: no more than may pass soon, so
// that what becomes of src in the meantime is noticed.
func (w *way) room(n int) int {
	if w.pace == nil {
		return n
	}
	return w.pace.room(n)
}

func (w *way) count(n int) {
	w.n.Add(int64(n))
	for _, sum := range w.sums {
		sum.Add(int64(n))
	}
}

// writeError marks an error of the side that is written to.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// copy carries bytes until src ends, which is no error, or a side fails; an
// error of dst is a writeError. It allocates nothing per read, and holds a
// pooled buffer only while bytes are there to fill it.
func (w *way) copy() error {
	err := w.copyReady()
	if err == ErrNotReadable {
		err = w.copyLent()
	}
	if err == ErrNotReadable {
		err = w.copySmallFirst()
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// copyReady serves a socket: there is room for its bytes when they have come,
// and until they are written.
func (w *way) copyReady() error {
	conn, ok := w.src.(*connEnd)
	if !ok {
		return ErrNotReadable
	}
	if f, ok := w.dst.(Framer); ok {
		return w.copyFramed(conn, f)
	}
	pooled := &pooledRoom{}
	for {
		n, err := conn.readReady(pooled, w.room(bufferSize))
		if err != nil {
			return err
		}
		err = w.writeAll(pooled.buf[:n])
		pooled.Release()
		if err != nil {
			return err
		}
	}
}

// copyFramed has the bytes read to where the frame is sent from.
func (w *way) copyFramed(conn *connEnd, f Framer) error {
	frame := frameRoom{f}
	for {
		n, err := conn.readReady(frame, w.room(frameMost))
		if err != nil {
			return err
		}
		if err := w.mayPass(n); err != nil {
			f.Drop()
			return err
		}
		GrowStack()
		sent, err := f.Send(n)
		if err := w.wrote(n, sent, err); err != nil {
			return err
		}
	}
}

// copyLent serves an end that has the bytes already, and lends them.
func (w *way) copyLent() error {
	src, ok := w.src.(Lender)
	if !ok {
		return ErrNotReadable
	}
	pusher, _ := src.(Pusher)
	for {
		if pusher != nil && pusher.Park() {
			return errParked
		}
		b, err := src.Lend(w.room(bufferSize))
		if err != nil {
			return err
		}
		err = w.writeAll(b)
		src.Return()
		if err != nil {
			return err
		}
	}
}

// push has what comes from a Pusher written to a socket by who brings it, as long
// as that takes it at once, without a goroutine of the way's own: one that waits
// costs memory, and a hand-over time. wake makes one that carries the rest. It
// reports whether nothing has come yet: then the way is parked.
func (w *way) push(wake func()) (parked bool) {
	from, ok := w.src.(Pusher)
	if !ok {
		return false
	}
	conn, ok := w.dst.(*connEnd)
	from.Push(func(b []byte) int {
		if !ok || w.pace != nil && !w.pace.free() {
			return 0
		}
		n := conn.writeNow(b)
		w.count(n)
		return n
	}, wake)
	return from.Park()
}

// copySmallFirst serves where src can't be asked whether bytes are there: a
// small read waits; while reads come back full, a pooled buffer serves.
func (w *way) copySmallFirst() error {
	small := make([]byte, smallRead)
	for {
		full, err := w.copyOnce(small)
		if full && err == nil {
			err = w.copyFlow()
		}
		if err != nil {
			return err
		}
	}
}

// copyFlow goes on until a read comes back less than full.
func (w *way) copyFlow() (err error) {
	buf := getBuffer()
	defer putBuffer(buf)
	for full := true; full && err == nil; {
		full, err = w.copyOnce(buf[:])
	}
	return err
}

// copyOnce does one read and one write. full says that the read filled buf, as
// far as there is room.
func (w *way) copyOnce(buf []byte) (full bool, err error) {
	buf = buf[:w.room(len(buf))]
	n, err := w.src.Read(buf)
	if n > 0 {
		if werr := w.writeAll(buf[:n]); werr != nil {
			return false, werr
		}
	}
	return n == len(buf), err
}

// mayPass waits until so many bytes may pass.
func (w *way) mayPass(n int) error {
	for w.pace != nil && n > 0 {
		some, err := w.pace.next(n)
		if err != nil {
			return err
		}
		n -= some
	}
	return nil
}

func (w *way) writeAll(b []byte) error {
	if w.pace == nil {
		return w.write(b)
	}
	for len(b) > 0 {
		n, err := w.pace.next(len(b))
		if err == nil {
			err = w.write(b[:n])
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (w *way) write(b []byte) error {
	n, err := w.dst.Write(b)
	return w.wrote(len(b), n, err)
}

// wrote counts what dst took of so many bytes.
func (w *way) wrote(of, n int, err error) error {
	w.count(n)
	if err != nil {
		return writeError{err}
	}
	if n < of {
		return io.ErrShortWrite
	}
	return nil
}
