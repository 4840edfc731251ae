package trunk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

const (
	// modelSteps are what one world takes, with a look at all of it after each
	// modelPhase.
	modelWorlds = 100
	modelSteps  = 1000
	modelPhase  = 100
	// modelStreams is how many streams of a world may live at once.
	modelStreams = 24
	// modelSeed names a variable of the environment: that world alone, as the
	// log of a failure says. The order of what is done is the same then; how the
	// goroutines take turns in between is not.
	modelSeed = "TRUNK_MODEL_SEED"
)

// TestAnythingAtAnyTimeLosesNothing does at random what both sides of a trunk
// may do, and what may be done to its links, and compares with a model that
// knows what was written, ended and reset.
func TestAnythingAtAnyTimeLosesNothing(t *testing.T) {
	first, worlds := rand.Uint64(), modelWorlds
	if s := os.Getenv(modelSeed); s != "" {
		var err error
		first, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
		worlds = 1
	}
	did := map[string]int{}
	for i := range worlds { // until one fails, which ends the test
		seed := first + uint64(i)
		bubble(t, func(t *testing.T) { runModel(t, seed, did) })
	}
	t.Logf("%d steps from %s=%d on: %v", worlds*modelSteps, modelSeed, first, did)
	for _, op := range []string{"resumed", "moved", "revoked", "cut in a hello", "reset", "reset by both", "ended", "replayed"} {
		if worlds > 1 && did[op] < worlds/10 {
			t.Errorf("%s: %d times only", op, did[op])
		}
	}
}

// pattern is what is written, from a place of its own for each way of each
// stream; twice, so that no piece wraps.
var pattern = func() []byte {
	b := make([]byte, 1<<20-3)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return append(b, b...)
}()

// contentOf is n bytes of a way at an offset; fewer at the pattern's end.
func contentOf(way, offset, n int) []byte {
	at := (way*7919 + offset) % (len(pattern) / 2)
	return pattern[at:min(at+n, len(pattern))]
}

// modelEnd is one end of a stream, and what the model knows of its way out and
// its reads.
type modelEnd struct {
	st  *Stream
	way int // that it writes; the other end's is way^1

	mu      sync.Mutex
	changed sync.Cond
	orders  []int // sizes to write; 0: half-close
	paused  bool
	ending  bool // a half-close was ordered
	written int
	tried   bool // it has begun to half-close: a reset may come in between
	ended   bool // it has half-closed
	read    int
	eof     bool
	readErr error
	sentErr error
	wrong   error // bytes that are not those of the model
	closed  bool
	over    bool       // nothing more is ordered
	code    proto.Code // it was reset with, here
}

// modelStream is a stream with its client's end, and its server's once that
// knows which it is.
type modelStream struct {
	ends    [2]*modelEnd
	revoked bool // the session was ended under it
}

// model is a world with all of its streams that still matter.
type model struct {
	*fakeWorld
	t       *testing.T
	r       *rand.Rand
	did     map[string]int
	tasks   sync.WaitGroup
	mu      sync.Mutex // of what follows, and of the dialler's dice
	dice    *rand.Rand
	streams map[int]*modelStream
	opened  int
	rough   bool // links are cut by themselves
	relayed bool // links that are made go over a relay
	denied  bool
	hellos  int // links that were cut in their hello
}

// pathLink is a link that knows its path.
type pathLink struct {
	*fakeLink
	path registry.Path
}

func (l pathLink) Path() registry.Path { return l.path }

func runModel(t *testing.T, seed uint64, did map[string]int) {
	m := &model{
		fakeWorld: newFakeWorld(plan{}, nil), t: t, did: did, streams: map[int]*modelStream{},
		r: rand.New(rand.NewPCG(seed, 0)), dice: rand.New(rand.NewPCG(seed, 1)),
	}
	m.server.Accept = func(_, _ string, st *Stream) { m.accept(st) }
	m.server.Allowed = func(string, string) bool { m.mu.Lock(); defer m.mu.Unlock(); return !m.denied }
	m.Dial = m.dial
	for step := range modelSteps {
		m.step()
		if step%modelPhase == modelPhase-1 {
			m.settle()
		}
		if t.Failed() {
			break
		}
	}
	m.finish()
	if t.Failed() {
		t.Logf("%s=%d", modelSeed, seed)
	}
}

// dial makes a link that may be lossy, and may end by itself: in its hello or
// later.
func (m *model) dial(context.Context) (Link, error) {
	m.mu.Lock()
	cut := [2]int{-1, -1}
	if m.rough && m.dice.IntN(3) == 0 {
		most := []int{helloSize, 200, 100_000}[m.dice.IntN(3)]
		way := m.dice.IntN(2)
		cut[way] = m.dice.IntN(most)
		if cut[way] < []int{helloSize, answerSize}[way] {
			m.hellos++
		}
	}
	lossy, relayed := m.dice.IntN(2) == 0, m.relayed
	m.mu.Unlock()
	client, server := newFakeLink(cut[0], cut[1], lossy)
	path := registry.Path{Relayed: relayed}
	m.fakeWorld.mu.Lock()
	defer m.fakeWorld.mu.Unlock()
	m.links = append(m.links, client)
	m.serving.Go(func() { _ = m.server.Serve(pathLink{server, path}, testPeer, testProtocol) })
	return pathLink{client, path}, nil
}

// accept learns of a stream's first bytes which it is.
func (m *model) accept(st *Stream) {
	var number [8]byte
	if _, err := io.ReadFull(st, number[:]); err != nil {
		_ = st.Reset(proto.CodeReset)
		return
	}
	i := int(binary.BigEndian.Uint64(number[:]))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams[i] == nil || m.streams[i].ends[1] != nil {
		m.t.Errorf("stream %d came twice, or was never opened", i)
		return
	}
	m.streams[i].ends[1] = m.begin(st, 2*i+1)
}

func (m *model) begin(st *Stream, way int) *modelEnd {
	e := &modelEnd{st: st, way: way}
	e.changed.L = &e.mu
	m.tasks.Go(e.write)
	m.tasks.Go(e.readAll)
	return e
}

// write carries orders out, until one ends the way or the stream fails.
func (e *modelEnd) write() {
	if e.way%2 == 0 { // it opened the stream, and says which it is
		_, err := e.st.Write(binary.BigEndian.AppendUint64(nil, uint64(e.way/2)))
		e.did(func() { e.sentErr = err })
	}
	for {
		e.mu.Lock()
		for len(e.orders) == 0 && e.sentErr == nil && e.readErr == nil && !e.over {
			e.changed.Wait()
		}
		if len(e.orders) == 0 || e.sentErr != nil {
			e.mu.Unlock()
			return
		}
		n, at := e.orders[0], e.written
		e.orders = e.orders[1:]
		e.mu.Unlock()
		if n == 0 {
			e.did(func() { e.tried = true })
			err := e.st.CloseWrite()
			e.did(func() { e.ended, e.sentErr = err == nil, err })
			return
		}
		n, err := e.st.Write(contentOf(e.way, at, n))
		e.did(func() { e.written += n; e.sentErr = err })
	}
}

// did notes something, and closes the stream where both ways have ended.
func (e *modelEnd) did(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	e.changed.Broadcast()
	if e.ended && e.eof && !e.closed {
		e.closed = true
		_ = e.st.Close()
	}
}

// readAll reads while it is not paused, and compares.
func (e *modelEnd) readAll() {
	buf := make([]byte, 32<<10)
	for size := 1; ; size = size*5%len(buf) + 1 {
		e.mu.Lock()
		for e.paused {
			e.changed.Wait()
		}
		at := e.read
		e.mu.Unlock()
		n, err := e.st.Read(buf[:size])
		e.did(func() {
			for got := buf[:n]; len(got) > 0 && e.wrong == nil; {
				want := contentOf(e.way^1, at, len(got))
				if !bytes.Equal(got[:len(want)], want) {
					e.wrong = fmt.Errorf("other bytes at %d to %d", at, at+len(want))
				}
				at, got = at+len(want), got[len(want):]
			}
			e.read += n
			e.eof = err == io.EOF
			if err != nil && !e.eof {
				e.readErr = err
			}
		})
		if err != nil {
			return
		}
	}
}

// pick gives an end of a stream, if that is there.
func (m *model) pick() (*modelStream, *modelEnd) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var live []int
	for i := range m.streams {
		live = append(live, i)
	}
	if len(live) == 0 {
		return nil, nil
	}
	slices.Sort(live)
	s := m.streams[live[m.r.IntN(len(live))]]
	return s, s.ends[m.r.IntN(2)]
}

// step does one thing. Each of the dice's sides is worth a thousandth.
func (m *model) step() {
	s, e := m.pick()
	switch at := m.r.IntN(1000); {
	case at < 100:
		m.open()
	case at < 150:
		m.loseLinks()
	case at < 180:
		m.move()
	case at < 290:
		time.Sleep(time.Duration(m.r.IntN(300)) * time.Millisecond)
	case at < 291:
		m.revoke()
	case e == nil:
		synctest.Wait()
	case at < 340:
		e.order(0)
	case at < 360:
		m.did["reset"]++
		e.reset(proto.Code(0x3000 + m.r.IntN(1000)))
	case at < 365:
		m.resetBoth(s)
	case at < 450:
		e.pause(true)
	case at < 550:
		e.pause(false)
	default:
		e.order(m.size())
	}
}

// size is often small.
func (m *model) size() int {
	switch at := m.r.IntN(100); {
	case at < 80:
		return 1 + m.r.IntN(4<<10)
	case at < 97:
		return 1 + m.r.IntN(64<<10)
	}
	return 1 + m.r.IntN(512<<10)
}

func (e *modelEnd) order(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.ending {
		e.ending = n == 0
		e.orders = append(e.orders, n)
		e.changed.Broadcast()
	}
}

func (e *modelEnd) pause(on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.paused = on
	e.changed.Broadcast()
}

func (e *modelEnd) reset(code proto.Code) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed && e.code == 0 {
		e.code = code
		_ = e.st.Reset(code)
	}
}

func (m *model) resetBoth(s *modelStream) {
	m.mu.Lock()
	ends := s.ends
	m.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { ends[0].reset(0x4000) })
	both.Go(func() { ends[1].reset(0x4001) })
	both.Wait()
	if ends[1] != nil {
		m.did["reset by both"]++
	}
}

// open opens a stream, if there are not too many, and it can be soon.
func (m *model) open() {
	m.mu.Lock()
	full := len(m.streams) >= modelStreams
	m.mu.Unlock()
	if full {
		return
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Second)
	defer cancel()
	st, err := m.Open(ctx)
	if err != nil {
		m.did["not opened"]++
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opened++
	i := m.opened
	m.streams[i] = &modelStream{revoked: m.denied} // the client may not have heard
	m.streams[i].ends[0] = m.begin(st, 2*i)
	m.did["opened"]++
}

// loseLinks cuts what there is; what comes next may be cut by itself, and may
// be relayed.
func (m *model) loseLinks() {
	m.mu.Lock()
	m.rough, m.relayed = true, m.r.IntN(2) == 0
	m.mu.Unlock()
	m.cut()
	m.did["cut"]++
}

// move has the trunk move to a link around the relay while the old one lives,
// at once: the pauses after a move that did not last are forgotten.
func (m *model) move() {
	m.mu.Lock()
	m.relayed = false
	m.mu.Unlock()
	m.calm.mu.Lock()
	m.calm.until = time.Time{}
	m.calm.mu.Unlock()
	m.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(m.t.Context(), time.Second)
		defer cancel()
		_ = m.Move(ctx)
	})
}

// revoke takes the client's right away until the next phase.
func (m *model) revoke() {
	synctest.Wait() // an Open under way may have asked already
	m.mu.Lock()
	m.denied = true
	for _, s := range m.streams {
		s.revoked = true
	}
	m.mu.Unlock()
	m.server.Revoke()
	m.did["revoked"]++
}

// settle lets all that waits go on, and then compares everything with the
// model.
func (m *model) settle() {
	m.mu.Lock()
	m.rough = false
	for _, s := range m.streams {
		for _, e := range s.ends {
			if e != nil {
				e.pause(false)
			}
		}
	}
	m.mu.Unlock()
	time.Sleep(time.Minute)
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, s := range m.streams {
		over, err := s.check()
		if err != nil {
			m.t.Errorf("stream %d: %v", i, err)
		}
		if over {
			s.release()
			delete(m.streams, i)
			m.did["ended"]++
		}
	}
	m.denied = false
}

// check compares a stream with the model, and says whether it is over.
func (s *modelStream) check() (over bool, err error) {
	a, b := s.ends[0], s.ends[1]
	codes := []proto.Code{}
	for _, e := range s.ends {
		if e != nil && e.code != 0 {
			codes = append(codes, e.code)
		}
	}
	if s.revoked {
		codes = append(codes, proto.CodeRevoked)
	}
	if b == nil { // it was cut before its number had come
		if len(codes) == 0 {
			return true, fmt.Errorf("it never came: %w", errors.Join(a.readErr, a.sentErr))
		}
		return true, a.wantReset(codes)
	}
	if len(codes) > 0 {
		return true, errors.Join(a.wantCut(b, codes), b.wantCut(a, codes))
	}
	return a.closed && b.closed, errors.Join(a.wantAll(b), b.wantAll(a))
}

// release has the writers of a stream return that nobody orders from any more.
func (s *modelStream) release() {
	for _, e := range s.ends {
		if e != nil {
			e.did(func() { e.over = true })
		}
	}
}

// wantAll: what the other end has written was read, to its end if it has one.
func (e *modelEnd) wantAll(from *modelEnd) error {
	switch {
	case e.wrong != nil || e.readErr != nil || e.sentErr != nil:
		return fmt.Errorf("way %d: %w", e.way, errors.Join(e.wrong, e.readErr, e.sentErr))
	case len(from.orders) > 0:
		return fmt.Errorf("way %d: %d writes were not carried out", from.way, len(from.orders))
	case e.read != from.written:
		return fmt.Errorf("way %d: %d bytes of %d were read", from.way, e.read, from.written)
	case e.eof != from.ended:
		return fmt.Errorf("way %d: ended %v, read to its end %v", from.way, from.ended, e.eof)
	}
	return nil
}

// wantCut: it was cut with one of the codes, after bytes of the model; or before
// that it had come to the end.
func (e *modelEnd) wantCut(from *modelEnd, codes []proto.Code) error {
	if e.wrong != nil || e.read > from.written {
		return fmt.Errorf("way %d, reset: %d bytes of %d, %w", from.way, e.read, from.written, e.wrong)
	}
	if e.eof {
		if !from.tried || e.read != from.written {
			return fmt.Errorf("way %d: a reset came out as an end after %d of %d bytes", from.way, e.read, from.written)
		}
		return nil
	}
	return e.wantReset(codes)
}

func (e *modelEnd) wantReset(codes []proto.Code) error {
	for _, err := range []error{e.readErr, e.sentErr} {
		var reset *registry.ResetError
		if err != nil && (!errors.As(err, &reset) || !slices.Contains(codes, reset.Code)) {
			return fmt.Errorf("way %d: %w, want one of %v", e.way, err, codes)
		}
	}
	if e.readErr == nil && !e.eof {
		return fmt.Errorf("way %d: its reader never heard of the reset", e.way)
	}
	return nil
}

// finish ends all streams, and looks at what is kept then: at rest, and after
// the end.
func (m *model) finish() {
	m.mu.Lock()
	for _, s := range m.streams {
		s.ends[0].reset(0x5000)
	}
	m.mu.Unlock()
	m.settle()
	for side, s := range m.sessions() {
		s.mu.Lock()
		if len(s.streams) != 0 || len(s.early) != 0 || s.live != 0 {
			m.t.Errorf("the %s keeps %d streams, %d early ones; %d live", side, len(s.streams), len(s.early), s.live)
		}
		want := int64(trunkMin)
		if !s.initer {
			want += aheadWindow * int64(len(s.ahead))
		}
		s.mu.Unlock()
		if used := s.budget.Used(); used != want {
			m.t.Errorf("the %s uses %d bytes at rest, want %d", side, used, want)
		}
	}
	m.close()
	m.tasks.Wait()
	if used := m.Budget.Used() + m.server.Budget.Used(); used != 0 {
		m.t.Errorf("%d bytes of the budgets were not given back", used)
	}
	m.count()
}

// sessions are those that live, by their side.
func (m *model) sessions() map[string]*session {
	all := map[string]*session{}
	if o := m.current(); o != nil {
		all["client"] = o.session
	}
	for _, in := range m.server.list() {
		all["server"] = in.session
	}
	return all
}

func (m *model) count() {
	m.did["cut in a hello"] += m.hellos
	for _, e := range m.events {
		m.did[string(e.Op)]++
		m.did["replayed"] += int(e.Replayed)
	}
}
