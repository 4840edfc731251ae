package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A connection begins with what is wanted of it, a letter, and a number.
const (
	takeBytes  = 'u' // as many; answered with done
	giveBytes  = 'd' // as many
	bothWays   = 'b' // as many each way; then done
	giveAtRate = 'p' // that many a second, until the connection ends
	echoBack   = 'e' // what comes
	answer     = 'r' // with as many bytes to each request of requestSize
	countUp    = 't' // take bytes to the end and tell how many, again and again
)

const (
	headSize    = 9
	requestSize = 64
	done        = 'k'
)

func head(want byte, n int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{want}, uint64(n))
}

// Serve serves every connection of l until that is closed.
func Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go serve(c)
	}
}

// serve does what one connection wants; whoever sent the wrong bytes sees it
// end. It is the client that closes first: a tunnel that loses the last bytes
// when the service does (Kubo over QUIC) can be measured all the same.
func serve(c net.Conn) {
	defer c.Close()
	if work(c) == nil {
		_ = c.SetReadDeadline(time.Now().Add(answerTime))
		_, _ = io.Copy(io.Discard, c)
	}
}

func work(c net.Conn) error {
	h := make([]byte, headSize)
	if _, err := io.ReadFull(c, h); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint64(h[1:]))
	switch h[0] {
	case takeBytes:
		return confirm(c, take(c, n))
	case giveBytes:
		return give(c, n)
	case bothWays:
		return confirm(c, both(c, n))
	case giveAtRate:
		return giveSlowly(c, n)
	case echoBack:
		return echo(c)
	case answer:
		return answerEach(c, n)
	case countUp:
		return tellCount(c)
	}
	return fmt.Errorf("unknown wish %q", h[0])
}

// confirm says that all is there, unless it is not.
func confirm(c net.Conn, err error) error {
	if err == nil {
		_, err = c.Write([]byte{done})
	}
	return err
}

// give sends n bytes of the pattern.
func give(c net.Conn, n int64) error {
	for s := newSource(); s.pos < n; {
		if _, err := c.Write(s.next(n - s.pos)); err != nil {
			return err
		}
	}
	return nil
}

// take reads exactly n bytes and checks them.
func take(c net.Conn, n int64) error {
	var check checker
	for b := make([]byte, blockSize); check.pos < n; {
		got, err := c.Read(b[:min(blockSize, n-check.pos)])
		if cerr := check.take(b[:got]); cerr != nil {
			return cerr
		}
		if err != nil && check.pos < n {
			return err
		}
	}
	return nil
}

// both does both at once.
func both(c net.Conn, n int64) error {
	sent := make(chan error, 1)
	go func() { sent <- give(c, n) }()
	return errors.Join(take(c, n), <-sent)
}

// giveSlowly sends at a rate, in pieces of a few milliseconds.
func giveSlowly(c net.Conn, perSecond int64) error {
	const piece = 64 << 10
	began := time.Now()
	for s := newSource(); ; {
		due := time.Duration(float64(s.pos) / float64(perSecond) * float64(time.Second))
		time.Sleep(due - time.Since(began))
		if _, err := c.Write(s.next(piece)); err != nil {
			return err
		}
	}
}

// echo holds little while nothing comes: thousands of them are idle at once.
func echo(c net.Conn) error {
	b := make([]byte, requestSize)
	for {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
	}
}

func answerEach(c net.Conn, n int64) error {
	request, reply := make([]byte, requestSize), newSource().next(min(n, blockSize))
	for {
		if _, err := io.ReadFull(c, request); err != nil {
			return err
		}
		if _, err := c.Write(reply); err != nil {
			return err
		}
	}
}

// tellCount says how much has come, after each read that brought something.
func tellCount(c net.Conn) error {
	var check checker
	for b := make([]byte, blockSize); ; {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		if err := check.take(b[:n]); err != nil {
			return err
		}
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(check.pos))); err != nil {
			return err
		}
	}
}
