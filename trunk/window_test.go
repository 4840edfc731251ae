package trunk

import (
	"io"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// TestAWindowIsAheadOfItsSender: one that waited until it is used up would hold
// back a sender that doubles its rate each round trip, once each time.
func TestAWindowIsAheadOfItsSender(t *testing.T) {
	const trip = 100 * time.Millisecond
	for _, c := range []struct {
		trip, half time.Duration // that the use of half a window takes
		unread     uint64
		want       uint64
	}{
		{trip, windowTrips*trip - 1, 0, 2 * windowStart},
		{trip, windowTrips * trip, 0, windowStart},
		{trip, 0, 1, windowStart},
		{0, 0, 0, windowStart},
	} {
		bubble(t, func(t *testing.T) {
			p := newPipe(nil, func(*attachment, error) {})
			p.quickest.Store(int64(c.trip))
			st := newStream(&session{pipe: p, control: newControl(nil)}, new(yamux.Stream))
			st.widen(windowStart, budgetForAll)
			time.Sleep(c.half)
			st.got += windowStart/2 + c.unread
			st.consume(windowStart / 2)
			if st.window != c.want {
				t.Errorf("%+v: a window of %d", c, st.window)
			}
		})
	}
}

// TestAnUploadBeginsWithoutWaiting: a form or the start of a file is at the far end
// after one way of the link, with the credit that its stream was given before it
// was opened; of more streams than are foreseen too, once the first are there.
func TestAnUploadBeginsWithoutWaiting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		came := make(chan time.Time, 3*aheadStreams)
		w := newFakeWorld(plan{}, func(st *Stream) {
			if _, err := io.CopyN(io.Discard, st, aheadWindow); err == nil {
				came <- time.Now()
			}
			_ = st.Close()
		})
		w.far()
		for round := range 3 {
			began := time.Now()
			for range aheadStreams {
				st := w.ask(t, 'u')
				_, err := st.Write(make([]byte, aheadWindow-1))
				must(t, err)
				must(t, st.CloseWrite())
			}
			for range aheadStreams {
				if took := (<-came).Sub(began); took > farDelay && round > 0 {
					t.Errorf("round %d: %s", round, took)
				}
			}
			time.Sleep(2 * farDelay)
		}
		w.close()
	})
}

// TestCreditForAStreamThatIsNotThereIsForgotten: only what may be opened next is
// noted, and of a side that opens none nothing.
func TestCreditForAStreamThatIsNotThereIsForgotten(t *testing.T) {
	for initer, want := range map[bool]int{true: 2 * aheadStreams, false: 0} {
		s := &session{initer: initer, ahead: map[uint32]uint64{}, opened: 101}
		for id := range uint32(1000) {
			s.promised(id, 1<<40)
		}
		if len(s.ahead) != want {
			t.Errorf("initer %v: %d streams", initer, len(s.ahead))
		}
		for id, credit := range s.ahead {
			if id <= s.opened || credit > windowMax {
				t.Errorf("stream %d: %d bytes", id, credit)
			}
		}
	}
}

// TestWhoNeedsLittleHasLittle: where memory is short, who never had to wait is
// given no window.
func TestWhoNeedsLittleHasLittle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(DefaultBudget)
		budget.take(100<<20, 1)
		p := newPipe(nil, func(*attachment, error) {})
		p.quickest.Store(int64(100 * time.Millisecond))
		st := newStream(&session{pipe: p, control: newControl(nil), budget: budget.part(trunkBudget)}, new(yamux.Stream))
		st.widen(windowStart, budgetForStart) // refused
		for range 5 {
			time.Sleep(300 * time.Millisecond)
			st.got += leastWindow / 2
			st.consume(leastWindow / 2)
		}
		if st.window != leastWindow {
			t.Errorf("a window of %d", st.window)
		}
	})
}

// TestAWindowDoublesWhereFourTimesIsTooMuch: what the budget has room for is given.
func TestAWindowDoublesWhereFourTimesIsTooMuch(t *testing.T) {
	for room, want := range map[int64]uint64{3 * windowStart: 4 * windowStart, 3*windowStart - 1: 2 * windowStart, windowStart - 1: windowStart} {
		bubble(t, func(t *testing.T) {
			budget := NewBudget(1 << 40)
			p := newPipe(nil, func(*attachment, error) {})
			p.quickest.Store(int64(100 * time.Millisecond))
			st := newStream(&session{pipe: p, control: newControl(nil), budget: budget}, new(yamux.Stream))
			st.widen(windowStart, budgetForStart)
			share := budgetForAll // a variable: as the budget itself reckons
			budget.used.Store(int64(float64(budget.max)*share) - room)
			time.Sleep(time.Millisecond)
			st.got += windowStart / 4
			st.consume(windowStart / 4)
			if st.window != want {
				t.Errorf("room for %d: a window of %d", room, st.window)
			}
		})
	}
}

// TestNoCreditIsGivenBeyondTheLastStream: ids do not begin again.
func TestNoCreditIsGivenBeyondTheLastStream(t *testing.T) {
	s := &session{budget: NewBudget(DefaultBudget), ahead: map[uint32]uint64{}, control: newControl(nil), highest: 1<<32 - 7}
	s.promise()
	if len(s.ahead) != 3 || s.ahead[1<<32-1] == 0 {
		t.Errorf("streams %v are foreseen", s.ahead)
	}
}

// TestWhatCameEarlyIsOffered: to who takes what comes, with its credit; what that
// does not take stays for the reader.
func TestWhatCameEarlyIsOffered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for takes, want := range map[int]string{0: "hello", 2: "llo", 5: ""} {
			st := newStream(&session{pipe: newPipe(nil, nil), control: newControl(nil)}, new(yamux.Stream))
			_, err := st.deliver(&body{[]byte("hello")}, 5)
			must(t, err)
			left := takes
			st.Push(func(b []byte) int {
				n := min(left, len(b))
				left -= n
				return n
			}, func() {})
			if rest := string(st.inbox.head()); rest != want || st.consumed != uint64(takes) || st.Park() != (want == "") {
				t.Errorf("of 5 bytes %d are taken: %q is left, %d count as read, parked %v", takes, rest, st.consumed, st.parked)
			}
		}
	})
}
