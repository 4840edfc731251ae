package registry

import (
	"io"
	"sync/atomic"
)

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
	if err == errNotReadable {
		err = w.copyLent()
	}
	if err == errNotReadable {
		err = w.copySmallFirst()
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// copyReady serves a socket: its buffer comes from the pool when bytes are
// there and goes back once they are written.
func (w *way) copyReady() error {
	conn, ok := w.src.(*connEnd)
	if !ok {
		return errNotReadable
	}
	most := bufferSize
	if f, ok := w.dst.(Framer); ok {
		most = min(most, f.WriteSize())
	}
	for {
		buf, n, err := conn.readPooled(w.room(most))
		if err != nil {
			return err
		}
		err = w.writeAll(buf[:n])
		putBuffer(buf)
		if err != nil {
			return err
		}
	}
}

// copyLent serves an end that has the bytes already, and lends them.
func (w *way) copyLent() error {
	src, ok := w.src.(Lender)
	if !ok {
		return errNotReadable
	}
	for {
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
	w.count(n)
	if err != nil {
		return writeError{err}
	}
	if n < len(b) {
		return io.ErrShortWrite
	}
	return nil
}
