package ceiling

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"net"
	"time"
)

// gather is how many bytes go to the kernel in one write.
const gather = 128 << 10

// corked is a TCP connection below TLS: it gathers the records of one write of
// the application, and reads many records at once.
type corked struct {
	*net.TCPConn
	in   *bufio.Reader
	left int // of the record that is being read
	out  []byte
	held bool // an application's write is on
}

// recordHead is the length of what a TLS record begins with; its last two bytes
// are the length of the rest.
const recordHead = 5

func newCorked(c *net.TCPConn) *corked {
	return &corked{TCPConn: c, in: bufio.NewReaderSize(c, 2*gather)}
}

// Read never goes beyond a record, so that it is known where one begins.
func (c *corked) Read(b []byte) (int, error) {
	if c.left == 0 {
		head, err := c.in.Peek(recordHead)
		if err != nil {
			return 0, err
		}
		c.left = recordHead + int(binary.BigEndian.Uint16(head[3:]))
	}
	n, err := c.in.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// ready says whether a whole record is there.
func (c *corked) ready() bool {
	if c.left > 0 || c.in.Buffered() < recordHead {
		return false
	}
	head, _ := c.in.Peek(recordHead)
	return c.in.Buffered() >= recordHead+int(binary.BigEndian.Uint16(head[3:]))
}

func (c *corked) Write(b []byte) (int, error) {
	if !c.held {
		return c.TCPConn.Write(b)
	}
	c.out = append(c.out, b...)
	return len(b), nil
}

// gathered is TLS over that.
type gathered struct {
	*tls.Conn
	raw *corked
}

// Read gives what many records hold, if they are there.
func (g *gathered) Read(b []byte) (int, error) {
	const record = 16 << 10
	n, err := g.Conn.Read(b)
	for err == nil && len(b)-n >= record && g.raw.ready() {
		var more int
		more, err = g.Conn.Read(b[n:])
		n += more
	}
	if n > 0 {
		return n, nil // the error comes again
	}
	return n, err
}

// Write sends the records of b at once. TLS 1.3 writes by itself only during
// the handshake, which is over.
func (g *gathered) Write(b []byte) (int, error) {
	g.raw.held = true
	n, err := g.Conn.Write(b)
	g.raw.held = false
	if err != nil {
		return n, err
	}
	_, err = g.raw.TCPConn.Write(g.raw.out)
	g.raw.out = g.raw.out[:0]
	return n, err
}

// TLSServer takes TLS connections and relays to target without.
func TLSServer(l net.Listener, target string) error {
	cert, err := certificate()
	if err != nil {
		return err
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
	return Run(l, func(c net.Conn) (half, error) {
		raw := newCorked(c.(*net.TCPConn))
		return shake(tls.Server(raw, config), raw)
	}, dialer(target))
}

// TLSClient takes connections and relays each over a TLS connection of its own.
func TLSClient(l net.Listener, target string) error {
	// It is a ceiling, for loopback: it does not look who answers.
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
	return Run(l, asIs, func() (half, error) {
		c, err := net.Dial("tcp", target)
		if err != nil {
			return nil, err
		}
		raw := newCorked(c.(*net.TCPConn))
		return shake(tls.Client(raw, config), raw)
	})
}

func shake(c *tls.Conn, raw *corked) (half, error) {
	if err := c.Handshake(); err != nil {
		c.Close()
		return nil, err
	}
	return &gathered{c, raw}, nil
}

// certificate makes one for this run.
func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, about, about, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key}, err
}
