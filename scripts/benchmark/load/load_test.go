package load

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func startService(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestEachTransferIsWhole(t *testing.T) {
	addr := startService(t)
	for _, way := range []string{Up, Down, Both} {
		for _, conns := range []int{1, 3} {
			if _, err := Transfer(context.Background(), addr, way, conns, 3<<20+5); err != nil {
				t.Errorf("%s, %d: %v", way, conns, err)
			}
		}
	}
}

func TestRatesPingsAndHeldConnections(t *testing.T) {
	ctx, addr := context.Background(), startService(t)
	const short = 20 * time.Millisecond
	if n, err := Connections(ctx, addr, 2, short); err != nil || n <= 0 {
		t.Error(n, err)
	}
	if n, err := Requests(ctx, addr, 2, 16<<10, short); err != nil || n <= 0 {
		t.Error(n, err)
	}
	bulk, err := StartBulk(ctx, addr, 1, 50e6)
	if err != nil {
		t.Fatal(err)
	}
	if took, err := Pings(ctx, addr, time.Millisecond, short); err != nil || len(took) == 0 {
		t.Error(took, err)
	}
	if got, err := bulk.Stop(); err != nil || got <= 0 {
		t.Error(got, err)
	}
	var at []int
	if err := Hold(ctx, addr, []int{3, 5}, time.Minute, func(n int) { at = append(at, n) }); err != nil || len(at) != 2 {
		t.Error(at, err)
	}
}

func TestAPeerThatIsTooSlowIsGivenUp(t *testing.T) {
	err := Hold(context.Background(), startService(t), []int{1000}, 0, func(int) {})
	if err == nil || !strings.HasPrefix(err.Error(), "too slow at 1:") {
		t.Error(err)
	}
}

func TestTimedTransfersCountBothWays(t *testing.T) {
	addr := startService(t)
	for _, way := range []string{Up, Down} {
		if got, err := Timed(context.Background(), addr, way, 30*time.Millisecond); err != nil || got <= 0 {
			t.Errorf("%s: %f, %v", way, got, err)
		}
	}
}

func TestWhereNothingListensIsSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Await(context.Background(), l.Addr().String(), 10*time.Millisecond); err == nil {
		t.Error("a byte came back")
	}
}
