package registry

import (
	"errors"
	"time"

	"p2ptun/proto"
)

// resetGrace is how long a RST of the local side is held back from the peer
// where bytes went before it. A stream's reset overtakes what the peer has
// received and not read; a TCP RST does not, so without the pause a server
// that answers and closes early would lose its answer.
const resetGrace = 100 * time.Millisecond

// byLocal says that an error of a way is the local side's.
func (s *Stream) byLocal(w *way, err error) bool {
	return errors.As(err, new(writeError)) == (w == &s.in)
}

// abortByLocal is abort for a local side that was reset.
func (s *Stream) abortByLocal(code proto.Code) {
	if s.out.n.Load() == 0 {
		s.abort(code)
		return
	}
	if !s.markAborted(code) {
		return
	}
	_ = s.local.Reset(code)
	s.entry.reg.pumps.join(1)
	time.AfterFunc(resetGrace, func() {
		defer s.entry.reg.pumps.leave()
		_ = s.remote.Reset(code)
	})
}
