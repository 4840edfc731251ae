package trunk

import (
	"bytes"
	"encoding/hex"
	"testing"
	"time"
)

func TestBytesOnTheWireNeverChange(t *testing.T) {
	var out bytes.Buffer
	id := sessionID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	must(t, hello{resume: true, session: id, attempt: 7, received: 0x0102030405060708, survive: time.Hour}.write(&out))
	must(t, answer{verdict: verdictStale, received: 9, survive: time.Minute}.write(&out))
	frame := make([]byte, headerSize)
	header{kind: kindData, length: 3, offset: 5}.put(frame)
	out.Write(frame)
	header{kind: kindAck, offset: 1 << 40}.put(frame)
	out.Write(frame)
	out.Write(appendControl(nil, ctlReset, 3, 0x2104))
	must(t, hello{resume: true, move: true, session: id, attempt: 7, received: 0x0102030405060708, survive: time.Hour}.write(&out))
	header{kind: kindEnd, offset: 0x2108}.put(frame)
	out.Write(frame)
	muxFrame(frame).putData(3, 5)
	out.Write(frame)
	header{kind: kindAsk, length: 3, offset: 5}.put(frame)
	out.Write(frame)
	out.Write(appendControl(nil, ctlReclaim, 3, leastWindow))
	const golden = "0101000102030405060708090a0b0c0d0e0f00000007010203040506070800000e10" +
		"010400000000000000090000003c" + "010000030000000000000005" + "020000000000010000000000" + "01000000030000000000002104" +
		"0103000102030405060708090a0b0c0d0e0f00000007010203040506070800000e10" + "030000000000000000002108" + "000000000000000300000005" + "040000030000000000000005" +
		"05000000030000000000001000"
	if got := hex.EncodeToString(out.Bytes()); got != golden {
		t.Errorf("got  %s\nwant %s", got, golden)
	}
}

// FuzzWire: what is read is written to the same bytes again, and nothing
// panics.
func FuzzWire(f *testing.F) {
	f.Add(make([]byte, helloSize))
	f.Add([]byte{1, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5})
	f.Add([]byte{4, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5})
	f.Fuzz(func(t *testing.T, in []byte) {
		if h, err := readHello(bytes.NewReader(in)); err == nil && h.survive < maxSurvive {
			var out bytes.Buffer
			must(t, h.write(&out))
			if want := append([]byte{in[0], in[1] & (flagResume | flagMove)}, in[2:helloSize]...); !bytes.Equal(out.Bytes(), want) {
				t.Errorf("hello %x became %x", want, out.Bytes())
			}
		}
		if a, err := readAnswer(bytes.NewReader(in)); err == nil && a.survive < maxSurvive {
			var out bytes.Buffer
			must(t, a.write(&out))
			if !bytes.Equal(out.Bytes(), in[:answerSize]) {
				t.Errorf("answer %x became %x", in[:answerSize], out.Bytes())
			}
		}
		if len(in) >= headerSize {
			if h, err := parseHeader(in); err == nil {
				out := make([]byte, headerSize)
				if h.put(out); !bytes.Equal(out, in[:headerSize]) {
					t.Errorf("header %x became %x", in[:headerSize], out)
				}
			}
		}
		_, _, _, _ = readControl(bytes.NewReader(in))
	})
}
