//go:build !linux

package node

import "time"

func setUnackedLimit(uintptr, time.Duration) {}
