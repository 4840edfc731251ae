package ceiling

import (
	"context"
	"net"
	"testing"

	"benchmark/load"
)

// open listens and has serve take the connections until the end of the test.
func open(t *testing.T, serve func(net.Listener) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- serve(l) }()
	t.Cleanup(func() {
		l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestEachCeilingCarriesBytesExactly(t *testing.T) {
	service := open(t, load.Serve)
	to := func(serve func(net.Listener, string) error, target string) string {
		return open(t, func(l net.Listener) error { return serve(l, target) })
	}
	for name, addr := range map[string]string{
		"splice": to(Splice, to(Splice, service)),
		"tls":    to(TLSClient, to(TLSServer, service)),
	} {
		for _, way := range []string{load.Up, load.Down, load.Both} {
			if _, err := load.Transfer(context.Background(), addr, way, 2, 8<<20+3); err != nil {
				t.Errorf("%s, %s: %v", name, way, err)
			}
		}
	}
}
