package mux

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"github.com/libp2p/go-libp2p/core/network"
)

const (
	// leadAfter is how many data frames in a row have to be one stream's before
	// its reader receives by itself, leadMost how many where it stayed away.
	leadAfter = 4
	leadMost  = 4 << 10
	// chunkSize bounds what is set aside at once for what is to come, in bytes.
	chunkSize = 64 << 10
	// leadAway is how long it may stay away from reading.
	leadAway = time.Millisecond
)

// aheadReader is a connection whose reads can be interrupted by a deadline, and
// gone on with. Ahead says that a read would not wait.
type aheadReader interface {
	Ahead() bool
}

// receiver reads frames, one goroutine at a time: the session's loop, or the
// reader of a stream that has the connection to itself, which leads then.
type receiver struct {
	s     *session
	ahead aheadReader   // nil where nobody can lead
	reads atomic.Uint64 // that gave something

	// Of who reads.
	head   [headerSize]byte
	have   int     // of head
	left   int64   // bytes of a payload that are to come
	to     *stream // whose they are; nil: nobody's
	fin    bool    // its way ends with them
	chunk  []byte  // for to, of the pool
	filled int     // of chunk
	last   *stream // whose the last data were
	row    int     // frames of data in a row that were
	turned bool    // something happened that the leader is to look at

	mu     sync.Mutex
	lead   atomic.Pointer[stream] // nil while the loop reads; changed with mu held
	inside bool                   // it reads
	cut    bool                   // it is to stop
	need   int                    // frames in a row before somebody leads
	since  time.Time
	armed  bool
	away   *time.Timer
	back   chan struct{} // holds one where the loop may go on
}

func (r *receiver) init(s *session) {
	r.s = s
	if a, ok := s.conn.(aheadReader); ok {
		r.ahead = a
	}
	r.need = leadAfter
	r.back = make(chan struct{}, 1)
}

// receive reads frames until the session ends, while no stream's reader does.
func (s *session) receive() {
	r := &s.in
	for {
		if _, err := r.step(nil, nil); err != nil {
			s.end(errEOF(err))
			r.release()
			return
		}
		s.out.slow()
		if !r.handOver() {
			continue
		}
		select {
		case <-r.back:
		case <-s.done:
			return
		}
	}
}

// release gives back the chunk that is read to.
func (r *receiver) release() {
	if r.chunk != nil {
		pool.Put(r.chunk)
		r.chunk = nil
	}
}

// step reads a header, or a part of a payload: into b where it is that stream's,
// for which nothing else is there.
func (r *receiver) step(st *stream, b []byte) (n int, err error) {
	switch {
	case r.left == 0:
		return 0, r.header()
	case st != nil && st == r.to && r.filled == 0:
		return r.direct(st, b)
	}
	return 0, r.fill()
}

func (r *receiver) isAhead() bool { return r.ahead == nil || r.ahead.Ahead() }

// direct reads as much of a payload as is there, at least one byte, into b.
func (r *receiver) direct(st *stream, b []byte) (n int, err error) {
	for err == nil && n < len(b) && r.left > 0 && (n == 0 || r.isAhead()) {
		var m int
		m, err = r.input(b[n:min(int64(len(b)), int64(n)+r.left)])
		n, r.left = n+m, r.left-int64(m)
	}
	if n > 0 {
		r.complete()
	}
	return n, err
}

// input reads from the connection.
func (r *receiver) input(b []byte) (n int, err error) {
	if n, err = r.s.conn.Read(b); n > 0 {
		r.reads.Add(1)
	}
	return n, err
}

// fill reads a part of a payload for whose it is.
func (r *receiver) fill() error {
	if r.chunk == nil {
		r.chunk, r.filled = pool.Get(int(min(r.left, chunkSize))), 0
	}
	end := min(int64(len(r.chunk)), int64(r.filled)+r.left)
	n, err := r.input(r.chunk[r.filled:end])
	r.filled, r.left = r.filled+n, r.left-int64(n)
	if r.filled > 0 && (r.left == 0 || r.filled == len(r.chunk) || !r.isAhead()) {
		r.deliver()
	}
	r.complete()
	return err
}

// deliver gives a stream what was read for it.
func (r *receiver) deliver() {
	if r.to != nil && r.to.arrive(r.chunk, r.filled) {
		r.chunk = nil
	}
	r.filled = 0
	r.turned = true
}

// complete ends a frame of data that has come to its end.
func (r *receiver) complete() {
	if r.left > 0 {
		return
	}
	r.release()
	if r.fin && r.to != nil {
		r.to.finish()
		r.turned = true
	}
	r.to, r.fin = nil, false
}

// header reads a header and does what it says.
func (r *receiver) header() error {
	for r.have < headerSize {
		n, err := r.input(r.head[r.have:])
		if r.have += n; err != nil {
			return err
		}
	}
	r.have = 0
	h, err := parseHeader(&r.head)
	if err != nil {
		return err
	}
	switch h.kind {
	case kindPing:
		r.ping(h)
		return nil
	case kindGoAway:
		return &network.ConnError{Remote: true, ErrorCode: network.ConnErrorCode(h.length), TransportError: errAway}
	}
	return r.ofStream(h)
}

var errAway = errors.New("yamux: the peer ends the session")

func (r *receiver) ping(h header) {
	if h.has(flagSYN) {
		r.s.out.soon(header{kind: kindPing, flags: flagACK, length: h.length})
		return
	}
	r.s.pong(h.length)
}

func (r *receiver) ofStream(h header) error {
	if h.has(flagSYN) {
		if err := r.s.begin(h.id); err != nil {
			return err
		}
	}
	st := r.s.find(h.id)
	if st != nil && h.flags&(flagACK|flagRST) != 0 {
		st.obey(h)
		r.turned = true
	}
	if h.kind == kindWindow {
		if st != nil && !h.has(flagRST) {
			st.allow(h.length)
		}
		if st != nil && h.has(flagFIN) {
			st.finish()
			r.turned = true
		}
		return nil
	}
	if st != nil && !st.expect(h.length) {
		r.s.out.farewell(header{kind: kindGoAway, length: awayProtocol})
		return fmt.Errorf("%w: %d bytes beyond a stream's window", errFrame, h.length)
	}
	r.count(st)
	r.to, r.left, r.fin = st, int64(h.length), h.has(flagFIN)
	r.complete()
	return nil
}

// count notes whose data comes.
func (r *receiver) count(st *stream) {
	if st != r.last {
		r.last, r.row = st, 0
	}
	r.row++
}

// handOver has the reader of a stream receive, where all that comes is that
// stream's. The loop calls it, between frames.
func (r *receiver) handOver() bool {
	if r.ahead == nil || r.left > 0 || r.have > 0 || r.last == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.row < r.need {
		return false
	}
	r.lead.Store(r.last)
	if !r.last.mayLead() {
		r.lead.Store(nil)
		return false
	}
	r.stay()
	return true
}

// stay gives the leader some time to come back. Call it with mu held.
func (r *receiver) stay() {
	r.since = time.Now()
	if r.armed {
		return
	}
	r.armed = true
	if r.away == nil {
		r.away = time.AfterFunc(leadAway, r.look)
		return
	}
	r.away.Reset(leadAway)
}

// look has the loop go on where the leader stays away.
func (r *receiver) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.armed = false
	if r.lead.Load() == nil || r.inside {
		return
	}
	if rest := leadAway - time.Since(r.since); rest > 0 {
		r.armed = true
		r.away.Reset(rest)
		return
	}
	r.need = min(2*r.need, leadMost)
	r.depose()
}

// depose has the loop go on. Call it with mu held.
func (r *receiver) depose() {
	r.lead.Store(nil)
	r.row = 0
	r.back <- struct{}{}
}

// leads says that a stream's reader is to receive.
func (r *receiver) leads(st *stream) bool { return r.lead.Load() == st }

// revoke has the reader of a stream look at it again, and receive no more.
func (r *receiver) revoke(st *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.leads(st):
	case r.inside:
		r.cut = true
		_ = r.s.conn.SetReadDeadline(time.Unix(1, 0))
	default:
		r.depose()
	}
}

// read receives for a stream that leads, until there is data for it or
// something else has happened to it. It reports busy where another of the
// stream's readers does. What it gives is to be consumed: that may have to wait
// until the peer takes a frame, and meanwhile nobody must be kept from receiving.
func (r *receiver) read(st *stream, b []byte) (n int, busy bool) {
	r.mu.Lock()
	if !r.leads(st) || r.inside {
		defer r.mu.Unlock()
		return 0, r.leads(st)
	}
	r.inside = true
	r.mu.Unlock()
	r.turned = st.hasNews() // of what came before it led
	var err error
	for n == 0 && err == nil && !r.turned {
		n, err = r.step(st, b)
		r.s.out.slow()
	}
	r.leave(err)
	return n, false
}

// leave ends a leader's read.
func (r *receiver) leave(err error) {
	r.mu.Lock()
	r.inside = false
	foreign := r.turned
	if r.cut {
		r.cut = false
		_ = r.s.conn.SetReadDeadline(time.Time{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
		foreign = true
	}
	switch {
	case err != nil || foreign:
		r.depose()
	default:
		r.need = leadAfter
		r.stay()
	}
	r.mu.Unlock()
	if err != nil {
		r.s.end(errEOF(err))
	}
}
