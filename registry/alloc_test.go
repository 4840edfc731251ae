//go:build !race

package registry

import (
	"io"
	"testing"
)

// The race detector allocates on its own, so these run without it.

func TestNoAllocationPerRead(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		g := newRig(t)
		client, peer := g.sockets(network)
		for _, size := range []int{1, 2 << 10, 64 << 10} {
			wantNoAllocs(t, network, client, peer, size)
			wantNoAllocs(t, network, peer, client, size)
		}
	}
	g := newRig(t)
	client, peer, _, _ := g.memBoth(256 << 10)
	for _, size := range []int{1, 2 << 10, 64 << 10, 200 << 10} {
		wantNoAllocs(t, "small first", client, peer, size)
	}
}

func wantNoAllocs(t *testing.T, name string, from io.Writer, to io.Reader, size int) {
	t.Helper()
	b := make([]byte, size)
	once := func() {
		_, err := from.Write(b)
		must(t, err)
		_, err = io.ReadFull(to, b)
		must(t, err)
	}
	if n := testing.AllocsPerRun(200, once); n != 0 {
		t.Errorf("%s, %d bytes: %v allocations each", name, size, n)
	}
}

func TestAllocationsOfAStreamStayFew(t *testing.T) {
	g := newRig(t)
	const runs = 100
	locals, remotes := make([]*memEnd, runs+1), make([]*memEnd, runs+1)
	for i := range locals {
		locals[i], remotes[i] = finishedEnd(), finishedEnd()
	}
	i := 0
	n := testing.AllocsPerRun(runs, func() {
		g.pipe(locals[i], remotes[i])
		g.Wait()
		i++
	})
	if n > 12 {
		t.Errorf("%v allocations a stream", n)
	}
}
