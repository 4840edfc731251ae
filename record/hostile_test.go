package record

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// said is what a peer that has the keys sends: records sealed as told, or bytes.
type said struct {
	kind    byte
	content []byte
	pad     int
	raw     []byte // in place of all that
}

func (r *Conn) say(t testing.TB, s said) {
	if s.raw != nil {
		_, err := r.Conn.Write(s.raw)
		must(t, err)
		return
	}
	inner := append(append(bytes.Clone(s.content), s.kind), make([]byte, s.pad)...)
	header := binary.BigEndian.AppendUint16([]byte{typeData, 3, 3}, uint16(len(inner)+tagSize))
	sealed := r.sealing.aead.Seal(nil, r.sealing.turn(), inner, header)
	_, err := r.Conn.Write(append(header, sealed...))
	must(t, err)
}

func data(b string) said      { return said{kind: typeData, content: []byte(b)} }
func shaking(b ...byte) said  { return said{kind: typeHandshake, content: b} }
func alerting(b ...byte) said { return said{kind: typeAlert, content: b} }
func raw(b ...byte) said      { return said{raw: b} }
func many(n int, s said) (all []said) {
	for range n {
		all = append(all, s)
	}
	return all
}

// Tickets are the server's to give.
func TestTicketsAreForNothing(t *testing.T) {
	for name, c := range map[string]struct {
		said []said
		got  string
		err  error
	}{
		"one":           {[]said{shaking(newSessionTicket, 0, 0, 2, 1, 2), data("a")}, "a", io.EOF},
		"two, in parts": {[]said{shaking(newSessionTicket), shaking(0, 0, 2, 1), shaking(2, newSessionTicket, 0, 0, 0), data("a")}, "a", io.EOF},
		"and a key":     {[]said{shaking(newSessionTicket, 0, 0, 1, 1, keyUpdate, 0, 0, 1, 2)}, "", &net.OpError{Op: "local error", Err: tls.AlertError(alertDecode)}},
		"without end":   {many(maxUseless+1, shaking(newSessionTicket, 0, 0xf0, 0)), "", &net.OpError{Op: "local error", Err: tls.AlertError(alertUnexpectedMessage)}},
		"too long":      {[]said{shaking(newSessionTicket, 1, 0, 1)}, "", &net.OpError{Op: "local error", Err: tls.AlertError(alertDecode)}},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t, "ours")
			for _, s := range c.said {
				server.record().say(t, s)
			}
			must(t, server.raw.CloseWrite())
			got, err := io.ReadAll(endShown{client})
			if string(got) != c.got || !isSame(err, c.err) {
				t.Errorf("%q, %v, want %q, %v", got, err, c.got, c.err)
			}
			if us := client.record(); len(us.head) > 4 {
				t.Errorf("%d bytes of a ticket are kept", len(us.head))
			}
		})
	}
}

// A write that hangs holds what it needs, and an end holds nothing.
func TestBuffersFitWhatIsInThem(t *testing.T) {
	if outFor(maxContent) != smallOuts || outFor(maxContent+1) != largeOuts {
		t.Error("one record does not go into the small buffer")
	}
	client, server := pair(t, "ours")
	client.record().say(t, alerting(1, alertCloseNotify))
	client.record().say(t, data("after the end"))
	must(t, client.raw.CloseWrite())
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%v", err)
	}
	if us := server.record(); us.buf.whole != nil || us.buf.small != nil || us.Ahead() {
		t.Error("a buffer is held after the end")
	}
}

func TestWhatAPeerMayAndMayNotSend(t *testing.T) {
	local := func(a tls.AlertError) error { return &net.OpError{Op: "local error", Err: a} }
	long := bytes.Repeat([]byte("x"), maxContent)
	for name, c := range map[string]struct {
		said []said
		got  string
		err  error
	}{
		"padding":                        {[]said{{kind: typeData, content: []byte("a"), pad: 100}, data("b")}, "ab", io.EOF},
		"the longest":                    {[]said{{kind: typeData, content: long}}, string(long), io.EOF},
		"the longest, padded":            {[]said{{kind: typeData, content: long, pad: 1}}, "", local(alertOverflow)},
		"too long inside":                {[]said{{kind: typeData, content: append(long, 'x')}}, "", local(alertOverflow)},
		"too long":                       {[]said{raw(typeData, 3, 3, 0x41, 1)}, "", local(alertOverflow)},
		"nothing, sixteen times":         {append(many(maxUseless, data("")), data("a")), "a", io.EOF},
		"nothing, again and again":       {many(maxUseless+1, data("")), "", local(alertUnexpectedMessage)},
		"only padding":                   {[]said{{kind: 0, pad: 10}}, "", local(alertUnexpectedMessage)},
		"shorter than a tag":             {[]said{raw(typeData, 3, 3, 0, 3, 1, 2, 3)}, "", local(alertUnexpectedMessage)},
		"empty":                          {[]said{raw(typeData, 3, 3, 0, 0)}, "", local(alertUnexpectedMessage)},
		"not sealed":                     {[]said{raw(append([]byte{typeData, 3, 3, 0, 20}, make([]byte, 20)...)...)}, "", local(alertBadRecord)},
		"an alert in the clear":          {[]said{raw(typeAlert, 3, 3, 0, 2, 1, 0)}, "", local(alertUnexpectedMessage)},
		"a change of ciphers":            {[]said{raw(20, 3, 3, 0, 1, 1)}, "", local(alertUnexpectedMessage)},
		"another type":                   {[]said{{kind: 24, content: []byte("heartbeat")}}, "", local(alertUnexpectedMessage)},
		"the end":                        {[]said{data("a"), alerting(1, alertCloseNotify), data("b")}, "a", io.EOF},
		"data, then a failure":           {[]said{data("a"), alerting(2, 40)}, "a", &net.OpError{Op: "remote error", Err: tls.AlertError(40)}},
		"canceled":                       {[]said{alerting(1, alertUserCanceled), data("a")}, "a", io.EOF},
		"half an alert":                  {[]said{alerting(1)}, "", local(alertDecode)},
		"a ticket by a client":           {[]said{shaking(newSessionTicket, 0, 0, 2, 1, 2)}, "", local(alertUnexpectedMessage)},
		"no handshake":                   {[]said{shaking()}, "", local(alertUnexpectedMessage)},
		"data in a handshake message":    {[]said{shaking(keyUpdate, 0), data("a")}, "", local(alertUnexpectedMessage)},
		"a key update in parts":          {[]said{shaking(keyUpdate), shaking(0, 0), shaking(1), alerting(1, alertUserCanceled)}, "", local(alertUnexpectedMessage)},
		"another handshake":              {[]said{shaking(1, 0, 0, 0)}, "", local(alertUnexpectedMessage)},
		"a key update that says nothing": {[]said{shaking(keyUpdate, 0, 0, 0)}, "", local(alertDecode)},
		"a key update of another kind":   {[]said{shaking(keyUpdate, 0, 0, 1, 2)}, "", local(alertDecode)},
		"a key update with more":         {[]said{shaking(keyUpdate, 0, 0, 1, 0, newSessionTicket)}, "", local(alertUnexpectedMessage)},
		"the old key after a new one":    {[]said{shaking(keyUpdate, 0, 0, 1, 0), data("a")}, "", local(alertBadRecord)},
		"the socket's end in a record":   {[]said{data("a"), raw(typeData, 3, 3, 0, 100, 1)}, "a", io.ErrUnexpectedEOF},
		"the socket's end in a header":   {[]said{data("a"), raw(typeData, 3)}, "a", io.ErrUnexpectedEOF},
	} {
		for _, kind := range []string{"ours", "ours without ready reads"} {
			t.Run(name, func(t *testing.T) {
				client, server := pair(t, kind)
				for _, s := range c.said {
					client.record().say(t, s)
				}
				must(t, client.raw.CloseWrite())
				must(t, server.SetReadDeadline(time.Now().Add(time.Minute)))
				got, err := io.ReadAll(endShown{server})
				if string(got) != c.got {
					t.Errorf("%d bytes, want %d", len(got), len(c.got))
				}
				if !isSame(err, c.err) {
					t.Errorf("%v, want %v", err, c.err)
				}
				if _, again := server.Read(make([]byte, 1)); !isSame(again, c.err) {
					t.Errorf("read again: %v", again)
				}
				wantTold(t, client, err)
			})
		}
	}
}

// endShown gives ReadAll an EOF as an error.
type endShown struct{ io.Reader }

func (e endShown) Read(b []byte) (int, error) {
	n, err := e.Reader.Read(b)
	if err == io.EOF {
		err = errEnd
	}
	return n, err
}

var errEnd = errors.New("the end")

func isSame(got, want error) bool {
	if got == errEnd {
		got = io.EOF
	}
	return got != nil && got.Error() == want.Error()
}

// wantTold wants who is refused to be told why.
func wantTold(t *testing.T, client end, refusal error) {
	t.Helper()
	var why tls.AlertError
	var op *net.OpError
	if !errors.As(refusal, &op) || op.Op != "local error" || !errors.As(refusal, &why) {
		return
	}
	must(t, client.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err := client.Read(make([]byte, 1))
	var told tls.AlertError
	if !errors.As(err, &told) || told != why {
		t.Errorf("the peer is told %v, want %v", err, why)
	}
}

// FuzzRead has a peer that has the keys send what it likes: records sealed as the
// input says, whatever is in them, and bytes that are none.
func FuzzRead(f *testing.F) {
	for _, b := range [][]byte{
		{},
		{typeData, 1, 0, 'a', typeData, 0, 5, typeAlert, 2, 0, 1, 0},
		{typeHandshake, 5, 0, keyUpdate, 0, 0, 1, 1, typeData, 2, 0, 'a', 'b'},
		{typeHandshake, 6, 3, newSessionTicket, 0, 0, 2, 1, 2, 255, 5, 0, typeData, 3, 3, 0, 9},
		{255, 5, 0, typeData, 3, 3, 255, 255},
		{0, 0, 9},
	} {
		f.Add(b, uint16(3))
		f.Add(b, uint16(300))
	}
	told := &Secrets{client: random(32), server: random(32)}
	f.Fuzz(func(t *testing.T, input []byte, piece uint16) {
		wire, want := fuzzed(t, told, input)
		in, far := net.Pipe()
		defer in.Close()
		server, err := New(in, nil, told, tls.TLS_AES_128_GCM_SHA256, true)
		must(t, err)
		go func() {
			go func() { _, _ = io.Copy(io.Discard, far) }()
			_, _ = far.Write(wire)
			_ = far.Close()
		}()
		var got []byte
		buf := make([]byte, max(1, int(piece)))
		for err == nil {
			var n int
			n, err = server.Read(buf)
			got = append(got, buf[:n]...)
			if n == 0 && err == nil {
				t.Fatal("a read of nothing")
			}
		}
		if !bytes.HasPrefix(want, got) {
			t.Errorf("%q, want the beginning of %q", got, want)
		}
		if len(server.head) > 4 || server.plain != nil || server.buf.small != nil || server.buf.whole != nil {
			t.Error("something is kept after the end")
		}
	})
}

// fuzzed is what goes over the wire, and all data in it, up to what is no record.
func fuzzed(t *testing.T, told *Secrets, input []byte) (wire, want []byte) {
	var key trafficKey
	must(t, key.init(tls.TLS_AES_128_GCM_SHA256, told.client))
	broken := false
	for len(input) >= 3 {
		kind, size, pad := input[0], min(int(input[1]), len(input)-3), int(input[2])
		content := input[3 : 3+size]
		input = input[3+size:]
		if kind == 255 {
			wire, broken = append(wire, content...), broken || size > 0
			continue
		}
		inner := append(append(bytes.Clone(content), kind), make([]byte, pad)...)
		header := binary.BigEndian.AppendUint16([]byte{typeData, 3, 3}, uint16(len(inner)+tagSize))
		wire = append(append(wire, header...), key.aead.Seal(nil, key.turn(), inner, header)...)
		said := bytes.TrimRight(inner, "\x00") // as who reads it takes it
		if len(said) == 0 {
			broken = true
			continue
		}
		content, kind = said[:len(said)-1], said[len(said)-1]
		if kind == typeHandshake && len(content) == 5 && content[0] == keyUpdate {
			must(t, key.next())
		}
		if kind == typeData && !broken {
			want = append(want, content...)
		}
	}
	return wire, want
}
