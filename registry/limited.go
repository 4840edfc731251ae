package registry

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Limit names a limit of a tunnel as its flag does.
type Limit string

const (
	LimitStreams     Limit = "max-streams"
	LimitPeerStreams Limit = "peer-max-streams"
	LimitRate        Limit = "max-rate"
	LimitPeerRate    Limit = "peer-max-rate"
)

// slowedFor is how long after it happened a tunnel's status says that a rate
// held bytes back.
const slowedFor = 5 * time.Second

// tooMany counts the connections that a limit kept out.
type tooMany struct {
	n, most atomic.Int64 // most is the limit that the last met
}

func (c *tooMany) text(l Limit) string {
	switch n := c.n.Load(); n {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%s %d: 1 connection refused", l, c.most.Load())
	default:
		return fmt.Sprintf("%s %d: %d connections refused", l, c.most.Load(), n)
	}
}

// slowed remembers when a rate last held bytes back, and which rate.
type slowed struct {
	at, most atomic.Int64 // at in Unix nanoseconds
}

func (s *slowed) note(most int64) {
	s.most.Store(most)
	s.at.Store(now().UnixNano())
}

func (s *slowed) text(l Limit) string {
	at := s.at.Load()
	if at == 0 || now().Sub(time.Unix(0, at)).Abs() > slowedFor {
		return ""
	}
	return fmt.Sprintf("%s %s: slowed", l, rateText(s.most.Load()))
}

// rateText shows a rate in three digits: 512 kB/s, 1.5 MB/s.
func rateText(bytesASecond int64) string {
	value, unit := float64(bytesASecond), 0
	for ; value >= 999.5 && unit < 3; unit++ {
		value /= 1000
	}
	return strconv.FormatFloat(value, 'g', 3, 64) + [...]string{" B/s", " kB/s", " MB/s", " GB/s"}[unit]
}

// TooMany counts a connection that was refused because of LimitStreams or
// LimitPeerStreams, which stands at most. Status tells of it.
func (e *Entry) TooMany(l Limit, most int) {
	c, sum := &e.tooMany, &e.reg.tooMany
	if l == LimitPeerStreams {
		c, sum = &e.peerTooMany, &e.reg.peerTooMany
	}
	c.most.Store(int64(most))
	c.n.Add(1)
	sum.Add(1)
}

// limited says what limits have done to a tunnel's connections, after what
// else there is to say.
func (e *Entry) limited(reason string) string {
	said := []string{}
	for _, text := range []string{
		reason, e.tooMany.text(LimitStreams), e.peerTooMany.text(LimitPeerStreams),
		e.rates.slowed.text(LimitRate), e.rates.peersSlowed.text(LimitPeerRate),
	} {
		if text != "" {
			said = append(said, text)
		}
	}
	return strings.Join(said, "; ")
}
