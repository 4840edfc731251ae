package registry

import "io"

// writeError marks an error of the side that is written to.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// copyEnd carries bytes until src ends, which is no error, or a side fails; an
// error of dst is a writeError. It allocates nothing per read, and holds a
// pooled buffer only while bytes are there to fill it.
func copyEnd(dst, src End, count func(int)) error {
	err := copyReady(dst, src, count)
	if err == errNotReadable {
		err = copySmallFirst(dst, src, count)
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// copyReady serves a socket: its buffer comes from the pool when bytes are
// there and goes back once they are written.
func copyReady(dst, src End, count func(int)) error {
	conn, ok := src.(*connEnd)
	if !ok {
		return errNotReadable
	}
	for {
		buf, n, err := conn.readPooled()
		if err != nil {
			return err
		}
		err = writeAll(dst, buf[:n], count)
		putBuffer(buf)
		if err != nil {
			return err
		}
	}
}

// copySmallFirst serves where src can't be asked whether bytes are there: a
// small read waits; while reads come back full, a pooled buffer serves.
func copySmallFirst(dst, src End, count func(int)) error {
	small := make([]byte, smallRead)
	for {
		full, err := copyOnce(dst, src, small, count)
		if full && err == nil {
			err = copyFlow(dst, src, count)
		}
		if err != nil {
			return err
		}
	}
}

// copyFlow goes on until a read comes back less than full.
func copyFlow(dst, src End, count func(int)) (err error) {
	buf := getBuffer()
	defer putBuffer(buf)
	for full := true; full && err == nil; {
		full, err = copyOnce(dst, src, buf[:], count)
	}
	return err
}

// copyOnce does one read and one write. full says that the read filled buf.
func copyOnce(dst, src End, buf []byte, count func(int)) (full bool, err error) {
	n, err := src.Read(buf)
	if n > 0 {
		if werr := writeAll(dst, buf[:n], count); werr != nil {
			return false, werr
		}
	}
	return n == len(buf), err
}

func writeAll(dst End, b []byte, count func(int)) error {
	n, err := dst.Write(b)
	count(n)
	if err != nil {
		return writeError{err}
	}
	if n < len(b) {
		return io.ErrShortWrite
	}
	return nil
}
