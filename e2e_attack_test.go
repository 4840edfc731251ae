//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// A listener under attack: what an allowed peer loses, and what the listener
// holds, says and shows.

const (
	// keptPart is the part of its rate that an allowed peer keeps beside an
	// attack, compared with the same attacker's effort on a port of no worth.
	keptPart = 0.8
	// besiegedGrowth is how much more memory the listener may ever hold.
	besiegedGrowth = 64 << 20
	// besiegedLines is how many lines it may say and show in all.
	besiegedLines = 100
	// attackTries is how many connections and packets a second an attacker makes
	// at most, with as many streams as it can. What is more fills the line.
	attackTries = 10_000
	// siegeLasts is how long an attack goes on without a break, and as long the
	// same effort at the dummy. The machine gets faster and slower by a fifth by
	// itself, so of up to siegeTries such pairs the first that passes ends it.
	siegeLasts = 10 * time.Second
	siegeTries = 3
	// floodStreams is how many streams the floods of streams open at least.
	floodStreams = 50_000

	// Of the other attacks the rates are compared over windows in turn, attack and dummy, so that what
	// else the machine does hits both alike. Where the medians of the first pairs
	// do not tell, more are taken.
	window     = 300 * time.Millisecond
	pairsFirst = 10
	pairsMore  = 10
	pairsMost  = 40
)

// siege is a listener with an allowed peer's transfer, and a port of no worth.
type siege struct {
	t             testing.TB
	binary        string
	service, ally *node
	victim        *listening
	forward       *forwarding
	tcp, udp      string // the victim's
	dummy         [2]string
	moved         atomic.Int64 // bytes of the transfer
	attackers     int
	from          map[string]string // the address of each attack
}

// newSiege starts all but the attackers. The victim runs on a terminal.
func newSiege(t testing.TB, binary string) *siege {
	t.Helper()
	push, _ := pushing(t)
	s := &siege{t: t, binary: binary, service: newNodeOf(t, binary), ally: newNodeOf(t, binary), from: map[string]string{}}
	client := newNodeOf(t, binary)
	for _, n := range []*node{client, s.ally} {
		s.service.run("allow", testProtocol, n.id)
	}
	s.victim = readyOnTerminal(t, startOnTerminal(t, binary, []string{"p2ptun", "--home", s.service.home, "--log-level", "info",
		"listen", testProtocol, push.addr(), "--network", "none", "--listen-addr", overTCP, "--listen-addr", overQUIC}))
	s.findAddrs()
	s.forward = startForward(client, testProtocol, s.tcpAddr())
	d := startFrom(t, binary, "e2e-dummy")
	found := d.waitFor(t, &d.out, `dummy (\S+) (\S+)`)
	s.dummy = [2]string{found[1], found[2]}
	s.transfer()
	return s
}

func (s *siege) findAddrs() {
	s.t.Helper()
	st, ok := s.service.status()
	if !ok {
		s.t.Fatal("the victim says no status")
	}
	for _, a := range st.Addrs {
		words := strings.Split(a, "/")
		if words[3] == "tcp" {
			s.tcp = net.JoinHostPort(words[2], words[4])
		} else {
			s.udp = net.JoinHostPort(words[2], words[4])
		}
	}
}

func (s *siege) tcpAddr() string {
	_, port, _ := net.SplitHostPort(s.tcp)
	return "/ip4/127.0.0.1/tcp/" + port + "/p2p/" + s.service.id
}

// transfer runs until the test ends.
func (s *siege) transfer() {
	s.t.Helper()
	c := s.forward.dial(s.t)
	_ = c.SetDeadline(time.Time{})
	begin(c)
	go func() {
		for b := make([]byte, 256<<10); ; {
			n, err := c.Read(b)
			s.moved.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	await(s.t, "the transfer runs", func() bool { return s.moved.Load() > 64<<20 })
}

// rate is what the transfer moves in a window, in bytes a second.
func (s *siege) rate() float64 {
	return s.rateOver(window)
}

func (s *siege) rateOver(d time.Duration) float64 {
	before, start := s.moved.Load(), time.Now()
	<-time.After(d)
	return float64(s.moved.Load()-before) / time.Since(start).Seconds()
}

// besieger is an attacker that waits for its word.
type besieger struct {
	*process
	from  string
	halts int
	total int64 // streams that it has opened
}

// arm starts an attacker with an address that nobody has had.
func (s *siege) arm(attack, tcp, udp string) *besieger {
	s.t.Helper()
	s.attackers++
	b := &besieger{from: fmt.Sprintf("127.1.0.%d", s.attackers)}
	b.process = startFrom(s.t, s.binary, "e2e-attacker", attack, b.from, tcp, udp, s.service.id)
	b.waitFor(s.t, &b.out, "armed")
	return b
}

func (b *besieger) goes(keep effort) { fmt.Fprintln(b.in, "go", keep.tries, keep.cpu) }

func (b *besieger) halt(t testing.TB) (used effort) {
	t.Helper()
	b.halts++
	fmt.Fprintln(b.in, "halt", b.halts)
	said := b.waitFor(t, &b.out, fmt.Sprintf(`used %d (\d+) (\d+) (\d+)`, b.halts))
	used.tries, _ = strconv.ParseInt(said[1], 10, 64)
	used.cpu, _ = strconv.ParseInt(said[2], 10, 64)
	b.total, _ = strconv.ParseInt(said[3], 10, 64)
	return used
}

// longSieges are the attacks that go on without a break: those of the most
// connections, over TCP and over QUIC, and half-open.
var longSieges = []string{"refusals", "handshakes", "quic"}

// suffers judges one attack: the transfer's rate, and that allowed peers come
// in meanwhile, over the connection that there is and over a new one.
func (s *siege) suffers(attack string) {
	s.t.Helper()
	on, off := s.arm(attack, s.tcp, s.udp), s.arm(attack, s.dummy[0], s.dummy[1])
	defer on.kill()
	defer off.kill()
	s.from[attack] = on.from
	kept := 0.0
	if slices.Contains(longSieges, attack) {
		kept = s.outlasts(attack, on, off)
	} else {
		kept = s.inWindows(attack, on, off)
	}
	if kept < keptPart {
		s.t.Errorf("%s: the transfer keeps %.0f%% of its rate", attack, 100*kept)
	}
	on.goes(effort{tries: attackTries})
	s.alliesComeIn(attack)
	on.halt(s.t)
	await(s.t, "the attack has opened as many streams as it is to", func() bool {
		on.goes(effort{tries: attackTries})
		s.rate()
		on.halt(s.t)
		return on.total >= floodStreams || attack != "refusals" && attack != "opens"
	})
}

// outlasts gives the part of its rate that the transfer keeps beside an attack
// without a break.
func (s *siege) outlasts(attack string, on, off *besieger) (kept float64) {
	s.t.Helper()
	for try := 0; try < siegeTries && kept < keptPart; try++ {
		before := on.total
		with, costs := s.beside(on, effort{tries: attackTries}, siegeLasts)
		without, spent := s.beside(off, costs, siegeLasts)
		kept = with / without
		s.t.Logf("%-10s %3.0f%% of %3.0f MB/s in %s without a break; %s, %d streams; dummy %s; %d MiB", attack, 100*kept, without/1e6,
			siegeLasts, costs, on.total-before, spent, s.most()>>20)
	}
	return kept
}

// inWindows does the same over short windows in turn.
func (s *siege) inWindows(attack string, on, off *besieger) (kept float64) {
	s.t.Helper()
	var with, without []float64
	var costs, spent effort
	for pairs := pairsFirst; pairs <= pairsMost && kept < keptPart; pairs += pairsMore {
		for len(with) < pairs {
			var rate float64
			rate, costs = s.beside(on, effort{tries: attackTries}, window)
			with = append(with, rate)
			rate, spent = s.beside(off, costs, window)
			without = append(without, rate)
		}
		kept = median(with) / median(without)
	}
	s.t.Logf("%-10s %3.0f%% of %3.0f MB/s in %d pairs; %s, %d streams in all; dummy %s; %d MiB", attack, 100*kept, median(without)/1e6,
		len(with), costs, on.total, spent, s.most()>>20)
	return kept
}

// beside is what the transfer moves beside an attacker, in bytes a second.
func (s *siege) beside(b *besieger, keep effort, d time.Duration) (rate float64, used effort) {
	s.t.Helper()
	b.goes(keep)
	rate = s.rateOver(d)
	return rate, b.halt(s.t)
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// alliesComeIn: new connections through the forward that there is, and a new
// forward from another address than the attacker's.
func (s *siege) alliesComeIn(attack string) {
	s.t.Helper()
	for range 3 {
		if !pushes(s.forward) {
			s.t.Errorf("%s: no new connection through the tunnel", attack)
		}
	}
	f := &forwarding{process: s.ally.start("forward", testProtocol, s.tcpAddr(), "--network", "none", "--listen-addr", "/ip4/127.0.0.2/tcp/0")}
	defer func() { // a killed one would be waited for
		interrupt(s.t, f.process)
		f.exit(s.t)
	}()
	f.bind = f.waitFor(s.t, &f.out, `forwarding (\S+) → .*`)[1]
	if !pushes(f) {
		s.t.Errorf("%s: a new forward carries nothing", attack)
	}
	st, _ := s.service.status()
	for _, p := range st.Peers {
		if p.Peer == s.ally.id && !strings.HasPrefix(p.Addr, "/ip4/127.0.0.2/") {
			s.t.Errorf("the new forward came from %s", p.Addr)
		}
	}
}

// most is the most memory that the victim has ever held, in bytes.
func (s *siege) most() int64 {
	s.t.Helper()
	status := readFile(s.t, fmt.Sprintf("/proc/%d/status", s.victim.cmd.Process.Pid))
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(status)
	if found == nil {
		s.t.Fatal("no VmHWM")
	}
	kib, _ := strconv.ParseInt(found[1], 10, 64)
	return kib << 10
}

func (s *siege) goroutines() int {
	st, ok := s.service.status()
	if !ok {
		s.t.Error("the victim says no status")
	}
	return st.Goroutines
}

// refusalEvents collects the events of refused peers.
type refusalEvents struct {
	mu    sync.Mutex
	names []string // of protocols
}

// followRefusals reads the victim's events until the test ends.
func (s *siege) followRefusals() *refusalEvents {
	s.t.Helper()
	seen := &refusalEvents{}
	c := overSocket(s.service)
	c.Timeout = 0
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://p2ptun/events", nil)
	res, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	var reading sync.WaitGroup
	s.t.Cleanup(func() { cancel(); reading.Wait() })
	reading.Go(func() {
		defer res.Body.Close()
		for lines := bufio.NewScanner(res.Body); lines.Scan(); {
			seen.add(lines.Bytes())
		}
	})
	return seen
}

func (r *refusalEvents) add(line []byte) {
	var e struct{ Event, Protocol string }
	if json.Unmarshal(line, &e) != nil || e.Event != "refused" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names = append(r.names, e.Protocol)
}

func (r *refusalEvents) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.names)
}

// unsafe finds the first character that a terminal would obey or hide.
func unsafe(text string) (r rune, found bool) {
	if !utf8.ValidString(text) {
		return utf8.RuneError, true
	}
	i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) })
	if i < 0 {
		return 0, false
	}
	r, _ = utf8.DecodeRuneInString(text[i:])
	return r, true
}

// wantCalm fails where the victim has said too much, or what a terminal obeys.
func (s *siege) wantCalm(seen *refusalEvents) {
	s.t.Helper()
	shown := s.victim.err.String()
	if n := strings.Count(shown, "\n"); n >= besiegedLines {
		s.t.Errorf("%d lines on the victim's terminal", n)
	}
	if r, found := unsafe(shown); found {
		s.t.Errorf("%U on the victim's terminal", r)
	}
	names := seen.all()
	if len(names) == 0 || len(names) >= besiegedLines {
		s.t.Errorf("%d refusals are events", len(names))
	}
	hostile := false
	for _, name := range names {
		if r, found := unsafe(name); found {
			s.t.Errorf("%U in an event", r)
		}
		hostile = hostile || strings.Contains(name, `\x1b[2J`)
	}
	if !hostile {
		s.t.Errorf("no name with an escape among %q", names)
	}
}

// wantRefusal has an honest stranger come from an address, and fails unless it
// gets its answer within about a minute: that is how long an address is slowed.
func (s *siege) wantRefusal(from string) {
	s.t.Helper()
	stranger, said := newNodeOf(s.t, s.binary), ""
	refused := func() bool {
		p := stranger.start("forward", testProtocol, s.tcpAddr(), "--network", "none", "--listen-addr", "/ip4/"+from+"/tcp/0")
		code := p.exit(s.t)
		said = p.err.String()
		return code == 3 && strings.Contains(said, stranger.id)
	}
	if !within(75*time.Second, refused) {
		s.t.Errorf("a stranger at %s reads %s", from, said)
	}
}

func TestAnAllowedPeerIsServedUnderAttack(t *testing.T) {
	s := newSiege(t, plainBinary(t))
	seen := s.followRefusals()
	for range 5 {
		s.rate() // the memory of the transfer alone
	}
	before, most := s.goroutines(), s.most()
	for _, attack := range attackNames {
		s.suffers(attack)
	}
	t.Logf("memory: %d MiB before, %d MiB at most; goroutines: %d before, %d now", most>>20, s.most()>>20, before, s.goroutines())
	if more := s.most() - most; more > besiegedGrowth {
		t.Errorf("the victim's memory grew by %d MiB", more>>20)
	}
	s.wantRefusal(s.from["refusals"])
	s.wantRefusal(s.from["quic"])
	await(t, "goroutines have ended", func() bool { return s.goroutines() <= before })
	s.wantCalm(seen)
}
