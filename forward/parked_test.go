package forward

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/registry"
)

// TestAConnectionThatWaitsTakesAnyPeerThatComes, not only the one that others
// wait for.
func TestAConnectionThatWaitsTakesAnyPeerThatComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, registry.Tunnel{}, anna, ben)
		defer r.cancel()
		r.bindFake()
		r.Parked = func(peer string) bool { return peer == anna }
		got := make(chan error, 1)
		opened := errors.New("ben was asked")
		r.do(ben, func(p *fakePeer) {
			p.open = func(context.Context) (registry.End, error) {
				return nil, &registry.ResetError{Err: opened}
			}
		})
		go func() {
			_, _, _, err := r.Forward.open(t.Context())
			got <- err
		}()
		time.Sleep(time.Second)
		r.do(ben, func(p *fakePeer) { p.up = true })
		synctest.Wait()
		select {
		case err := <-got:
			if !errors.Is(err, opened) {
				t.Error(err)
			}
		default:
			t.Error("it waits on")
			<-got
		}
	})
}

// TestAPeerIsReachedAgainForConnectionsThatDrain, and only for those.
func TestAPeerIsReachedAgainForConnectionsThatDrain(t *testing.T) {
	for _, parked := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, registry.Tunnel{}, anna)
			r.bindFake()
			r.Parked = func(string) bool { return parked }
			stop := r.serve()
			stop() // serves no more
			before := len(look(r.world, &r.dials))
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			r.Regain(ctx)
			if dials := len(look(r.world, &r.dials)) - before; (dials > 3) != parked {
				t.Errorf("parked %v: %d dials", parked, dials)
			}
		})
	}
}
