//go:build unix

package main

import (
	"io"
	"net"
	"testing"
)

// earlyAnswer is what a server says that does not want to read the rest of a
// question: it answers and closes, and its kernel sends a RST behind the
// answer.
const (
	questionLen = 100_000
	answerLen   = 10_000
)

func answerEarly(c net.Conn) {
	_, _ = io.ReadFull(c, make([]byte, questionLen/100))
	_, _ = c.Write(make([]byte, answerLen))
}

// wholeAnswers asks again and again and counts the answers that arrive whole;
// each must be followed by a reset.
func wholeAnswers(t *testing.T, addr string) (whole int) {
	t.Helper()
	for range rounds {
		c := dialTCP(t, addr)
		_, _ = c.Write(make([]byte, questionLen))
		answer, err := io.ReadAll(c)
		if !isReset(err) {
			t.Errorf("%d bytes, then %v instead of a reset", len(answer), err)
		}
		if len(answer) == answerLen {
			whole++
		}
		c.Close()
	}
	return whole
}

func TestAnswerOfAServerThatClosesEarlyIsNotOvertakenByTheReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, answerEarly)
		direct := wholeAnswers(t, s.addr())
		tun := startTunnel(t, transport, s.addr())
		if got := wholeAnswers(t, tun.forward.hostPort()); got < direct {
			t.Errorf("%d of %d answers whole; without a tunnel %d", got, rounds, direct)
		}
	})
}
