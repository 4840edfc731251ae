package registry

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// diary notes what starts and stops.
type diary []string

func (d *diary) part(name string, startErr, stopErr error) Part {
	return Part{
		Name:  name,
		Start: func(context.Context) error { *d = append(*d, "+"+name); return startErr },
		Stop: func(ctx context.Context) error {
			*d = append(*d, "-"+name)
			return errors.Join(stopErr, ctx.Err())
		},
	}
}

func (d diary) want(tb testing.TB, want ...string) {
	tb.Helper()
	if !slices.Equal(d, want) {
		tb.Errorf("%v, want %v", []string(d), want)
	}
}

func TestLastStartedStopsFirst(t *testing.T) {
	var d diary
	var q Sequence
	must(t, q.Start(t.Context(), d.part("a", nil, nil), d.part("b", nil, nil)))
	must(t, q.Start(t.Context(), d.part("c", nil, nil)))
	must(t, q.Stop(t.Context()))
	must(t, q.Stop(t.Context()))
	d.want(t, "+a", "+b", "+c", "-c", "-b", "-a")
}

func TestFailedStartStopsThoseThatStarted(t *testing.T) {
	var d diary
	var q Sequence
	broken := errors.New("broken")
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // stopping must not suffer from what made starting fail
	err := q.Start(ctx, d.part("a", nil, nil), d.part("b", nil, nil), d.part("c", broken, nil), d.part("d", nil, nil))
	if !errors.Is(err, broken) || err.Error() != "start c: broken" {
		t.Errorf("got %v", err)
	}
	d.want(t, "+a", "+b", "+c", "-b", "-a")
	must(t, q.Start(t.Context(), d.part("e", nil, nil)))
	must(t, q.Stop(t.Context()))
	d.want(t, "+a", "+b", "+c", "-b", "-a", "+e", "-e")
}

func TestEveryPartIsStoppedWhateverOthersSay(t *testing.T) {
	var d diary
	var q Sequence
	one, two := errors.New("one"), errors.New("two")
	must(t, q.Start(t.Context(), d.part("a", nil, one), d.part("b", nil, two), d.part("c", nil, nil)))
	err := q.Stop(t.Context())
	if !errors.Is(err, one) || !errors.Is(err, two) {
		t.Errorf("got %v", err)
	}
	d.want(t, "+a", "+b", "+c", "-c", "-b", "-a")
}

func TestPartWithoutStop(t *testing.T) {
	var d diary
	var q Sequence
	mute := d.part("b", nil, nil)
	mute.Stop = nil
	must(t, q.Start(t.Context(), d.part("a", nil, nil), mute))
	must(t, q.Stop(t.Context()))
	d.want(t, "+a", "+b", "-a")
}
