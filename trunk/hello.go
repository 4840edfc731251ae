package trunk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// A link begins with a hello of the side that opened it, 34 bytes:
//
//	version (1) | flags (1) | session (16) | attempt (4) | received (8) | survive (4)
//
// and the answer, 14 bytes:
//
//	version (1) | verdict (1) | received (8) | survive (4)
//
// received is how many bytes of the session have arrived at who says so; the
// other goes on from there. attempt rises with each link of a session: an older
// one that comes late is refused. survive is for how many seconds the session
// is kept without a link: the lower of both holds.
const (
	version    = 1
	helloSize  = 34
	answerSize = 14

	flagResume byte = 1 // else the session is new
	flagMove   byte = 2 // with resume: there still is a link, and this one is better
)

type sessionID [16]byte

type hello struct {
	resume   bool
	move     bool
	session  sessionID
	attempt  uint32
	received uint64
	survive  time.Duration
}

// verdict is what the side that was called says to a hello.
type verdict byte

const (
	verdictOK      verdict = 0
	verdictUnknown verdict = 1 // no such session: this side has started anew, or parked it too long
	verdictRefused verdict = 2 // the peer may not, or not any more
	verdictFull    verdict = 3 // too many sessions
	verdictStale   verdict = 4 // a later attempt was here before
	verdictVersion verdict = 5 // this side does not know that version; received and survive are 0
)

type answer struct {
	verdict  verdict
	received uint64
	survive  time.Duration
}

// errVersion is returned for a hello, or an answer, of another version.
var errVersion = errors.New("trunk: another version")

// maxSurvive is what 4 bytes of seconds hold; longer is not meant.
const maxSurvive = 30 * 24 * time.Hour

// seconds rounds up: less than a second is not nothing.
func seconds(d time.Duration) uint32 {
	return uint32((min(max(d, 0), maxSurvive) + time.Second - 1) / time.Second)
}

func (h hello) write(w io.Writer) error {
	b := make([]byte, 2, helloSize)
	b[0] = version
	if h.resume {
		b[1] |= flagResume
	}
	if h.move {
		b[1] |= flagMove
	}
	b = append(b, h.session[:]...)
	b = binary.BigEndian.AppendUint32(b, h.attempt)
	b = binary.BigEndian.AppendUint64(b, h.received)
	b = binary.BigEndian.AppendUint32(b, seconds(h.survive))
	_, err := w.Write(b)
	return err
}

func readHello(r io.Reader) (h hello, err error) {
	var b [helloSize]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return h, err
	}
	if b[0] != version {
		return h, fmt.Errorf("%w: %d", errVersion, b[0])
	}
	if _, err := io.ReadFull(r, b[1:]); err != nil {
		return h, err
	}
	h.resume, h.move = b[1]&flagResume != 0, b[1]&flagMove != 0
	copy(h.session[:], b[2:])
	h.attempt = binary.BigEndian.Uint32(b[18:])
	h.received = binary.BigEndian.Uint64(b[22:])
	h.survive = min(time.Duration(binary.BigEndian.Uint32(b[30:]))*time.Second, maxSurvive)
	return h, nil
}

func (a answer) write(w io.Writer) error {
	b := append(make([]byte, 0, answerSize), version, byte(a.verdict))
	b = binary.BigEndian.AppendUint64(b, a.received)
	b = binary.BigEndian.AppendUint32(b, seconds(a.survive))
	_, err := w.Write(b)
	return err
}

func readAnswer(r io.Reader) (a answer, err error) {
	var b [answerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return a, err
	}
	if b[0] != version {
		return a, fmt.Errorf("%w: %d", errVersion, b[0])
	}
	a.verdict = verdict(b[1])
	a.received = binary.BigEndian.Uint64(b[2:])
	a.survive = min(time.Duration(binary.BigEndian.Uint32(b[10:]))*time.Second, maxSurvive)
	return a, nil
}
