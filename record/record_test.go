package record

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"p2ptun/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, of, of, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// bareConn hides what a socket can do beyond net.Conn.
type bareConn struct{ net.Conn }

// end is one side of a connection: crypto/tls, or a Conn after that.
type end struct {
	net.Conn
	raw *net.TCPConn
}

func (e end) record() *Conn { return e.Conn.(*Conn) }

// shake shakes hands on one side; ready is for a Conn that reads as soon as there
// is something, ours for any Conn.
func shake(t testing.TB, raw *net.TCPConn, server, ours bool, ready func(*net.TCPConn) ReadReady) (end, error) {
	var told Secrets
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate()}, KeyLogWriter: &told}
	over, side := net.Conn(&Handshake{Conn: raw}), tls.Client
	if !ours {
		over = raw
	}
	if server {
		side = tls.Server
	}
	c := side(over, config)
	if err := c.Handshake(); err != nil || !ours {
		return end{c, raw}, err
	}
	r, err := New(bareConn{raw}, ready(raw), &told, c.ConnectionState().CipherSuite, server)
	return end{r, raw}, err
}

// kinds are the pairs that are tested: each side ours or crypto/tls, the client
// first, and with reads of either kind.
var kinds = map[string]struct {
	client, server bool
	ready          func(*net.TCPConn) ReadReady
}{
	"ours":                        {true, true, readsReady},
	"ours without ready reads":    {true, true, readsNot},
	"our client, crypto/tls":      {true, false, readsReady},
	"crypto/tls, our server":      {false, true, readsReady},
	"crypto/tls":                  {false, false, readsNot},
	"our bare client, crypto/tls": {true, false, readsNot},
}

func readsNot(*net.TCPConn) ReadReady { return nil }

// readsReady reads as node has it.
func readsReady(c *net.TCPConn) ReadReady {
	ready, err := registry.NewReadyReader(c)
	if err != nil {
		return nil // this system knows no such reads
	}
	return func(into Room, most int) (int, error) { return ready.Read(into, most) }
}

// pair joins two sides.
func pair(t testing.TB, kind string) (client, server end) {
	t.Helper()
	k := kinds[kind]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	shaken := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			server, err = shake(t, c.(*net.TCPConn), true, k.server, k.ready)
		}
		shaken <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	client, err = shake(t, c.(*net.TCPConn), false, k.client, k.ready)
	must(t, err)
	must(t, <-shaken)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// sizes are around those of records and of what goes out together.
var sizes = []int{1, 100, maxContent - 1, maxContent, maxContent + 1, 64 << 10, 64<<10 + 12, gathered - 1, gathered, gathered + 1, 300_000, 0, 5}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func TestItIsTLSOnTheWire(t *testing.T) {
	for kind := range kinds {
		for _, piece := range []int{1 << 20, maxContent + 1, maxContent, 5000, 7} {
			t.Run(kind, func(t *testing.T) {
				client, server := pair(t, kind)
				var done sync.WaitGroup
				for _, way := range [][2]end{{client, server}, {server, client}} {
					want := random(1_500_000)
					if piece == 7 {
						want = want[:50_000]
					}
					done.Go(func() { writeAll(t, way[0], want) })
					done.Go(func() { readAll(t, way[1], want, piece) })
				}
				done.Wait()
				must(t, client.Close())
				if n, err := server.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("after the end: %d, %v", n, err)
				}
			})
		}
	}
}

// writeAll writes in messages of all sizes, in one piece and in two.
func writeAll(t *testing.T, to net.Conn, b []byte) {
	for n := 0; len(b) > 0; n++ {
		size := min(sizes[n%len(sizes)], len(b))
		if r, ok := to.(end).Conn.(*Conn); ok && n%2 == 1 {
			if err := r.WriteBoth(b[:size/3], b[size/3:size]); err != nil {
				t.Error(err)
				return
			}
		} else if took, err := to.Write(b[:size]); err != nil || took != size {
			t.Errorf("%d of %d written: %v", took, size, err)
			return
		}
		b = b[size:]
	}
}

func readAll(t *testing.T, from net.Conn, want []byte, piece int) {
	got, buf := make([]byte, 0, len(want)), make([]byte, piece)
	for len(got) < len(want) {
		n, err := from.Read(buf)
		if got = append(got, buf[:n]...); err != nil || n == 0 {
			t.Errorf("%d read after %d: %v", n, len(got), err)
			return
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the bytes differ")
	}
}

// What the other side sends at once after its handshake is not lost in crypto/tls.
func TestNothingIsLeftBehindInTheHandshake(t *testing.T) {
	for range 50 {
		for _, kind := range []string{"ours", "our client, crypto/tls", "crypto/tls, our server"} {
			client, server := pair(t, kind)
			for _, way := range [][2]end{{client, server}, {server, client}} {
				_, err := way[0].Write([]byte("at once"))
				must(t, err)
				got := make([]byte, 7)
				_, err = io.ReadFull(way[1], got)
				must(t, err)
			}
		}
	}
}

// A new key is used where the old one is worn, and where the peer wants that.
func TestKeysAreChangedUnderWay(t *testing.T) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			client, server := pair(t, kind)
			for _, way := range [][2]end{{client, server}, {server, client}} {
				us, ok := way[0].Conn.(*Conn)
				if !ok {
					continue
				}
				for range 3 {
					before := us.sealing.secret
					us.rekey.Store(true)
					exchange(t, way[0], way[1])
					if bytes.Equal(us.sealing.secret, before) {
						t.Fatal("the key is the same")
					}
				}
				theirs := us.opening.secret
				us.rekeyPeer(t)
				exchange(t, way[0], way[1])
				exchange(t, way[1], way[0])
				if bytes.Equal(us.opening.secret, theirs) {
					t.Error("the peer goes on with its key")
				}
				exchange(t, way[1], way[0])
			}
		})
	}
}

func TestAWornKeyIsChanged(t *testing.T) {
	client, server := pair(t, "ours")
	us, them := client.record(), server.record()
	us.sealing.count, them.opening.count = wornAfter, wornAfter
	exchange(t, client, server)
	if us.sealing.count != 3 || them.opening.count != 3 {
		t.Errorf("%d and %d records of the key, want 3", us.sealing.count, them.opening.count)
	}
}

// rekeyPeer asks the peer to change its key.
func (r *Conn) rekeyPeer(t *testing.T) {
	r.sendRaw(t, typeHandshake, []byte{keyUpdate, 0, 0, 1, 1})
	must(t, r.sealing.next())
}

// sendRaw sends one record of that content.
func (r *Conn) sendRaw(t testing.TB, kind byte, content []byte) {
	out := &outBuffer{b: make([]byte, gathered)}
	r.seal(out, kind, content, nil)
	must(t, r.flush(out))
}

func exchange(t *testing.T, from, to net.Conn) {
	t.Helper()
	want := random(40_000)
	wrote := make(chan error, 1)
	go func() {
		_, err := from.Write(want)
		wrote <- err
	}()
	got := make([]byte, len(want))
	must(t, to.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err := io.ReadFull(to, got)
	must(t, err)
	must(t, <-wrote)
	if !bytes.Equal(got, want) {
		t.Fatal("the bytes differ")
	}
}

// TestSecretsOfTheRFC: RFC 8448, 3 has the keys that come of a traffic secret.
func TestSecretsOfTheRFC(t *testing.T) {
	var k trafficKey
	must(t, k.init(tls.TLS_AES_128_GCM_SHA256, unhex([]byte("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"))))
	key, err := k.expand(k.secret, "key", 16)
	must(t, err)
	if got := hex.EncodeToString(key); got != "9f02283b6c9c07efc26bb9f2ac92e356" {
		t.Errorf("key %s", got)
	}
	if got := hex.EncodeToString(k.iv[:]); got != "cf782b88dd83549aadf1e984" {
		t.Errorf("iv %s", got)
	}
	must(t, k.init(tls.TLS_AES_256_GCM_SHA384, make([]byte, 48)))
	if err := k.init(tls.TLS_CHACHA20_POLY1305_SHA256, make([]byte, 32)); err == nil {
		t.Error("a suite that it does not know")
	}
	if err := k.init(tls.TLS_AES_128_GCM_SHA256, nil); err == nil {
		t.Error("no secret")
	}
}

func TestTheLongerSuite(t *testing.T) {
	a, b := net.Pipe()
	told := &Secrets{client: random(48), server: random(48)}
	client, err := New(a, nil, told, tls.TLS_AES_256_GCM_SHA384, false)
	must(t, err)
	server, err := New(b, nil, told, tls.TLS_AES_256_GCM_SHA384, true)
	must(t, err)
	exchange(t, client, server)
	exchange(t, server, client)
	_ = a.Close()
	_ = b.Close()
}

func TestSecretsTakeWhatCryptoTLSSays(t *testing.T) {
	var s Secrets
	for _, line := range []string{"CLIENT_HANDSHAKE_TRAFFIC_SECRET 00 01\n", "CLIENT_TRAFFIC_SECRET_0 00 02\n", "SERVER_TRAFFIC_SECRET_0 00 03\n", "EXPORTER_SECRET 00 04\n", "x\n", ""} {
		n, err := s.Write([]byte(line))
		must(t, err)
		if n != len(line) {
			t.Errorf("%d of %q", n, line)
		}
	}
	if !bytes.Equal(s.client, []byte{2}) || !bytes.Equal(s.server, []byte{3}) {
		t.Errorf("%x %x", s.client, s.server)
	}
	_, _ = s.Write([]byte("CLIENT_TRAFFIC_SECRET_0 00 zz\n"))
	if s.client != nil {
		t.Error("no hexadecimal")
	}
}

// While it waits a connection holds nothing, or what one record needs.
func TestAConnectionThatWaitsHoldsLittle(t *testing.T) {
	client, server := pair(t, "ours")
	us := client.record()
	block := random(1 << 20)
	go func() { _, _ = server.Write(block) }()
	got := make([]byte, len(block))
	_, err := io.ReadFull(us, got)
	must(t, err)
	if us.buf.whole != nil || us.buf.small != nil || us.plain != nil {
		t.Error("a buffer is held")
	}
	out := &outBuffer{b: make([]byte, gathered)}
	them := server.record()
	them.seal(out, typeData, []byte("more"), nil)
	_, err = server.raw.Write(out.b[:9])
	must(t, err)
	must(t, us.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	if _, err := us.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if us.buf.whole != nil || us.buf.small == nil {
		t.Error("it waits with the large buffer")
	}
	_, err = server.raw.Write(out.b[9:out.n])
	must(t, err)
	must(t, us.SetReadDeadline(time.Time{}))
	if n, err := us.Read(got); err != nil || string(got[:n]) != "more" {
		t.Errorf("%q, %v", got[:n], err)
	}
	if us.buf.whole != nil || us.buf.small != nil || us.plain != nil {
		t.Error("a buffer is held in the end")
	}
}

func TestAheadIsWhatARecordHasLeft(t *testing.T) {
	client, server := pair(t, "ours")
	us := client.record()
	if us.Ahead() {
		t.Error("before anything has come")
	}
	_, err := server.Write([]byte("abc"))
	must(t, err)
	buf := make([]byte, 1)
	for i := range 3 {
		_, err := us.Read(buf)
		must(t, err)
		if us.Ahead() != (i < 2) {
			t.Errorf("after %d bytes: %t", i+1, us.Ahead())
		}
	}
}

// The end of a deadline ends one Read and nothing of what it has read, but all
// Writes.
func TestADeadlineOfWritesIsTheirEnd(t *testing.T) {
	client, _ := pair(t, "ours")
	must(t, client.SetWriteDeadline(time.Now().Add(-time.Second)))
	if _, err := client.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	must(t, client.SetWriteDeadline(time.Time{}))
	if _, err := client.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("another write: %v", err)
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	client, _ := pair(t, "ours")
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			if _, err := client.Write(make([]byte, 1<<20)); err != nil { // nobody reads
				return
			}
		}
	})
	ended.Go(func() {
		if _, err := client.Read(make([]byte, 1)); err == nil {
			t.Error("a read of nothing")
		}
	})
	_ = client.Close()
	ended.Wait()
	if _, err := client.Write([]byte("x")); err == nil {
		t.Error("a write after the end")
	}
	_ = client.Close()
}
