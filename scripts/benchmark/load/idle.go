package load

import (
	"context"
	"fmt"
	"net"
	"time"
)

// Hold opens idle connections, each after a byte there and back, up to the last
// of the counts, and calls at at each of them. Then it closes them all. A peer
// that takes longer than limit is given up.
func Hold(ctx context.Context, addr string, counts []int, limit time.Duration, at func(n int)) error {
	var held []net.Conn
	began := time.Now()
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for _, count := range counts {
		for len(held) < count {
			c, err := Echo(ctx, addr)
			if err != nil {
				return fmt.Errorf("refused at %d: %w", len(held)+1, err)
			}
			held = append(held, c)
			if time.Since(began) > limit {
				return fmt.Errorf("too slow at %d: %s have passed", len(held), limit)
			}
		}
		at(count)
	}
	return nil
}
