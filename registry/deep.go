package registry

// GrowStack has the calling goroutine's stack grow to 8 KiB at once, at the
// start of one that is about to call deeply: otherwise it is copied each time
// that it doubles, frame by frame, which is a tenth of what a short connection
// costs. An idle goroutine's is halved by the garbage collector as before.
//
//go:noinline
func GrowStack() (first byte) {
	var room [5 << 10]byte
	return room[grown]
}

var grown int // 0; the compiler does not know
