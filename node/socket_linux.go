package node

import (
	"time"

	"golang.org/x/sys/unix"
)

func setCongestionControl(fd uintptr, name string) (done bool) {
	return unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name) == nil
}

func setUnackedLimit(fd uintptr, limit time.Duration) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
}

// canPace: this system knows of a socket's pace and its unsent bytes.
const canPace = true

// pacingRate is at how many bytes a second the kernel sends now (tcp(7), TCP_INFO).
func pacingRate(fd uintptr) (uint64, bool) {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	return info.Pacing_rate, true
}

// setUnsentLimit has a socket take no more while so many bytes wait in it to be
// sent (tcp(7), TCP_NOTSENT_LOWAT).
func setUnsentLimit(fd uintptr, limit int) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, limit)
}
