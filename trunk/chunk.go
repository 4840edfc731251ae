package trunk

import (
	"slices"
	"sync"
)

// chunk holds bytes that were written to the pipe and not acknowledged yet,
// with room for a frame's header in front, so that they go out as they are.
type chunk struct {
	start uint64 // offset of the first byte
	n     int
	buf   []byte // of headerSize and smallData, or of headerSize and maxData
}

var (
	smallChunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, headerSize+smallData)} }}
	largeChunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, headerSize+maxData)} }}
)

func newChunk(start uint64) *chunk {
	c := smallChunks.Get().(*chunk)
	c.start, c.n = start, 0
	return c
}

// free gives a chunk back.
func (c *chunk) free() {
	if c.size() > smallData {
		largeChunks.Put(c)
		return
	}
	smallChunks.Put(c)
}

// size is how many bytes there is room for.
func (c *chunk) size() int { return len(c.buf) - headerSize }

// isWhole says that so many bytes are to go out from the chunk: fewer would
// waste its room for as long as they are kept.
func (c *chunk) isWhole(n int) bool { return n >= c.size()/2 }

func (c *chunk) end() uint64 { return c.start + uint64(c.n) }

// fill takes as much of b as there is room for.
func (c *chunk) fill(b []byte) int {
	n := copy(c.buf[headerSize+c.n:], b)
	c.n += n
	return n
}

// head and body are where a yamux frame lies that fills the chunk.
func (c *chunk) head() []byte { return c.buf[headerSize:][:muxHeader] }
func (c *chunk) body() []byte { return c.buf[headerSize+muxHeader:] }

// from is what the chunk holds from an offset in it on.
func (c *chunk) from(offset uint64) []byte {
	return c.buf[headerSize+int(offset-c.start) : headerSize+c.n]
}

// history is the bytes from the oldest that is not acknowledged to the newest.
type history struct {
	list []*chunk
	next uint64 // offset after the newest
}

// wholeFrame is from how many bytes on a frame begins a chunk of its own, so
// that it goes out at once; smaller ones share.
const wholeFrame = smallData / 2

// append takes all of a frame.
func (h *history) append(head, body []byte) {
	if size := len(head) + len(body); size >= wholeFrame && h.left() < size {
		h.grow()
	}
	h.add(head)
	h.add(body)
}

// take takes a chunk with so many bytes in it.
func (h *history) take(c *chunk, n int) {
	c.start, c.n = h.next, n
	h.list = append(h.list, c)
	h.next += uint64(n)
}

// left is how much fits into the newest chunk.
func (h *history) left() int {
	if len(h.list) == 0 {
		return 0
	}
	last := h.list[len(h.list)-1]
	return last.size() - last.n
}

func (h *history) grow() { h.list = append(h.list, newChunk(h.next)) }

func (h *history) add(b []byte) {
	for len(b) > 0 {
		if h.left() == 0 {
			h.grow()
		}
		n := h.list[len(h.list)-1].fill(b)
		b, h.next = b[n:], h.next+uint64(n)
	}
}

// drop forgets what lies before an offset. A chunk that busy is being written
// from is left to the collector.
func (h *history) drop(before uint64, busy *chunk) {
	i := 0
	for i < len(h.list) && h.list[i].end() <= before && (i < len(h.list)-1 || h.list[i].end() == h.next) {
		if h.list[i] != busy {
			h.list[i].free()
		}
		h.list[i] = nil
		i++
	}
	h.list = h.list[i:]
	if len(h.list) == 0 {
		h.list = nil
	}
}

// at finds the chunk that holds the byte at an offset, which is one of the
// history's.
func (h *history) at(offset uint64) *chunk {
	i, _ := slices.BinarySearchFunc(h.list, offset, func(c *chunk, at uint64) int {
		if c.end() <= at {
			return -1
		}
		return 0
	})
	return h.list[i]
}
