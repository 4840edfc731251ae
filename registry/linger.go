package registry

import (
	"errors"
	"io"
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

// mayLinger tells a side that is gone from one that was reset: see End. The
// local side's way out says by itself whether it was cut off, and after what.
func (s *Stream) mayLinger(w *way, writeErr error) bool {
	var reset *ResetError
	return w == &s.in || !errors.As(writeErr, &reset) || reset.Code == proto.CodeNone
}

// linger drops what comes for a side that takes no more. It returns nil when
// that ends in time.
func (s *Stream) linger(w *way, cause error) error {
	dog := s.watch(lingerTime, w.back.moved, resetCode(cause))
	defer dog.stop()
	err := drop(w.src)
	if err == io.EOF {
		return nil
	}
	if err != nil {
		return err
	}
	<-s.abortion()
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

// abortion is closed when the stream is aborted.
func (s *Stream) abortion() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborting == nil {
		s.aborting = make(chan struct{})
		if s.aborted {
			close(s.aborting)
		}
	}
	return s.aborting
}
