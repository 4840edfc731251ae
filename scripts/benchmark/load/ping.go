package load

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Pings bounces 64 bytes on an open connection for a while, one each interval,
// and gives how long each took.
func Pings(ctx context.Context, addr string, every, d time.Duration) ([]time.Duration, error) {
	c, err := Echo(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var took []time.Duration
	tick := time.NewTicker(every)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
		one, err := bounce(c)
		if err != nil {
			return nil, err
		}
		took = append(took, one)
	}
	return took, nil
}

func bounce(c net.Conn) (time.Duration, error) {
	b := make([]byte, requestSize)
	began := time.Now()
	if _, err := c.Write(b); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, b)
	return time.Since(began), err
}

// Bulk is what goes on beside a measure.
type Bulk struct {
	stop  context.CancelFunc
	began time.Time
	bytes atomic.Int64
	all   sync.WaitGroup
	mu    sync.Mutex
	err   error
}

// StartBulk starts that many downloads, each at so many bytes a second; 0 is as
// fast as it goes. It returns when bytes flow on each.
func StartBulk(ctx context.Context, addr string, conns int, perSecond int64) (*Bulk, error) {
	ctx, cancel := context.WithCancel(ctx)
	b := &Bulk{stop: cancel}
	for range conns {
		want, n := byte(giveBytes), int64(1)<<60
		if perSecond > 0 {
			want, n = giveAtRate, perSecond
		}
		c, err := dial(ctx, addr, want, n)
		if err != nil {
			_, _ = b.Stop()
			return nil, err
		}
		flows := make(chan struct{})
		b.all.Go(func() { b.read(ctx, c, flows) })
		<-flows
	}
	b.began = time.Now()
	b.bytes.Store(0)
	return b, nil
}

// read counts and checks one download until the bulk is stopped.
func (b *Bulk) read(ctx context.Context, c net.Conn, flows chan struct{}) {
	defer c.Close()
	var check checker
	buf := make([]byte, blockSize)
	for {
		n, err := c.Read(buf)
		b.bytes.Add(int64(n))
		if err == nil {
			err = check.take(buf[:n])
		}
		if flows != nil {
			close(flows)
			flows = nil
		}
		if err != nil {
			if ctx.Err() == nil {
				b.mu.Lock()
				b.err = err
				b.mu.Unlock()
			}
			return
		}
	}
}

// Stop ends it and gives how many bytes a second it got.
func (b *Bulk) Stop() (float64, error) {
	got := float64(b.bytes.Load()) / time.Since(b.began).Seconds()
	b.stop()
	b.all.Wait()
	return got, b.err
}
