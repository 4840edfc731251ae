package trunk

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

// echo sends back what it gets, and ends as its peer does.
func echo(st *Stream) {
	buf := make([]byte, 64<<10)
	for {
		n, err := st.Read(buf)
		if n > 0 {
			if _, werr := st.Write(buf[:n]); werr != nil {
				_ = st.Reset(proto.CodeReset)
				return
			}
		}
		if err == io.EOF {
			_ = st.CloseWrite()
			_ = st.Close()
			return
		}
		if err != nil {
			_ = st.Reset(proto.CodeReset)
			return
		}
	}
}

// exchange sends random bytes over a stream and compares what comes back.
func exchange(t testing.TB, st *Stream, size int, seed uint64) {
	t.Helper()
	sent, got := sha256.New(), sha256.New()
	var sending sync.WaitGroup
	sending.Go(func() {
		r := rand.NewChaCha8([32]byte{byte(seed)})
		buf := make([]byte, 32<<10)
		for left := size; left > 0; {
			n := min(left, 1+rand.N(len(buf)))
			_, _ = r.Read(buf[:n])
			sent.Write(buf[:n])
			if _, err := st.Write(buf[:n]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			left -= n
		}
		if err := st.CloseWrite(); err != nil {
			t.Errorf("close write: %v", err)
		}
	})
	n, err := io.Copy(got, st)
	sending.Wait()
	if err != nil || n != int64(size) || string(got.Sum(nil)) != string(sent.Sum(nil)) {
		t.Errorf("got %d of %d bytes, %v", n, size, err)
	}
	_ = st.Close()
}

func open(t testing.TB, w *world) *Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	st, err := w.Open(ctx)
	must(t, err)
	return st
}

func TestBytesOfManyStreamsAreExact(t *testing.T) {
	w := newWorld(t, echo)
	var all sync.WaitGroup
	for i := range 20 {
		st := open(t, w)
		all.Go(func() { exchange(t, st, 1<<20, uint64(i)) })
	}
	all.Wait()
	if made := w.count(); made != 1 {
		t.Errorf("%d links", made)
	}
}

func TestBytesAreExactWhileTheLinkIsCutAgainAndAgain(t *testing.T) {
	w := newWorld(t, echo)
	stop := make(chan struct{})
	var cutting, all sync.WaitGroup
	for i := range 4 {
		st := open(t, w)
		all.Go(func() { exchange(t, st, 16<<20, uint64(i)) })
	}
	cutting.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(5+rand.N(20)) * time.Millisecond):
				w.cut()
			}
		}
	})
	all.Wait()
	close(stop)
	cutting.Wait()
	made := w.count()
	if made < 5 {
		t.Errorf("only %d links", made)
	}
	t.Logf("%d links", made)
}

func TestAResetComesOutWithItsCode(t *testing.T) {
	got := make(chan error, 1)
	w := newWorld(t, func(st *Stream) {
		_, err := io.Copy(io.Discard, st)
		got <- err
		_ = st.Reset(proto.CodeReset)
	})
	st := open(t, w)
	_, err := st.Write([]byte("x"))
	must(t, err)
	must(t, st.Reset(proto.CodeClosed))
	var reset *registry.ResetError
	if err := <-got; !errors.As(err, &reset) || reset.Code != proto.CodeClosed {
		t.Errorf("the peer saw %v", err)
	}
	if _, err := st.Read(make([]byte, 1)); !errors.As(err, &reset) {
		t.Errorf("our read: %v", err)
	}
}

// TestAMoveThatHangsDelaysNoResume: the link is lost that it would leave.
func TestAMoveThatHangsDelaysNoResume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, converse)
		defer w.close()
		st, err := w.openSoon(t.Context())
		must(t, err)
		hangs := make(chan struct{})
		w.Client.Dial = func(ctx context.Context) (Link, error) {
			w.Client.Dial = w.dial // the next is a resume's: one at a time
			close(hangs)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		moved := make(chan error, 1)
		go func() { moved <- w.Move(t.Context()) }()
		<-hangs
		began := time.Now()
		w.cut()
		must(t, wantEchoed(st))
		if took := time.Since(began); took > time.Second {
			t.Errorf("the connection went on after %s", took)
		}
		if err := <-moved; err == nil {
			t.Error("the move passes for done")
		}
	})
}

// lateAnswer has what comes first on a link be there later.
type lateAnswer struct {
	*fakeLink
	first, done sync.Once
	late        *time.Timer
	reset       chan struct{}
}

func newLateAnswer(l *fakeLink, after time.Duration) *lateAnswer {
	return &lateAnswer{fakeLink: l, late: time.NewTimer(after), reset: make(chan struct{})}
}

func (l *lateAnswer) Read(b []byte) (int, error) {
	l.first.Do(func() {
		select {
		case <-l.late.C:
		case <-l.reset:
		}
	})
	if isClosed(l.reset) {
		return 0, errCut
	}
	return l.fakeLink.Read(b)
}

func (l *lateAnswer) Reset() {
	l.done.Do(func() { close(l.reset) })
	l.fakeLink.Reset()
}

// TestAMoveSurvivesTheLinkThatItLeaves: the peer resets that when it has answered,
// and its answer may come later. One that does not come delays a resume by little.
func TestAMoveSurvivesTheLinkThatItLeaves(t *testing.T) {
	for after, moves := range map[time.Duration]bool{100 * time.Millisecond: true, time.Hour: false} {
		bubble(t, func(t *testing.T) {
			w := newFakeWorld(plan{}, converse)
			defer w.close()
			var events []Event
			w.Client.Told = func(e Event) { events = append(events, e) }
			dial, relayed := w.Client.Dial, true
			w.Client.Dial = func(ctx context.Context) (Link, error) {
				l, err := dial(ctx)
				if err != nil {
					return nil, err
				}
				if relayed {
					return relayedLink{l.(*fakeLink)}, nil
				}
				w.Client.Dial = dial
				return newLateAnswer(l.(*fakeLink), after), nil
			}
			st, err := w.openSoon(t.Context())
			must(t, err)
			relayed = false
			began := time.Now()
			if err := w.Move(t.Context()); (err == nil) != moves {
				t.Errorf("the move: %v", err)
			}
			must(t, wantEchoed(st))
			if took := time.Since(began); took > time.Second {
				t.Errorf("the connection went on after %s", took)
			}
			synctest.Wait()
			if moves != (len(events) == 1 && events[0].Op == Moved) {
				t.Errorf("told %+v", events)
			}
		})
	}
}

type relayedLink struct{ *fakeLink }

func (relayedLink) Path() registry.Path { return registry.Path{Relayed: true} }

// TestCloseWaitsForNoDial: a parked trunk's resume dials, and that may hang.
func TestCloseWaitsForNoDial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newFakeWorld(plan{}, converse)
		defer w.close()
		_, err := w.openSoon(t.Context())
		must(t, err)
		hangs := make(chan struct{})
		w.Client.Dial = func(ctx context.Context) (Link, error) {
			close(hangs)
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
			}
			return nil, errCut
		}
		w.cut()
		<-hangs
		began := time.Now()
		w.Client.Close(proto.CodeClosed)
		if took := time.Since(began); took > time.Second {
			t.Errorf("closed after %s", took)
		}
	})
}

// A right that is taken away ends the trunk, and no resume goes around that,
// neither of a linked one nor of one that has just lost its link.
func TestNoResumeGoesAroundARevocation(t *testing.T) {
	for name, lose := range map[string]func(*world){"linked": func(*world) {}, "cut": (*world).cut} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, echo)
			st := open(t, w)
			_, err := st.Write([]byte("x"))
			must(t, err)
			_, err = io.ReadFull(st, make([]byte, 1))
			must(t, err)
			lose(w)
			w.revoke()
			var reset *registry.ResetError
			if _, err := st.Read(make([]byte, 1)); !errors.As(err, &reset) {
				t.Errorf("the stream goes on: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := w.Open(ctx); err == nil {
				t.Error("a new stream was opened")
			}
		})
	}
}
