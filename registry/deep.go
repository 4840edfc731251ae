package registry

// GrowStack has the calling goroutine's stack grow to 8 KiB at once, at the
// start of one that is about to call deeply, and ends soon: otherwise it is copied
// each time that it doubles, frame by frame. One that waits would hold it until the
// next garbage collection.
//
//go:noinline
func GrowStack() byte {
	var room [5 << 10]byte
	return room[grown]
}

var grown int // 0; the compiler does not know
