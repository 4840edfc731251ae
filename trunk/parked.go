package trunk

import (
	"time"

	"p2ptun/registry"
)

// parkLook is how often a session without a link looks at the clocks: a
// laptop's sleep counts, so no timer will do.
const parkLook = time.Second

// wall is the wall clock, without the monotonic one.
func wall() time.Time { return time.Now().Round(0) }

// park waits until the session has had no link for so long, by the wall clock
// or by the one that nobody sets back, and reports true; false when back is
// closed, since it has one again, or the session has ended.
func (s *session) park(since time.Time, survive time.Duration, back <-chan struct{}) bool {
	began := time.Now()
	tick := time.NewTicker(min(parkLook, max(survive, time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-back:
			return false
		case <-s.pipe.ended:
			return false
		case <-tick.C:
			if wall().Sub(since) >= survive || time.Since(began) >= survive {
				return true
			}
		}
	}
}

// parked notes that there is no link any more.
func (s *session) parked(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fate.Parked = since
}

// resumed notes that there is a link again, and gives the event.
func (s *session) resumed(away time.Duration, replayed uint64) Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fate.Parked = time.Time{}
	s.fate.Resumed++
	s.fate.AwayMs += away.Milliseconds()
	s.fate.Replayed += replayed
	return Event{Op: Resumed, Away: away, Replayed: replayed, Streams: s.live}
}

// moved notes that another link has taken the place of one, and gives the
// event.
func (s *session) moved(from registry.Path, replayed uint64) Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fate.Moved++
	s.fate.Replayed += replayed
	return Event{Op: Moved, From: from, Replayed: replayed, Streams: s.live}
}

// status is how the session has fared until now.
func (s *session) status() registry.TrunkStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fate
}
