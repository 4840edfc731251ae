//go:build unix

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"testing"
)

func TestServerMaySpeakFirst(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, func(c net.Conn) {
			fmt.Fprint(c, "220 ready\r\n")
			echoBack(c)
		})
		c := startTunnel(t, transport, s.addr()).forward.dial(t)
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || line != "220 ready\r\n" {
			t.Fatalf("greeting: %q, %v", line, err)
		}
		wantEcho(t, c, "HELO\r\n")
	})
}

func TestClientMaySpeakFirst(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, func(c net.Conn) {
			line, _ := bufio.NewReader(c).ReadString('\n')
			fmt.Fprintf(c, "you said %s", line)
		})
		c := startTunnel(t, transport, s.addr()).forward.dial(t)
		fmt.Fprint(c, "ping\n")
		if got, err := io.ReadAll(c); err != nil || string(got) != "you said ping\n" {
			t.Fatalf("reply: %q, %v", got, err)
		}
	})
}

func TestHalfCloseOfTheClientKeepsTheReplyFlowing(t *testing.T) {
	reply := randomBytes(1, 10<<20)
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, func(c net.Conn) {
			if _, err := io.Copy(io.Discard, c); err == nil {
				_, _ = c.Write(reply)
			}
		})
		c := startTunnel(t, transport, s.addr()).forward.dial(t)
		fmt.Fprint(c, "all of the question")
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if sum, n, err := hashAll(c); err != nil || sum != hashOf(reply) {
			t.Fatalf("reply after the client's end: %d of %d bytes, %v", n, len(reply), err)
		}
	})
}

func TestUploadThenHashComesBack(t *testing.T) {
	upload := randomBytes(2, 10<<20)
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, func(c net.Conn) {
			sum, _, _ := hashAll(c)
			fmt.Fprint(c, sum)
		})
		c := startTunnel(t, transport, s.addr()).forward.dial(t)
		if _, err := c.Write(upload); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != hashOf(upload) {
			t.Fatalf("hash of the upload: %q, %v", got, err)
		}
	})
}

func TestHalfCloseOfTheServerKeepsTheUploadFlowing(t *testing.T) {
	upload := randomBytes(3, 10<<20)
	eachTransport(t, func(t *testing.T, transport string) {
		seen := make(chan outcome, 1)
		s := serve(t, func(c net.Conn) {
			if !begun(c) {
				return
			}
			fmt.Fprint(c, "that is all from me")
			_ = c.(*net.TCPConn).CloseWrite()
			sum, n, err := hashAll(c)
			seen <- outcome{sum, n, err}
		})
		c := startTunnel(t, transport, s.addr()).forward.dial(t)
		begin(c)
		if got, err := io.ReadAll(c); err != nil || string(got) != "that is all from me" {
			t.Fatalf("what the server said before its end: %q, %v", got, err)
		}
		if _, err := c.Write(upload); err != nil {
			t.Fatalf("upload after the server's end: %v", err)
		}
		c.Close()
		if o := <-seen; o.err != nil || o.sum != hashOf(upload) {
			t.Fatalf("upload after the server's end: %d of %d bytes, %v", o.n, len(upload), o.err)
		}
	})
}

// Resets and ends are tried that often each: a race between the bytes and the
// reset behind them shows now and then only.
const rounds = 30

func TestResetOfTheClientReachesTheServerAsAReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		seen := make(chan error, rounds)
		s := serve(t, func(c net.Conn) {
			if !begun(c) {
				return
			}
			fmt.Fprint(c, ".")
			_, err := io.Copy(io.Discard, c)
			seen <- err
		})
		tun := startTunnel(t, transport, s.addr())
		for i := range rounds {
			c := tun.forward.dial(t)
			begin(c)
			_, _ = io.ReadFull(c, make([]byte, 1))
			_, _ = c.Write(randomBytes(4, i*1000))
			abort(c)
			if err := <-seen; !isReset(err) {
				t.Fatalf("round %d: the server saw %v, want a reset", i, err)
			}
		}
	})
}

func TestResetOfTheServerReachesTheClientAsAReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, func(c net.Conn) {
			if begun(c) {
				_, _ = c.Write(randomBytes(5, 50_000))
				abort(c)
			}
		})
		tun := startTunnel(t, transport, s.addr())
		for range rounds {
			c := tun.forward.dial(t)
			begin(c)
			wantReset(t, c)
		}
	})
}

func TestResetWithoutAnAnswerReachesTheClientAsAReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, func(c net.Conn) {
			if begun(c) {
				abort(c)
			}
		})
		tun := startTunnel(t, transport, s.addr())
		for range rounds {
			c := tun.forward.dial(t)
			begin(c)
			wantReset(t, c)
		}
	})
}

func TestCleanEndNeverComesOutAsAReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		seen := make(chan error, rounds)
		s := serve(t, func(c net.Conn) {
			if !begun(c) {
				return
			}
			_, err := io.Copy(onlyWriter{c}, onlyReader{c})
			seen <- err
		})
		tun := startTunnel(t, transport, s.addr())
		for i := range rounds {
			c := tun.forward.dial(t)
			sent := randomBytes(uint64(i), i*3000)
			begin(c)
			_, _ = c.Write(sent)
			_ = c.CloseWrite()
			sum, n, err := hashAll(c)
			if serr := <-seen; serr != nil || err != nil || sum != hashOf(sent) {
				t.Fatalf("round %d: %d of %d bytes, the client saw %v, the server %v", i, n, len(sent), err, serr)
			}
		}
	})
}

// A MiB that is followed at once by a close is the case that many tunnels
// truncate, over QUIC above all.
const wholeRounds = 100

func TestServerThatClosesAtOnceLosesNoByte(t *testing.T) {
	sent := randomBytes(6, 1<<20)
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, func(c net.Conn) { _, _ = c.Write(sent) })
		tun := startTunnel(t, transport, s.addr())
		whole := 0
		for range wholeRounds {
			c := tun.forward.dial(t)
			sum, n, err := hashAll(c)
			c.Close()
			if err == nil && sum == hashOf(sent) {
				whole++
			} else {
				t.Errorf("%d of %d bytes, %v", n, len(sent), err)
			}
		}
		if whole != wholeRounds {
			t.Fatalf("whole %d times of %d", whole, wholeRounds)
		}
	})
}

func TestClientThatClosesAtOnceLosesNoByte(t *testing.T) {
	sent := randomBytes(7, 1<<20)
	eachTransport(t, func(t *testing.T, transport string) {
		s, seen := hashing(t)
		tun := startTunnel(t, transport, s.addr())
		whole := 0
		for range wholeRounds {
			c := tun.forward.dial(t)
			begin(c)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if o := <-seen; o.err == nil && o.sum == hashOf(sent) {
				whole++
			} else {
				t.Errorf("%d of %d bytes, %v", o.n, len(sent), o.err)
			}
		}
		if whole != wholeRounds {
			t.Fatalf("whole %d times of %d", whole, wholeRounds)
		}
	})
}
