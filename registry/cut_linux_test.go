package registry

import (
	"errors"
	"io"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestATimeoutThatAWriteHearsIsNoEnd: the kernel reports it once too, and says that
// all has come to who reads next.
func TestATimeoutThatAWriteHearsIsNoEnd(t *testing.T) {
	for name, hear := range map[string]func(*connEnd){
		"Write":    func(e *connEnd) { _, _ = e.Write([]byte("x")) },
		"writeNow": func(e *connEnd) { e.writeNow([]byte("x")) },
	} {
		client, local := tcpPair(t)
		e := connEndOf(t, local).(*connEnd)
		must(t, client.SetReadBuffer(4096))
		must(t, e.ready.raw.Control(func(fd uintptr) {
			must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 100))
		}))
		must(t, writeOf(client, []byte("not all"))())
		must(t, writeOf(e, pattern(64<<10))()) // which the client does not read
		eventually(t, e.dead)
		hear(e)
		if got, err := io.ReadAll(e); string(got) != "not all" || !errors.Is(err, syscall.ETIMEDOUT) || !errors.As(err, new(*ResetError)) {
			t.Errorf("%s hears it: %q, then %v", name, got, err)
		}
	}
}
