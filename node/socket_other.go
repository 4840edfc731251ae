//go:build !linux

package node

import "time"

func setCongestionControl(uintptr, string) bool { return false }

func setUnackedLimit(uintptr, time.Duration) {}

const canPace = false

func pacingRate(uintptr) (uint64, bool) { return 0, false }

func setUnsentLimit(uintptr, int) {}
