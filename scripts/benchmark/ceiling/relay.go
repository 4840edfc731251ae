// Package ceiling is what a tunnel is held against: relays that do less.
package ceiling

import (
	"errors"
	"io"
	"net"
)

// half is a connection whose one way can be closed.
type half interface {
	net.Conn
	CloseWrite() error
}

// Run takes connections and joins each with one that open gives.
func Run(l net.Listener, wrap func(net.Conn) (half, error), open func() (half, error)) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			continue // no file descriptor left, for now
		}
		go func() {
			if here, err := wrap(c); err == nil {
				join(here, open)
			}
			c.Close()
		}()
	}
}

func join(here half, open func() (half, error)) {
	there, err := open()
	if err != nil {
		return
	}
	defer there.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pour(there, here)
	}()
	pour(here, there)
	<-ended
}

// pour copies one way to its end, and tells it; an error ends both ways.
func pour(to, from half) {
	if err := move(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	_ = to.CloseWrite()
}

// move copies: within the kernel where both are TCP, else with a buffer that is
// there only while bytes are.
func move(to, from half) error {
	_, toTCP := to.(*net.TCPConn)
	_, fromTCP := from.(*net.TCPConn)
	if toTCP && fromTCP {
		_, err := io.Copy(to, from) // splice(2)
		return err
	}
	b := make([]byte, gather)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Splice relays from addr to target without crypto.
func Splice(l net.Listener, target string) error { return Run(l, asIs, dialer(target)) }

func asIs(c net.Conn) (half, error) { return c.(*net.TCPConn), nil }

func dialer(target string) func() (half, error) {
	return func() (half, error) {
		c, err := net.Dial("tcp", target)
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
}
