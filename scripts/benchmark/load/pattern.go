// Package load is both ends of what is measured: the service behind a tunnel
// and its client.
package load

import (
	"encoding/binary"
	"fmt"
)

// What is sent is a pattern of the position: each stampEvery bytes begin with
// their position, the rest tells its own place within them. Checks are spot
// checks, so that they cost next to nothing.

const (
	blockSize  = 256 << 10
	stampEvery = 4 << 10
	stampSize  = 8
)

// at is the pattern's byte at a position that is not within a stamp.
func at(pos int64) byte { return byte(pos*7 + pos>>8) }

// source gives the pattern, block by block.
type source struct {
	pos   int64
	block []byte
}

func newSource() *source {
	s := &source{block: make([]byte, blockSize)}
	for i := range s.block {
		s.block[i] = at(int64(i) % stampEvery)
	}
	return s
}

// next gives the next bytes, at most a block and at most left; they are good
// until the next call.
func (s *source) next(left int64) []byte {
	for i := int64(0); i < blockSize; i += stampEvery {
		binary.BigEndian.PutUint64(s.block[i:], uint64(s.pos+i))
	}
	n := min(blockSize, left)
	s.pos += n
	return s.block[:n]
}

// checker looks at the pattern as it arrives.
type checker struct{ pos int64 }

// take looks at each stamp that is whole in b, and at b's last byte.
func (c *checker) take(b []byte) error {
	first := (c.pos + stampEvery - 1) / stampEvery * stampEvery
	for p := first; p+stampSize <= c.pos+int64(len(b)); p += stampEvery {
		if got := binary.BigEndian.Uint64(b[p-c.pos:]); got != uint64(p) {
			return fmt.Errorf("the bytes at %d are those of %d", p, got)
		}
	}
	c.pos += int64(len(b))
	if in := (c.pos - 1) % stampEvery; len(b) > 0 && in >= stampSize && b[len(b)-1] != at(in) {
		return fmt.Errorf("the byte at %d is wrong", c.pos-1)
	}
	return nil
}
