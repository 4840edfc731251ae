package proto

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	pb "google.golang.org/protobuf/proto"
)

// AskProtocol is the side protocol by which a forwarder learns, before it
// offers a port, whether it is let in and whether the service is up. ask.proto
// is its specification.
const AskProtocol = "/p2ptun/ask/1.0.0"

// MaxAsk bounds one ask message on the wire, in bytes.
const MaxAsk = 1024

// ErrAskTooLong is returned for a message over MaxAsk, before it is read.
var ErrAskTooLong = fmt.Errorf("ask message longer than %d bytes", MaxAsk)

// WriteQuestion writes one Question. It sends none that ReadQuestion would
// refuse.
func WriteQuestion(w io.Writer, q *Question) error {
	if err := checkQuestion(q); err != nil {
		return fmt.Errorf("write question: %w", err)
	}
	return writeMessage(w, q)
}

// ReadQuestion reads one Question and checks its fields.
func ReadQuestion(r io.Reader) (*Question, error) {
	q := &Question{}
	if err := readMessage(r, q); err != nil {
		return nil, fmt.Errorf("read question: %w", err)
	}
	if err := checkQuestion(q); err != nil {
		return nil, fmt.Errorf("read question: %w", err)
	}
	return q, nil
}

func checkQuestion(q *Question) error {
	if err := CheckWireProtocol(q.GetProtocol()); err != nil {
		return err
	}
	if len(q.GetInviteId()) == 0 && len(q.GetInviteSecret()) == 0 {
		return nil
	}
	return checkKeys(q.GetInviteId(), q.GetInviteSecret())
}

// WriteAnswer writes one Answer.
func WriteAnswer(w io.Writer, v Verdict) error {
	return writeMessage(w, &Answer{Verdict: v})
}

// ReadAnswer reads one Answer. A verdict of a later version reads as
// VERDICT_UNKNOWN.
func ReadAnswer(r io.Reader) (Verdict, error) {
	var a Answer
	if err := readMessage(r, &a); err != nil {
		return Verdict_VERDICT_UNKNOWN, fmt.Errorf("read answer: %w", err)
	}
	if _, known := Verdict_name[int32(a.GetVerdict())]; !known {
		return Verdict_VERDICT_UNKNOWN, nil
	}
	return a.GetVerdict(), nil
}

func writeMessage(w io.Writer, m pb.Message) error {
	size := pb.Size(m)
	if size > MaxAsk {
		return ErrAskTooLong
	}
	frame := binary.AppendUvarint(make([]byte, 0, size+binary.MaxVarintLen16), uint64(size))
	frame, err := pb.MarshalOptions{}.MarshalAppend(frame, m)
	if err != nil {
		return err
	}
	_, err = w.Write(frame)
	return err
}

// readMessage may read past the message: nothing else comes that way.
func readMessage(r io.Reader, m pb.Message) error {
	br := bufio.NewReaderSize(r, MaxAsk+binary.MaxVarintLen16)
	size, err := binary.ReadUvarint(br)
	if err != nil {
		return err
	}
	if size > MaxAsk {
		return ErrAskTooLong
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(br, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return pb.Unmarshal(body, m)
}
