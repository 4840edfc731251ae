package registry

import (
	"sync"
	"testing"
)

// deep calls itself, with frames as large as those on the way to a socket.
//
//go:noinline
func deep(calls int) byte {
	var frame [128]byte
	if calls == 0 {
		return frame[grown]
	}
	return deep(calls-1) + frame[grown]
}

// BenchmarkFreshGoroutine is what GrowStack is for: a goroutine that calls deeply
// once, as those of a short connection do.
func BenchmarkFreshGoroutine(b *testing.B) {
	for _, c := range []struct {
		name  string
		begin func() byte
	}{{"grown", GrowStack}, {"as it is", func() byte { return 0 }}} {
		b.Run(c.name, func(b *testing.B) {
			var done sync.WaitGroup
			for b.Loop() {
				done.Go(func() { _ = c.begin() + deep(25) })
				done.Wait()
			}
		})
	}
}
