package registry

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"p2ptun/proto"
)

// Lingering: a side takes no more, as a program that has sent everything and
// closed its socket. What it has sent is still under way, and a reset would
// destroy it. So what comes for it is dropped up to lingerBytes, then kept
// waiting, until that ends, or nothing of the other way has moved for
// lingerTime. If the side was reset in truth, its way out says so at once.
const (
	lingerTime  = 10 * time.Second
	lingerBytes = 1 << 20
)

// takesNoMore tells a side that is gone from one that was reset: see End.
func takesNoMore(err error) bool {
	if !errors.As(err, new(writeError)) {
		return false
	}
	var reset *ResetError
	return !errors.As(err, &reset) || reset.Code == proto.CodeNone
}

// linger drops what src sends to a side that takes no more; back counts what
// that side has sent. It returns nil when src ends in time.
func (s *Stream) linger(src End, back *atomic.Int64, cause error) error {
	dog := s.watch(lingerTime, back.Load, resetCode(cause))
	defer dog.stop()
	err := drop(src)
	if err == io.EOF {
		return nil
	}
	if err != nil {
		return err
	}
	s.untilAborted()
	return cause
}

// drop reads up to lingerBytes, which is no error.
func drop(src End) error {
	b := make([]byte, smallRead)
	for taken := 0; taken < lingerBytes; {
		n, err := src.Read(b)
		if err != nil {
			return err
		}
		taken += n
	}
	return nil
}

func (s *Stream) untilAborted() {
	s.mu.Lock()
	if s.aborted {
		s.mu.Unlock()
		return
	}
	if s.aborting == nil {
		s.aborting = make(chan struct{})
	}
	aborting := s.aborting
	s.mu.Unlock()
	<-aborting
}
