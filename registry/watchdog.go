package registry

import (
	"time"

	"p2ptun/proto"
)

// looks is how often a watchdog looks within its limit, so that a reset comes
// up to a quarter late, and a stream with traffic costs no more than that.
const looks = 4

// watchdog resets a stream when a count has not moved for the limit.
type watchdog struct {
	s     *Stream
	count func() int64
	step  time.Duration
	code  proto.Code

	seen  int64 // by the timer only, as quiet
	quiet int

	// Guarded by s.mu.
	timer   *time.Timer
	stopped bool
}

func (s *Stream) watch(limit time.Duration, count func() int64, code proto.Code) *watchdog {
	w := &watchdog{s: s, count: count, step: max(limit/looks, time.Millisecond), code: code, seen: count()}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.timer = time.AfterFunc(w.step, w.look)
	return w
}

func (w *watchdog) look() {
	if now := w.count(); now != w.seen {
		w.seen, w.quiet = now, 0
	} else {
		w.quiet++
	}
	if w.bites() {
		defer w.s.entry.reg.pumps.leave()
		w.s.abort(w.code)
	}
}

// bites says whether the limit is reached; if not, there will be another look.
// The look that bites joins the pump's goroutines, to be waited for.
func (w *watchdog) bites() bool {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.stopped || w.s.ended == 2 {
		return false
	}
	if w.quiet < looks {
		w.timer.Reset(w.step)
		return false
	}
	w.s.entry.reg.pumps.join(1)
	return true
}

func (w *watchdog) stop() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
}
