package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"p2ptun/access"
	"p2ptun/daemon"
	"p2ptun/registry"
)

// screen is what a person sees.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

// take gives what was written since the last take.
func (s *screen) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.text.Reset()
	return s.text.String()
}

// owner is a control socket that takes rules and keeps them.
type owner struct {
	client *daemon.Client
	mu     sync.Mutex
	rules  []daemon.AccessRequest
	rights map[string]daemon.Right // of whom none is said: RightNone
	fails  bool
}

func newOwner(t testing.TB) *owner {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	o := &owner{client: daemon.NewClient(path)}
	server := &http.Server{Handler: http.HandlerFunc(o.take)}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Close(); serving.Wait() })
	return o
}

func (o *owner) take(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r.URL.Path == "/rights" && !o.fails {
		_ = json.NewEncoder(w).Encode(o.rights)
		return
	}
	var req daemon.AccessRequest
	if o.fails || json.NewDecoder(r.Body).Decode(&req) != nil {
		http.Error(w, `{"code":"failed","message":"disk full"}`, http.StatusInternalServerError)
		return
	}
	o.rules = append(o.rules, req)
	_, _ = io.WriteString(w, "{}")
}

// says has the owner say what a peer may now.
func (o *owner) says(peer string, right daemon.Right) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rights = map[string]daemon.Right{peer: right}
}

func (o *owner) took() []daemon.AccessRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer func() { o.rules = nil }()
	return o.rules
}

// newTestPrompter reads from no terminal: answers are given by hand.
func newTestPrompter(t testing.TB) (*prompter, *owner, *screen) {
	t.Helper()
	s, o := new(screen), newOwner(t)
	return &prompter{
		t: &tool{Env: Env{In: strings.NewReader(""), Err: s}}, protocol: "/x/ssh", noes: map[string]struct{}{},
		lines: make(chan typedLine, maxTyped), done: make(chan struct{}), client: o.client, ctx: t.Context(), tunnel: "7",
	}, o, s
}

func asksOf(peer string) daemon.Event {
	return daemon.Event{Event: "refused", Protocol: "/x/ssh", Peer: peer, Reason: daemon.NotAllowed}
}

// late is a line that comes when a person has read the question.
func (p *prompter) late(text string) typedLine {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stands, p.withdrawn = p.stands.Add(-2*reading), p.withdrawn.Add(-2*startled)
	return typedLine{text, time.Now()}
}

func TestAnswersAreCarriedOut(t *testing.T) {
	rule := access.Rule{Allow: true, Protocol: "/x/ssh", Peer: "A"}
	for typed, want := range map[string]*daemon.AccessRequest{
		"o\n":        {Rule: rule, Tunnel: "7"},
		" ONCE \r\n": {Rule: rule, Tunnel: "7"},
		"a\n":        {Rule: rule},
		"Always\n":   {Rule: rule},
		"n\n":        nil,
		"no":         nil,
	} {
		p, o, s := newTestPrompter(t)
		if !p.asks(asksOf("A")) || !strings.Contains(s.take(), "A asks for /x/ssh; let it in?") {
			t.Fatal("no question")
		}
		p.answer(p.late(typed))
		got := o.took()
		if want == nil && len(got) > 0 || want != nil && (len(got) != 1 || got[0] != *want) {
			t.Errorf("%q: %+v", typed, got)
		}
		if len(p.asking) != 0 || strings.Contains(s.take(), "let it in?") {
			t.Errorf("%q: the question stands", typed)
		}
	}
}

func TestWhatIsNoAnswerLeavesTheQuestion(t *testing.T) {
	for _, typed := range []string{"\n", "yes\n", "oa\n", "oo\n", "ο\n", "\x1b[A\n", "o a\n", strings.Repeat("o", 5000) + "\n"} {
		p, o, s := newTestPrompter(t)
		p.asks(asksOf("A"))
		s.take()
		p.answer(p.late(typed))
		if said := s.take(); !strings.Contains(said, "none of o, a and n") || !strings.Contains(said, "A asks for") || len(said) > 1000 {
			t.Errorf("%q: %q", typed, said)
		}
		if len(o.took()) > 0 || len(p.asking) != 1 {
			t.Errorf("%q was taken for an answer", typed)
		}
	}
}

func TestLineThatCameBeforeItsQuestionIsNoAnswer(t *testing.T) {
	p, o, s := newTestPrompter(t)
	p.answer(typedLine{"a\n", time.Now()}) // there is none
	p.asks(asksOf("A"))
	p.asks(asksOf("B"))
	s.take()
	for _, early := range []time.Duration{-time.Hour, -1, 0, reading} {
		p.answer(typedLine{"a\n", p.stands.Add(early)})
		if said := s.take(); !strings.Contains(said, "typed before the question") || !strings.Contains(said, "A asks") {
			t.Errorf("%s: %q", early, said)
		}
	}
	answer := p.late("n\n")
	p.answer(answer)
	p.answer(answer) // was typed for A
	if got := o.took(); len(got) > 0 || len(p.asking) != 1 || p.asking[0] != "B" {
		t.Errorf("rules %+v, asking %v", got, p.asking)
	}
}

func TestAnswerThatCanNotBeCarriedOutIsSaid(t *testing.T) {
	p, o, s := newTestPrompter(t)
	o.fails = true
	p.asks(asksOf("A"))
	for _, typed := range []string{"o\n", "a\n"} {
		s.take()
		p.answer(p.late(typed))
		if said := s.take(); !strings.Contains(said, "disk full") || !strings.Contains(said, "A asks") || strings.Contains(said, "is let in") {
			t.Errorf("%q: %q", typed, said)
		}
	}
	if p.answer(p.late("n\n")); len(p.asking) != 0 {
		t.Error("no is no answer")
	}
}

func TestOneQuestionStandsAndFewWait(t *testing.T) {
	p, _, s := newTestPrompter(t)
	for i := range 50 {
		peer := fmt.Sprint("P", i)
		if stands := p.asks(asksOf(peer)); stands != (i == 0) {
			t.Errorf("%s: %v", peer, stands)
		}
		p.asks(asksOf(peer)) // again is once
	}
	if lines := strings.Count(s.take(), "\n"); lines != 1 || len(p.asking) != maxAsking {
		t.Errorf("%d lines, %d wait", lines, len(p.asking))
	}
	for i := range maxAsking {
		if p.asking[0] != fmt.Sprint("P", i) {
			t.Errorf("%s stands", p.asking[0])
		}
		p.answer(p.late("n"))
	}
	if p.asks(asksOf("P0")) || len(p.asking) != 0 || !p.asks(asksOf("P20")) {
		t.Error("who was refused is asked about again, or another is not")
	}
}

func TestNoesAreBounded(t *testing.T) {
	p, _, s := newTestPrompter(t)
	for i := range maxNoes + 10 {
		p.asks(asksOf(fmt.Sprint(i)))
		s.take()
		p.answer(p.late("n"))
		if promised := strings.Contains(s.take(), "not asked again"); promised != (i < maxNoes) {
			t.Errorf("no number %d: promised %v", i+1, promised)
		}
	}
	if len(p.noes) != maxNoes {
		t.Errorf("%d are remembered", len(p.noes))
	}
}

// rightsChange is the event that has questions looked at again.
func rightsChange(t testing.TB, p *prompter) {
	t.Helper()
	if p.asks(daemon.Event{Event: "access"}) {
		t.Error("the event is taken for a question")
	}
}

func TestQuestionThatARuleHasAnsweredIsWithdrawn(t *testing.T) {
	p, o, s := newTestPrompter(t)
	rightsChange(t, p)
	for _, peer := range []string{"A", "B", "C", "D"} {
		p.asks(asksOf(peer))
	}
	s.take()
	o.says("X", daemon.RightAllowed)
	rightsChange(t, p)
	o.says("B", daemon.RightAllowed)
	rightsChange(t, p)
	if said := s.take(); said != "" || fmt.Sprint(p.asking) != "[A C D]" {
		t.Errorf("the question about A changed: %q, %v wait", said, p.asking)
	}
	o.says("A", daemon.RightAllowed)
	rightsChange(t, p)
	if said := s.take(); !strings.Contains(said, "A is let in meanwhile: the question is withdrawn\n") || !strings.Contains(said, "C asks for /x/ssh") {
		t.Errorf("after A: %q", said)
	}
	o.says("C", daemon.RightDenied)
	rightsChange(t, p)
	if said := s.take(); !strings.Contains(said, "C is denied meanwhile: the question is withdrawn\n") || !strings.Contains(said, "D asks for /x/ssh") {
		t.Errorf("after C: %q", said)
	}
	o.says("D", daemon.RightAllowed)
	rightsChange(t, p)
	if s.take(); len(p.asking) != 0 {
		t.Errorf("%v wait", p.asking)
	}
	if p.answer(p.late("o")); len(o.took()) != 0 || s.take() != "" {
		t.Error("an answer to no question does something")
	}
}

// What a person has begun to type for one peer must not let in the next.
func TestAnswerToAQuestionThatIsWithdrawnIsNoneToTheNext(t *testing.T) {
	p, o, s := newTestPrompter(t)
	p.asks(asksOf("A"))
	p.asks(asksOf("B"))
	p.late("")
	o.says("A", daemon.RightAllowed)
	rightsChange(t, p)
	s.take()
	for _, after := range []time.Duration{0, 2 * reading, startled} {
		p.answer(typedLine{"a\n", p.withdrawn.Add(after)})
		if said := s.take(); !strings.Contains(said, "typed before the question") || !strings.Contains(said, "B asks") || len(o.took()) > 0 {
			t.Errorf("after %s: %q", after, said)
		}
	}
	if p.answer(p.late("n")); len(p.asking) != 0 {
		t.Error("no is no answer")
	}
}

func TestQuestionStandsWhereNobodyKnowsBetter(t *testing.T) {
	p, o, s := newTestPrompter(t)
	p.asks(asksOf("A"))
	s.take()
	o.fails = true
	rightsChange(t, p)
	o.fails = false
	o.says("A", "what a later version says")
	rightsChange(t, p)
	if said := s.take(); said != "" || len(p.asking) != 1 {
		t.Errorf("it said %q, %v wait", said, p.asking)
	}
}

func TestQuestionThatTheNextOwnerKnowsTheAnswerToIsWithdrawn(t *testing.T) {
	p, _, s := newTestPrompter(t)
	p.asks(asksOf("A"))
	next := newOwner(t)
	defer p.close()
	next.says("A", daemon.RightAllowed)
	p.start(t.Context(), next.client, "9")
	if said := s.take(); !strings.Contains(said, "A is let in meanwhile") || len(p.asking) != 0 {
		t.Errorf("it said %q, %v wait", said, p.asking)
	}
}

func TestOnlyAWantOfARuleIsAsked(t *testing.T) {
	p, _, s := newTestPrompter(t)
	for name, change := range map[string]func(*daemon.Event){
		"another event":    func(e *daemon.Event) { e.Event = "state" },
		"another protocol": func(e *daemon.Event) { e.Protocol = "/x/web" },
		"another reason":   func(e *daemon.Event) { e.Reason = "the invite is over" },
		"a denial":         func(e *daemon.Event) { e.Reason = daemon.Denied },
		"of a forward":     func(e *daemon.Event) { e.ID = "3" },
	} {
		e := asksOf("A")
		if change(&e); p.asks(e) || s.take() != "" {
			t.Errorf("%s is asked", name)
		}
	}
	if (*prompter)(nil).asks(asksOf("A")) {
		t.Error("nobody is asked")
	}
}

func TestQuestionIsPutToPeopleAlone(t *testing.T) {
	listens := registry.Tunnel{Kind: registry.KindListen, Protocol: "/x/ssh"}
	tl := &tool{Env: Env{In: strings.NewReader("")}, screen: true}
	if tl.newPrompter(listens) != nil {
		t.Error("stdin is no terminal")
	}
	tl.In = nil
	if tl.newPrompter(listens) != nil {
		t.Error("there is no stdin")
	}
}

func TestOnceIsRepeatedToTheNextOwner(t *testing.T) {
	p, first, _ := newTestPrompter(t)
	for _, peer := range []string{"A", "B", "C"} {
		p.asks(asksOf(peer))
	}
	for _, typed := range []string{"o", "a", "o"} {
		p.answer(p.late(typed))
	}
	first.took()
	next := newOwner(t)
	defer p.close()
	p.start(t.Context(), next.client, "9")
	var got []string
	for _, r := range next.took() {
		got = append(got, r.Tunnel+r.Peer)
	}
	if fmt.Sprint(got) != "[9A 9C]" {
		t.Errorf("the next owner is told %v", got)
	}
}

// A terminal gives lines, and errors while its program is in the background.
type flakyTerminal struct{ reads chan any }

func (f flakyTerminal) Read(b []byte) (int, error) {
	switch v := (<-f.reads).(type) {
	case string:
		return copy(b, v), nil
	case error:
		return 0, v
	}
	return 0, io.EOF
}

func TestReadingATerminalGoesOnAfterAnError(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		terminal := flakyTerminal{make(chan any)}
		p := &prompter{t: &tool{Env: Env{In: terminal, Err: io.Discard}}, lines: make(chan typedLine, maxTyped), done: make(chan struct{})}
		go p.read()
		for _, failure := range []error{io.EOF, io.ErrNoProgress, context.Canceled} {
			terminal.reads <- failure
			terminal.reads <- "o\n"
			if l := <-p.lines; l.text != "o\n" || !l.at.Equal(time.Now()) {
				t.Errorf("after %v: %+v", failure, l)
			}
		}
		for i := range 3 * maxTyped { // nobody takes them
			terminal.reads <- fmt.Sprintln(i)
		}
		synctest.Wait()
		if len(p.lines) != maxTyped {
			t.Errorf("%d lines are held", len(p.lines))
		}
		p.close()
		terminal.reads <- io.EOF
	})
}
