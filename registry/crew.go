package registry

import "sync"

// crew counts the goroutines at work. Unlike a sync.WaitGroup it may be joined
// at any time, also while somebody waits.
type crew struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n falls to 0; nil while nobody waits
}

func (c *crew) join(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += n
}

func (c *crew) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.none != nil {
		close(c.none)
		c.none = nil
	}
}

func (c *crew) run(f func()) {
	c.join(1)
	go func() {
		defer c.leave()
		f()
	}()
}

// wait returns when nobody is at work.
func (c *crew) wait() {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return
	}
	if c.none == nil {
		c.none = make(chan struct{})
	}
	none := c.none
	c.mu.Unlock()
	<-none
}
