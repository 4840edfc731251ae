//go:build !linux

package node

import "time"

func setCongestionControl(uintptr, string) {}

func setUnackedLimit(uintptr, time.Duration) {}
