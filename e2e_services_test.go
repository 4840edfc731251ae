//go:build unix

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
)

// service is a TCP service in this process. It ends with its test.
type service struct {
	net.Listener
	handlers sync.WaitGroup
	mu       sync.Mutex
	live     map[net.Conn]bool
}

// serve runs handle for each connection, and closes the connection after it.
func serve(t testing.TB, handle func(c net.Conn)) *service {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, handle)
}

func serveOn(t testing.TB, l net.Listener, handle func(c net.Conn)) *service {
	s := &service{Listener: l, live: map[net.Conn]bool{}}
	s.handlers.Go(func() { s.acceptAll(handle) })
	t.Cleanup(s.stop)
	return s
}

func (s *service) acceptAll(handle func(c net.Conn)) {
	for {
		c, err := s.Accept()
		if err != nil {
			return
		}
		s.note(c, true)
		s.handlers.Go(func() {
			defer s.note(c, false)
			defer c.Close()
			handle(c)
		})
	}
}

func (s *service) note(c net.Conn, alive bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if alive {
		s.live[c] = true
	} else {
		delete(s.live, c)
	}
}

// stop takes no more connections and ends those that live.
func (s *service) stop() {
	s.Close()
	s.mu.Lock()
	for c := range s.live {
		c.Close()
	}
	s.mu.Unlock()
	s.handlers.Wait()
}

// addr is host:port.
func (s *service) addr() string { return s.Addr().String() }

// echoBack sends back what comes, and ends when that ends.
func echoBack(c net.Conn) { _, _ = io.Copy(onlyWriter{c}, onlyReader{c}) }

// onlyReader and onlyWriter hide splice(2), which takes two files more for
// each connection.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// abort closes a connection with a TCP RST.
func abort(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// randomBytes gives n bytes that differ from seed to seed.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = newRandom(seed).Read(b)
	return b
}

func newRandom(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// hashAll is the hash of all that can be read until the end.
func hashAll(r io.Reader) (sum string, n int64, err error) {
	h := sha256.New()
	n, err = io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// outcome is how a service saw one of its connections.
type outcome struct {
	sum string
	n   int64
	err error
}

// begin and begun tell a test's connection from one that p2ptun makes to see
// whether the service answers: that one ends without a byte.
func begin(c net.Conn) { _, _ = c.Write([]byte{'.'}) }

func begun(c net.Conn) bool {
	_, err := io.ReadFull(c, make([]byte, 1))
	return err == nil
}

// hashing is a service that hashes all that comes and tells.
func hashing(t testing.TB) (*service, <-chan outcome) {
	seen := make(chan outcome, 1000)
	s := serve(t, func(c net.Conn) {
		if !begun(c) {
			return
		}
		sum, n, err := hashAll(c)
		seen <- outcome{sum, n, err}
	})
	return s, seen
}

// wantEcho sends a message and wants it back.
func wantEcho(t testing.TB, c net.Conn, message string) {
	t.Helper()
	if _, err := io.WriteString(c, message); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("echo: %v", err)
	}
	if string(got) != message {
		t.Fatalf("echo is %q, want %q", got, message)
	}
}

// exchange writes all of sent while it reads the echo, and compares.
func exchange(c net.Conn, sent []byte) error {
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		written <- err
	}()
	got := make([]byte, len(sent))
	_, err := io.ReadFull(c, got)
	if err != nil {
		c.Close()
	}
	if werr := <-written; err == nil {
		err = werr
	}
	if err == nil && !bytes.Equal(got, sent) {
		err = fmt.Errorf("%d bytes came back altered", len(sent))
	}
	return err
}

// raiseFileLimit gives the programs that are started from now on so many open
// files, where that is allowed, and says how many they may have.
func raiseFileLimit(t testing.TB, want uint64) uint64 {
	t.Helper()
	if now := fileLimit(t); now < want {
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: want, Max: want})
	}
	return fileLimit(t)
}

// fileLimit is how many files one process may have open at most.
func fileLimit(t testing.TB) uint64 {
	t.Helper()
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	return uint64(lim.Max)
}
