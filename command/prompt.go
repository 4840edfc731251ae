package command

import (
	"bufio"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"p2ptun/access"
	"p2ptun/daemon"
	"p2ptun/registry"
)

// Bounds of what waits for an answer: strangers ask.
const (
	maxAsking = 16
	maxNoes   = 1024
	maxTyped  = 16 // lines
)

// reading is what a person takes at least to read a question: a line that comes
// earlier was typed for something else.
const reading = 200 * time.Millisecond

// startled is how long a line may still come that was begun for a question which
// is withdrawn.
const startled = 3 * time.Second

// typedLine is what the owner typed, and when it came.
type typedLine struct {
	text string
	at   time.Time
}

// prompter lets the owner, on the terminal of a `listen`, answer peers that are
// not let in. One question stands at a time, and stays until it is answered, here
// or by a rule: nobody can make the screen scroll. Its methods work on nil, where nobody can
// answer.
type prompter struct {
	t        *tool
	protocol string
	lines    chan typedLine
	done     chan struct{} // closed by close
	typing   sync.Once

	mu        sync.Mutex
	client    *daemon.Client
	ctx       context.Context // of the session that client belongs to
	tunnel    string
	asking    []string            // peers, the first of which stands on the screen
	stands    time.Time           // when it was put there
	withdrawn time.Time           // when one that stood was taken back
	lent      []string            // peers that were let in until the listen ends
	noes      map[string]struct{} // peers that are not to be asked about again
}

// newPrompter is nil where stdin and stderr are no terminal, or the output is
// for a program.
func (t *tool) newPrompter(tunnel registry.Tunnel) *prompter {
	if tunnel.Kind != registry.KindListen || tunnel.Open || t.json || t.quiet || !t.screen || !isTerminalIn(t.In) {
		return nil
	}
	return &prompter{t: t, protocol: tunnel.Protocol, lines: make(chan typedLine, maxTyped), done: make(chan struct{}), noes: map[string]struct{}{}}
}

// start says by whom answers are carried out from now on. What was answered
// with once holds there as well.
func (p *prompter) start(ctx context.Context, client *daemon.Client, tunnel string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.ctx, p.client, p.tunnel = ctx, client, tunnel
	for _, peer := range p.lent {
		if err := client.Lend(ctx, tunnel, p.protocol, peer); err != nil {
			p.t.note("%s is let in no more: %v", peer, err)
		}
	}
	p.review()
	p.mu.Unlock()
	p.typing.Do(func() {
		go p.read()
		go p.answers()
	})
}

func (p *prompter) close() { close(p.done) }

// asks takes a peer that was refused for want of a rule. It says whether the
// question stands on the screen now; else the event is to be shown.
func (p *prompter) asks(e daemon.Event) bool {
	if p == nil {
		return false
	}
	if e.Event == "access" {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.review()
		return false
	}
	if e.Event != "refused" || e.ID != "" || e.Reason != daemon.NotAllowed || e.Protocol != p.protocol {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, no := p.noes[e.Peer]; no || len(p.asking) >= maxAsking || slices.Contains(p.asking, e.Peer) {
		return false
	}
	p.asking = append(p.asking, e.Peer)
	if len(p.asking) > 1 {
		return false
	}
	p.ask()
	return true
}

// decided is what became of a peer whose question is withdrawn.
var decided = map[daemon.Right]string{daemon.RightAllowed: "let in", daemon.RightDenied: "denied"}

// review withdraws what was decided elsewhere meanwhile: an answer would say what
// is not so. Where nobody tells, the questions stay. Call it with mu held.
func (p *prompter) review() {
	if len(p.asking) == 0 {
		return
	}
	rights, err := p.client.Rights(p.ctx, p.protocol, p.asking)
	if err != nil {
		return
	}
	stood := p.asking[0]
	p.asking = slices.DeleteFunc(p.asking, func(peer string) bool { return decided[rights[peer]] != "" })
	is := decided[rights[stood]]
	if is == "" {
		return
	}
	p.t.note("%s is %s meanwhile: the question is withdrawn", stood, is)
	p.withdrawn = time.Now()
	if len(p.asking) > 0 {
		p.ask()
	}
}

// ask puts the question. Call it with mu held.
func (p *prompter) ask() {
	p.stands = time.Now()
	p.t.note("%s asks for %s; let it in? type o (once: until this listen ends), a (always) or n (no), then Enter", p.asking[0], p.protocol)
}

// read gives what is typed to answers, and never waits for them: it is to know
// when a line came. In the background of a shell reading fails, or stops the
// process where SIGTTIN is not ignored, and Ctrl-D is no end of the terminal: it
// tries again.
func (p *prompter) read() {
	ignoreTTIN()
	in := bufio.NewReader(p.t.In)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			if !p.pause() {
				return
			}
			continue
		}
		select {
		case p.lines <- typedLine{line, time.Now()}:
		default: // more than any answer needs
		}
	}
}

// pause says false when there is nothing to wait for any more.
func (p *prompter) pause() bool {
	select {
	case <-time.After(time.Second):
		return true
	case <-p.done:
		return false
	}
}

func (p *prompter) answers() {
	for {
		select {
		case line := <-p.lines:
			p.answer(line)
		case <-p.done:
			return
		}
	}
}

// answer takes a line for the question that stands. What was typed before it
// stood is no answer: it was not meant as one.
func (p *prompter) answer(line typedLine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asking) == 0 {
		return
	}
	err := usagef("that was typed before the question")
	if line.at.Sub(p.stands) > reading && line.at.Sub(p.withdrawn) > startled {
		err = p.decide(strings.ToLower(strings.TrimSpace(line.text)), p.asking[0])
	}
	if err != nil {
		p.t.note("%v", err)
		p.ask()
		return
	}
	if p.asking = p.asking[1:]; len(p.asking) > 0 {
		p.ask()
	}
}

// decide carries an answer out.
func (p *prompter) decide(word, peer string) error {
	switch word {
	case "o", "once":
		return p.once(peer)
	case "a", "always":
		return p.did(p.client.SetRule(p.ctx, access.Rule{Allow: true, Protocol: p.protocol, Peer: peer}), peer, "is let in; to end that: "+p.t.self()+" deny "+named(p.protocol)+" "+peer)
	case "n", "no":
		if len(p.noes) >= maxNoes {
			return p.did(nil, peer, "is not let in; for good: "+p.t.self()+" deny "+named(p.protocol)+" "+peer)
		}
		p.noes[peer] = struct{}{}
		return p.did(nil, peer, "is not let in, and you are not asked again by this listen")
	}
	return usagef("that is none of o, a and n")
}

// once lets a peer in until this listen ends, also under another owner.
func (p *prompter) once(peer string) error {
	err := p.client.Lend(p.ctx, p.tunnel, p.protocol, peer)
	if err == nil {
		p.lent = append(p.lent, peer)
	}
	return p.did(err, peer, "is let in until this listen ends")
}

func (p *prompter) did(err error, peer, what string) error {
	if err == nil {
		p.t.note("%s %s", peer, what)
	}
	return err
}
