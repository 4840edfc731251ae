package load

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// Timed moves bytes one way over one connection for a while, from the first
// byte that arrives on, and gives how many a second arrived.
func Timed(ctx context.Context, addr, way string, d time.Duration) (float64, error) {
	want, n := byte(giveBytes), int64(1)<<60
	if way == Up {
		want = countUp
	}
	c, err := dial(ctx, addr, want, n)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if way == Up {
		go func() { _ = give(c, n) }() // ends with the connection
		return timed(c, d, counts)
	}
	var check checker
	return timed(c, d, func(c net.Conn, b []byte) (int64, error) {
		n, err := c.Read(b)
		if cerr := check.take(b[:n]); cerr != nil {
			return 0, cerr
		}
		return check.pos, err
	})
}

// counts reads what the service says that it has got.
func counts(c net.Conn, b []byte) (int64, error) {
	_, err := io.ReadFull(c, b[:8])
	return int64(binary.BigEndian.Uint64(b)), err
}

// timed calls read, which says how many bytes have come in all, until the time
// is over. A read that waits until then is the end, no failure.
func timed(c net.Conn, d time.Duration, read func(net.Conn, []byte) (int64, error)) (float64, error) {
	b := make([]byte, blockSize)
	if _, err := read(c, b); err != nil {
		return 0, fmt.Errorf("no byte: %w", err)
	}
	began, sum := time.Now(), int64(0)
	_ = c.SetReadDeadline(began.Add(d))
	for time.Since(began) < d {
		got, err := read(c, b)
		if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("after %d bytes: %w", sum, err)
		}
		sum = got
	}
	return float64(sum) / time.Since(began).Seconds(), nil
}
