package load

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// Connections opens connections for a while, workers of them at once: each gets
// a byte back and closes. It gives how many a second.
func Connections(ctx context.Context, addr string, workers int, d time.Duration) (float64, error) {
	return rate(workers, d, func(more func() bool) error {
		for more() {
			if err := once(ctx, addr); err != nil {
				return err
			}
		}
		return nil
	})
}

// Requests asks for size bytes again and again on kept connections. It gives
// how many answers came a second.
func Requests(ctx context.Context, addr string, conns int, size int64, d time.Duration) (float64, error) {
	return rate(conns, d, func(more func() bool) error {
		c, err := dial(ctx, addr, answer, size)
		if err != nil {
			return err
		}
		defer c.Close()
		return ask(c, size, more)
	})
}

// ask asks while more says so; each answer is the beginning of the pattern.
func ask(c net.Conn, size int64, more func() bool) error {
	request, reply := make([]byte, requestSize), make([]byte, size)
	for more() {
		if _, err := c.Write(request); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, reply); err != nil {
			return err
		}
		if err := new(checker).take(reply); err != nil {
			return err
		}
	}
	return nil
}

// rate runs workers until d is over; each call of more counts one piece of
// work. The last piece of each worker goes on beyond d, so the time is taken at
// the end.
func rate(workers int, d time.Duration, work func(more func() bool) error) (float64, error) {
	var begun atomic.Int64
	began := time.Now()
	err := atOnce(workers, func() error {
		return work(func() bool {
			if time.Since(began) >= d {
				return false
			}
			begun.Add(1)
			return true
		})
	})
	if err != nil {
		return 0, fmt.Errorf("after %d: %w", begun.Load(), err)
	}
	return float64(begun.Load()) / time.Since(began).Seconds(), nil
}
