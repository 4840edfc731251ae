package trunk

import (
	"context"
	"errors"
	"sync"
	"time"

	"p2ptun/registry"
)

// errNoBetter says that a new link would go the way that the trunk goes now.
var errNoBetter = errors.New("trunk: no better path")

// leaves says that a link on the second path is worth to leave the first for:
// it goes around a relay.
func leaves(now, next registry.Path) bool { return now.Relayed && !next.Relayed }

const (
	// steady is how long a direct path is to last after a move to it; one that
	// is lost before makes the next wait, twice as long each time.
	steady  = 30 * time.Second
	holdMin = 5 * time.Second
	holdMax = 5 * time.Minute
)

// hysteresis keeps a trunk on its relay while the direct path comes and goes.
// The zero value works.
type hysteresis struct {
	mu    sync.Mutex
	last  time.Time // of the newest move
	until time.Time // none before that
	hold  time.Duration
}

// moved notes a move to a direct path.
func (h *hysteresis) moved() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = time.Now()
}

// lost notes that the link on that path was lost.
func (h *hysteresis) lost(path registry.Path) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if path.Relayed || h.last.IsZero() {
		return
	}
	if time.Since(h.last) > steady {
		h.hold = 0
	} else {
		h.hold = min(max(2*h.hold, holdMin), holdMax)
		h.until = time.Now().Add(h.hold)
	}
	h.last = time.Time{}
}

// wait returns when the trunk may move.
func (h *hysteresis) wait(ctx context.Context) error {
	h.mu.Lock()
	pause := time.Until(h.until)
	h.mu.Unlock()
	if pause <= 0 {
		return nil
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
