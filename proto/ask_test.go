package proto

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/encoding/protowire"
)

var goldenQuestions = map[string]string{
	"/x/ssh":          "08" + "0a06" + "2f782f737368",
	"/x/größe":        "0c" + "0a0a" + "2f782f6772c3b6c39f65",
	AskProtocol:       "13" + "0a11" + "2f70327074756e2f61736b2f312e302e30",
	longName(MaxName): "8202" + "0aff01" + hex.EncodeToString([]byte(longName(MaxName))),
}

var goldenAnswers = map[Verdict]string{
	Verdict_VERDICT_UNKNOWN:      "00",
	Verdict_VERDICT_OK:           "02" + "0801",
	Verdict_VERDICT_REFUSED:      "02" + "0802",
	Verdict_VERDICT_SERVICE_DOWN: "02" + "0803",
	Verdict_VERDICT_NO_SERVICE:   "02" + "0804",
	Verdict_VERDICT_INVITE_USED:  "02" + "0805",
	Verdict_VERDICT_INVITE_OVER:  "02" + "0806",
	Verdict_VERDICT_INVITE_LATER: "02" + "0807",
}

// goldenKeyed are questions that show an invite.
var goldenKeyed = []struct {
	q     *Question
	bytes string
}{
	{
		&Question{Protocol: "/x/ssh", InviteId: goldenID, InviteSecret: goldenSecret},
		"21" + "0a06" + "2f782f737368" + "1205" + "0102030405" + "1a10" + "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
	},
	{
		&Question{Protocol: longName(MaxName), InviteId: bytes.Repeat([]byte{1}, 16), InviteSecret: bytes.Repeat([]byte{2}, 64)},
		"d602" + "0aff01" + hex.EncodeToString([]byte(longName(MaxName))) + "1210" + strings.Repeat("01", 16) + "1a40" + strings.Repeat("02", 64),
	},
}

func sameQuestion(a, b *Question) bool {
	return a != nil && a.GetProtocol() == b.GetProtocol() && bytes.Equal(a.GetInviteId(), b.GetInviteId()) && bytes.Equal(a.GetInviteSecret(), b.GetInviteSecret())
}

func TestBytesOfAQuestionWithAnInviteNeverChange(t *testing.T) {
	for _, c := range goldenKeyed {
		var wire bytes.Buffer
		if err := WriteQuestion(&wire, c.q); err != nil {
			t.Errorf("WriteQuestion(%v): %v", c.q, err)
		}
		if got := hex.EncodeToString(wire.Bytes()); got != c.bytes {
			t.Errorf("question %v is %s, want %s", c.q, got, c.bytes)
		}
		for _, r := range []io.Reader{unhex(t, c.bytes), iotest.OneByteReader(unhex(t, c.bytes))} {
			if got, err := ReadQuestion(r); err != nil || !sameQuestion(got, c.q) {
				t.Errorf("ReadQuestion(%s) = %v, %v", c.bytes, got, err)
			}
		}
	}
}

func TestAnInviteInAQuestionIsBoundedAndWhole(t *testing.T) {
	for _, c := range []struct {
		id, secret int
		ok         bool
	}{
		{0, 0, true}, {5, 16, true}, {16, 64, true}, {5, 64, true}, {16, 16, true},
		{4, 16, false}, {17, 16, false}, {5, 15, false}, {5, 65, false}, {5, 0, false}, {0, 16, false}, {1, 1, false},
	} {
		q := &Question{Protocol: "/x/ssh", InviteId: make([]byte, c.id), InviteSecret: make([]byte, c.secret)}
		var wire bytes.Buffer
		if err := WriteQuestion(&wire, q); (err == nil) != c.ok || err != nil && wire.Len() > 0 {
			t.Errorf("id of %d bytes, secret of %d: WriteQuestion = %v, and wrote %d bytes", c.id, c.secret, err, wire.Len())
		}
		got, err := ReadQuestion(bytes.NewReader(rawKeyed(q)))
		if (err == nil) != c.ok || (got != nil) != c.ok || c.ok && !sameQuestion(got, q) {
			t.Errorf("id of %d bytes, secret of %d: ReadQuestion = %v, %v", c.id, c.secret, got, err)
		}
	}
}

// rawKeyed frames a question unchecked.
func rawKeyed(q *Question) []byte {
	var body []byte
	for i, field := range [][]byte{[]byte(q.GetProtocol()), q.GetInviteId(), q.GetInviteSecret()} {
		if len(field) > 0 {
			body = protowire.AppendTag(body, protowire.Number(i+1), protowire.BytesType)
			body = protowire.AppendBytes(body, field)
		}
	}
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

// An error goes to a log.
func TestErrorsOfAQuestionNeverHoldItsSecret(t *testing.T) {
	secret := strings.Repeat("hush", 4)
	for _, q := range []*Question{
		{Protocol: "/x/ssh", InviteSecret: []byte(secret)},
		{Protocol: "/x/ssh", InviteId: []byte("1234"), InviteSecret: []byte(secret)},
		{Protocol: "ssh", InviteId: []byte("12345"), InviteSecret: []byte(secret)},
	} {
		_, read := ReadQuestion(bytes.NewReader(rawKeyed(q)))
		for _, err := range []error{WriteQuestion(io.Discard, q), read} {
			if err == nil || strings.Contains(err.Error(), "hush") {
				t.Errorf("err = %v", err)
			}
		}
	}
}

func longName(bytes int) string {
	return "/x/" + strings.Repeat("a", bytes-len("/x/"))
}

func TestQuestionBytesNeverChange(t *testing.T) {
	for name, golden := range goldenQuestions {
		var wire bytes.Buffer
		if err := WriteQuestion(&wire, &Question{Protocol: name}); err != nil {
			t.Errorf("WriteQuestion(%q): %v", name, err)
		}
		if got := hex.EncodeToString(wire.Bytes()); got != golden {
			t.Errorf("question %q is %s, want %s", name, got, golden)
		}
		if got, err := ReadQuestion(unhex(t, golden)); err != nil || !sameQuestion(got, &Question{Protocol: name}) {
			t.Errorf("ReadQuestion(%s) = %v, %v; want %q", golden, got, err, name)
		}
	}
}

func TestAnswerBytesNeverChange(t *testing.T) {
	if len(goldenAnswers) != len(Verdict_name) {
		t.Errorf("%d verdicts, %d golden answers", len(Verdict_name), len(goldenAnswers))
	}
	for verdict, golden := range goldenAnswers {
		var wire bytes.Buffer
		if err := WriteAnswer(&wire, verdict); err != nil {
			t.Errorf("WriteAnswer(%s): %v", verdict, err)
		}
		if got := hex.EncodeToString(wire.Bytes()); got != golden {
			t.Errorf("answer %s is %s, want %s", verdict, got, golden)
		}
		if got, err := ReadAnswer(unhex(t, golden)); err != nil || got != verdict {
			t.Errorf("ReadAnswer(%s) = %s, %v; want %s", golden, got, err, verdict)
		}
	}
}

func TestAskMessagesArriveByteByByte(t *testing.T) {
	for name, golden := range goldenQuestions {
		if got, err := ReadQuestion(iotest.OneByteReader(unhex(t, golden))); err != nil || !sameQuestion(got, &Question{Protocol: name}) {
			t.Errorf("ReadQuestion(%s) = %v, %v", golden, got, err)
		}
	}
}

func TestTruncatedQuestionIsAnError(t *testing.T) {
	for name, golden := range goldenQuestions {
		whole, err := io.ReadAll(unhex(t, golden))
		if err != nil {
			t.Fatal(err)
		}
		for n := range whole {
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if got, err := ReadQuestion(bytes.NewReader(whole[:n])); !errors.Is(err, want) || got != nil {
				t.Errorf("%d bytes of question %q read as %v, %v; want %v", n, name, got, err, want)
			}
		}
	}
}

func TestTruncatedAnswerIsAnErrorAndNoVerdict(t *testing.T) {
	for _, cut := range []string{"", "02", "0208", "80", "05080118"} {
		got, err := ReadAnswer(unhex(t, cut))
		if err == nil || got != Verdict_VERDICT_UNKNOWN {
			t.Errorf("ReadAnswer(%q) = %s, %v", cut, got, err)
		}
	}
}

func TestReadErrorOfTheStreamIsKept(t *testing.T) {
	broken := errors.New("stream reset")
	if _, err := ReadQuestion(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("ReadQuestion = %v", err)
	}
	if _, err := ReadAnswer(io.MultiReader(unhex(t, "02"), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("ReadAnswer = %v", err)
	}
}

func TestOversizedAskIsRefusedBeforeItIsReadOrAllocated(t *testing.T) {
	for _, size := range []uint64{MaxAsk + 1, 1 << 20, 1 << 30, 1 << 62} {
		prefix := binary.AppendUvarint(nil, size)
		for what, read := range map[string]func(io.Reader) error{
			"question": func(r io.Reader) error { _, err := ReadQuestion(r); return err },
			"answer":   func(r io.Reader) error { _, err := ReadAnswer(r); return err },
		} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			// Any read after the prefix fails with another error.
			err := read(io.MultiReader(bytes.NewReader(prefix), iotest.ErrReader(errors.New("read on"))))
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrAskTooLong) {
				t.Errorf("%s of %d bytes: %v, want ErrAskTooLong", what, size, err)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<10 {
				t.Errorf("%s of %d bytes: %d bytes allocated", what, size, grown)
			}
		}
	}
}

func TestMalformedAskIsRefused(t *testing.T) {
	for what, in := range map[string]string{
		"length of 11 bytes":    "ffffffffffffffffffff01",
		"length over 64 bits":   "ffffffffffffffffff02",
		"field 0":               "020001",
		"wire type 7":           "020f01",
		"string past the end":   "030a05" + "2f",
		"unclosed group":        "010b",
		"varint without an end": "0208ff",
	} {
		if got, err := ReadQuestion(unhex(t, in)); err == nil || got != nil {
			t.Errorf("%s: ReadQuestion = %v", what, got)
		}
		if got, err := ReadAnswer(unhex(t, in)); err == nil || got != Verdict_VERDICT_UNKNOWN {
			t.Errorf("%s: ReadAnswer = %s, %v", what, got, err)
		}
	}
}

func TestAskOfMaxAskBytesIsRead(t *testing.T) {
	body := protowire.AppendTag(nil, 1, protowire.BytesType)
	body = protowire.AppendString(body, "/x/ssh")
	body = protowire.AppendTag(body, 2000, protowire.BytesType)
	filler := MaxAsk - len(body) - 2
	body = protowire.AppendBytes(body, make([]byte, filler))
	if len(body) != MaxAsk {
		t.Fatalf("body of %d bytes", len(body))
	}
	got, err := ReadQuestion(bytes.NewReader(append(binary.AppendUvarint(nil, MaxAsk), body...)))
	if err != nil || got.GetProtocol() != "/x/ssh" || got.GetInviteId() != nil || got.GetInviteSecret() != nil {
		t.Errorf("ReadQuestion = %v, %v", got, err)
	}
}

func TestWrongNamesAreNeitherSentNorTaken(t *testing.T) {
	for _, name := range []string{
		"", "ssh", "/", "/x/", "/x/a b", "/x/\n", "/x/\x1b[31m", "/x/\u202e", "/x/\xff",
		longName(MaxName + 1), longName(MaxAsk - 3), longName(MaxAsk),
	} {
		var wire bytes.Buffer
		if err := WriteQuestion(&wire, &Question{Protocol: name}); err == nil || wire.Len() > 0 {
			t.Errorf("WriteQuestion(%q) = %v, and wrote %x", name, err, wire.Bytes())
		}
		got, err := ReadQuestion(bytes.NewReader(rawQuestion(name)))
		if err == nil || got != nil {
			t.Errorf("ReadQuestion of %q = %v, %v", name, got, err)
			continue
		}
		checkShowable(t, err.Error())
	}
}

func TestVerdictOfALaterVersionReadsAsUnknown(t *testing.T) {
	for _, in := range []string{
		"020808", "020863", // 8, 99
		"0608ffffffff07",           // the largest
		"0b08ffffffffffffffffff01", // -1
		"0b0880808080f8ffffffff01", // the smallest
		"04" + "0801" + "0808",     // the last one counts
	} {
		if got, err := ReadAnswer(unhex(t, in)); err != nil || got != Verdict_VERDICT_UNKNOWN {
			t.Errorf("ReadAnswer(%s) = %s, %v", in, got, err)
		}
	}
	var wire bytes.Buffer
	if err := WriteAnswer(&wire, 99); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadAnswer(&wire); err != nil || got != Verdict_VERDICT_UNKNOWN {
		t.Errorf("verdict 99 reads as %s, %v", got, err)
	}
}

func TestFieldsOfALaterVersionAreIgnored(t *testing.T) {
	if got, err := ReadQuestion(unhex(t, "0d"+"0a062f782f737368"+"2203abcdef")); err != nil || got.GetProtocol() != "/x/ssh" {
		t.Errorf("ReadQuestion = %v, %v", got, err)
	}
	if got, err := ReadAnswer(unhex(t, "04"+"0801"+"1007")); err != nil || got != Verdict_VERDICT_OK {
		t.Errorf("ReadAnswer = %s, %v", got, err)
	}
}

func TestWriteErrorOfTheStreamIsKept(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	if err := WriteQuestion(w, &Question{Protocol: "/x/ssh"}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("WriteQuestion = %v", err)
	}
	if err := WriteAnswer(w, Verdict_VERDICT_OK); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("WriteAnswer = %v", err)
	}
}

// rawQuestion frames a name unchecked, as a peer with other manners would.
func rawQuestion(name string) []byte {
	body := protowire.AppendTag(nil, 1, protowire.BytesType)
	body = protowire.AppendString(body, name)
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

func unhex(t testing.TB, s string) *bytes.Reader {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b)
}

func FuzzReadQuestion(f *testing.F) {
	for _, golden := range goldenQuestions {
		b, _ := hex.DecodeString(golden)
		f.Add(b)
	}
	for _, c := range goldenKeyed {
		b, _ := hex.DecodeString(c.bytes)
		f.Add(b)
	}
	f.Add(rawQuestion("/x/\x1b"))
	f.Add(rawKeyed(&Question{Protocol: "/x/ssh", InviteId: goldenID}))
	f.Add(binary.AppendUvarint(nil, 1<<40))
	f.Fuzz(func(t *testing.T, in []byte) {
		q, err := ReadQuestion(bytes.NewReader(in))
		if err != nil {
			checkShowable(t, err.Error())
			if q != nil {
				t.Errorf("ReadQuestion(%x) = %v beside %v", in, q, err)
			}
			return
		}
		checkQuestionBounds(t, q)
		var wire bytes.Buffer
		if err := WriteQuestion(&wire, q); err != nil {
			t.Fatalf("WriteQuestion(%v): %v", q, err)
		}
		if again, err := ReadQuestion(&wire); err != nil || !sameQuestion(again, q) {
			t.Errorf("question %v reads as %v, %v", q, again, err)
		}
	})
}

func checkQuestionBounds(t testing.TB, q *Question) {
	t.Helper()
	name, id, secret := q.GetProtocol(), len(q.GetInviteId()), len(q.GetInviteSecret())
	checkShowable(t, name)
	if len(name) > MaxName || CheckWireProtocol(name) != nil {
		t.Errorf("name %q", name)
	}
	none, whole := id == 0 && secret == 0, id >= 5 && id <= 16 && secret >= 16 && secret <= 64
	if !none && !whole {
		t.Errorf("an id of %d bytes and a secret of %d", id, secret)
	}
}

func FuzzReadAnswer(f *testing.F) {
	for _, golden := range goldenAnswers {
		b, _ := hex.DecodeString(golden)
		f.Add(b)
	}
	f.Add([]byte("\x02\x08\x63"))
	f.Add(binary.AppendUvarint(nil, 1<<40))
	f.Fuzz(func(t *testing.T, in []byte) {
		verdict, err := ReadAnswer(bytes.NewReader(in))
		if _, known := Verdict_name[int32(verdict)]; !known {
			t.Errorf("ReadAnswer(%x) = %d", in, verdict)
		}
		if err != nil {
			checkShowable(t, err.Error())
			if verdict != Verdict_VERDICT_UNKNOWN {
				t.Errorf("ReadAnswer(%x) = %s beside %v", in, verdict, err)
			}
			return
		}
		var wire bytes.Buffer
		if err := WriteAnswer(&wire, verdict); err != nil {
			t.Fatalf("WriteAnswer(%s): %v", verdict, err)
		}
		if again, err := ReadAnswer(&wire); err != nil || again != verdict {
			t.Errorf("answer %s reads as %s, %v", verdict, again, err)
		}
	})
}

// FuzzWriteQuestion: what is sent is taken, and nothing else is sent.
func FuzzWriteQuestion(f *testing.F) {
	f.Add("/x/ssh")
	f.Add("ssh")
	f.Add("/x/\xff")
	f.Fuzz(func(t *testing.T, name string) {
		var wire bytes.Buffer
		sent := WriteQuestion(&wire, &Question{Protocol: name})
		if sent == nil && wire.Len() > MaxAsk+binary.MaxVarintLen16 {
			t.Errorf("WriteQuestion(%q) wrote %d bytes", name, wire.Len())
		}
		if sent != nil {
			checkShowable(t, sent.Error())
		}
		got, err := ReadQuestion(bytes.NewReader(rawQuestion(name)))
		if (sent == nil) != (err == nil) {
			t.Errorf("WriteQuestion(%q) says %v, ReadQuestion %v", name, sent, err)
		}
		if err == nil && (!sameQuestion(got, &Question{Protocol: name}) || !bytes.Equal(wire.Bytes(), rawQuestion(name))) {
			t.Errorf("question %q reads as %v, and is written as %x", name, got, wire.Bytes())
		}
	})
}
