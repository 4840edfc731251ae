package node

import "testing"

func TestWhatWaitsToBeSentIsBoundedByThePace(t *testing.T) {
	for pace, want := range map[uint64]int{
		0:             unsentMin,
		1_000_000:     unsentMin,
		5_000_000:     50_000, // 40 Mbit/s
		12_500_000:    125_000,
		1_000_000_000: unsentMax,
		^uint64(0):    unsentMax, // the kernel's word for no bound
	} {
		if got := unsentLimit(pace); got != want {
			t.Errorf("%d bytes a second: %d", pace, got)
		}
	}
}
