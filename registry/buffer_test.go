package registry

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
)

// countingPool counts the buffers that are out.
type countingPool struct {
	sync.Pool
	mu         sync.Mutex
	held, most int
}

func (p *countingPool) Get() any {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held++
	p.most = max(p.most, p.held)
	return p.Pool.Get()
}

func (p *countingPool) Put(b any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held--
	p.Pool.Put(b)
}

func (p *countingPool) out() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

func (p *countingPool) peak() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.most
}

// countBuffers has the pump's buffers counted until the test ends.
func countBuffers(tb testing.TB) *countingPool {
	p := &countingPool{Pool: sync.Pool{New: func() any { return new(buffer) }}}
	before := buffers
	buffers = p
	tb.Cleanup(func() { buffers = before })
	return p
}

// bursts are sizes that programs like to write.
var bursts = []int{1, 512, 1 << 10, 1460, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 1 << 20, 10 << 20, bufferSize}

func TestIdlePipeAfterABurstHoldsNoBuffer(t *testing.T) {
	pool := countBuffers(t)
	for _, n := range bursts {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t)
			client, peer, local, remote := g.memBoth(256 << 10)
			for _, way := range [][2]*memEnd{{client, peer}, {peer, client}} {
				sent := background(writeOf(way[0], pattern(n)))
				readN(t, way[1], n)
				must(t, <-sent)
			}
			synctest.Wait()
			if held := pool.out(); held != 0 {
				t.Errorf("after a burst of %d bytes: %d buffers held", n, held)
			}
			if local.in.asked > smallRead || remote.in.asked > smallRead {
				t.Errorf("waits with buffers of %d and %d bytes", local.in.asked, remote.in.asked)
			}
		})
	}
}

// The pump gives a socket's buffer back once it has written, so the reader may
// be a moment ahead of it.
func TestIdleSocketAfterABurstHoldsNoBuffer(t *testing.T) {
	pool := countBuffers(t)
	for _, pair := range []string{"tcp", "unix"} {
		g := newRig(t)
		client, peer := g.sockets(pair)
		for _, n := range bursts {
			sent := background(writeOf(client, pattern(n)))
			readN(t, peer, n)
			must(t, <-sent)
			eventually(t, func() bool { return pool.out() == 0 })
		}
	}
}

func TestEndedStreamsHoldNoBuffer(t *testing.T) {
	pool := countBuffers(t)
	g := newRig(t)
	for _, end := range []func(*net.TCPConn){
		func(c *net.TCPConn) { must(t, c.CloseWrite()) },
		func(c *net.TCPConn) { rst(t, c) },
	} {
		client, peer, _ := g.tcpBoth()
		must(t, writeOf(client, pattern(100_000))())
		end(client)
		end(peer)
		g.drained()
		if held := pool.out(); held != 0 {
			t.Errorf("%d buffers held", held)
		}
	}
}

func TestStoppedReaderHoldsOneBufferOfASocket(t *testing.T) {
	pool := countBuffers(t)
	g := newRig(t)
	client, peer, _ := g.tcpAndMem(4 << 10)
	const size = 4 << 20
	sent := background(writeOf(client, pattern(size)))
	readN(t, peer, size)
	must(t, <-sent)
	if most := pool.peak(); most != 1 {
		t.Errorf("%d buffers were held at once", most)
	}
}
