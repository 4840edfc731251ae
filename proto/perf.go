package proto

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// PerfProtocol measures how fast bytes go between two nodes, for `p2ptun
// doctor`. It never touches a service. The one who dials is served only if it
// is let in by name; else the stream is reset before anything is read.
//
//	dialler → responder   up, down   uint32, big-endian: bytes that it will
//	                                 send at most, and that it wants; each at
//	                                 most MaxPerf
//	dialler ← responder   go         one byte, PerfGo: it may begin
//	dialler → responder   up bytes of any content, or fewer: it stops after
//	                                 PerfPhase and ends its way
//	dialler ← responder   count      uint32: how many of them have come within
//	                                 PerfPhase, or until the end of that way
//	dialler ← responder   down bytes of any content, or fewer: it stops after
//	                                 PerfPhase; then its way ends
//
// The dialler ends the stream. The responder's part takes PerfTime at most, and
// it serves one at a time; over a relay with a limit it serves none, since that
// would spend what tunnels need. It resets with CodeRefused or CodeTooMany.
const PerfProtocol = "/p2ptun/perf/1.0.0"

// The bounds of one measurement.
const (
	MaxPerf   = 8 << 20 // bytes each way
	PerfPhase = 1200 * time.Millisecond
	PerfTime  = 3 * time.Second
	PerfGo    = 1
)

// PerfRequest is what a dialler asks for, in bytes.
type PerfRequest struct{ Up, Down uint32 }

func (r PerfRequest) check() error {
	if r.Up > MaxPerf || r.Down > MaxPerf {
		return fmt.Errorf("perf: %d bytes up and %d down: at most %d each", r.Up, r.Down, MaxPerf)
	}
	return nil
}

// WritePerf writes a request. It sends none that ReadPerf would refuse.
func WritePerf(w io.Writer, r PerfRequest) error {
	if err := r.check(); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32(nil, r.Up)
	_, err := w.Write(binary.BigEndian.AppendUint32(b, r.Down))
	return err
}

// ReadPerf reads a request, and not a byte more.
func ReadPerf(r io.Reader) (req PerfRequest, err error) {
	if req.Up, err = ReadPerfCount(r); err != nil {
		return PerfRequest{}, err
	}
	if req.Down, err = ReadPerfCount(r); err != nil {
		return PerfRequest{}, err
	}
	if err := req.check(); err != nil {
		return PerfRequest{}, err
	}
	return req, nil
}

// WritePerfCount writes how many bytes have come.
func WritePerfCount(w io.Writer, n uint32) error {
	_, err := w.Write(binary.BigEndian.AppendUint32(nil, n))
	return err
}

// ReadPerfCount reads one number, and not a byte more.
func ReadPerfCount(r io.Reader) (uint32, error) {
	var b [4]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, fmt.Errorf("perf: %w", err)
	}
	return binary.BigEndian.Uint32(b[:]), nil
}
