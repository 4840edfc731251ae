package registry

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"p2ptun/proto"
)

func subscribe[T Event](tb testing.TB, d *Dispatcher, depth int) *Subscription[T] {
	tb.Helper()
	s, err := Subscribe[T](d, "test", depth)
	must(tb, err)
	return s
}

// take gives what is queued, and how many were said to be lost.
func take[T Event](tb testing.TB, s *Subscription[T]) (events []T, lost uint64) {
	tb.Helper()
	ctx, cancel := context.WithCancel(tb.Context())
	cancel()
	for {
		e, n, err := s.Next(ctx)
		if err != nil {
			return events, lost
		}
		events, lost = append(events, e), lost+n
	}
}

func refused(reason string) RefusedEvent { return RefusedEvent{Reason: reason} }

func TestSubscriberGetsItsTypeOnly(t *testing.T) {
	d := NewDispatcher()
	tunnels := subscribe[TunnelEvent](t, d, 5)
	refusals := subscribe[RefusedEvent](t, d, 5)
	every := subscribe[Event](t, d, 5)
	d.Publish(TunnelEvent{})
	d.Publish(refused("a"))
	d.Publish(StreamEvent{})
	got, _ := take(t, tunnels)
	mine, _ := take(t, refusals)
	all, _ := take(t, every)
	if len(got) != 1 || len(mine) != 1 || len(all) != 3 {
		t.Errorf("%d tunnel events, %d refusals, %d in all", len(got), len(mine), len(all))
	}
	if _, ok := all[2].(StreamEvent); !ok {
		t.Errorf("order or type lost: %#v", all)
	}
	if d.Lost() != 0 {
		t.Errorf("%d lost", d.Lost())
	}
}

func TestSlowSubscriberIsToldHowManyItLostAndHoldsUpNobody(t *testing.T) {
	d := NewDispatcher()
	slow := subscribe[RefusedEvent](t, d, 2)
	quick := subscribe[RefusedEvent](t, d, 100)
	for range 10 {
		d.Publish(refused("")) // returns, although nobody reads
	}
	events, lost := take(t, slow)
	if len(events) != 2 || lost != 8 {
		t.Errorf("slow: %d events, %d lost", len(events), lost)
	}
	if events, lost = take(t, quick); len(events) != 10 || lost != 0 {
		t.Errorf("quick: %d events, %d lost", len(events), lost)
	}
	d.Publish(refused(""))
	if _, lost = take(t, slow); lost != 0 {
		t.Errorf("%d lost are told twice", lost)
	}
	if d.Lost() != 8 {
		t.Errorf("%d lost in all", d.Lost())
	}
}

func TestEachLostEventIsToldOnceUnderLoad(t *testing.T) {
	const publishers, each = 4, 5000
	d := NewDispatcher()
	s := subscribe[RefusedEvent](t, d, 3)
	done := background(func() error { publishAll(d, publishers, each); return nil })
	var got, lost uint64
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		events, n := take(t, s)
		got, lost = got+uint64(len(events)), lost+n
	}
	d.Publish(refused("last")) // brings what was not told yet
	_, n := take(t, s)
	if lost += n; got+lost != publishers*each || lost != d.Lost() {
		t.Errorf("%d got and %d lost of %d; %d lost says the dispatcher", got, lost, publishers*each, d.Lost())
	}
}

func publishAll(d *Dispatcher, publishers, each int) {
	var c crew
	for range publishers {
		c.run(func() {
			for range each {
				d.Publish(refused(""))
			}
		})
	}
	c.wait()
}

func TestBlockedSubscriberHoldsUpNoStream(t *testing.T) {
	g := newRig(t)
	stuck := subscribe[Event](t, g.Events, 1)
	defer stuck.Close()
	for range 100 {
		client, _, _, _ := g.memBoth(10)
		must(t, client.Reset(proto.CodeReset))
	}
	g.drained()
	g.Wait()
	if g.Events.Lost() != 199 {
		t.Errorf("%d of 200 events lost with a queue of 1", g.Events.Lost())
	}
}

func TestNextEndsWithContextAndWithClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDispatcher()
		s := subscribe[Event](t, d, 1)
		ctx, cancel := context.WithCancel(t.Context())
		next := func() <-chan error {
			return background(func() error { _, _, err := s.Next(ctx); return err })
		}
		first := next()
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		ctx = t.Context()
		second := next()
		synctest.Wait()
		s.Close()
		s.Close()
		if err := <-second; !errors.Is(err, ErrUnsubscribed) {
			t.Errorf("got %v", err)
		}
	})
}

func TestQueuedEventsAreStillReadAfterClose(t *testing.T) {
	d := NewDispatcher()
	s := subscribe[RefusedEvent](t, d, 2)
	d.Publish(refused("a"))
	s.Close()
	d.Publish(refused("b"))
	if e, _, err := s.Next(t.Context()); err != nil || e.Reason != "a" {
		t.Errorf("%+v, %v", e, err)
	}
	if _, _, err := s.Next(t.Context()); !errors.Is(err, ErrUnsubscribed) {
		t.Errorf("got %v", err)
	}
}

func TestSubscribersAreBounded(t *testing.T) {
	d := NewDispatcher()
	var last *Subscription[Event]
	for range MaxSubscribers {
		last = subscribe[Event](t, d, 0)
	}
	if _, err := Subscribe[Event](d, "more", 1); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
	last.Close()
	subscribe[Event](t, d, 1)
}

func TestStreamsWantedOnlyWhileSomebodyTakesThem(t *testing.T) {
	d := NewDispatcher()
	subscribe[QuietEvent](t, d, 1)
	subscribe[TunnelEvent](t, d, 1)
	if d.StreamsWanted() {
		t.Error("wanted though nobody takes stream events")
	}
	s := subscribe[Event](t, d, 1)
	if !d.StreamsWanted() {
		t.Error("not wanted with a subscriber")
	}
	s.Close()
	if d.StreamsWanted() {
		t.Error("wanted after the last has gone")
	}
}

func TestDepthsTellQueueBoundAndLoss(t *testing.T) {
	d := NewDispatcher()
	for _, name := range []string{"b", "a", "b"} {
		s, err := Subscribe[Event](d, name, 2)
		must(t, err)
		defer s.Close()
	}
	for range 3 {
		d.Publish(refused(""))
	}
	list := d.Depths()
	for i, name := range []string{"a", "b", "b"} {
		if list[i] != (QueueDepth{Name: name, Queued: 2, Bound: 2, Lost: 1}) {
			t.Errorf("%+v", list[i])
		}
	}
}

func TestStreamEventsTellOpenedAndClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		sub := subscribe[StreamEvent](t, g.Events, 10)
		defer sub.Close()
		client, peer, _, _ := g.memBoth(10)
		must(t, writeOf(client, []byte("abc"))())
		readN(t, peer, 3)
		synctest.Wait()
		g.ResetStreams(all, proto.CodeRevoked)
		g.Wait()
		events, _ := take(t, sub)
		if len(events) != 2 || events[0].Op != StreamOpened || events[1].Op != StreamClosed {
			t.Fatalf("%+v", events)
		}
		if s := events[1].Stream; s.BytesOut != 3 || s.Reset != "access revoked" || s.ID != events[0].Stream.ID || s.Peer != "peer" {
			t.Errorf("%+v", s)
		}
	})
}
