package registry

import (
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

// A server that answers and closes with a part of the question unread makes
// its kernel send the answer and then a RST: without a tunnel the client reads
// the answer first, and so it must through one.
func TestAnswerBeforeRSTIsReadBeforeTheReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		server, client, _, remote := g.memBoth(1 << 10)
		must(t, writeOf(server, []byte("too large"))())
		synctest.Wait()
		must(t, server.Reset(proto.CodeReset))
		synctest.Wait()
		answer := make([]byte, len("too large"))
		if _, err := io.ReadFull(client, answer); err != nil || string(answer) != "too large" {
			t.Errorf("read %q: %v", answer, err)
		}
		start := time.Now()
		_, err := client.Read(answer)
		if !errors.As(err, new(*ResetError)) || time.Since(start) > resetGrace {
			t.Errorf("then %v after %v", err, time.Since(start))
		}
		g.Wait()
		if !slices.Equal(remote.codes(), []proto.Code{proto.CodeReset}) {
			t.Errorf("remote was reset with %v", remote.codes())
		}
	})
}

func TestRSTWithoutABytePassesOnAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		server, client, _, _ := g.memBoth(1 << 10)
		must(t, server.Reset(proto.CodeReset))
		start := time.Now()
		if _, err := client.Read(make([]byte, 1)); !errors.As(err, new(*ResetError)) || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// The write that hears of the RST first must not cost the peer what the other
// way still holds.
func TestAnswerBeforeRSTThatAWriteHearsOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		server, client, _, _ := g.memBoth(1 << 10)
		must(t, writeOf(server, []byte("too large"))())
		synctest.Wait()
		server.in.fail(nil, &ResetError{Code: proto.CodeReset})
		must(t, writeOf(client, []byte("rest"))())
		synctest.Wait()
		must(t, server.Reset(proto.CodeReset))
		synctest.Wait()
		answer := make([]byte, len("too large"))
		if _, err := io.ReadFull(client, answer); err != nil || string(answer) != "too large" {
			t.Errorf("read %q: %v", answer, err)
		}
		g.Wait()
	})
}

func TestRevocationWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		server, client, _, _ := g.memBoth(1 << 10)
		must(t, writeOf(server, []byte("secret"))())
		synctest.Wait()
		start := time.Now()
		g.ResetStreams(all, proto.CodeRevoked)
		synctest.Wait() // remote ends are reset by goroutines
		_, err := client.Read(make([]byte, 1))
		var reset *ResetError
		if !errors.As(err, &reset) || reset.Code != proto.CodeRevoked || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}
