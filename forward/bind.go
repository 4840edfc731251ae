package forward

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"p2ptun/home"
	"p2ptun/proto"
)

// bind listens on a multiaddr and gives the address that was bound, with its
// real port.
func bind(addr string) (net.Listener, string, error) {
	m, err := ma.NewMultiaddr(addr)
	if err != nil {
		return nil, "", fmt.Errorf("bind %s: %w", addr, err)
	}
	network, address, err := proto.DialArgs(m)
	if err != nil {
		return nil, "", fmt.Errorf("bind %s: %w", addr, err)
	}
	if network == "unix" {
		l, err := bindUnix(address)
		return l, addr, err
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, "", bindError(addr, err)
	}
	bound, err := manet.FromNetAddr(l.Addr())
	if err != nil {
		l.Close()
		return nil, "", fmt.Errorf("bind %s: %w", addr, err)
	}
	return l, bound.String(), nil
}

func bindError(addr string, err error) error {
	if errors.Is(err, errAddrInUse) {
		return fmt.Errorf("bind %s: %w: %w", addr, ErrAddrTaken, err)
	}
	return fmt.Errorf("bind %s: %w", addr, err)
}

// bindUnix listens on a unix socket, 0600. A socket file that nobody listens
// on, as a crash leaves it, is replaced; any other file is not touched.
func bindUnix(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("bind %s: %w: the file is not a socket", path, ErrAddrTaken)
		}
		if !abandoned(path) {
			return nil, fmt.Errorf("bind %s: %w", path, ErrAddrTaken)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("bind %s: remove the old socket: %w", path, err)
		}
	}
	l, err := home.ListenUnix(path)
	if err != nil {
		return nil, bindError(path, err)
	}
	return l, nil
}

// abandoned says that nobody listens on a socket file. An error other than
// that it is refused, a full backlog for one, says nothing.
func abandoned(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return home.Refused(err)
}

// Accept errors that will pass, file limits for one, are waited out.
const (
	acceptPause    = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// acceptAll hands each connection to take until ctx ends or the listener is
// closed. It does nothing else: take must not block. failed is told of the
// first error of a row, and of nil when the row has ended.
func acceptAll(ctx context.Context, l net.Listener, take func(net.Conn), failed func(error)) {
	pause := time.Duration(0)
	for {
		c, err := l.Accept()
		if err == nil {
			if pause > 0 {
				failed(nil)
			}
			pause = 0
			take(c)
			continue
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if pause == 0 {
			failed(err)
		}
		pause = min(max(2*pause, acceptPause), maxAcceptPause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}
