package trunk

import "slices"

// ticket is a place in the queue of writers.
type ticket struct {
	n  int
	in chan struct{} // closed when it is its turn
}

// admit waits until n bytes, of at most a chunk, may be written: writers get on
// one after the other, a chunk each, while there is room. It reports false when
// cancel is closed before, or the pipe ends; else send is to be called.
func (p *pipe) admit(n int, cancel <-chan struct{}) bool {
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return false
	}
	if (len(p.queue) == 0 || n <= smallWrite) && p.fits(n) {
		p.held += n
		p.mu.Unlock()
		return true
	}
	t := &ticket{n: n, in: make(chan struct{})}
	p.queue = append(p.queue, t)
	p.mu.Unlock()
	select {
	case <-t.in:
		return true
	case <-cancel:
	case <-p.ended:
	}
	p.giveBack(t)
	return false
}

// giveBack takes a ticket out of the queue, or what it was given just now.
func (p *pipe) giveBack(t *ticket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.queue, t); i >= 0 {
		p.queue = slices.Delete(p.queue, i, i+1)
		return
	}
	p.held -= t.n
	p.letIn()
}

// letIn admits those for whom there is room. Call it with mu held.
func (p *pipe) letIn() {
	for len(p.queue) > 0 && p.fits(p.queue[0].n) {
		t := p.queue[0]
		p.queue[0] = nil
		p.queue = p.queue[1:]
		p.held += t.n
		close(t.in)
	}
	if len(p.queue) == 0 {
		p.queue = nil
	}
}
