package trunk

import "time"

// trip measures how long a link takes from a byte to its ack: one at a time.
type trip struct {
	offset      uint64 // whose ack ends it; 0 while none is under way
	began       time.Time
	old         bool          // it began before forget
	least, last time.Duration // 0 for none
	alone       bool          // it has the link to itself
	ended       int           // how many of those have, up to fewTrips
	load        uint64        // bytes that were under way with it, its own included
	frame       time.Duration // how long the largest frame takes by the last; 0 before the first
}

// fewTrips are measured of what has the link to itself: these are the quickest.
const fewTrips = 8

// few says that the quickest may be quicker still.
func (t *trip) few() bool { return t.ended < fewTrips }

func (t *trip) begin(offset uint64, alone bool, load uint64) {
	if t.offset == 0 {
		t.offset, t.began, t.old, t.alone, t.load = offset, time.Now(), false, alone, load
	}
}

func (t *trip) end(acked uint64) {
	if t.offset == 0 || acked < t.offset {
		return
	}
	took := time.Since(t.began)
	if t.least == 0 || took < t.least {
		t.least = took
	}
	if !t.old {
		t.last = took
	}
	t.frame = max(1, time.Duration(float64(took)*maxData/float64(t.load)))
	t.offset = 0
	if t.alone {
		t.ended = min(t.ended+1, fewTrips)
	}
}

// forget drops the last: more is under way from now on.
func (t *trip) forget() { t.last, t.old = 0, true }

// isQuick says that the largest frame keeps nobody waiting for long.
func (t *trip) isQuick() bool { return t.frame > 0 && t.frame <= quickFrame }

// isSlow says that bytes that wait for their turn keep others waiting.
func (t *trip) isSlow() bool { return t.frame > slowFrame }

// isShort says that no more waits on the way than the way itself holds: the
// last round trip took at most twice as long as the quickest.
func (t *trip) isShort() bool { return t.last > 0 && t.last <= 2*t.least }

// lossTrips is how many of the quickest round trips it may take until a byte that
// was lost, with those that repeat it, and all behind it are acknowledged.
const lossTrips = 8

// holds says that so many bytes go to the peer within lossTrips, by the last
// measurement: more would wait where the peer reads, which no sender's pace sees.
func (t *trip) holds(n int) bool {
	return t.least > 0 && float64(n)*float64(t.frame) <= lossTrips*maxData*float64(t.least)
}
