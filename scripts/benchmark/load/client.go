package load

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"
)

// patience bounds what is done on one connection.
const patience = 2 * time.Minute

// conn is a connection that ends with a context.
type conn struct {
	net.Conn
	forget func() bool
}

func (c *conn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// dial opens a connection and says what is wanted of it, with more behind.
func dial(ctx context.Context, addr string, want byte, n int64, more ...byte) (net.Conn, error) {
	raw, err := (&net.Dialer{Timeout: answerTime}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = raw.SetDeadline(time.Now().Add(patience))
	c := &conn{raw, context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })}
	if _, err := c.Write(append(head(want, n), more...)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// answerTime is how long a service may take for its first byte.
const answerTime = 10 * time.Second

// Echo opens a connection, gets one byte back and gives the connection.
func Echo(ctx context.Context, addr string) (net.Conn, error) {
	c, err := dial(ctx, addr, echoBack, 0, done)
	if err != nil {
		return nil, err
	}
	_ = c.SetReadDeadline(time.Now().Add(answerTime))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		c.Close()
		return nil, err
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	return c, nil
}

// once is Echo without the connection.
func once(ctx context.Context, addr string) error {
	c, err := Echo(ctx, addr)
	if err != nil {
		return err
	}
	return c.Close()
}

// Await tries until a byte comes back.
func Await(ctx context.Context, addr string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		err := once(ctx, addr)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no byte comes back within %s: %w", limit, err)
		case <-again.C:
		}
	}
}

// Ways of a transfer.
const (
	Up   = "up"
	Down = "down"
	Both = "both"
)

// Transfer moves size bytes in all over that many connections at once, and says
// how long that took, from the first byte sent until all is there.
func Transfer(ctx context.Context, addr, way string, conns int, size int64) (time.Duration, error) {
	each := size / int64(conns)
	if way == Both {
		each /= 2
	}
	began := time.Now()
	err := atOnce(conns, func() error { return transfer(ctx, addr, way, each) })
	return time.Since(began), err
}

// atOnce runs n of f, all to their end, and gives one of their errors.
func atOnce(n int, f func() error) error {
	errs := make(chan error, n)
	for range n {
		go func() { errs <- f() }()
	}
	var failed error
	for range n {
		if err := <-errs; err != nil {
			failed = err
		}
	}
	return failed
}

func transfer(ctx context.Context, addr, way string, n int64) error {
	want := map[string]byte{Up: takeBytes, Down: giveBytes, Both: bothWays}[way]
	c, err := dial(ctx, addr, want, n)
	if err != nil {
		return err
	}
	defer c.Close()
	switch way {
	case Up:
		err = give(c, n)
	case Down:
		return take(c, n)
	case Both:
		err = both(c, n)
	}
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return fmt.Errorf("the service does not confirm the bytes: %w", err)
	}
	return nil
}
