package registry

import (
	"context"
	"errors"
	"fmt"
)

// Part is one thing that is started and stopped.
type Part struct {
	Name  string
	Start func(context.Context) error
	Stop  func(context.Context) error // if nil, there is nothing to stop
}

// Sequence starts parts in order and stops them in the opposite order. The
// zero value is ready. It is not for use by several goroutines at once.
type Sequence struct {
	started []Part
}

// Start starts the parts one after the other. If one fails, those already
// started by this Sequence are stopped, last first, and its error is returned.
func (q *Sequence) Start(ctx context.Context, parts ...Part) error {
	for _, p := range parts {
		if err := p.Start(ctx); err != nil {
			return errors.Join(fmt.Errorf("start %s: %w", p.Name, err), q.Stop(context.WithoutCancel(ctx)))
		}
		q.started = append(q.started, p)
	}
	return nil
}

// Stop stops what was started, last first. Every part is stopped, whatever the
// others say; their errors are joined.
func (q *Sequence) Stop(ctx context.Context) error {
	var all error
	for len(q.started) > 0 {
		p := q.started[len(q.started)-1]
		q.started = q.started[:len(q.started)-1]
		if p.Stop == nil {
			continue
		}
		if err := p.Stop(ctx); err != nil {
			all = errors.Join(all, fmt.Errorf("stop %s: %w", p.Name, err))
		}
	}
	return all
}
