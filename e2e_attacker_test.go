//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"p2ptun/proto"
)

// The attacker: a program that knows libp2p's wire and none of its manners. It
// takes no more than one core, so that it can't starve a machine of two, and
// comes from an address of its own in 127.0.0.0/8.

func init() {
	programs["e2e-attacker"] = attackerMain
	programs["e2e-dummy"] = dummyMain
}

// dummyMain is a port of no worth: nobody takes what comes to it, so that it
// costs the machine no more than the attacker's own effort. It prints its TCP
// and UDP addresses.
func dummyMain() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	orExit(err)
	raw, err := l.(*net.TCPListener).SyscallConn()
	orExit(err)
	orExit(raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 1) }))
	orExit(err)
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	orExit(err)
	fmt.Println("dummy", l.Addr(), u.LocalAddr())
	select {}
}

func orExit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// attacker is whom it attacks, and from where.
type attacker struct {
	from   net.IP
	tcp    *net.TCPAddr
	udp    *net.UDPAddr
	victim peer.ID
	key    crypto.PrivKey

	mu      sync.Mutex
	resumed *sync.Cond
	running bool
	keep    effort // what it is to keep to; zero for what it can
	began   time.Time
	spent   time.Duration // CPU time before that
	tries   int64         // since then
	streams int64         // in all
}

// effort is what an attack costs the attacker: connections and packets a
// second, and thousandths of a core.
type effort struct{ tries, cpu int64 }

func (e effort) String() string {
	return fmt.Sprintf("%d tries/s, %.2f cores", e.tries, float64(e.cpu)/1000)
}

// try is to be called before each connection and each packet. It waits while
// the attack is halted, or ahead of its effort.
func (a *attacker) try() {
	a.await()
	a.mu.Lock()
	a.tries++
	ahead := time.Duration(0)
	if a.keep.tries > 0 {
		ahead = time.Duration(a.tries)*time.Second/time.Duration(a.keep.tries) - time.Since(a.began)
	}
	if a.keep.cpu > 0 {
		ahead = max(ahead, (cpuTime()-a.spent)*1000/time.Duration(a.keep.cpu)-time.Since(a.began))
	}
	a.mu.Unlock()
	if ahead > time.Millisecond {
		<-time.After(ahead)
	}
}

// await waits while the attack is halted.
func (a *attacker) await() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.running {
		a.resumed.Wait()
	}
}

// opened counts streams.
func (a *attacker) opened(n int) {
	a.await()
	a.mu.Lock()
	a.streams += int64(n)
	a.mu.Unlock()
}

func (a *attacker) resume(keep effort) {
	a.mu.Lock()
	a.running, a.keep, a.tries = true, keep, 0
	a.began, a.spent = time.Now(), cpuTime()
	a.mu.Unlock()
	a.resumed.Broadcast()
}

// halt says what the attack has cost since it was resumed, and how many streams
// it has opened in all.
func (a *attacker) halt() (used effort, streams int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running = false
	passed := time.Since(a.began)
	used.tries = int64(time.Duration(a.tries) * time.Second / passed)
	used.cpu = int64(1000 * (cpuTime() - a.spent) / passed)
	return used, a.streams
}

// burn uses up what an attack leaves of the CPU time that it is to use.
func (a *attacker) burn() {
	for b := make([]byte, 16<<10); ; {
		a.await()
		a.mu.Lock()
		owes := time.Since(a.began)*time.Duration(a.keep.cpu)/1000 - (cpuTime() - a.spent)
		a.mu.Unlock()
		if owes > 3*time.Millisecond {
			_ = sha256.Sum256(b)
			continue
		}
		<-time.After(time.Millisecond)
	}
}

func cpuTime() time.Duration {
	var use syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &use)
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// attacks are the things that it can do, each for ever.
var attacks = map[string]func(*attacker){
	// Questions and streams that are refused, one identity all the time.
	"refusals": func(a *attacker) { a.floodTCP(keepsItsKey, finishes, refusals()...) },
	// Streams that are opened and reset: 50,000 on each connection, if it lasts.
	"opens": func(a *attacker) { a.floodTCP(keepsItsKey, resets, nil) },
	// A new identity whenever the old one is turned away.
	"identities": func(a *attacker) { a.floodTCP(changesItsKey, finishes, refusals()...) },
	// Streams that say nothing, or only begin to.
	"silence": func(a *attacker) { a.floodTCP(changesItsKey, stays, nil, []byte(helloLine[:1]), []byte(helloLine)) },
	// What is no message, or a hostile one.
	"garbage": func(a *attacker) { a.floodTCP(changesItsKey, finishes, garbage()...) },
	// A wrong invite again and again.
	"invites": func(a *attacker) { a.floodTCP(keepsItsKey, finishes, wrongInvites()...) },
	// The same over QUIC.
	"quic": func(a *attacker) { a.floodQUIC(append(append(refusals(), garbage()...), wrongInvites()...)) },
	// Handshakes that are ended, and then nothing.
	"visits": (*attacker).visits,
	// Handshakes that are begun and not ended.
	"handshakes": (*attacker).halfOpen,
	"initials":   (*attacker).initials,
}

// attackNames is the order in which the test has them: the first that is
// refused has all the lines that the victim gives to strangers.
var attackNames = []string{"garbage", "quic", "refusals", "visits", "handshakes", "initials", "opens", "identities", "silence", "invites"}

// attackerMain, called with an attack, its own address, and the victim's TCP
// and UDP addresses and peer ID, does on stdin's word: `go TRIES CPU` keeps to
// that effort, `halt N` is answered with `used N TRIES CPU STREAMS`.
func attackerMain() {
	runtime.GOMAXPROCS(1)
	a := &attacker{from: net.ParseIP(os.Args[2]), key: newKey()}
	a.resumed = sync.NewCond(&a.mu)
	var errs [3]error
	a.tcp, errs[0] = net.ResolveTCPAddr("tcp", os.Args[3])
	a.udp, errs[1] = net.ResolveUDPAddr("udp", os.Args[4])
	a.victim, errs[2] = peer.Decode(os.Args[5])
	orExit(errors.Join(errs[:]...))
	go a.burn()
	go attacks[os.Args[1]](a)
	fmt.Println("armed")
	for words := bufio.NewScanner(os.Stdin); words.Scan(); {
		var n int
		var keep effort
		if _, err := fmt.Sscanf(words.Text(), "go %d %d", &keep.tries, &keep.cpu); err == nil {
			a.resume(keep)
		} else if _, err := fmt.Sscanf(words.Text(), "halt %d", &n); err == nil {
			used, streams := a.halt()
			fmt.Println("used", n, used.tries, used.cpu, streams)
		}
	}
}

func newKey() crypto.PrivKey {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	orExit(err)
	return key
}

const (
	// dialers is how many connections an attack makes at once, so that those
	// that get no answer keep it from nothing: attackTries of them fit.
	dialers      = 1000
	connectLimit = 100 * time.Millisecond
	// quicDialers is the same over QUIC, where each costs the attacker more.
	quicDialers = 512
	quicLimit   = 500 * time.Millisecond
	// shakeLimit is for what comes of a connection.
	shakeLimit = time.Second
)

// inParallel runs f again and again, n at once, for ever.
func inParallel(n int, f func()) {
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			for {
				f()
			}
		})
	}
	all.Wait()
}

const (
	keepsItsKey   = false
	changesItsKey = true
)

// How a stream of a flood ends.
const (
	stays = iota
	finishes
	resets
)

// floodTCP opens streams with those first bytes, one after the other, as fast
// as they can be written, and connects anew when the victim has hung up.
func (a *attacker) floodTCP(change bool, end int, firsts ...[]byte) {
	frames := &flood{attacker: a, burst: burst(end, firsts)}
	t := a.newTCP(a.key, frames)
	inParallel(dialers, func() {
		a.shake(func() transport.Transport {
			if change {
				return a.newTCP(newKey(), frames)
			}
			return t
		}, func(c transport.CapableConn) { _ = frames.send(c) })
	})
}

// visits connects as one of many identities, and hangs up.
func (a *attacker) visits() {
	var many [64]transport.Transport
	var next atomic.Int64
	for i := range many {
		many[i] = a.newTCP(newKey(), &flood{})
	}
	inParallel(dialers, func() {
		a.shake(func() transport.Transport { return many[next.Add(1)%int64(len(many))] }, func(transport.CapableConn) {})
	})
}

// connect tries to connect over TCP.
func (a *attacker) connect() (net.Conn, error) {
	a.try()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: a.from}, Timeout: connectLimit}
	return d.Dial("tcp", a.tcp.String())
}

// shake tries to connect, to do the handshakes with a transport of newTCP, which
// it asks for only then, and to do something with the connection.
func (a *attacker) shake(by func() transport.Transport, do func(transport.CapableConn)) {
	raw, err := a.connect()
	if err != nil {
		return
	}
	defer raw.Close()
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), handed{}, raw), shakeLimit)
	defer cancel()
	addr := ma.StringCast(fmt.Sprintf("/ip4/%s/tcp/%d", a.tcp.IP, a.tcp.Port))
	if c, err := by().Dial(ctx, addr, a.victim); err == nil {
		do(c)
		_ = c.Close()
	}
}

// handed is a dialer that gives the connection which its context has.
type handed struct{}

func (handed) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	return ctx.Value(handed{}).(net.Conn), nil
}

// newTCP makes a transport whose muxer is a flood.
func (a *attacker) newTCP(key crypto.PrivKey, f *flood) transport.Transport {
	muxers := []tptu.StreamMuxer{{ID: yamux.ID, Muxer: f}}
	secure, err := libp2ptls.New(libp2ptls.ID, key, muxers)
	orExit(err)
	upgrader, err := tptu.New([]sec.SecureTransport{secure}, muxers, nil, nil, nil)
	orExit(err)
	dialer := func(ma.Multiaddr) (tcp.ContextDialer, error) { return handed{}, nil }
	t, err := tcp.NewTCPTransport(upgrader, nil, nil, tcp.WithDialerForAddr(dialer))
	orExit(err)
	return t
}

// flood is a muxer that only sends: yamux frames that were made before.
type flood struct {
	*attacker
	burst func(first uint32) ([]byte, int)
}

func (f *flood) NewConn(c net.Conn, _ bool, _ network.PeerScope) (network.MuxedConn, error) {
	return &floodConn{Conn: c}, nil
}

// send writes until the victim has hung up.
func (f *flood) send(c transport.CapableConn) error {
	var conn *floodConn
	if !c.(interface{ As(any) bool }).As(&conn) {
		return io.ErrUnexpectedEOF
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn.Conn)
	}()
	defer func() { <-gone }()
	defer conn.Conn.Close()
	for id := uint32(1); ; {
		frames, streams := f.burst(id)
		if _, err := conn.Conn.Write(frames); err != nil {
			return err
		}
		f.opened(streams)
		id += 2 * uint32(streams)
	}
}

// floodConn is the connection as libp2p wants to see it.
type floodConn struct{ net.Conn }

var _ network.MuxedConn = (*floodConn)(nil)

func (c *floodConn) CloseWithError(network.ConnErrorCode) error { return c.Close() }
func (c *floodConn) IsClosed() bool                             { return false }
func (c *floodConn) OpenStream(context.Context) (network.MuxedStream, error) {
	return nil, io.ErrClosedPipe
}
func (c *floodConn) AcceptStream() (network.MuxedStream, error) { return nil, io.ErrClosedPipe }

func (c *floodConn) As(target any) bool {
	to, ok := target.(**floodConn)
	if ok {
		*to = c
	}
	return ok
}

// burst makes the frames of some hundred streams with those first bytes, of
// which the first has that id.
func burst(end int, firsts [][]byte) func(first uint32) ([]byte, int) {
	const streams = 256
	return func(first uint32) ([]byte, int) {
		var b bytes.Buffer
		for i := range uint32(streams) {
			id, data := first+2*i, firsts[int(first/2+i)%len(firsts)]
			frame(&b, frameWindow, flagSYN, id, 0)
			if len(data) > 0 {
				frame(&b, frameData, 0, id, len(data))
				b.Write(data)
			}
			switch end {
			case finishes:
				frame(&b, frameWindow, flagFIN, id, 0)
			case resets:
				frame(&b, frameWindow, flagRST, id, 0)
			}
		}
		return b.Bytes(), streams
	}
}

// Of yamux's frames (hashicorp/yamux, spec.md).
const (
	frameData   = 0
	frameWindow = 1
	flagSYN     = 1
	flagFIN     = 4
	flagRST     = 8
)

func frame(b *bytes.Buffer, kind byte, flags uint16, id uint32, length int) {
	head := append([]byte{0, kind}, binary.BigEndian.AppendUint16(nil, flags)...)
	head = binary.BigEndian.AppendUint32(head, id)
	b.Write(binary.BigEndian.AppendUint32(head, uint32(length)))
}

// helloLine begins every negotiation (multistream-select).
const helloLine = "\x13/multistream/1.0.0\n"

// negotiates begins a stream of a protocol, without waiting for the answer.
func negotiates(protocol string) string { return helloLine + multistreamLine(protocol) }

func multistreamLine(text string) string {
	return string(binary.AppendUvarint(nil, uint64(len(text)+1))) + text + "\n"
}

// asks is a question, with an invite where id and secret are not empty.
func asks(q *proto.Question) []byte {
	var b bytes.Buffer
	b.WriteString(negotiates(proto.AskProtocol))
	orExit(proto.WriteQuestion(&b, q))
	return b.Bytes()
}

// refusals are questions for services, and streams to them.
func refusals() (firsts [][]byte) {
	for i := range 32 {
		name := fmt.Sprintf("/x/attack%d", i)
		if i%4 == 0 {
			name = testProtocol // which is there
		}
		firsts = append(firsts, asks(&proto.Question{Protocol: name}), []byte(negotiates(name)+"GET / HTTP/1.0\r\n\r\n"))
	}
	return firsts
}

func wrongInvites() (firsts [][]byte) {
	for range 32 {
		key := make([]byte, 21)
		_, _ = rand.Read(key)
		firsts = append(firsts, asks(&proto.Question{Protocol: testProtocol, InviteId: key[:5], InviteSecret: key[5:]}))
	}
	return firsts
}

// escapes clears a screen, sets a window's title and rings, were a terminal to
// see it.
const escapes = "\x1b[2J\x1b]0;owned\x07\r\n\x9b31m\u202e"

// garbage is what breaks a decoder that believes what it reads.
func garbage() (firsts [][]byte) {
	long := "/x/" + strings.Repeat("a", 64<<10)
	for _, text := range []string{
		helloLine + multistreamLine(long),
		helloLine + multistreamLine("/x/"+strings.Repeat("b", 1000)),
		negotiates("/x/" + escapes),
		negotiates(testProtocol + escapes),
		helloLine + multistreamLine("/"+escapes),
		helloLine + string(binary.AppendUvarint(nil, 1<<62)),
		strings.Repeat("\xff", 64),
		multistreamLine(strings.Repeat("c", 2000)),
		helloLine + strings.Repeat(multistreamLine("/y/z"), 100),
		helloLine + multistreamLine("/x/truncated")[:6],
		negotiates(proto.AskProtocol) + string(binary.AppendUvarint(nil, 1<<40)),
		negotiates(proto.AskProtocol) + string(binary.AppendUvarint(nil, 2000)) + strings.Repeat("d", 2000),
		negotiates(proto.AskProtocol) + "\x20\x0a\x1e/x/",
		negotiates(proto.AskProtocol) + "\x06\x0a\x04/x/\x1b",
		negotiates(proto.AskProtocol) + strings.Repeat("\xff", 16),
	} {
		firsts = append(firsts, []byte(text))
	}
	return firsts
}

// heldOpen is how many half-open handshakes an attacker holds, if it can.
const heldOpen = 2000

// halfOpen connects and says nothing, or the beginning of a handshake, and
// holds that; for each that the victim ends it opens a new one.
func (a *attacker) halfOpen() {
	starts := []string{"", helloLine, negotiates("/tls/1.0.0"), negotiates("/tls/1.0.0") + "\x16\x03\x01\x02\x00\x01", negotiates("/noise") + "\x00\x20"}
	slots := make(chan struct{}, heldOpen)
	var next atomic.Int64
	inParallel(dialers, func() {
		slots <- struct{}{}
		c, err := a.connect()
		if err != nil {
			<-slots
			return
		}
		_, _ = io.WriteString(c, starts[next.Add(1)%int64(len(starts))])
		go func() {
			_, _ = io.Copy(io.Discard, c)
			c.Close()
			<-slots
		}()
	})
}
