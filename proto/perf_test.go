package proto

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestPerfRequestIsEightBytes(t *testing.T) {
	var b bytes.Buffer
	if err := WritePerf(&b, PerfRequest{Up: MaxPerf, Down: 0x0102}); err != nil {
		t.Fatal(err)
	}
	if want := "\x00\x80\x00\x00\x00\x00\x01\x02"; b.String() != want {
		t.Fatalf("wrote %x, want %x", b.String(), want)
	}
	b.WriteString("more")
	got, err := ReadPerf(&b)
	if err != nil || got != (PerfRequest{Up: MaxPerf, Down: 0x0102}) || b.String() != "more" {
		t.Fatalf("read %+v, %v, and left %q", got, err, b.String())
	}
}

func TestPerfRequestOverTheBoundIsNeitherSentNorTaken(t *testing.T) {
	for _, r := range []PerfRequest{{Up: MaxPerf + 1}, {Down: MaxPerf + 1}} {
		var b bytes.Buffer
		if err := WritePerf(&b, r); err == nil || b.Len() > 0 {
			t.Errorf("%+v: %v, wrote %d bytes", r, err, b.Len())
		}
	}
	for _, wire := range []string{"\x00\x80\x00\x01\x00\x00\x00\x00", "\x00\x00\x00\x00\xff\xff\xff\xff"} {
		if r, err := ReadPerf(strings.NewReader(wire)); err == nil {
			t.Errorf("%x was read as %+v", wire, r)
		}
	}
}

func TestPerfRequestThatIsCutShortIsAnError(t *testing.T) {
	for n := range 8 {
		if _, err := ReadPerf(strings.NewReader("\x00\x00\x00\x01\x00\x00\x00\x01"[:n])); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func FuzzReadPerf(f *testing.F) {
	f.Add([]byte("\x00\x80\x00\x00\x00\x00\x01\x02"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		r, err := ReadPerf(bytes.NewReader(wire))
		if err != nil {
			return
		}
		if r.Up > MaxPerf || r.Down > MaxPerf {
			t.Fatalf("took %+v", r)
		}
		var b bytes.Buffer
		if err := WritePerf(&b, r); err != nil || !bytes.Equal(b.Bytes(), wire[:8]) {
			t.Fatalf("%+v was written as %x, %v", r, b.Bytes(), err)
		}
	})
}
