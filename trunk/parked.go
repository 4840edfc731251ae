package trunk

import "time"

// parkLook is how often a session without a link looks at the clock: a
// laptop's sleep counts, so no timer will do.
const parkLook = time.Second

// wall is the wall clock, without the monotonic one.
func wall() time.Time { return time.Now().Round(0) }

// park waits until the session has had no link for so long, by the wall clock,
// and reports true; false when back is closed, since it has one again, or the
// session has ended.
func (s *session) park(since time.Time, survive time.Duration, back <-chan struct{}) bool {
	tick := time.NewTicker(parkLook)
	defer tick.Stop()
	for {
		select {
		case <-back:
			return false
		case <-s.pipe.ended:
			return false
		case <-tick.C:
			if wall().Sub(since) >= survive {
				return true
			}
		}
	}
}
