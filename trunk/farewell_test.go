package trunk

import (
	"io"
	"runtime"
	"sync/atomic"
	"testing"

	"p2ptun/proto"
)

// What the peer still sends when this side ends, and closes its host next, does
// not keep the end from arriving: its socket would be reset with it unread.
func TestAnEndArrivesAgainstTheStream(t *testing.T) {
	for range 20 {
		endAgainstTheStream(t)
	}
}

func endAgainstTheStream(t *testing.T) {
	t.Helper()
	w := newHostWorld(t, onTCP, func(st *Stream) {
		defer func() { _ = st.Close() }()
		buf := make([]byte, 256<<10)
		for {
			if _, err := st.Write(buf); err != nil {
				return
			}
		}
	}, directly)
	var parked atomic.Bool
	w.server.Told = func(e Event) { parked.Store(parked.Load() || e.Op == Parked) }
	for range 4 {
		st, err := w.Open(t.Context())
		must(t, err)
		_, err = io.CopyN(io.Discard, st, 4<<20)
		must(t, err)
		w.serving.Go(func() { _, _ = io.Copy(io.Discard, st); _ = st.Close() })
	}
	w.Client.Close(proto.CodeClosed)
	_ = w.from.Close()
	for all, _ := w.server.Count(); all > 0; all, _ = w.server.Count() {
		if parked.Load() {
			t.Fatal("the server keeps the session for its client to come back")
		}
		runtime.Gosched()
	}
}
